"""Which engine computes a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from shammah.errors import ShammahError
from shammah.models.catalogue import Machine, fits_gpu
from shammah.settings.model import InferenceSettings
from workers.inference.engine import Engine, MakeEngine
from workers.inference.packages.checkpoint import Checkpoint

NATIVE, TRANSFORMERS = "native", "transformers"


def choose_engine(
    asked: InferenceSettings,
    checkpoint: Checkpoint,
    machine: Machine,
    obstacle: Callable[[Checkpoint], str],
    quantizations: frozenset[str] = frozenset({"int8"}),
) -> str:
    """``native`` or ``transformers``.

    The native engine where it can compute the model: on a processor it decodes several times
    as fast in a quarter of the memory, and is there in a second. A GPU with room for the model
    is faster still, and so is what the user has set.

    Args:
        asked: the settings.
        checkpoint: the model.
        machine: what it would run on.
        obstacle: why the native engine cannot compute a model; empty: it can.
        quantizations: what it can make of the weights.

    Raises:
        ShammahError: ``model_unsupported`` or ``settings_conflict``: what was set cannot be.
    """
    elsewhere = _elsewhere(asked, checkpoint, machine, quantizations)
    if asked.engine == NATIVE:
        if why := obstacle(checkpoint):
            raise ShammahError(
                "model_unsupported",
                f"The native engine cannot compute this model: it {why}.",
                "Set inference.engine to auto.",
            )
        if elsewhere and elsewhere != GPU_HERE:
            raise ShammahError(
                "settings_conflict",
                f"The native engine computes with {' or '.join(sorted(quantizations))} weights "
                f"on the CPU, but {elsewhere}.",
                "Leave that setting at auto, or set inference.engine to transformers.",
            )
        return NATIVE
    if asked.engine == TRANSFORMERS or elsewhere or obstacle(checkpoint):
        return TRANSFORMERS
    return NATIVE


def reason_for(
    asked: InferenceSettings,
    checkpoint: Checkpoint,
    machine: Machine,
    obstacle: Callable[[Checkpoint], str],
    quantizations: frozenset[str],
) -> str:
    """Why `choose_engine` chooses what it does, for people."""
    if asked.engine != "auto":
        return "as set"
    if why := _elsewhere(asked, checkpoint, machine, quantizations):
        return why
    if why := obstacle(checkpoint):
        return f"the native engine cannot compute this model: it {why}"
    return "the fastest on a CPU"


@dataclass(frozen=True, slots=True)
class OnCPU:
    """What takes the place of a GPU that is busy, or that torch cannot use.

    Attributes:
        gpu: the device that is chosen for a model, ``cuda`` or ``mps``; empty: the processor.
        name: of the engine that computes the model without it.
        make: a fresh one.
    """

    gpu: Callable[[Checkpoint], str]
    name: Callable[[Checkpoint], str]
    make: MakeEngine


def on_cpu(asked: InferenceSettings, machine: Machine) -> OnCPU | None:
    """``None``: there is no GPU, or the device is set."""
    if asked.device != "auto" or not (machine.mps or machine.gpu_memory):
        return None
    instead = replace(asked, device="cpu")

    def gpu(checkpoint: Checkpoint) -> str:
        if _name_for(asked, machine, checkpoint) == NATIVE or not _has_gpu(checkpoint, machine):
            return ""
        return "mps" if machine.mps else "cuda"

    def name(checkpoint: Checkpoint) -> str:
        return _name_for(instead, machine, checkpoint)

    return OnCPU(gpu, name, engine_for(instead, machine))


GPU_HERE = "this machine has a GPU for it"


def _elsewhere(
    asked: InferenceSettings,
    checkpoint: Checkpoint,
    machine: Machine,
    quantizations: frozenset[str],
) -> str:
    """What speaks for another engine than the native one; empty: nothing."""
    if asked.device in ("cuda", "mps"):
        return f"inference.device is {asked.device}"
    if asked.dtype != "auto":
        return f"inference.dtype is {asked.dtype}"
    if asked.quantization != "auto" and asked.quantization not in quantizations:
        return f"inference.quantization is {asked.quantization}"
    return GPU_HERE if asked.device == "auto" and _has_gpu(checkpoint, machine) else ""


def _has_gpu(checkpoint: Checkpoint, machine: Machine) -> bool:
    return machine.mps or fits_gpu(checkpoint.parameters, machine.gpu_memory, quantized=True)


def make_engine(name: str) -> Engine:
    """An engine that has loaded nothing yet."""
    # Not before the sockets answer: numpy alone takes a tenth of a second to import.
    from workers.inference.scheduling.batched_engine import BatchedEngine

    if name == NATIVE:
        from workers.inference.engines.native.runner import NativeRunner

        return BatchedEngine(NativeRunner())
    from workers.inference.engines.transformers.runner import TransformersRunner

    return BatchedEngine(TransformersRunner())


ENGINES: Mapping[str, Callable[[], Engine]] = {
    NATIVE: lambda: make_engine(NATIVE),
    TRANSFORMERS: lambda: make_engine(TRANSFORMERS),
}
"""Every engine there is, by name."""


def engine_for(asked: InferenceSettings, machine: Machine) -> Callable[[Checkpoint], Engine]:
    """Makes the engine for a model on ``machine``."""

    return lambda checkpoint: make_engine(_name_for(asked, machine, checkpoint))


def _name_for(asked: InferenceSettings, machine: Machine, checkpoint: Checkpoint) -> str:
    from workers.inference.engines.native.architecture import supports

    return choose_engine(asked, checkpoint, machine, supports, native_quantizations())


def native_quantizations() -> frozenset[str]:
    """What the native engine can make of the weights. Imports numpy."""
    from workers.inference.engines.native.runner import QUANTIZATIONS

    return QUANTIZATIONS


def prepare_engine(asked: InferenceSettings, machine: Machine) -> None:
    """Import what an engine will need, before it is known which model it will be."""
    from workers.inference.engines.native import processor

    likely = NATIVE
    elsewhere = machine.mps or machine.gpu_memory or processor.obstacle()
    if asked.engine == TRANSFORMERS or elsewhere:
        likely = TRANSFORMERS
    make_engine(likely).prepare()
