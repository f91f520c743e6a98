"""What a model of the Qwen2 and Llama family looks like, read from its configuration.

Imports no numpy: whether a model can be computed here is known at once.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from shammah.models.footprint import NATIVE_FAMILY
from shammah.models.published_bits import AWQ, GPTQ
from workers.inference.engines.native import processor
from workers.inference.packages.checkpoint import CONFIG, Checkpoint, read_configuration
from workers.inference.packages.llama_family import find_difference, read_rotary

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_LARGEST = 2**40
"""No number of a model's comes near; larger ones would only make the sums overflow."""

_ROTARY = ("default", "linear", "llama3")
_DEFAULT_THETA, _DEFAULT_EPS = 10_000.0, 1e-6


class _UnsupportedError(Exception):
    """The message ends the sentence "This model ..."."""


@record
class Architecture:
    """The numbers that say how to compute. ``positions`` is the length of the context."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    positions: int
    eps: float
    tied: bool
    has_bias: bool
    has_head_norms: bool
    frequencies: tuple[float, ...] = ()
    """How fast each pair of numbers of a head turns with the position, in radians."""
    published: bool = False
    """Whether the layers were published in 4 bits, which they keep."""

    def rotations(
        self, positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Cosines and sines: (positions, half a head). In float32, as the models were trained."""
        import numpy as np

        frequencies = np.array(self.frequencies, np.float32)
        angles = positions.astype(np.float32)[:, None] * frequencies
        return np.cos(angles), np.sin(angles)


def supports(checkpoint: Checkpoint) -> str:
    """Why this model cannot be computed here, ending "The native engine cannot compute this
    model: it ..."; empty if it can be."""
    if why := processor.obstacle():
        return why
    try:
        _read(checkpoint, whole=False)
    except _UnsupportedError as error:
        return str(error)
    except ShammahError:
        pass  # it is no whole model at all, which loading says better
    return ""


def read_architecture(checkpoint: Checkpoint) -> Architecture:
    """The architecture of a checkpoint that `inspect_checkpoint` has found whole.

    Raises:
        ShammahError: ``model_unsupported`` or ``model_config_invalid``.
    """
    try:
        return _read(checkpoint, whole=True)
    except _UnsupportedError as error:
        raise ShammahError(
            "model_unsupported",
            f"The native engine does not support this model: it {error}.",
            "Set inference.engine to transformers.",
        ) from error


def _read(checkpoint: Checkpoint, *, whole: bool) -> Architecture:
    """Unless it is to be ``whole``, without the frequencies, for which numpy is imported."""
    try:
        found = _read_values(checkpoint)
        if not whole:
            return found
        config = read_configuration(checkpoint.directory)
        return replace(found, frequencies=_frequencies(config, found.head_size))
    except (TypeError, ValueError, OverflowError) as error:
        raise ShammahError(
            "model_config_invalid",
            f"{CONFIG} has a value of the wrong type ({error}).",
            FETCH_AGAIN,
        ) from error


def _read_values(checkpoint: Checkpoint) -> Architecture:
    if checkpoint.architecture not in NATIVE_FAMILY:
        raise _UnsupportedError(f"is a {checkpoint.architecture}")
    config = read_configuration(checkpoint.directory)
    if why := find_difference(checkpoint, config, _ROTARY, biases=False):
        raise _UnsupportedError(why)
    heads = _whole(config, "num_attention_heads")
    hidden = _whole(config, "hidden_size")
    size = _whole(config, "head_dim", hidden // heads)
    if hidden * heads * size > checkpoint.parameters:
        raise _invalid("head_dim", size)  # before an array is made for it
    if size % 2:
        raise _UnsupportedError(f"has heads of an odd size ({size})")
    return Architecture(
        layers=_whole(config, "num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_size=size,
        intermediate=_whole(config, "intermediate_size"),
        vocabulary=_whole(config, "vocab_size"),
        positions=checkpoint.context_length,
        eps=_real(config, "rms_norm_eps", _DEFAULT_EPS),
        tied=checkpoint.tied,
        has_bias=checkpoint.architecture == "Qwen2ForCausalLM",
        has_head_norms=checkpoint.architecture == "Qwen3ForCausalLM",
        published=checkpoint.format in (AWQ, GPTQ),
    )


# --- rotary embeddings --------------------------------------------------------------------


def _frequencies(config: dict[str, Any], size: int) -> tuple[float, ...]:
    """theta**(-2i/size) for each pair i, scaled as the configuration says."""
    rope = read_rotary(config)
    theta = _real(rope, "rope_theta", _real(config, "rope_theta", _DEFAULT_THETA))
    kind = rope.get("rope_type", rope.get("type", "default"))
    import numpy as np

    plain = 1.0 / theta ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    if kind == "default":
        return tuple(plain.tolist())
    if kind == "linear":
        return tuple((plain / _real(rope, "factor")).tolist())
    return tuple(_llama3(frequency, rope) for frequency in plain.tolist())


def _llama3(frequency: float, rope: dict[str, Any]) -> float:
    """Llama 3.1's scaling: slow turns are slowed by ``factor``, fast ones kept, others between.

    As in transformers' ``modeling_rope_utils._compute_llama3_parameters``.
    """
    factor, length = _real(rope, "factor"), _real(rope, "original_max_position_embeddings")
    low, high = _real(rope, "low_freq_factor"), _real(rope, "high_freq_factor")
    turns = length * frequency / (2 * math.pi)  # in the original context
    if turns > high:
        return frequency
    if turns < low:
        return frequency / factor
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


# --- the configuration's values -----------------------------------------------------------


def _whole(config: dict[str, Any], name: str, default: int | None = None) -> int:
    return int(_positive(config, name, default, (int,)))


def _real(config: dict[str, Any], name: str, default: float | None = None) -> float:
    return float(_positive(config, name, default, (int, float)))


def _positive(
    config: dict[str, Any], name: str, default: float | None, kinds: tuple[type, ...]
) -> float:
    value: Any = config.get(name)
    if value is None and default is not None:
        return default
    if type(value) not in kinds or not 0 < value < _LARGEST:
        raise _invalid(name, value)
    return value  # type: ignore[no-any-return]


def _invalid(name: str, value: object) -> ShammahError:
    return ShammahError(
        "model_config_invalid",
        f"{CONFIG} sets {name} to {value!r:.80}; expected a positive number.",
        FETCH_AGAIN,
    )
