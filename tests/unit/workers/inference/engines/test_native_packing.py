"""Rounding weights to 8 bits, and the order in which they lie."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.inference.engines.native.kernels import prepare_kernels
from workers.inference.engines.native.layout import GROUP, packed_sizes
from workers.inference.engines.native.packing import pack, unpack


@pytest.fixture(scope="module")
def packing() -> Any:
    code = prepare_kernels(Path(sys.prefix, "share", "shammah", "kernels"))
    return SimpleNamespace(pack=partial(pack, code=code), unpack=unpack)


def random_matrix(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 0.02, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(16, 64), (1, 1), (17, 65), (50, 200), (160, 640)])
def test_rounding_loses_half_a_step_at_most(packing: Any, shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape)
    weights, scales = packing.pack(matrix)
    assert (len(weights), len(scales)) == packed_sizes(*shape)
    found = packing.unpack(weights, scales, *shape)
    assert found.shape == shape
    for first in range(0, shape[1], GROUP):
        group = slice(first, first + GROUP)
        step = abs(matrix[:, group]).max(1, keepdims=True) / 127 * (1 + 2**-7)
        assert (abs(found - matrix)[:, group] <= step / 2 * 1.0001).all()


def test_the_order_is_that_of_the_description(packing: Any) -> None:
    matrix = np.arange(32 * 128, dtype=np.float32).reshape(32, 128) % 251 - 125
    weights, scales = packing.pack(matrix)
    blocks = weights.reshape(2, 2, 32, 16, 2)
    steps = (scales.reshape(2, 2, 16).astype(np.uint32) << 16).view(np.float32)
    for channel, k in ((0, 0), (1, 1), (17, 64), (31, 127), (20, 99)):
        panel, lane, group, pair = channel // 16, channel % 16, k // 64, k % 64 // 2
        found = blocks[panel, group, pair, lane, k % 2] * steps[panel, group, lane]
        assert found == pytest.approx(matrix[channel, k], abs=0.51)


def test_zeros_and_extremes_are_kept(packing: Any) -> None:
    matrix = np.zeros((3, 64), np.float32)
    matrix[1, 5] = 1e-30
    matrix[2, 6] = -3e30
    found = packing.unpack(*packing.pack(matrix), 3, 64)
    assert (found[0] == 0).all()
    assert found[1, 5] == pytest.approx(1e-30, rel=0.01)
    assert found[2, 6] == pytest.approx(-3e30, rel=0.01)


def test_values_that_are_steps_already_are_exact(packing: Any) -> None:
    whole = np.random.default_rng(0).integers(-127, 128, (32, 64)).astype(np.float32)
    whole[:, 0] = 127
    matrix = whole * np.float32(2**-9)
    assert np.array_equal(packing.unpack(*packing.pack(matrix), 32, 64), matrix)
