"""Which model: the catalogue, the choice by memory, and where a model lies on this disk.

Pure apart from looking at files: memory, environment and directories are passed in.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from shammah.bus.messages import NotAvailable
from shammah.bus.record import record
from shammah.errors import ExitCode, ShammahError
from shammah.models.cgroups import memory_limits
from shammah.models.gguf_files import (
    ENDING,
    check_app_name,
    find_app_file,
    is_app_name,
    list_gguf,
    only_gguf,
    part_names,
)
from shammah.storage.paths import hub_cache

GIB = 1024**3

STARTER = "starter"
AUTO = "auto"
SERVER = "server:"

FETCH_AGAIN = "Download the model again, or choose another one with --model."
"""What to do about files that cannot be used (see `followable_hints`)."""

GPU_HEADROOM_BYTES = 2 * GIB
"""What a GPU must hold besides 16-bit weights: the context of CUDA, keys and values, a step."""

GPU_WEIGHT_BYTES = {"int4": 0.8}
"""Of a weight on a GPU, by quantization: its part of a scale, and of the embeddings, which have 16
bits as all weights do otherwise."""

PERMISSIVE = frozenset({"apache-2.0"})
"""The licences in the catalogue under which a model may be used for anything."""


@record
class ModelShape:
    """What decides how large a decoder is in memory. Counts, not bytes.

    ``intermediate`` is the width inside a feed-forward block, ``kv_heads`` the number of heads
    whose keys and values are kept, ``context_length`` in tokens; ``tied``: the table of
    embeddings is the output layer, too.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    tied: bool


@record
class CatalogueModel:
    """A model of the Qwen family as its authors publish it.

    ``size`` is what people name it by. ``parameters`` follows from ``shape`` (a test does the sum).
    ``memory_from`` is the least total memory, in GiB, for which it is the automatic choice; 0: it
    is only taken by name. ``head_copied``: the files hold a tied table twice.
    """

    size: str
    model_id: str
    parameters: int
    shape: ModelShape
    licence: str = "apache-2.0"
    memory_from: int = 0
    head_copied: bool = False

    @property
    def download_bytes(self) -> int:
        """The tensors of the bf16 safetensors; the files' headers are some 10 kB more."""
        copied = self.shape.vocabulary * self.shape.hidden if self.head_copied else 0
        return 2 * (self.parameters + copied)

    @property
    def permissive(self) -> bool:
        return self.licence in PERMISSIVE

    @property
    def name(self) -> str:
        """Without its owner."""
        return self.model_id.partition("/")[2]


@record
class Machine:
    """What a model may be loaded into; all numbers are bytes.

    ``memory`` is what the process may use of the main memory, ``gpu_memory`` what the CUDA GPU
    has (0: there is none that can be used), ``mps`` whether it is a Mac that computes with
    Metal in its main memory.
    """

    memory: int
    gpu_memory: int = 0
    mps: bool = False


def _shape(numbers: str, *, tied: bool) -> ModelShape:
    """``numbers`` are those of `ModelShape`, in its order."""
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, context = map(
        int, numbers.split()
    )
    return ModelShape(
        layers,
        hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=vocabulary,
        context_length=context,
        tied=tied,
    )


def _qwen2_5(size: str, parameters: int, memory_from: int, numbers: str) -> CatalogueModel:
    return CatalogueModel(
        size,
        f"Qwen/Qwen2.5-{size}-Instruct",
        parameters,
        _shape(numbers, tied=parameters < 7e9),
        licence="qwen-research" if size == "3B" else "apache-2.0",
        memory_from=memory_from,
    )


def _qwen3(size: str, parameters: int, numbers: str, memory_from: int = 0) -> CatalogueModel:
    return CatalogueModel(
        f"qwen3-{size.lower()}",
        f"Qwen/Qwen3-{size}",
        parameters,
        _shape(numbers, tied=parameters < 8e9),
        memory_from=memory_from,
        head_copied=parameters < 4e9,
    )


QWEN2_5 = (
    _qwen2_5("0.5B", 494_032_768, 3, "24 896 4864 14 2 64 151936 32768"),
    _qwen2_5("1.5B", 1_543_714_304, 6, "28 1536 8960 12 2 128 151936 32768"),
    _qwen2_5("3B", 3_085_938_688, 12, "36 2048 11008 16 2 128 151936 32768"),
    _qwen2_5("7B", 7_615_616_512, 24, "28 3584 18944 28 4 128 152064 32768"),
    _qwen2_5("14B", 14_770_033_664, 48, "48 5120 13824 40 8 128 152064 32768"),
)
"""What ``auto`` chooses from, smallest first. The cut points 12, 24 and 48 are the original's;
below 3 GiB: cloud only."""

QWEN3 = (
    _qwen3("0.6B", 596_049_920, "28 1024 3072 16 8 128 151936 40960"),
    _qwen3("1.7B", 1_720_574_976, "28 2048 6144 16 8 128 151936 40960"),
    _qwen3("4B", 4_022_468_096, "36 2560 9728 32 8 128 151936 40960", memory_from=12),
    _qwen3("8B", 8_190_735_360, "36 4096 12288 32 8 128 151936 40960"),
    _qwen3("14B", 14_768_307_200, "40 5120 17408 40 8 128 151936 40960"),
)
"""They can think before they answer. auto takes 4B where 3B's licence is not wanted."""

CATALOGUE = tuple(sorted((*QWEN2_5, *QWEN3), key=lambda model: model.parameters))
"""Smallest first."""


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_HUB_FILE = re.compile(rf"(?:[\w.+ -]+/)?[\w.+ -]{{1,180}}{re.escape(ENDING)}", re.ASCII)
_COMMIT = re.compile(r"\w{1,64}", re.ASCII)


@record
class LocatedModel:
    """A model that is on this disk.

    ``name`` is what people call it, ``directory`` where it is: a directory, or a GGUF file;
    ``fallback`` marks one that takes the place of ``wanted``
    until that is here.
    """

    name: str
    directory: Path
    wanted: str
    fallback: bool = False


@contextlib.contextmanager
def followable_hints(located: LocatedModel) -> Iterator[None]:
    """Have what is found wrong with the files of ``located`` come with a hint that can be
    followed: what somebody keeps in a directory of his own cannot be fetched again."""
    try:
        yield
    except ShammahError as error:
        what = ""
        if is_app_name(located.wanted):
            what = f"Download it again with {located.wanted.partition(':')[0]}"
        elif os.path.isabs(located.wanted):
            is_file = located.directory.is_file()
            what = (
                "Put a whole file in its place" if is_file else f"Correct it in {located.directory}"
            )
        if error.hint == FETCH_AGAIN and what:
            error.hint = f"{what}, or choose another model with --model."
        raise


@record
class MissingModel:
    """A model of the Hub that is not known to be whole on this disk.

    ``present`` is a snapshot (or a file) of it that some other program has made; ``fallback`` may
    answer until it is here.
    """

    model_id: str
    present: Path | None = None
    fallback: LocatedModel | None = None


def select_model(
    total_memory: int, *, permissive: bool = False, gpu_memory: int = 0
) -> CatalogueModel | None:
    """The largest model for ``total_memory`` bytes; ``None``: too little for any.

    A GPU of ``gpu_memory`` bytes can make the choice larger, never smaller.
    """
    gib = total_memory // GIB
    fitting = [
        model
        for model in choices(permissive=permissive)
        if model.memory_from <= gib or fits_gpu(model.parameters, gpu_memory)
    ]
    return fitting[-1] if fitting else None


def choices(*, permissive: bool) -> tuple[CatalogueModel, ...]:
    """What ``auto`` chooses from, smallest first; ``permissive``: nothing that may not be used
    commercially."""
    if not permissive:
        return QWEN2_5
    return tuple(model for model in CATALOGUE if model.memory_from and model.permissive)


def fits_gpu(parameters: int, gpu_memory: int, quantization: str = "") -> bool:
    """Whether a model has room in ``gpu_memory`` bytes, in 4 bits (``int4``) or else in 16."""
    width = GPU_WEIGHT_BYTES.get(quantization, 2)
    return width * parameters + GPU_HEADROOM_BYTES <= gpu_memory


def total_memory(
    physical: int,
    cgroup_root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> int:
    """Bytes that this process may really use: ``physical``, or the least limit of its cgroups.

    Args:
        physical: bytes that the machine has.
        cgroup_root: see `memory_limits`.
        membership: see `memory_limits`.
    """
    return min([physical, *memory_limits(cgroup_root, membership)])


def catalogue_model(model_id: str) -> CatalogueModel | None:
    """What the catalogue knows of ``model_id``."""
    return next((model for model in CATALOGUE if model.model_id == model_id), None)


def model_id_of(wanted: str) -> str:
    """The Hub id that a size or a short name stands for; anything else is returned as it is."""
    for model in CATALOGUE:
        if model.size.lower() == wanted.lower():
            return model.model_id
    return wanted


def hub_model(
    wanted: str, memory: int, *, permissive: bool = False, gpu_memory: int = 0
) -> str | None:
    """The Hub id that ``wanted`` comes to (see `select_model`); ``None``: it is not of the Hub,
    or memory is too little."""
    if wanted == AUTO:
        selected = select_model(memory, permissive=permissive, gpu_memory=gpu_memory)
        return selected.model_id if selected else None
    return model_id_of(wanted) if is_of_hub(wanted) else None


def is_of_hub(wanted: str) -> bool:
    """Whether a name means a model of the Hub (or ``auto``), and no directory, file or model of
    another program or server."""
    elsewhere = is_app_name(wanted) or is_server_name(wanted)
    return wanted != STARTER and not os.path.isabs(wanted) and not elsewhere


def is_server_name(wanted: str) -> bool:
    """Whether a name means what a server answers with: ``server:NAME`` or ``server:NAME/MODEL``."""
    return wanted.startswith(SERVER)


def is_choice(wanted: str) -> bool:
    """Whether a name means one of our own choices, whatever lies on the disk."""
    return wanted in (AUTO, STARTER) or model_id_of(wanted) != wanted


def model_names(environ: Mapping[str, str]) -> list[str]:
    """The models that can be named: what can be chosen, what is in the cache, and the GGUF files
    of other programs."""
    try:
        folders = sorted(os.listdir(hub_cache(environ)))
    except OSError:
        folders = []
    cached = [name[8:].replace("--", "/") for name in folders if name.startswith("models--")]
    files = [file.name for file in list_gguf(environ)]
    # Of a repository of GGUF files one of them must be named.
    among = {name.partition(":")[0] for name in files}
    whole = [one for one in cached if one not in among or cached_snapshot(hub_cache(environ), one)]
    return [AUTO, STARTER, *(model.size for model in (*QWEN2_5, *QWEN3)), *whole, *files]


def check_model_name(wanted: str) -> None:
    """Refuse a model name that can mean nothing.

    Raises:
        ShammahError: ``model_unknown``.
    """
    if is_app_name(wanted):
        check_app_name(wanted)
    elif not is_choice(wanted) and is_of_hub(wanted):
        check_hub_id(wanted)


def check_local(wanted: str, environ: Mapping[str, str]) -> None:
    """Refuse what should be on this disk and is no model, before another one is given up for it.

    Raises:
        ShammahError: ``model_not_found``, or see `find_app_file`.
    """
    path = Path(wanted)
    if is_app_name(wanted):
        find_app_file(wanted, environ)
    elif not is_choice(wanted) and path.is_absolute() and not path.is_file():
        if not path.is_dir():
            raise no_model(path, "no such directory")
        if not only_gguf(path) and not (path / "config.json").exists():
            raise no_model(path, "no config.json")


_GIVE = "Give a directory with config.json and safetensors files, or a GGUF file."


def no_model(directory: Path, why: str) -> ShammahError:
    """What is said of a ``directory`` that cannot be loaded."""
    return ShammahError(
        "model_not_found",
        f"No model found in {directory} ({why}).",
        _GIVE,
    )


def check_hub_id(wanted: str) -> None:
    """Refuse what cannot be ``owner/name``, or ``owner/name:FILE.gguf``, on the Hub.

    Raises:
        ShammahError: ``model_unknown``.
    """
    model_id, colon, file = wanted.partition(":")
    known = _HUB_ID.fullmatch(model_id) and (not colon or _HUB_FILE.fullmatch(file))
    if not known or ".." in wanted:
        sizes = ", ".join(model.size for model in (*QWEN2_5, *QWEN3))
        raise ShammahError(
            "model_unknown",
            f"There is no model {wanted!r}.",
            f"Use auto, starter, {sizes}, a Hub id (owner/name or owner/name:FILE.gguf), a "
            "directory, a GGUF file, ollama:NAME, lmstudio:PUBLISHER/REPO or server:NAME.",
            exit_code=ExitCode.USAGE,
        )


def starter_directory() -> Path:
    """Where the starter model of this installation lies (`workers.starter` makes it); if that is
    not ours to write to, in the person's own directories."""
    shared = Path(sys.prefix, "share", "shammah", "starter")
    if shared.is_dir() or os.access(sys.prefix, os.W_OK):
        return shared
    return Path.home() / ".local" / "share" / "shammah" / "starter"


def is_offline(environ: Mapping[str, str]) -> bool:
    """Whether the user wants no network, read as huggingface_hub reads it."""
    return environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def cached_snapshot(cache: Path, model_id: str) -> Path | None:
    """The snapshot of ``model_id`` that ``refs/main`` names, if it is there; of
    ``owner/name:FILE.gguf`` the file.

    Whether it is complete is for the loader to check: the library keeps half snapshots.
    """
    model_id, _, file = model_id.partition(":")
    file = part_names(file)[0]
    repository = cache / f"models--{model_id.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = repository / "snapshots" / revision
    if not _COMMIT.fullmatch(revision) or not (snapshot / (file or "config.json")).exists():
        return None
    return snapshot / file if file else snapshot


def locate_model(
    wanted: str,
    memory: int,
    cache: Path,
    starter: Path,
    *,
    fallback: bool,
    is_whole: Callable[[Path], bool],
    permissive: bool = False,
    gpu_memory: int = 0,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> LocatedModel | MissingModel | NotAvailable:
    """Where the model that ``wanted`` means lies on this disk.

    Args:
        wanted: ``auto``, ``starter``, a size or short name, a Hub id, an absolute path or a name in
            another program.
        memory: bytes, for ``auto``.
        cache: the Hugging Face cache.
        starter: the starter's directory.
        fallback: whether a smaller model that is here, the starter at least, may take the place
            of an automatic choice that is not.
        is_whole: whether a snapshot (or a file of one) has been fetched to its end and verified.
        permissive: whether ``auto`` leaves out what may not be used commercially.
        gpu_memory: bytes of a CUDA GPU, for ``auto``; 0: there is none.
        environ: says where other programs keep their models.

    Raises:
        ShammahError: ``model_unknown``, ``model_not_found``, or see `find_app_file`.
    """
    check_model_name(wanted)
    if not is_of_hub(wanted):
        path = local_path(wanted, starter, environ)
        name = os.path.basename(wanted) if os.path.isabs(wanted) else wanted
        return LocatedModel(name, path, wanted)
    model_id = hub_model(wanted, memory, permissive=permissive, gpu_memory=gpu_memory)
    chosen = wanted == AUTO and fallback
    if not model_id:
        starting = LocatedModel(STARTER, starter, "a model", fallback=True)
        return starting if chosen and starter.is_dir() else _too_little(memory)
    snapshot = cached_snapshot(cache, model_id)
    if snapshot is not None and is_whole(snapshot):
        return LocatedModel(model_id, snapshot, model_id)
    substitute = largest_below(model_id, cache, starter, is_whole) if chosen else None
    return MissingModel(model_id, snapshot, substitute)


def largest_below(
    model_id: str, cache: Path, starter: Path, is_whole: Callable[[Path], bool]
) -> LocatedModel | None:
    """The largest model on this disk that is smaller than ``model_id`` of the catalogue, marked
    as its fallback model; the starter is the smallest."""
    sizes = [model.model_id for model in CATALOGUE]
    below = sizes[: sizes.index(model_id)] if model_id in sizes else []
    for smaller in reversed(below):
        snapshot = cached_snapshot(cache, smaller)
        if snapshot is not None and is_whole(snapshot):
            return LocatedModel(smaller, snapshot, model_id, fallback=True)
    if model_id == STARTER or not starter.is_dir():
        return None
    return LocatedModel(STARTER, starter, model_id, fallback=True)


def local_path(wanted: str, starter: Path, environ: Mapping[str, str]) -> Path:
    """The directory, or the GGUF file, of a model that is not of the Hub.

    Raises:
        ShammahError: ``model_not_found``, or see `find_app_file`.
    """
    path = Path(wanted)
    if wanted == STARTER:
        return _check_starter(starter)
    if is_app_name(wanted):
        return find_app_file(wanted, environ)
    if is_server_name(wanted):
        why = f"{wanted} is computed by a server, so nothing of it is on this disk."
        raise ShammahError("model_not_found", why, "Choose another model with --model.")
    try:
        if path.is_dir():
            return only_gguf(path) or path
        if path.is_file() and path.suffix.lower() == ENDING:
            return path
    except OSError as error:
        why = f"{path} cannot be read ({error.strerror})."
        raise ShammahError("model_not_found", why, "Let your user read it.") from error
    what = "file" if path.suffix.lower() == ENDING else "directory"
    raise ShammahError("model_not_found", f"No model {what} {path}.", _GIVE)


def _check_starter(starter: Path) -> Path:
    if not starter.is_dir():
        raise ShammahError(
            "model_not_found",
            f"The starter model is not installed ({starter} is missing).",
            "Run: shammah models pull starter (93 MB).",
        )
    return starter


def _too_little(memory: int) -> NotAvailable:
    return NotAvailable(
        f"{memory / GIB:.1f} GiB of memory is not enough for a local model.",
        "Set ANTHROPIC_API_KEY to use Claude, or try --model starter.",
    )
