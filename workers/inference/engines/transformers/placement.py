"""On which device, and in which number format, transformers computes a model."""

from __future__ import annotations

import psutil

from shammah.errors import ShammahError
from shammah.models.catalogue import fits_gpu
from shammah.models.hub_config import WIDTHS
from workers.inference.engine import LoadSettings, Placement
from workers.inference.engines.transformers.quantization import (
    INT4,
    check_quantizable,
    needed_bytes,
)
from workers.inference.memory import free_main_memory, shortage
from workers.inference.packages.checkpoint import Checkpoint


def choose_device(wanted: str, parameters: int, quantization: str = "auto") -> str:
    """``cuda``, ``mps`` or ``cpu``; ``auto`` takes the first that is there and has the room.

    Args:
        wanted: one of them, or ``auto``.
        parameters: how many weights.
        quantization: as set.

    Raises:
        ShammahError: ``device_unavailable``.
    """
    import torch

    def has_room() -> bool:
        return fits_gpu(parameters, torch.cuda.mem_get_info()[1], quantization)

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


def choose_form(asked: LoadSettings, device: str, checkpoint: Checkpoint, free: int) -> Placement:
    """Return how the model is held in ``free`` bytes, and why so.

    What is set is done, or refused. Else a CPU gets float32, and bfloat16 where that does not fit;
    other devices get 16 bits. 4 bits are only ever asked for: by the user, or as the last offer
    where nothing better fits (`startup.offers`).

    Args:
        asked: the settings; ``lean``: half of the memory is worth more than speed.
        device: where.
        checkpoint: the model.
        free: bytes.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers; ``quantization_unavailable``.
    """
    quantization = INT4 if asked.quantization == INT4 else ""
    if quantization:
        check_quantizable(checkpoint)
    short = None
    for dtype, why in _formats(asked, device):
        needed = needed_bytes(checkpoint, quantization, WIDTHS[dtype])
        why = "as set" if quantization else why
        form = Placement(device, dtype, quantization, why=why, needed=needed, free=free)
        short = shortage(form, checkpoint)
        if short is None:
            return form
    assert short is not None
    raise short


def _formats(asked: LoadSettings, device: str) -> list[tuple[str, str]]:
    """The number formats to choose from, the most exact one first, and the reason for each.

    16 bits are not used on a CPU where float32 fits, though some compute them faster: products of
    16 bits are rounded by the shape of the batch, so coarsely that the same greedy question would
    be answered otherwise when somebody else asks, too.
    """
    if asked.dtype != "auto":
        return [(asked.dtype, "as set")]
    if device != "cpu":
        dtype = "bfloat16" if _computes_bfloat16(device) else "float16"
        return [(dtype, f"the fastest format on {device}")]
    half = ("bfloat16", "not enough memory for float32")
    return [half] if asked.lean else [("float32", "the most exact format fits"), half]


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
