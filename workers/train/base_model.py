"""The frozen base model: where it is, how it is computed, and its one copy in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.bus.messages import NotAvailable
from shammah.errors import ShammahError
from shammah.models.catalogue import (
    FETCH_AGAIN,
    LocatedModel,
    MissingModel,
    ModelShape,
)
from shammah.models.hub_config import read_architecture, read_shape
from shammah.models.machine import look
from shammah.models.published_bits import USE_ORIGINAL
from shammah.settings.model import Settings
from shammah.supervision.model_list import find_model
from workers.manifest import commit_of, is_complete
from workers.model_classes import (
    check_finite,
    find_class,
    first_line,
    observed,
    read_model,
    read_model_config,
)

if TYPE_CHECKING:
    import torch

_MANIFEST = "shammah-manifest.json"
CPU_INFO = Path("/proc/cpuinfo")
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16 ")


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """``device`` is cpu, cuda or mps; ``dtype`` of the frozen weights and of what is computed
    with them. What is learnt is always float32. ``four_bit``: the frozen weights are held in
    4 bits (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

    device: str
    dtype: str
    four_bit: bool = False


def locate(wanted: str, settings: Settings, environ: Mapping[str, str]) -> LocatedModel:
    """The model on this disk.

    Raises:
        ShammahError: ``model_not_found`` or ``model_unknown``: it is not here.
    """
    meant = replace(settings, model=wanted)
    found = find_model(meant, environ, look(environ), is_complete)
    match found:
        case MissingModel(model_id):
            why = f"{model_id} is not on this machine."
            hint = f"Download it with `shammah models pull {model_id}`, or name --model starter."
            raise ShammahError("model_not_found", why, hint)
        case NotAvailable(reason, hint):
            raise ShammahError("model_not_found", reason, hint)
    if found.directory.is_file():
        why = f"{found.name} is a GGUF file, whose weights cannot be trained."
        raise ShammahError("model_unsupported", why, "Name its original repository with --model.")
    return found


def revision_of(directory: Path) -> str:
    """The commit that a model was fetched at, as its answers name it; empty: not known."""
    try:
        revision = json.loads((directory / _MANIFEST).read_bytes()).get("revision")
        if isinstance(revision, str):
            return revision
    except (OSError, ValueError, AttributeError):
        pass
    return commit_of(directory)


def shape_of(directory: Path) -> ModelShape:
    """What its configuration says.

    Raises:
        ShammahError: ``model_config_invalid``.
    """
    try:
        return read_shape(_config(directory))
    except (OSError, ValueError) as error:
        raise ShammahError(
            "model_config_invalid",
            f"The model's configuration cannot be used ({error}).",
            FETCH_AGAIN,
        ) from error


def _config(directory: Path) -> dict[str, Any]:
    return read_model_config((directory / "config.json").read_text("utf-8"))


def parameters_of(directory: Path) -> int:
    """How many numbers the safetensors files hold: 16 bits each, as models are published."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors")) // 2


def choose_arithmetic(*, four_bit: bool = False, cpu_info: Path = CPU_INFO) -> Arithmetic:
    """What this machine computes well: a GPU where there is one, 16 bits where it has them.

    Raises:
        ShammahError: ``quantization_unavailable``: 4 bits need CUDA and bitsandbytes.
    """
    import torch

    if torch.cuda.is_available():
        if four_bit:
            _check_bitsandbytes()
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = "bfloat16" if has_bf16 else "float32"
        return Arithmetic("cuda", dtype, four_bit)
    if four_bit:
        raise ShammahError(
            "quantization_unavailable",
            "Training over 4-bit weights needs a CUDA GPU, and this machine has none.",
            "Leave --qlora away.",
        )
    if torch.backends.mps.is_available():
        return Arithmetic("mps", "float32")
    return Arithmetic("cpu", "bfloat16" if _has_bf16(cpu_info) else "float32")


def load_base(
    located: LocatedModel, arithmetic: Arithmetic, advance: Callable[[], object] = lambda: None
) -> Any:
    """The model, frozen; every tensor goes from the mapped file to its place, one by one, and
    ``advance`` is called for each.

    Raises:
        ShammahError: ``model_corrupt``, ``model_config_invalid`` or ``model_unsupported``.
    """
    import torch
    from transformers import BitsAndBytesConfig

    dtype: torch.dtype = getattr(torch, arithmetic.dtype)
    options: dict[str, Any] = {}
    if arithmetic.four_bit:
        options["quantization_config"] = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        options["device_map"] = {"": arithmetic.device}
    try:
        config = _config(located.directory)
        if config.get("quantization_config"):
            why = f"The weights of {located.name} are quantised; adapters are made with whole ones."
            raise ShammahError("model_unsupported", why, USE_ORIGINAL)
        named = str(config.get("model_type", ""))
        model_class = find_class(located.directory, named, read_architecture(config))
        with observed(advance):
            model: Any = read_model(model_class, located.directory, dtype, **options)
    except ShammahError:
        raise
    except Exception as error:  # transformers raises whatever it comes across
        raise ShammahError(
            "model_corrupt" if isinstance(error, OSError) else "model_unsupported",
            f"{located.name} cannot be loaded ({first_line(error)}).",
            FETCH_AGAIN,
        ) from error
    if not arithmetic.four_bit:
        model = model.to(arithmetic.device)
    check_finite(model)
    model.requires_grad_(False)
    return model.eval()


def _check_bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ShammahError(
            "quantization_unavailable",
            "Training over 4-bit weights needs bitsandbytes.",
            "Run pip install 'shammah[int4]', or leave out --qlora.",
        ) from error


def _has_bf16(cpu_info: Path) -> bool:
    """Whether the processor multiplies numbers of 16 bits; where it cannot, they are slower."""
    try:
        flags = cpu_info.read_text()
    except OSError:
        return False
    return any(flag in flags for flag in _BF16_FLAGS)
