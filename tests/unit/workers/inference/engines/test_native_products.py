"""Matrix products: right, and the same bits on every processor and for every number of rows."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes.int4_weights import unpack_int4
from workers.inference.engines.native.dot_products import cut_numbers
from workers.inference.engines.native.kernels import prepare_kernels
from workers.inference.engines.native.operands import (
    Activations,
    Matrix,
    make_scratch,
    new_counters,
)
from workers.inference.engines.native.packing import pack, unpack
from workers.inference.engines.native.products import FOURS_FIT, project, quantize_group
from workers.inference.engines.native.published_packing import pack_published

CHANNELS, INPUTS, ROWS = 48, 320, 19
DIGESTS = {8: "e2140c0ae4bed6ea", 4: "fc76457209f729af" if FOURS_FIT else "9d9fb54b7c2f2d74"}
"""Of the products, on x86-64 and on ARM; those of 4 bits are others where bytes are multiplied."""
CLOSE = {8: 1e-4, 4: 1e-2 if FOURS_FIT else 1e-4}


def multiply(
    x: NDArray[np.float32], rows: int, matrix: Any, into: Any, out: Any, scratch: Any, counters: Any
) -> None:
    for row in range(rows):
        for group in range(INPUTS // 64):
            quantize_group(x, row, group, into)
    project(0, counters, 0, matrix, 0, into, rows, out, scratch)


@pytest.fixture(scope="module")
def kernel() -> Any:
    return numba.njit(multiply, error_model="numpy")


@pytest.mark.parametrize("bits", [8, 4])
def test_products_are_right_and_the_same_everywhere(bits: int, kernel: Any) -> None:
    random = np.random.default_rng(0)
    x = (random.integers(-9999, 10000, (ROWS, INPUTS)) / 64).astype(np.float32)
    x[0, :64] = 0
    if bits == 8:
        code = prepare_kernels(Path(sys.prefix, "share", "shammah", "kernels"))
        weights = random.integers(-999, 1000, (CHANNELS, INPUTS)).astype(np.float32)
        packed, scales = pack(weights, code)
        units, held = np.zeros(0, np.float32), unpack(packed, scales, CHANNELS, INPUTS)
    else:
        numbers = random.integers(0, 16, (CHANNELS, INPUTS)).astype(np.uint8)
        zeros = random.integers(0, 16, (CHANNELS, INPUTS // 32)).astype(np.uint8)
        steps = random.integers(1, 99, zeros.shape).astype(np.float32)
        packed, scales, units = pack_published(numbers, zeros, steps, 32)
        held = unpack_int4(packed, scales, units, CHANNELS, INPUTS)
    matrix = Matrix(bits, packed[None], scales[None], units[None], True)

    def products(rows: int) -> NDArray[np.float32]:
        into = Activations(
            np.zeros((ROWS, INPUTS), np.int16),
            np.zeros((ROWS, INPUTS // 64), np.float32),
            np.zeros((ROWS, INPUTS), np.int8),
            np.zeros((ROWS, INPUTS // 32), np.float32),
            np.zeros((ROWS, INPUTS // 32), np.float32),
        )
        out, counters = np.ones((ROWS, CHANNELS), np.float32), new_counters(1, adapted=False)
        kernel(x, rows, matrix, into, out, make_scratch(1, 16, ROWS), counters)
        return out[:rows]

    found = products(ROWS)
    exact = x.astype(np.float64) @ held.T.astype(np.float64) + 1
    assert abs(found - exact).max() < CLOSE[bits] * abs(exact).max()
    for rows in (1, 2, 3, 9):
        assert products(rows).tobytes() == found[:rows].tobytes()
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == DIGESTS[bits]


def test_numbers_are_cut_into_halves_in_the_order_of_the_weights() -> None:
    """What ARM's ``sdot`` multiplies, tried on any processor."""

    @numba.njit
    def cut(numbers: Any) -> None:
        cut_numbers(numbers, 32)

    before = np.random.default_rng(0).integers(-32639, 32640, 64).astype(np.int16)
    before[32:36] = -32639, 32639, -128, 128
    numbers = before.copy()
    cut(numbers)
    upper, lower = numbers[32:].view(np.int8).reshape(2, 32).astype(np.int64)
    order = [k + 16 * late for k in range(16) for late in (0, 1)]
    assert (256 * upper + lower == before[32:][order]).all()
    assert (numbers[:32] == before[:32]).all()
