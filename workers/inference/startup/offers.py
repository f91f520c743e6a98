"""In which ways a model can be computed on this machine, the best one first.

A load that fails because memory is short goes on with the next offer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.bus.messages import Ready
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import LocatedModel, Machine, fits_gpu
from shammah.models.footprint import BITS, SHORT_CONTEXT
from shammah.settings.model import InferenceSettings
from workers.inference.engine import EngineSpec, LoadSettings
from workers.inference.packages.checkpoint import Checkpoint

_SHORTER = "less context"
_NARROWER = "less context and 16-bit numbers"
_FORMATS = {
    "safetensors": "safetensors",
    "awq": "4-bit AWQ weights",
    "gptq": "4-bit GPTQ weights",
    "gguf": "a GGUF file",
}
_NO_INT8 = (
    "Set inference.quantization to auto, or to int4 (pip install 'shammah[int4]'), or use the "
    "model as a GGUF file with 8-bit weights (pip install 'shammah[llamacpp]')."
)


@record
class Offer:
    """One way to compute a model.

    Attributes:
        engine: what computes it.
        settings: how; nothing that the user has set is undone.
        why: the reason for the engine, for people.
        change: what is less than was asked for, for people; empty: nothing.
        chosen: whether there was another device to choose.
        level: its place among the offers for the model.
    """

    engine: EngineSpec
    settings: LoadSettings
    why: str
    change: str = ""
    chosen: bool = False
    level: int = 0

    @property
    def has_fewer_bits(self) -> bool:
        return self.change in BITS.values()

    @property
    def on_gpu(self) -> bool:
        """Whether its device is a GPU that was chosen for it."""
        return self.chosen and self.settings.device != "cpu"


def find_offers(
    asked: InferenceSettings,
    checkpoint: Checkpoint,
    machine: Machine,
    engines: Mapping[str, EngineSpec],
    home: Path | None = None,
) -> list[Offer]:
    """Return the offers for a model, at least one.

    A GPU with room for the model comes first, then the processor, and last the GPU with the
    fewest bits, if it has room for those. One that shares the processor's memory comes first with
    fewer bits, too. After the last one it is a smaller model's turn.

    Args:
        asked: the settings.
        checkpoint: the model.
        machine: what it would run on.
        engines: the preferred one first.
        home: see `LoadSettings`.

    Raises:
        ShammahError: ``model_unsupported`` or ``settings_conflict``: what was set cannot be.
    """
    wanted = LoadSettings(
        asked.device,
        asked.dtype,
        asked.quantization,
        context_length=asked.context_length,
        kv_memory=asked.kv_memory,
        kv_disk=asked.kv_disk,
        home=home,
    )

    def steps(device: str, allowed: Mapping[str, EngineSpec] = engines) -> list[Offer]:
        engine, why = choose_engine(asked, checkpoint, device or _device(asked), allowed)
        settings = replace(wanted, device=device) if device else wanted
        offer = Offer(engine, settings, why, chosen=bool(device))
        return list(_steps(offer, checkpoint))

    def steps_if_any(device: str, allowed: Mapping[str, EngineSpec] = engines) -> list[Offer]:
        try:
            return steps(device, allowed)
        except ShammahError:  # with these settings it is for the other device
            if asked.engine != "auto" and device != "cpu":
                raise
            return []

    readers = {name: one for name, one in engines.items() if checkpoint.format in one.formats}
    parameters = checkpoint.parameters
    whole = gpu = choose_gpu(asked, parameters, machine, readers)
    if not gpu and asked.quantization == "auto":
        gpu = choose_gpu(replace(asked, quantization="int4"), parameters, machine, readers)
    found = steps_if_any(gpu) if gpu else []
    if found:
        chosen = found[0].engine
        why = _why_on_gpu(asked, checkpoint, gpu, _allowed(asked, readers), chosen)
        first = [replace(found[0], why=why)]
        if chosen.refuses_late and asked.engine == "auto":
            rest = {name: one for name, one in engines.items() if one is not chosen}
            if others := steps_if_any(gpu, rest):
                found = others
                first.append(replace(found[0], change=f"the {found[0].engine.name} engine"))
        first = first if whole else []
        fewest = [found[-1]] if found[-1].has_fewer_bits else []
        shared = found[1:] if gpu == "mps" else []
        found = [*first, *shared, *steps_if_any("cpu"), *(fewest if not shared else [])]
    found = found or steps("")
    return [replace(offer, level=level) for level, offer in enumerate(found)]


def _why_on_gpu(
    asked: InferenceSettings,
    checkpoint: Checkpoint,
    gpu: str,
    engines: list[EngineSpec],
    chosen: EngineSpec,
) -> str:
    """Return the reason, and what of the model prevents an engine that is preferred to the
    ``chosen`` one. Of one that is not installed `find_alternatives` tells."""
    why = "this machine has a GPU for it"
    for engine in engines[: engines.index(chosen)]:
        obstacle = _obstacle(engine, checkpoint)
        if engine.is_installed and obstacle and not _conflict(asked, gpu, engine, checkpoint):
            why += f"; the {engine.name} engine cannot compute it: it {obstacle}"
    return why


def choose_engine(
    asked: InferenceSettings,
    checkpoint: Checkpoint | None,
    device: str,
    engines: Mapping[str, EngineSpec],
) -> tuple[EngineSpec, str]:
    """Return the engine for a model (``None``: not known yet) on ``device``, and why that one.

    Raises:
        ShammahError: ``model_unsupported`` or ``settings_conflict``.
    """
    reason = conflict = unable = ""
    refusals, conflicts = [], False
    allowed = _allowed(asked, engines)
    stored = "safetensors" if checkpoint is None else checkpoint.format  # as what is fetched is
    reading = [one for one in allowed if stored in one.formats]
    for engine in reading or allowed:
        conflict = _conflict(asked, device, engine, checkpoint)
        obstacle = "" if conflict else _obstacle(engine, checkpoint)
        if not conflict and not obstacle:
            return engine, "as set" if asked.engine != "auto" else reason or engine.why
        unable = f"{engine.name} engine cannot compute this model: it {obstacle}"
        reason = reason or conflict or f"the {unable}"
        if asked.device == device or device in engine.devices:  # nobody has set it otherwise
            refusals.append(f"{engine.name} ({conflict or f'it {obstacle}'})")
            conflicts |= bool(conflict)
    if asked.engine == "auto":
        every = ", ".join(refusals)
        if conflicts:
            lacks_int8 = asked.quantization == "int8" and stored == "safetensors"
            hint = _NO_INT8 if lacks_int8 else "Set that to auto."
            why = f"No engine computes this model with these settings: {every}."
            raise ShammahError("settings_conflict", why, hint)
        why = f"No engine that is installed computes this model: {every}."
        able = [one for one in reading if device in one.devices]
        missing = [one.install for one in able if not one.is_installed]
        hint = f"Install one: `{missing[0]}`." if missing else "Choose another model with --model."
        raise ShammahError("model_unsupported", why, hint)
    hint = "Set inference.engine to auto."
    if asked.device == "auto" and device not in engine.devices:
        needed = " or ".join(engine.devices)
        conflict = f"it needs {needed}, and this machine has none with room for the model"
    elif conflict:
        hint = "Set that to auto, or set inference.engine to auto."
    if conflict:
        why = f"The {asked.engine} engine cannot be used because {conflict}."
        raise ShammahError("settings_conflict", why, hint)
    raise ShammahError("model_unsupported", f"The {unable}.", hint)


def choose_gpu(
    asked: InferenceSettings, parameters: int, machine: Machine, engines: Mapping[str, EngineSpec]
) -> str:
    """Return ``cuda`` or ``mps`` if so many weights fit and no device is set; else empty."""
    fits = fits_gpu(parameters, machine.gpu_memory, asked.quantization)
    gpu = "mps" if machine.mps else "cuda" if fits else ""
    allowed = _allowed(asked, engines)
    able = [one for one in allowed if asked.engine != "auto" or not _obstacle(one, None)]
    usable = any(not _conflict(asked, gpu, engine, None) for engine in able)
    return gpu if usable and asked.device == "auto" else ""


@record
class Alternative:
    """Another engine than the one that is taken for a model: its name, why to take it, and the
    command that installs it (empty: it is installed)."""

    engine: str
    why: str
    install: str = ""


def find_alternatives(
    offer: Offer, checkpoint: Checkpoint, engines: Mapping[str, EngineSpec]
) -> tuple[Alternative | None, Alternative | None]:
    """Return the next best engine for what is offered, and one that would be better if it were
    installed."""
    better = next_best = None
    taken, passed = offer.settings, False
    asked = InferenceSettings(taken.device, taken.dtype, taken.quantization)
    for engine in engines.values():
        passed |= engine is offer.engine
        unfit = checkpoint.format not in engine.formats or engine.only_by_name
        if unfit or engine is offer.engine or _conflict(asked, _device(asked), engine, checkpoint):
            continue
        if passed and not next_best and not _obstacle(engine, checkpoint):
            next_best = Alternative(engine.name, engine.why)
        if not passed and not engine.is_installed:
            better = better or Alternative(engine.name, engine.why, engine.install)
    return next_best, better


def prepare_engine(
    asked: InferenceSettings, machine: Machine, engines: Mapping[str, EngineSpec]
) -> None:
    """Import what an engine will need, before it is known which model it will be.

    Raises:
        ShammahError: see `choose_engine`.
    """
    gpu = choose_gpu(asked, 0, machine, engines)
    choose_engine(asked, None, gpu or _device(asked), engines)[0].make().prepare()


def describe_step(before: Offer, after: Offer) -> str:
    """Return what is done after ``before`` has failed, for the same model, as a sentence."""
    if before.on_gpu and not after.on_gpu:
        return "Retrying on the CPU."
    return f"Retrying with {after.change}."


def describe_result(wanted: LocatedModel, offer: Offer, ready: Ready) -> str:
    """Return what has become of a load that was asked for ``wanted``, as a sentence."""
    if offer.level == 0:
        return f"{ready.model} answers instead of {wanted.name}."
    form = BITS.get(ready.quantization, ready.dtype)
    instead = "" if ready.model == wanted.name else f" instead of {wanted.name}"
    place = " on the CPU" if offer.chosen and not offer.on_gpu else ""
    context = f"a context of {ready.context_length:,} tokens"
    return f"{ready.model} runs{place} with {form} and {context}{instead}."


def _steps(whole: Offer, checkpoint: Checkpoint) -> Iterator[Offer]:
    """Yield ``whole``, and the steps down from it that make a difference."""
    settings, engine = whole.settings, whole.engine
    short = replace(settings, context_length=settings.context_length or SHORT_CONTEXT, lean=True)
    yield whole
    shorter = settings.context_length == 0 and checkpoint.context_length > SHORT_CONTEXT
    if shorter or (engine.any_dtype and settings.dtype == "auto"):
        change = _NARROWER if engine.any_dtype and settings.dtype == "auto" else _SHORTER
        yield replace(whole, settings=short, change=change)
    if settings.quantization == "auto":
        names = _quantizations(engine, checkpoint)
        first = names.index(engine.automatic) if engine.automatic in names else 0
        for name in names[first + 1 :]:
            fewer = replace(short, quantization=name)
            yield replace(whole, settings=fewer, change=BITS[name])


def _obstacle(engine: EngineSpec, checkpoint: Checkpoint | None) -> str:
    """Return why an engine cannot compute a model; empty: it can."""
    if checkpoint is not None and checkpoint.format not in engine.formats:
        return f"is stored as {_FORMATS[checkpoint.format]}, which this engine does not read"
    if not engine.is_installed:
        return f"is not installed (`{engine.install}`)"
    return engine.obstacle(checkpoint)


def _allowed(asked: InferenceSettings, engines: Mapping[str, EngineSpec]) -> list[EngineSpec]:
    if asked.engine == "auto":
        return [engine for engine in engines.values() if not engine.only_by_name]
    return [engine for engine in engines.values() if engine.name == asked.engine]


def _device(asked: InferenceSettings) -> str:
    """Return the device for which an engine is chosen where no GPU is."""
    return "cpu" if asked.device == "auto" else asked.device


def _quantizations(engine: EngineSpec, checkpoint: Checkpoint | None) -> tuple[str, ...]:
    """Return what an engine can make of the weights; those that have 4 bits keep them."""
    return ("int4",) if _has_4_bits(checkpoint) else engine.quantizations


def _has_4_bits(checkpoint: Checkpoint | None) -> bool:
    return checkpoint is not None and checkpoint.format in ("awq", "gptq")


def _conflict(
    asked: InferenceSettings, device: str, engine: EngineSpec, checkpoint: Checkpoint | None
) -> str:
    """Return the setting that rules an engine out; empty: none."""
    if device not in engine.devices:
        return f"inference.device is {device}"
    if asked.dtype != "auto" and not engine.any_dtype:
        return f"inference.dtype is {asked.dtype}"
    if asked.quantization not in ("auto", *_quantizations(engine, checkpoint)):
        but = ", but the weights were published in 4 bits" if _has_4_bits(checkpoint) else ""
        return f"inference.quantization is {asked.quantization}{but}"
    return ""
