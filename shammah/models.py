"""Which model: the catalogue, the choice by memory, and where a model lies on this disk.

Pure apart from looking at files: memory, environment and directories are passed in.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from shammah.bus.messages import NotAvailable
from shammah.errors import ExitCode, ShammahError

GIB = 1024**3

STARTER = "starter"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class CatalogueModel:
    """A Qwen2.5-Instruct model as its authors publish it.

    ``download_bytes`` is the size of the bf16 safetensors: two bytes a parameter.
    ``memory_from`` is the least total memory, in GiB, for which it is the automatic choice.
    """

    size: str
    model_id: str
    parameters: int
    layers: int
    kv_heads: int
    head_dim: int
    licence: str
    memory_from: int

    @property
    def download_bytes(self) -> int:
        return 2 * self.parameters


CATALOGUE = (
    CatalogueModel("0.5B", "Qwen/Qwen2.5-0.5B-Instruct", 494_032_768, 24, 2, 64, "apache-2.0", 3),
    CatalogueModel(
        "1.5B", "Qwen/Qwen2.5-1.5B-Instruct", 1_543_714_304, 28, 2, 128, "apache-2.0", 6
    ),
    CatalogueModel(
        "3B", "Qwen/Qwen2.5-3B-Instruct", 3_085_938_688, 36, 2, 128, "qwen-research", 12
    ),
    CatalogueModel("7B", "Qwen/Qwen2.5-7B-Instruct", 7_615_616_512, 28, 4, 128, "apache-2.0", 24),
    CatalogueModel(
        "14B", "Qwen/Qwen2.5-14B-Instruct", 14_770_033_664, 48, 8, 128, "apache-2.0", 48
    ),
)
"""Smallest first. The cut points 12, 24 and 48 are the original's; below 3 GiB: cloud only."""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_COMMIT = re.compile(r"\w{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class LocatedModel:
    """A model that is on this disk.

    ``name`` is what people call it; ``stand_in`` marks the starter when it takes the place of
    ``wanted``, which cannot be had.
    """

    name: str
    directory: Path
    wanted: str
    stand_in: bool = False


@dataclass(frozen=True, slots=True)
class MissingModel:
    """A model of the Hub that is not known to be whole on this disk.

    ``present`` is a snapshot of it that some other program has made; ``stand_in`` may answer
    until it is here.
    """

    model_id: str
    present: Path | None = None
    stand_in: LocatedModel | None = None


def select_model(total_memory: int) -> CatalogueModel | None:
    """The largest model for ``total_memory`` bytes; ``None``: too little for any."""
    gib = total_memory // GIB
    fitting = [model for model in CATALOGUE if model.memory_from <= gib]
    return fitting[-1] if fitting else None


def total_memory(physical: int, cgroup_root: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that this process may really use: ``physical``, or a container's lower limit."""
    limits = [physical]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # cgroup v2, v1
        try:
            text = (cgroup_root / name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():  # v2 writes "max" for no limit
            limits.append(int(text))
    return min(limits)


def model_id_of(wanted: str) -> str:
    """The Hub id that a size stands for; anything else is returned as it is."""
    for model in CATALOGUE:
        if model.size.lower() == wanted.lower():
            return model.model_id
    return wanted


def hub_model(wanted: str, memory: int) -> str | None:
    """The Hub id that ``wanted`` comes to with ``memory`` bytes; ``None``: it is not of the
    Hub, or memory is too little."""
    if wanted == AUTO:
        selected = select_model(memory)
        return selected.model_id if selected else None
    return None if wanted == STARTER or os.path.isabs(wanted) else model_id_of(wanted)


def is_choice(wanted: str) -> bool:
    """Whether a name means one of our own choices, whatever lies on the disk."""
    return wanted in (AUTO, STARTER) or model_id_of(wanted) != wanted


def check_model_name(wanted: str) -> None:
    """Refuse a model name that can mean nothing.

    Raises:
        ShammahError: ``model_unknown``.
    """
    if not is_choice(wanted) and not os.path.isabs(wanted):
        check_hub_id(wanted)


def check_hub_id(wanted: str) -> None:
    """Refuse what cannot be ``owner/name`` on the Hub.

    Raises:
        ShammahError: ``model_unknown``.
    """
    if not _HUB_ID.fullmatch(wanted) or ".." in wanted:
        sizes = ", ".join(model.size for model in CATALOGUE)
        raise ShammahError(
            "model_unknown",
            f"There is no model {wanted!r}.",
            f"Name one of auto, starter, {sizes}, a Hub id (owner/name) or a directory.",
            exit_code=ExitCode.USAGE,
        )


def starter_directory() -> Path:
    """Where the starter model of this installation lies (`scripts/make_starter.py`)."""
    return Path(sys.prefix, "share", "shammah", "starter")


def hub_cache(environ: Mapping[str, str]) -> Path:
    """The Hugging Face cache, found as huggingface_hub finds it."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    default = os.path.join(home, "hub")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or default
    return Path(os.path.expandvars(os.path.expanduser(named)))


def cached_snapshot(cache: Path, model_id: str) -> Path | None:
    """The snapshot of ``model_id`` that ``refs/main`` names, if it is there.

    Whether it is complete is for the loader to check: the library keeps half snapshots.
    """
    repository = cache / f"models--{model_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / revision
    return snapshot if _COMMIT.fullmatch(revision) and (snapshot / "config.json").exists() else None


def locate_model(
    wanted: str,
    memory: int,
    cache: Path,
    starter: Path,
    *,
    stand_in: bool,
    is_whole: Callable[[Path], bool],
) -> LocatedModel | MissingModel | NotAvailable:
    """Where the model that ``wanted`` means lies on this disk.

    Args:
        wanted: ``auto``, ``starter``, a size, a Hub id or an absolute directory.
        memory: bytes, for ``auto``.
        cache: the Hugging Face cache.
        starter: the starter's directory.
        stand_in: whether the starter may take the place of an automatic choice that is not
            here.
        is_whole: whether a snapshot has been fetched to its end and verified.

    Raises:
        ShammahError: ``model_unknown`` or ``model_not_found``.
    """
    check_model_name(wanted)
    if wanted == STARTER:
        return _located_starter(starter)
    if os.path.isabs(wanted):
        if not os.path.isdir(wanted):
            raise ShammahError(
                "model_not_found",
                f"There is no model directory {wanted}.",
                "Name a directory that holds config.json and safetensors files.",
            )
        return LocatedModel(os.path.basename(wanted), Path(wanted), wanted)
    selected = select_model(memory)
    model_id = model_id_of(wanted)
    substitute = None
    if wanted == AUTO:
        model_id = selected.model_id if selected else ""
        if stand_in and starter.is_dir():
            substitute = LocatedModel(STARTER, starter, model_id or "a model", stand_in=True)
    if not model_id:
        return substitute or _too_little(memory)
    snapshot = cached_snapshot(cache, model_id)
    if snapshot is not None and is_whole(snapshot):
        return LocatedModel(model_id, snapshot, model_id)
    return MissingModel(model_id, snapshot, substitute)


def _located_starter(starter: Path) -> LocatedModel:
    if not starter.is_dir():
        raise ShammahError(
            "model_not_found",
            f"The starter model is not installed ({starter} is missing).",
            "Run scripts/make_starter.py, or scripts/run, which does it.",
        )
    return LocatedModel(STARTER, starter, STARTER)


def _too_little(memory: int) -> NotAvailable:
    return NotAvailable(
        f"{memory / GIB:.1f} GiB of memory are too little for a local model.",
        "Set ANTHROPIC_API_KEY to use Claude, or try --model starter.",
    )
