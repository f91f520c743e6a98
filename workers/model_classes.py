"""What transformers makes of a model directory: the same for answering and for training.

Imports torch and transformers only when they are needed.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from shammah.models.hub_config import complete, lacks, read_config
from workers.environment import prepare_libraries

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_LAYER = re.compile(r"\.\d+\.")
_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"}


def read_model_config(text: str) -> dict[str, Any]:
    """A ``config.json``, completed with the defaults of its model type's class. Only where those
    are known to transformers alone is that imported.

    Raises:
        ValueError: it is none; the error completes "config.json ...".
    """
    config = read_config(text)
    return complete(config, _class_defaults) if lacks(config) else config


def _class_defaults(model_type: str) -> dict[str, Any]:
    prepare_libraries()
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING:
        return {}
    named: Any = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    length = getattr(CONFIG_MAPPING[model_type](), "max_position_embeddings", None)
    found = {"architectures": [named] if isinstance(named, str) else list(named or ())}
    return found | ({"max_position_embeddings": length} if length else {})


def find_class(directory: Path, model_type: str, architecture: str) -> Any:
    """The class of transformers that computes this model; imports its module.

    Raises:
        ShammahError: ``model_unsupported`` or ``model_config_invalid``.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    unsupported = ShammahError(
        "model_unsupported",
        f"transformers has no text generation for {architecture} "
        f"(model type {model_type!r}) built in.",
        "Choose another model with --model.",
    )
    if model_type not in CONFIG_MAPPING:
        raise unsupported
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(_read_config(directory)), None)
    if found is None or not found._supports_default_dynamic_cache():
        raise unsupported
    return found


def _read_config(directory: Path) -> Any:
    """transformers' configuration of a model, without numbers of tokens that it does not have:
    nothing is computed with them, but transformers would refuse them.

    Raises:
        ShammahError: ``model_config_invalid``.
    """
    from transformers import CONFIG_MAPPING

    try:
        document = json.loads((directory / "config.json").read_bytes())
        size = document["vocab_size"]
        for name in _TOKENS & document.keys():
            given = document.get(name)
            several = isinstance(given, list) and name == "eos_token_id"
            if not all(
                type(n) is int and n in range(size) for n in (given if several else [given])
            ):
                document[name] = None
        return CONFIG_MAPPING[document["model_type"]].from_dict(document)
    except Exception as error:
        # transformers raises whatever its validation came across.
        raise ShammahError(
            "model_config_invalid",
            f"transformers cannot use the model's configuration: {first_line(error)}",
            FETCH_AGAIN,
        ) from error


def read_model(model_class: Any, directory: Path, dtype: torch.dtype, **options: Any) -> Any:
    """A ``model_class`` with the weights in ``directory``, and nothing else: no weight is made
    up, and an adapter next to them is not loaded.

    Raises:
        ShammahError: ``model_config_invalid``: weights and configuration differ.
        Exception: whatever transformers came across.
    """
    model, report = model_class.from_pretrained(
        directory,
        config=_read_config(directory),
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported, and refused by `_check`
        output_loading_info=True,
        # Where it looks for adapters. It would load one next to the weights.
        adapter_kwargs={"subfolder": "no-adapter"},
        **options,
    )
    _check(report, directory)
    return model


def check_finite(model: Any) -> None:
    """Refuse weights that no training can have left behind. Reads all of them.

    Raises:
        ShammahError: ``model_corrupt``, with the name of the tensor.
    """
    import torch

    for name, weights in model.named_parameters():
        if not weights.is_floating_point() or not weights.numel():
            continue
        if not torch.isfinite(torch.stack(torch.aminmax(weights))).all():
            raise not_finite(name)


def not_finite(tensor: str) -> ShammahError:
    """The weights cannot be computed with."""
    return ShammahError(
        "model_corrupt", f"The model's {tensor} holds NaN or infinite numbers.", FETCH_AGAIN
    )


@contextmanager
def observed(advance: Callable[[], object]) -> Iterator[None]:
    """Have ``advance`` called for every tensor that is read, and no progress bar drawn."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def counting(items: Any) -> Iterator[Any]:
        for item in items:
            yield item
            advance()

    def counted(bar: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if not arguments:
            return bar(**options)
        return bar(counting(arguments[0]), *arguments[1:], **options)

    previous = transformers_logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def first_line(error: BaseException) -> str:
    """An exception of a library's in one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    if len(lines) > 1 and lines[0].endswith(":"):
        lines[:2] = [f"{lines[0]} {lines[1]}"]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _check(report: dict[str, Any], directory: Path) -> None:
    """transformers only warns where weights and configuration differ, and makes up the rest."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, held, told = mismatched[0]
        raise _differ(f"hold {name} as {list(held)}, but config.json says {list(told)}")
    missing = sorted(report["missing_keys"])
    if missing:
        raise _differ(f"lack {len(missing)} tensors that config.json asks for ({missing[0]}, ...)")
    unexpected = sorted(report["unexpected_keys"])
    strangers = [name for name in unexpected if _LAYER.search(name)]
    if strangers:
        raise _differ(
            f"hold {len(strangers)} tensors that config.json does not describe "
            f"({strangers[0]}, ...)"
        )
    if unexpected:
        log.warning("%s: not used: %s", directory.name, ", ".join(unexpected))


def _differ(why: str) -> ShammahError:
    return ShammahError("model_config_invalid", f"The weights {why}.", FETCH_AGAIN)
