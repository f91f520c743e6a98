"""What a load steps down to, one rung after the other, where memory is too little. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shammah.bus.messages import Ready
from shammah.models.catalogue import LocatedModel
from shammah.models.footprint import SHORT_CONTEXT
from shammah.settings.model import InferenceSettings
from workers.inference.engine import LoadSettings

WHOLE, SHORT, INT8, INT4 = 0, 1, 2, 3
"""How far: as asked for; with 16 bit and a short context; with weights of 8 or of 4 bits, too.
After that, the next smaller model begins anew."""

ON_CPU = 4
"""Added to a level: the same on the processor, where the GPU cannot have the model."""

_BITS = {"int8": "8-bit weights", "int4": "4-bit weights"}
_CHANGES = {INT8: _BITS["int8"], INT4: _BITS["int4"]}


@dataclass(frozen=True, slots=True)
class Rung:
    """A model, and the level at which it is tried; ``gpu``: the device that was chosen for it,
    empty if that is the processor or was set."""

    located: LocatedModel
    level: int
    gpu: str = ""

    @property
    def on_gpu(self) -> bool:
        return bool(self.gpu) and self.level < ON_CPU


def levels(
    asked: InferenceSettings, engine: str, context_length: int, on_cpu: str = ""
) -> tuple[int, ...]:
    """The levels that make a difference, in order; none undoes what the user has set. The same
    weights on the processor come before fewer bits on a GPU.

    Args:
        asked: the settings.
        engine: what computes the model. The native one computes with 8 bits unless told.
        context_length: of the model, in tokens.
        on_cpu: the engine that computes it on the processor if ``engine`` cannot have the GPU
            that was chosen; empty: there was none to choose.
    """
    if on_cpu:
        fewer_bits = (INT4,) if asked.quantization == "auto" else ()
        there = (ON_CPU + level for level in levels(asked, on_cpu, context_length))
        return (WHOLE, *there, *fewer_bits)
    native = engine == "native"
    shorter = asked.context_length == 0 and context_length > SHORT_CONTEXT
    narrower = asked.dtype == "auto" and not native
    found = [WHOLE] + [SHORT] * (shorter or narrower)
    if asked.quantization == "auto":
        found += [INT4] if native else [INT8, INT4]
    return tuple(found)


def settings_at(asked: InferenceSettings, level: int, gpu: str = "") -> LoadSettings:
    """What to ask the engine for at a level. ``gpu``: see `Rung`."""
    device = "cpu" if level >= ON_CPU else gpu or asked.device
    level %= ON_CPU
    settings = LoadSettings(
        device, asked.dtype, asked.quantization, asked.context_length, asked.kv_memory
    )
    if level == WHOLE:
        return settings
    settings = replace(settings, context_length=asked.context_length or SHORT_CONTEXT, lean=True)
    if level == SHORT:
        return settings
    return replace(settings, quantization="int8" if level == INT8 else "int4")


def below(rungs: Iterable[Rung], model: str, level: int) -> Iterator[Rung]:
    """The rungs after the one at which ``model`` was at ``level``; all, if it is none of them."""
    passed: list[Rung] = []
    rest = iter(rungs)
    for rung in rest:
        passed.append(rung)
        if (rung.located.name, rung.level) == (model, level):
            return rest
    return iter(passed)


def describe_step(before: Rung, after: Rung | None) -> str:
    """What is done after ``before`` has failed, as a sentence; empty: nothing is left."""
    if after is None:
        return ""
    name = after.located.name
    if name != before.located.name:
        return f"{name} is loaded instead."
    if before.on_gpu and not after.on_gpu:
        return "It is loaded on the CPU instead."
    change = _CHANGES.get(after.level % ON_CPU, "less context and 16 bit")
    return f"It is loaded again with {change}."


def describe_result(wanted: str, level: int, ready: Ready) -> str:
    """What has become of a load that was asked for ``wanted``, as a sentence."""
    if level == WHOLE:
        return f"{ready.model} answers instead of {wanted}."
    form = _BITS.get(ready.quantization, ready.dtype)
    instead = "" if ready.model == wanted else f" instead of {wanted}"
    place = " on the CPU" if level >= ON_CPU else ""
    context = f"a context of {ready.context_length:,} tokens"
    return f"{ready.model} runs{place} with {form} and {context}{instead}."
