"""An adapter worked into its base model: a model of its own, for any program."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.bus.training import MergeAdapter, Merged
from shammah.errors import ShammahError
from shammah.learning.adapters import AdapterStore
from shammah.settings.model import Settings
from shammah.storage.files import new_directory, remove_abandoned
from workers.environment import prepare_libraries
from workers.text.model_text import FILES
from workers.train.base_model import Arithmetic, load_base, locate, revision_of

if TYPE_CHECKING:
    from workers.train.adapter import LoRAAdapter

log = logging.getLogger(__name__)


def merge(
    asked: MergeAdapter, settings: Settings, environ: Mapping[str, str], advance: Callable[[], None]
) -> Merged:
    """Write a base model with an adapter worked in, in 16 bits, as a model of its own.

    Raises:
        ShammahError: ``adapter_not_found``, ``model_not_found``, ``directory_exists`` and what
            loading can come across.
    """
    entry = AdapterStore(settings.home).get(asked.adapter)
    target = Path(asked.directory)
    if target.exists():
        raise ShammahError(
            "directory_exists",
            f"{target} exists already.",
            "Choose a directory that does not exist.",
        )
    located = locate(asked.model or entry.base_model, settings, environ)
    revision = revision_of(located.directory)
    if entry.base_revision and revision != entry.base_revision:
        raise ShammahError(
            "adapter_invalid",
            f"{entry.name} was made for revision {entry.base_revision} of {entry.base_model}, "
            f"and {revision or 'another one'} is here.",
            "Train again for the model on this machine.",
        )
    prepare_libraries()
    import torch

    from workers.train.adapter import load_lora

    adapter: LoRAAdapter = load_lora(
        load_base(located, Arithmetic("cpu", "float32")), entry.directory
    )
    advance()
    merged = adapter.merge().to(torch.bfloat16)
    write_model(merged, located.directory, target)
    return Merged(asked.request_id, str(target))


def write_model(model: Any, source: Path, target: Path) -> None:
    """``model`` with the tokenizer of ``source``, whole or not at all.

    Raises:
        ShammahError: ``directory_unwritable``.
    """
    try:
        for draft in remove_abandoned(target.parent, time.time(), target):
            log.info("removed an unfinished merge: %s", draft)
        with new_directory(target) as made:
            model.save_pretrained(made)
            for name in FILES:
                if (source / name).exists():
                    shutil.copyfile(source / name, made / name)
    except OSError as error:
        raise ShammahError(
            "directory_unwritable",
            f"The model cannot be written ({error.strerror}: {target}).",
            "Choose another directory, or free some space.",
        ) from error
