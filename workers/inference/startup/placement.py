"""On which device, and in which number format, a model is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil

from shammah.errors import ShammahError
from shammah.models.catalogue import fits_gpu
from shammah.models.hub_config import WIDTHS
from workers.inference.engine import LoadSettings
from workers.inference.engines.transformers.quantization import (
    INT4,
    INT8,
    check_quantizable,
    describe_form,
    is_available,
    needed_bytes,
)
from workers.inference.memory import check_weights, conversation_bytes, free_main_memory
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.probe import DTYPES, MachineSpeed


@dataclass(frozen=True, slots=True)
class Form:
    """How a model is held: ``quantization`` is ``int8``, ``int4`` or empty, and ``dtype`` is of
    all that is not quantised. ``why``: for people."""

    dtype: str
    quantization: str = ""
    why: str = ""

    @property
    def name(self) -> str:
        """What `MachineSpeed` calls it."""
        return self.quantization or self.dtype


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
            f"torch {torch.__version__} finds no {wanted} device that it can use.",
            "Set inference.device to auto, or fix the driver: `nvidia-smi` shows its version.",
        )
    return wanted


def choose_form(
    asked: LoadSettings,
    device: str,
    checkpoint: Checkpoint,
    free: int,
    speed: Callable[[], MachineSpeed],
) -> Form:
    """How the model is held in ``free`` bytes, and why so.

    What is set is done, or refused. Else a CPU gets float32, or 8 bits where those were measured
    to be much faster, and the fastest of the other formats where float32 does not fit. Other
    devices get 16 bits, which they compute fastest. 8 bits and then 4 are for where nothing
    better fits; 4 on other devices are for the last (`ladder`).

    Args:
        asked: the settings; ``lean``: half of the memory is worth more than speed.
        device: where.
        checkpoint: the model.
        free: bytes.
        speed: measures the CPU, when that is of interest.

    Raises:
        ShammahError: ``out_of_memory``, with both numbers; ``quantization_unavailable``.
    """
    dtypes = _dtypes(asked, device)
    if asked.quantization in (INT8, INT4):
        check_quantizable(checkpoint, asked.quantization)
        form = Form(dtypes[0], asked.quantization, "as set")
        _check(checkpoint, form, free, device)
        return form
    forms = [Form(dtype) for dtype in dtypes]
    if asked.quantization == "auto":
        fewer = (INT8, INT4) if device == "cpu" else (INT8,)
        forms += [Form(dtypes[0], one) for one in fewer if _can(checkpoint, one)]
    fitting = [form for form in forms if _fits(checkpoint, form, free)]
    if not fitting:
        # With what is least of those that change no number of the model.
        least = min(map(Form, dtypes), key=lambda form: WIDTHS[form.dtype])
        _check(checkpoint, least if asked.quantization != "auto" else forms[-1], free, device)
    best = fitting[0]
    if best.quantization:
        return replace(best, why=f"memory is too little for {dtypes[-1]}")
    if asked.dtype != "auto":
        return replace(best, why="as set")
    if device != "cpu":
        return replace(best, why=f"what {device} computes fastest")
    if len(fitting) == 1 or asked.lean:
        return replace(best, why="memory is too little for more")
    return _fastest(fitting, checkpoint, speed())


def _dtypes(asked: LoadSettings, device: str) -> tuple[str, ...]:
    """The number formats to choose from, the most exact one first."""
    if asked.dtype != "auto":
        return (asked.dtype,)
    if device != "cpu":
        return ("bfloat16" if _computes_bfloat16(device) else "float16",)
    return ("bfloat16",) if asked.lean else DTYPES


def _fastest(fitting: list[Form], checkpoint: Checkpoint, speed: MachineSpeed) -> Form:
    forms = {form.name: form for form in fitting if form.quantization != INT4}
    if "float32" in forms:
        # Products of 16 bits are rounded by the shape of the batch, so coarsely that the same
        # greedy question would be answered otherwise when somebody else asks, too.
        forms = {name: form for name, form in forms.items() if form.dtype == "float32"}
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
    if not is_available(quantization):
        return False
    try:
        check_quantizable(checkpoint, quantization)
    except ShammahError:
        return False
    return True


def _fits(checkpoint: Checkpoint, form: Form, free: int) -> bool:
    try:
        _check(checkpoint, form, free, "")
    except ShammahError:
        return False
    return True


def _check(checkpoint: Checkpoint, form: Form, free: int, device: str) -> None:
    needed = needed_bytes(checkpoint, form.quantization, WIDTHS[form.dtype])
    words = f"{describe_form(form.dtype, form.quantization)} on {device}"
    check_weights(needed, free, words, conversation_bytes(checkpoint))


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
