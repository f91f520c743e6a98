"""On which device, and in which number format, transformers computes a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import psutil

from shammah.errors import ShammahError
from shammah.models.catalogue import fits_gpu
from shammah.models.hub_config import WIDTHS
from workers.inference.engine import LoadSettings, Placement
from workers.inference.engines.transformers.probe import DTYPES, MachineSpeed
from workers.inference.engines.transformers.quantization import (
    INT4,
    INT8,
    check_quantizable,
    needed_bytes,
)
from workers.inference.memory import describe_form, free_main_memory, shortage
from workers.inference.packages.checkpoint import Checkpoint


def choose_device(wanted: str, parameters: int, *, quantized: bool = True) -> str:
    """``cuda``, ``mps`` or ``cpu``; ``auto`` takes the first that is there and has the room.

    Args:
        wanted: one of them, or ``auto``.
        parameters: how many weights.
        quantized: whether 8 bits will do.

    Raises:
        ShammahError: ``device_unavailable``.
    """
    import torch

    def has_room() -> bool:
        return fits_gpu(parameters, torch.cuda.mem_get_info()[1], quantized=quantized)

    available = {
        "cuda": torch.cuda.is_available() and (wanted == "cuda" or has_room()),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(device for device, there in available.items() if there)
    if not available[wanted]:
        raise ShammahError(
            "device_unavailable",
            f"torch {torch.__version__} found no usable {wanted} device.",
            "Set inference.device to auto, or fix the driver: `nvidia-smi` shows its version.",
        )
    return wanted


def choose_form(
    asked: LoadSettings,
    device: str,
    checkpoint: Checkpoint,
    free: int,
    speed: Callable[[], MachineSpeed],
) -> Placement:
    """Return how the model is held in ``free`` bytes, and why so.

    What is set is done, or refused. Else a CPU gets float32, or 8 bits where those were measured
    to be much faster, and the fastest of the other formats where float32 does not fit. Other
    devices get 16 bits, which they compute fastest. 8 bits and then 4 are for where nothing
    better fits; 4 on other devices are the last offer (`startup.offers`).

    Args:
        asked: the settings; ``lean``: half of the memory is worth more than speed.
        device: where.
        checkpoint: the model.
        free: bytes.
        speed: measures the CPU, when that is of interest.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers; ``quantization_unavailable``.
    """

    def held(dtype: str, quantization: str = "", why: str = "as set") -> Placement:
        needed = needed_bytes(checkpoint, quantization, WIDTHS[dtype])
        return Placement(device, dtype, quantization, why=why, needed=needed, free=free)

    dtypes = _dtypes(asked, device)
    whole = [held(dtype) for dtype in dtypes]
    fewer: list[Placement] = []
    if asked.quantization in (INT8, INT4):
        check_quantizable(checkpoint, asked.quantization)
        whole = [held(dtypes[0], asked.quantization)]
    elif asked.quantization == "auto":
        why = f"not enough memory for {dtypes[-1]}"
        names = (INT8, INT4) if device == "cpu" else (INT8,)
        fewer = [held(dtypes[0], name, why) for name in names if _can(checkpoint, name)]
    fitting = [one for one in (*whole, *fewer) if shortage(one, checkpoint) is None]
    if not fitting:
        # With what is least of those that change no number of the model.
        least = min(whole, key=lambda one: one.needed)
        error = shortage(
            (*whole, *fewer)[-1] if asked.quantization == "auto" else least, checkpoint
        )
        assert error is not None
        raise error
    best = fitting[0]
    if best.quantization or asked.dtype != "auto":
        return best
    if device != "cpu":
        return replace(best, why=f"the fastest format on {device}")
    if len(fitting) == 1 or asked.lean:
        return replace(best, why="not enough memory for more")
    return _fastest(fitting, checkpoint, speed())


def _dtypes(asked: LoadSettings, device: str) -> tuple[str, ...]:
    """The number formats to choose from, the most exact one first."""
    if asked.dtype != "auto":
        return (asked.dtype,)
    if device != "cpu":
        return ("bfloat16" if _computes_bfloat16(device) else "float16",)
    return ("bfloat16",) if asked.lean else DTYPES


def _fastest(fitting: list[Placement], checkpoint: Checkpoint, speed: MachineSpeed) -> Placement:
    forms = {one.quantization or one.dtype: one for one in fitting if one.quantization != INT4}
    if "float32" in forms:
        # Products of 16 bits are rounded by the shape of the batch, so coarsely that the same
        # greedy question would be answered otherwise when somebody else asks, too.
        forms = {name: one for name, one in forms.items() if one.dtype == "float32"}
    name = speed.fastest(checkpoint.parameters, forms.__contains__)
    if name is None:
        return replace(fitting[0], why="nothing else was measured")
    return replace(
        forms[name],
        why=f"{describe_form(name, forms[name].quantization)}: the fastest measured here, with "
        f"{speed.row[name]:.1f} billion weights/s for a token and {speed.block[name]:.0f} for a "
        "prompt",
    )


def _can(checkpoint: Checkpoint, quantization: str) -> bool:
    try:
        check_quantizable(checkpoint, quantization)
    except ShammahError:
        return False
    return True


def free_memory(device: str) -> int:
    """Bytes that the weights may take on ``device``."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return free_main_memory()


def limit_threads() -> int:
    """Keep torch from using more threads than the machine has cores; returns their number."""
    import torch

    cores = psutil.cpu_count(logical=False) or torch.get_num_threads()
    threads = min(torch.get_num_threads(), cores)
    torch.set_num_threads(threads)
    return threads


def _computes_bfloat16(device: str) -> bool:
    import torch

    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.backends.mps.is_macos_or_newer(14, 0))
