"""What a model needs on this machine, before it is downloaded: disk, time and memory. Pure.

The numbers for memory are bounds; real use is a little less (docs/MODEL_SELECTION.md compares them
with measurements).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, replace

from shammah.bus.transfers import FetchPlan
from shammah.errors import ShammahError
from shammah.models.catalogue import (
    GIB,
    GPU_HEADROOM_BYTES,
    GPU_WEIGHT_BYTES,
    CatalogueModel,
    Machine,
    ModelShape,
    catalogue_model,
    choices,
    fits_gpu,
)
from shammah.models.footprint import (
    HEADROOM_BYTES,
    INT4,
    INT8,
    KV_SHARE,
    LEAST_CONTEXT,
    LIBRARIES_BYTES,
    NATIVE_FAMILY,
    NATIVE_WEIGHT_BYTES,
    SHORT_CONTEXT,
    activation_bytes,
    kv_bytes,
    published_bytes,
)
from shammah.models.gguf_files import ENDING
from shammah.models.hub_config import (
    WIDTHS,
    read_architecture,
    read_config,
    read_shape,
)
from shammah.models.published_bits import PublishedBits, read_published_bits, stored_parameters
from shammah.settings.model import InferenceSettings
from shammah.terminal.wording import describe_size

WEIGHT_BYTES = {**WIDTHS, INT8: NATIVE_WEIGHT_BYTES[INT8], **GPU_WEIGHT_BYTES}
KV_BYTES = {**WIDTHS, INT8: 2, INT4: 2}
STEP_BYTES = {**WIDTHS, INT8: 4, INT4: 2}
"""Of a weight, of a number among the keys and values, and of one within a step."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is to be loaded: the machine, and the settings that decide how.

    ``permissive``: suggest nothing that may not be used commercially.
    """

    machine: Machine
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    permissive: bool = False

    def usable(self, device: str) -> int:
        """Bytes of memory on ``device``; 0: unknown."""
        return self.machine.gpu_memory if device == "cuda" else self.machine.memory


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a model takes in memory, in bytes.

    Attributes:
        device: where it will be loaded.
        dtype: the format of its numbers.
        usable: what there is on that device; 0: that is not known.
        weights: the parameters.
        libraries: what the worker takes without a model.
        context_length: tokens of the longest conversation that the model is made for; 0: that is
            not known, as of a GGUF file, whose header only the worker reads.
        kv_cache: the keys and values of so many tokens.
        activations: the most that one step takes in addition.
        least: what there must be for a conversation of `least_context` tokens.
        context_fits: tokens of the longest conversation that fits.
    """

    device: str
    dtype: str
    usable: int
    weights: int
    libraries: int
    context_length: int
    kv_cache: int
    activations: int
    least: int
    context_fits: int

    @property
    def loaded(self) -> int:
        """Before the first question."""
        return self.weights + self.libraries

    @property
    def full(self) -> int:
        """At the end of the longest conversation."""
        return self.loaded + self.kv_cache + self.activations

    @property
    def least_context(self) -> int:
        return min(LEAST_CONTEXT, self.context_length)

    @property
    def fits(self) -> bool:
        if not self.context_length:
            return not self.usable or self.least <= self.usable
        return self.context_fits >= self.least_context


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What the model needs.

    Attributes:
        found: what is to be downloaded, and what is on this disk.
        parameters: how many; 0: unknown.
        memory: ``None``: unknown, see ``memory_unknown``.
        memory_unknown: why, in words.
        refusals: why it should not be downloaded (``memory_too_small``, ``disk_too_small``), the
            most serious first.
    """

    found: FetchPlan
    parameters: int
    memory: MemoryNeed | None
    memory_unknown: str
    refusals: tuple[ShammahError, ...]

    @property
    def eta_s(self) -> float | None:
        """Seconds of download at the last measured rate; ``None``: unknown."""
        if not self.found.missing:
            return 0.0
        return self.found.missing / self.found.rate if self.found.rate else None

    @property
    def disk_left(self) -> int:
        """Free bytes after the download; negative: it does not fit."""
        return self.found.disk_free - self.found.missing

    @property
    def verdict(self) -> str:
        """``fits``, ``fits_shorter`` (not the whole context) or the code of a refusal."""
        if self.refusals:
            return self.refusals[0].code
        memory = self.memory
        shorter = memory is not None and memory.context_fits < memory.context_length
        return "fits_shorter" if shorter else "fits"


def make_plan(found: FetchPlan, place: Place) -> ModelPlan:
    """Judge what the download worker (or a directory) reports about a model."""
    parameters, memory, unknown = 0, None, ""
    gguf = sum(file.size for file in found.files if file.path.endswith(ENDING))
    try:
        if gguf and not found.config:
            memory = _need_of_file(gguf, place)
        else:
            shape, parameters, architecture, bits = _facts(found)
            memory = need_of(shape, parameters, place, architecture, bits)
    except ValueError as error:
        unknown = f"config.json {error}"
    refusals = []
    smaller = _smaller(found, parameters, place)
    if memory is not None and not memory.fits:
        refusals.append(_memory_refusal(found.model, memory, smaller))
    if found.missing and found.disk_free - found.missing < found.disk_reserve:
        refusals.append(_disk_refusal(found, smaller))
    return ModelPlan(found, parameters, memory, unknown, tuple(refusals))


# --- memory -------------------------------------------------------------------------------


def need_of(
    shape: ModelShape,
    parameters: int,
    place: Place,
    architecture: str = "Qwen2ForCausalLM",
    bits: PublishedBits | None = None,
) -> MemoryNeed:
    """Work out what a model of this shape takes at ``place``.

    Like the worker, it steps down to 16 bits and a short context where float32 leaves too
    little room for conversations. With ``bits``, its layers were published in 4.
    """
    if bits is not None:
        return _need(shape, published_bytes(shape, parameters), place, "cpu", INT4)
    device = _device(parameters, place)
    dtype = _dtype(parameters, device, place, architecture)
    need = _need(shape, int(WEIGHT_BYTES[dtype] * parameters), place, device, dtype)
    steps_down = place.inference.dtype == "auto" and dtype == "float32"
    if need.context_fits >= need.least_context or not steps_down:
        return need
    lean = _need(shape, WIDTHS["bfloat16"] * parameters, place, device, "bfloat16")
    return replace(lean, context_fits=min(lean.context_fits, SHORT_CONTEXT))


def _need(shape: ModelShape, weights: int, place: Place, device: str, dtype: str) -> MemoryNeed:
    usable = place.usable(device)
    # With 4 bits on a CPU it is the native engine that computes.
    native = device == "cpu" and dtype == INT4
    width, step = KV_BYTES[dtype], STEP_BYTES[INT8 if native else dtype]
    loaded = weights + LIBRARIES_BYTES
    longest = min(shape.context_length, place.inference.context_length or shape.context_length)

    def conversation(tokens: int) -> int:
        return kv_bytes(shape, tokens, width) + activation_bytes(shape, tokens, step)

    short = min(LEAST_CONTEXT, longest)
    begun = conversation(0)
    room = usable - loaded if usable else sys.maxsize
    cache = int(min(place.inference.kv_memory * GIB, sys.maxsize)) or int(KV_SHARE * room)
    fitting = min(
        cache // kv_bytes(shape, 1, width),
        (room - begun) // (conversation(1) - begun),  # what it takes grows evenly
        longest,
    )
    return MemoryNeed(
        device=device,
        dtype=dtype,
        usable=usable,
        weights=weights,
        libraries=LIBRARIES_BYTES,
        context_length=longest,
        kv_cache=kv_bytes(shape, longest, width),
        activations=activation_bytes(shape, longest, step),
        least=loaded + max(conversation(short), int(kv_bytes(shape, short, width) / KV_SHARE)),
        context_fits=max(0, fitting),
    )


def _need_of_file(size: int, place: Place) -> MemoryNeed:
    """What a GGUF file of ``size`` bytes takes; its weights stay as they are in it."""
    device = place.inference.device
    if device == "auto":
        on_gpu = size + GPU_HEADROOM_BYTES <= place.machine.gpu_memory
        device = "cuda" if on_gpu else "mps" if place.machine.mps else "cpu"
    return MemoryNeed(
        device=device,
        dtype="GGUF",
        usable=place.usable(device),
        weights=size,
        libraries=LIBRARIES_BYTES,
        context_length=0,
        kv_cache=0,
        activations=0,
        least=size + LIBRARIES_BYTES + HEADROOM_BYTES,
        context_fits=0,
    )


def _device(parameters: int, place: Place) -> str:
    if place.inference.device != "auto":
        return place.inference.device
    asked = place.inference.quantization
    if asked != INT8 and fits_gpu(parameters, place.machine.gpu_memory, asked):
        return "cuda"
    return "mps" if place.machine.mps else "cpu"


def _dtype(parameters: int, device: str, place: Place, architecture: str) -> str:
    """Choose as the inference worker does (see its `offers.choose_engine`) with all memory free.

    Where 4 bits are set for a CPU, this assumes 8, which take more.
    """
    asked, usable = place.inference, place.usable(device)
    if asked.quantization in (INT8, INT4):
        return INT8 if device == "cpu" else asked.quantization
    if asked.dtype != "auto":
        return asked.dtype
    if device != "cpu":
        return "bfloat16"
    native = asked.engine != "transformers" and asked.quantization != "none"
    if native and architecture in NATIVE_FAMILY:
        return INT8
    needed = WIDTHS["float32"] * parameters + HEADROOM_BYTES + LIBRARIES_BYTES
    return "float32" if needed <= usable else "bfloat16"


# --- what the model is --------------------------------------------------------------------


def _facts(found: FetchPlan) -> tuple[ModelShape, int, str, PublishedBits | None]:
    """Return the shape, the number of parameters, the architecture, and how its layers are stored.

    Raises:
        ValueError: neither the configuration nor the catalogue knows them, or nothing reads them.
    """
    weights = sum(file.size for file in found.files if file.path.endswith(".safetensors"))
    try:
        config = read_config(found.config)
        shape, architecture = read_shape(config), read_architecture(config)
        bits = read_published_bits(config)
        if bits is not None and architecture not in NATIVE_FAMILY:
            raise ValueError(f"describes a {architecture} in 4 bits, which is not supported")
        return shape, stored_parameters(config, shape, weights), architecture, bits
    except ValueError:
        known = catalogue_model(found.model)
        if known is None:
            raise
        return known.shape, known.parameters, "Qwen2ForCausalLM", None


# --- refusals -----------------------------------------------------------------------------


def _smaller(found: FetchPlan, parameters: int, place: Place) -> CatalogueModel | None:
    """Find the largest of what ``auto`` chooses from that is smaller than ``found`` and fits."""
    room = found.disk_free - found.disk_reserve
    for model in reversed(choices(permissive=place.permissive)):
        if model.parameters >= (parameters or found.total // 2):
            continue
        need = need_of(model.shape, model.parameters, place)
        if model.download_bytes <= room and need.context_fits >= need.least_context:
            return model
    return None


def _memory_refusal(model: str, memory: MemoryNeed, smaller: CatalogueModel | None) -> ShammahError:
    if memory.least <= memory.usable:
        return ShammahError(
            "memory_too_small",
            f"With the present inference.kv_memory, {model} holds conversations of only "
            f"{memory.context_fits:,} tokens; at least {memory.least_context:,} are needed.",
            "Set inference.kv_memory to 0; --force continues anyway.",
        )
    where = "the GPU" if memory.device == "cuda" else "this machine"
    tokens = f" of {memory.least_context:,} tokens" if memory.context_length else ""
    return ShammahError(
        "memory_too_small",
        f"{model} needs {memory.least / GIB:.1f} GiB of memory as {memory.dtype} for a "
        f"conversation{tokens}; {where} has only {memory.usable / GIB:.1f} GiB.",
        _hint("Use the starter (--model starter) or the cloud", smaller),
    )


def _disk_refusal(found: FetchPlan, smaller: CatalogueModel | None) -> ShammahError:
    return ShammahError(
        "disk_too_small",
        f"The disk is too small for {found.model}: the download takes "
        f"{describe_size(found.missing)}, {describe_size(found.disk_free)} are free, and "
        f"{describe_size(found.disk_reserve)} must stay free.",
        _hint("Free some space (`shammah models list` shows models), or set HF_HOME", smaller),
    )


def _hint(otherwise: str, smaller: CatalogueModel | None) -> str:
    if smaller is None:
        return f"{otherwise}; --force continues anyway."
    size = describe_size(smaller.download_bytes)
    return (
        f"{smaller.name} fits: `shammah models pull {smaller.size}` ({size}). {otherwise}; "
        "--force continues anyway."
    )
