"""Weights that are published in 4 bits: what ``config.json`` says about them. Pure.

AWQ (https://arxiv.org/abs/2306.00978, as AutoAWQ writes it) and GPTQ
(https://arxiv.org/abs/2210.17323, as AutoGPTQ and GPTQModel do) both give every group of inputs
of a channel a scale s and a zero point z, whole as the numbers q are:

    W = s (q - z)        0 <= q, z <= 15
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from shammah.bus.record import record
from shammah.models.catalogue import ModelShape
from shammah.models.footprint import token_tables
from shammah.models.hub_config import stored_width

AWQ, GPTQ = "awq", "gptq"

_READ = "only AWQ (gemm) and GPTQ are supported, in 4 bits and groups of 32, 64 or 128"

USE_ORIGINAL = "Name the model's original (unquantised) repository."


@record
class PublishedBits:
    """How the layers of a model are stored: ``group`` inputs share a scale and a zero point, to
    which ``zero_offset`` is added."""

    format: Literal["awq", "gptq"]
    group: int
    zero_offset: int = 0


def read_published_bits(config: Mapping[str, Any]) -> PublishedBits | None:
    """What a ``config.json`` says; ``None``: the weights are not quantised.

    Raises:
        ValueError: they are in a way that is not read; the error completes "config.json ...".
    """
    given = config.get("quantization_config")
    if not given:
        return None
    told: Mapping[str, Any] = given if isinstance(given, dict) else {}
    method = told.get("quant_method")
    form = told.get("format")
    if method == AWQ:
        form = _checked(method, "version", told.get("version") or form or "gemm", ("gemm",))
        _checked(method, "zero_point", told.get("zero_point", True), (True,))
    elif method == GPTQ:
        form = "marlin" if told.get("is_marlin_format") else told.get("checkpoint_format") or form
        form = _checked(method, "format", form or "gptq", ("gptq", "gptq_v2"))
    else:
        by = f" by {method!r:.40}" if method else ""
        raise ValueError(f"says that the weights are quantised{by}; {_READ}")
    _checked(method, "bits", told.get("bits"), (4,))
    group = _checked(method, "group_size", told.get("group_size"), (32, 64, 128))
    if told.get("desc_act") and not told.get("static_groups"):
        raise ValueError(
            "sets desc_act, and weights whose groups are scattered over the inputs are not "
            "supported"
        )
    return PublishedBits(method, group, int(form == "gptq"))


def _checked(method: str, name: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    """Return the value if it is one of the allowed ones."""
    value = value.lower() if isinstance(value, str) else value
    if type(value) is not type(allowed[0]) or value not in allowed:
        raise ValueError(f"gives {value!r:.40} as the {name} of {method.upper()} weights; {_READ}")
    return value


def stored_parameters(config: Mapping[str, Any], shape: ModelShape, size: int) -> int:
    """How many weights there are in ``size`` bytes of safetensors.

    Raises:
        ValueError: nobody can tell; the error completes "config.json ...".
    """
    bits, width = read_published_bits(config), stored_width(config)
    if bits is None:
        return size // width
    tables = token_tables(shape)
    # A group has a scale of 16 bits and a zero point of 4.
    layers = (size - width * tables) / (0.5 + 2.5 / bits.group)
    return tables + max(0, int(layers))
