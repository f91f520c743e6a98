"""Checkpoints as AutoAWQ and AutoGPTQ publish them: weights rounded to 4 bits, eight in an int32.

Written from the packing loops of those libraries, number by number, and so slowly that nothing
but small models should be given to it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Layer:
    """Numbers (channels, inputs), and a zero point and a scale (channels, groups) of each group."""

    numbers: NDArray[np.int64]
    zeros: NDArray[np.int64]
    scales: NDArray[np.float16]
    group: int

    @property
    def weights(self) -> NDArray[np.float32]:
        """scale * (number - zero point)"""
        every = np.arange(self.numbers.shape[1]) // self.group
        scales = self.scales[:, every].astype(np.float64)
        return (scales * (self.numbers - self.zeros[:, every])).astype(np.float32)


def round_to_4_bits(
    weights: NDArray[np.float32], group: int, *, symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float16]]:
    """Numbers (channels, inputs), zero points and scales (channels, groups)."""
    inputs = weights.shape[1]
    starts = range(0, inputs, group)
    parts = [weights[:, start : start + group] for start in starts]
    low = np.stack([part.min(1).clip(max=0) for part in parts], 1)
    high = np.stack([part.max(1).clip(min=0) for part in parts], 1)
    if symmetric:
        high = np.maximum(high, -low)
        low = -high
    scales = np.maximum((high - low) / 15, 1e-4).astype(np.float16)
    zeros = np.rint(-low / scales).clip(0, 15).astype(np.int64)
    zeros = np.full_like(zeros, 8) if symmetric else zeros
    every = np.arange(inputs) // group
    numbers = np.rint(weights / scales[:, every] + zeros[:, every]).clip(0, 15)
    return numbers.astype(np.int64), zeros, scales


def pack_awq(numbers: NDArray[np.int64], zeros: NDArray[np.int64], scales: NDArray[Any]) -> Arrays:
    """As ``WQLinear_GEMM.from_linear``."""
    return {
        "qweight": _packed(numbers.T, (0, 2, 4, 6, 1, 3, 5, 7)),
        "qzeros": _packed(zeros.T, (0, 2, 4, 6, 1, 3, 5, 7)),
        "scales": np.ascontiguousarray(scales.T),
    }


def pack_gptq(
    numbers: NDArray[np.int64],
    zeros: NDArray[np.int64],
    scales: NDArray[Any],
    group: int,
    version: int = 1,
) -> Arrays:
    """As ``QuantLinear.pack``; ``version`` 2 stores zero points as they are."""
    words = _packed(zeros.T, tuple(range(8))).view(np.uint32)
    if version == 1:
        words = words - np.uint32(0x11111111)
    return {
        "qweight": np.ascontiguousarray(_packed(numbers, tuple(range(8))).T),
        "qzeros": words.view(np.int32),
        "scales": np.ascontiguousarray(scales.T),
        "g_idx": (np.arange(numbers.shape[1]) // group).astype(np.int32),
    }


def _packed(rows: NDArray[np.int64], order: tuple[int, ...]) -> NDArray[np.int32]:
    """Eight successive numbers of a row in each word."""
    words = np.zeros((rows.shape[0], rows.shape[1] // 8), np.int64)
    for column in range(words.shape[1]):
        for place, number in enumerate(order):
            words[:, column] |= rows[:, 8 * column + number] << (4 * place)
    return words.astype(np.uint32).view(np.int32)


def publish(
    source: Path,
    target: Path,
    method: str,
    group: int,
    *,
    symmetric: bool = False,
    **told: Any,
) -> dict[str, Layer]:
    """Write the model in ``source`` to ``target`` in 4 bits, as ``method`` (awq or gptq).

    ``told`` is added to the configuration's quantization_config. Returns the layers, by the
    name that their weights had.
    """
    config = json.loads((source / "config.json").read_text())
    bits = {"quant_method": method, "bits": 4, "group_size": group}
    own = {"version": "gemm", "zero_point": True}
    if method == "gptq":
        own = {"sym": symmetric, "desc_act": False, "checkpoint_format": "gptq"}
    config["quantization_config"] = bits | own | told
    version = 2 if config["quantization_config"].get("checkpoint_format") == "gptq_v2" else 1
    stored: Arrays = {}
    layers: dict[str, Layer] = {}
    for name, weights in load_file(source / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if not name.endswith(".weight") or layer.rpartition(".")[2] not in LAYERS:
            stored[name] = weights.astype(np.float16)
            continue
        numbers, zeros, scales = round_to_4_bits(weights, group, symmetric=symmetric)
        layers[name] = Layer(numbers, zeros, scales, group)
        packed = (
            pack_awq(numbers, zeros, scales)
            if method == "awq"
            else pack_gptq(numbers, zeros, scales, group, version)
        )
        stored |= {f"{layer}.{part}": array for part, array in packed.items()}
    target.mkdir(parents=True, exist_ok=True)
    for path in source.glob("*.json"):
        (target / path.name).write_bytes(path.read_bytes())
    (target / "config.json").write_text(json.dumps(config))
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    return layers
