"""On which device, and in which number format, a model is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import psutil

from shammah.errors import ShammahError
from shammah.models import fits_gpu, total_memory
from workers.inference.memory import HEADROOM_BYTES, check_weights
from workers.inference.probe import MachineSpeed

if TYPE_CHECKING:
    import torch

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def choose_device(wanted: str, parameters: int) -> str:
    """``cuda``, ``mps`` or ``cpu``; ``auto`` takes the first that is there and has the room.

    Raises:
        ShammahError: ``device_unavailable``.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available()
        and (wanted == "cuda" or fits_gpu(parameters, torch.cuda.mem_get_info()[1])),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if wanted == "auto":
        return next(device for device, there in available.items() if there)
    if not available[wanted]:
        raise ShammahError(
            "device_unavailable",
            f"inference.device is {wanted}, but torch {torch.__version__} finds none here.",
            "Set inference.device to auto.",
        )
    return wanted


def choose_dtype(
    wanted: str,
    device: str,
    parameters: int,
    free: int,
    speed: Callable[[], MachineSpeed],
    *,
    lean: bool = False,
) -> tuple[torch.dtype, str]:
    """The number format for ``parameters`` weights in ``free`` bytes, and why that one.

    ``auto`` on a CPU is what that CPU computes fastest of what fits, by measurement. Other
    devices compute 16 bits at least as fast.

    Args:
        wanted: ``auto`` or a number format.
        device: where.
        parameters: how many weights.
        free: bytes.
        speed: measures the CPU, when that is of interest.
        lean: half of the memory is worth more than speed.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers.
    """
    import torch

    if wanted != "auto":
        name, why = wanted, "as set"
    elif device == "cpu":
        name, why = _cpu_dtype(parameters, free, speed, lean=lean)
    else:
        name = "bfloat16" if _computes_bfloat16(device) else "float16"
        why = f"what {device} computes fastest"
    check_weights(_BYTES[name] * parameters, free, f"{name} on {device}")
    dtype: torch.dtype = getattr(torch, name)
    return dtype, why


def _cpu_dtype(
    parameters: int, free: int, speed: Callable[[], MachineSpeed], *, lean: bool
) -> tuple[str, str]:
    if lean or needed_bytes("float32", parameters) > free:
        return "bfloat16", "memory is too little for more"
    measured = speed()
    name = measured.fastest(parameters, lambda dtype: True) or "float32"
    return name, (
        f"measured here: {measured.row[name]:.1f} billion weights/s for a token, "
        f"{measured.block[name]:.0f} for a prompt"
    )


def needed_bytes(dtype: str, parameters: int) -> int:
    """What a model takes in memory while it answers short questions."""
    return _BYTES[dtype] * parameters + HEADROOM_BYTES


def free_memory(device: str) -> int:
    """Bytes that the weights may take on ``device``."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    memory = psutil.virtual_memory()
    return int(min(memory.available, total_memory(memory.total)))


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
