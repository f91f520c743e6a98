"""Rounding weights to 4 bits, the order in which they lie, and the products made of them."""

from __future__ import annotations

import importlib.util
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.fakes.int4_weights import unpack_int4, unpack_int6
from workers.inference.engines.native import compiler
from workers.inference.engines.native.int4_packing import pack_int4
from workers.inference.engines.native.int6_packing import pack_int6
from workers.inference.engines.native.kernels import prepare_kernels
from workers.inference.engines.native.layout import GROUP, INT4_GROUP, packed_sizes, padded
from workers.inference.engines.native.packing import pack


@pytest.fixture(scope="module")
def packing() -> Any:
    code = prepare_kernels(Path(sys.prefix, "share", "shammah", "kernels"))
    return SimpleNamespace(
        pack_int4=partial(pack_int4, code=code),
        pack_int8=partial(pack, code=code),
        unpack_int4=unpack_int4,
    )


FEW_REGISTERS, BYTES = frozenset({"AVX2"}), frozenset({"AVX512F", "AVX512_VNNI"})


def products_for(features: frozenset[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of products as another processor gets it."""
    if not features <= compiler.features():
        pytest.skip("this processor cannot run it")
    monkeypatch.setattr(compiler, "compiled_for", features)
    spec = importlib.util.find_spec("workers.inference.engines.native.products")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def activations(count: int, width: int) -> Any:
    from workers.inference.engines.native.operands import Activations

    shapes = ((count, width // GROUP), *[(count, width // INT4_GROUP)] * 2)
    steps, small_steps, zeros = (np.zeros(shape, np.float32) for shape in shapes)
    numbers, bytes_ = np.zeros((count, width), np.int16), np.zeros((count, width), np.int8)
    return Activations(numbers, steps, bytes_, small_steps, zeros)


def as_computed_with(x: Any, features: frozenset[str]) -> NDArray[np.float64]:
    """The activations that weights of 4 bits are multiplied by."""
    if features == FEW_REGISTERS:
        exact: NDArray[np.float64] = x.numbers.astype(np.float64) * x.steps.repeat(GROUP, 1)
        return exact
    halves = x.small_numbers.reshape(len(x.steps), -1, INT4_GROUP // 2, 2).swapaxes(2, 3)
    exact = halves.reshape(len(x.steps), -1).astype(np.float64)
    return exact * x.small_steps.repeat(INT4_GROUP, 1)


def random_matrix(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 0.02, shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(16, 64), (1, 1), (17, 65), (50, 200), (160, 640)])
def test_what_is_lost_is_little(packing: Any, shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape)
    weights, scales, units = packing.pack_int4(matrix)
    assert (weights.nbytes, len(scales)) == packed_sizes(*shape, 4)
    assert len(units) == padded(shape[0], 16)
    found = packing.unpack_int4(weights, scales, units, *shape)
    assert found.shape == shape
    for first in range(0, shape[1], INT4_GROUP):
        group = slice(first, first + INT4_GROUP)
        ends = matrix[:, group].min(1).clip(max=0), matrix[:, group].max(1).clip(min=0)
        step = ((ends[1] - ends[0]) / 15)[:, None]
        assert (abs(found - matrix)[:, group] <= 1.6 * step + 1e-9).all()
        # The least that 15 even steps over the whole group would lose is a twelfth.
        squares = ((found - matrix)[:, group] / np.maximum(step, 1e-9)) ** 2
        assert squares.mean() < 1.1 / 12


def test_the_order_is_that_of_the_description(packing: Any) -> None:
    matrix = random_matrix(32, 128)
    weights, scales, units = packing.pack_int4(matrix)
    found = packing.unpack_int4(weights, scales, units, 32, 128)
    words = weights.view(np.uint16).reshape(2, 4, 4, 16, 2)
    codes = scales.reshape(2, 4, 16)
    for channel, k in ((0, 0), (1, 1), (17, 64), (31, 127), (20, 99), (5, 30)):
        panel, lane, group, place = channel // 16, channel % 16, k // 32, k % 32
        block, rest = place % 16 // 4, place % 4
        shift = 8 * (place // 16) + 4 * (rest // 2)
        number = words[panel, group, block, lane, rest % 2] >> shift & 15
        scale, zero = codes[panel, group, lane] & 255, codes[panel, group, lane] >> 8
        value = units[channel] * scale * (float(number) - zero / 16)
        assert value == pytest.approx(found[channel, k], rel=1e-5)
        assert value == pytest.approx(matrix[channel, k], abs=0.005)


def test_zeros_and_extremes_are_kept(packing: Any) -> None:
    matrix = np.zeros((5, 96), np.float32)
    matrix[1, 5] = 1e-30
    matrix[2, 6] = -3e30
    matrix[3] = 0.5
    matrix[4, :32] = 1e-4 * np.random.default_rng(0).normal(size=32)
    matrix[4, 32] = 100
    found = packing.unpack_int4(*packing.pack_int4(matrix), 5, 96)
    assert np.isfinite(found).all()
    assert (found[0] == 0).all()
    assert found[1, 5] == pytest.approx(1e-30, rel=0.01)
    assert found[2, 6] == pytest.approx(-3e30, rel=0.01)
    assert found[3] == pytest.approx(matrix[3], rel=0.01)
    assert found[4, 32] == pytest.approx(100, rel=0.01)
    assert abs(found[4, :32]).max() < 0.5


def test_weights_on_a_grid_of_sixteen_are_exact(packing: Any) -> None:
    whole = np.random.default_rng(0).integers(0, 16, (32, 64)).astype(np.float32)
    whole[:, ::32], whole[:, 1::32] = 0, 15
    matrix = (whole - 5) * np.float32(2**-9)
    found = packing.unpack_int4(*packing.pack_int4(matrix), 32, 64)
    assert np.allclose(found, matrix, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", [(16, 64), (1, 1), (17, 65), (50, 200)])
def test_six_bits_lose_half_a_step_at_most(shape: tuple[int, int]) -> None:
    matrix = random_matrix(*shape)
    weights, scales = pack_int6(matrix)
    assert (weights.nbytes, len(scales)) == packed_sizes(*shape, 6)
    found = unpack_int6(weights, scales, *shape)
    for first in range(0, shape[1], GROUP):
        group = slice(first, first + GROUP)
        step = abs(matrix[:, group]).max(1, keepdims=True) / 31 * 1.01  # a bfloat16
        assert (abs(found - matrix)[:, group] <= step / 2).all()


@pytest.mark.parametrize("features", [FEW_REGISTERS, BYTES], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("bits", [4, 6])
@pytest.mark.parametrize("adds", [False, True])
def test_products_are_those_of_the_unpacked_weights(
    packing: Any,
    adds: bool,
    bits: int,
    features: frozenset[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from workers.inference.engines.native.operands import Matrix, make_scratch

    products = products_for(features, monkeypatch)
    quantize_group, project = products.quantize_group, products.project
    channels, inputs, rows = 80, 600, 21
    scratch = make_scratch(1, 16, rows)
    width = padded(inputs, GROUP)
    if bits == 4:
        packed = packing.pack_int4(random_matrix(channels, inputs))
        held = unpack_int4(*packed, channels, inputs).astype(np.float64)
    else:
        packed = *pack_int6(random_matrix(channels, inputs)), np.zeros(0, np.float32)
        held = unpack_int6(*packed[:2], channels, inputs).astype(np.float64)
    matrix = Matrix(bits, *(array[None] for array in packed), adds)
    x = np.zeros((rows, width), np.float32)
    x[:, :inputs] = np.random.default_rng(2).normal(0, 3, (rows, inputs))

    def compute(counters: Any, matrix: Any, x: Any, into: Any, out: Any, scratch: Any) -> None:
        for row in range(x.shape[0]):
            for group in range(x.shape[1] // 64):
                quantize_group(x, row, group, into)
        project(0, counters, 0, matrix, 0, into, x.shape[0], out, scratch)

    multiply = numba.njit(compute)
    every = activations(rows, width)
    before = np.random.default_rng(3).normal(size=(rows, channels)).astype(np.float32)
    found = before.copy()
    multiply(np.zeros((1, 16), np.int64), matrix, x, every, found, scratch)
    exact = as_computed_with(every, features)
    if features == BYTES:
        assert (abs(exact - x) <= every.small_steps.repeat(INT4_GROUP, 1) * 0.5001).all()
    expected = exact[:, :inputs] @ held.T + (before if adds else 0)
    assert abs(found - expected).max() < 1e-5
    for row in range(rows):
        one, alone = activations(1, width), before[row : row + 1].copy()
        multiply(np.zeros((1, 16), np.int64), matrix, x[row : row + 1], one, alone, scratch)
        assert np.array_equal(alone[0], found[row])


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("adds", [False, True])
def test_many_rows_get_the_bits_that_few_get(
    packing: Any, bits: int, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are few registers."""
    from workers.inference.engines.native.operands import Matrix, make_scratch

    products = products_for(FEW_REGISTERS, monkeypatch)
    quantize_group = products.quantize_group
    panel_of_few, panel_of_many = products.panel_of_few, products.panel_of_many
    channels, inputs, rows = 32, 1100, 21
    width = padded(inputs, GROUP)
    drawn = random_matrix(channels, inputs)
    units = np.zeros(0, np.float32)
    if bits == 4:
        weights, scales, units = packing.pack_int4(drawn)
    else:
        weights, scales = packing.pack_int8(drawn)
    matrix = Matrix(bits, weights, scales, units, adds)
    x = np.zeros((rows, width), np.float32)
    x[:, :inputs] = np.random.default_rng(2).normal(0, 3, (rows, inputs))
    into = activations(rows, width)
    scratch = make_scratch(1, 16, rows)

    def compute(
        matrix: Any, x: Any, into: Any, few: Any, many: Any, widened: Any, partial: Any
    ) -> None:
        for row in range(x.shape[0]):
            for group in range(x.shape[1] // 64):
                quantize_group(x, row, group, into)
        for panel in range(2):
            panel_of_few(matrix, into, 0, x.shape[0], panel, few)
            panel_of_many(matrix, into, x.shape[0], panel, many, widened, partial)

    few = np.random.default_rng(3).normal(size=(rows, channels)).astype(np.float32)
    many = few.copy()
    multiply = numba.njit(compute)
    multiply(matrix, x, into, few, many, scratch.widened[0], scratch.partial[0])
    assert np.array_equal(few, many)
    assert abs(few).max() > 1
