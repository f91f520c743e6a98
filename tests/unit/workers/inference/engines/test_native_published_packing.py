"""Weights that were published in 4 bits, in the native engine's order: without loss."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from numpy.typing import NDArray

from shammah.models.published_bits import PublishedBits
from workers.inference.engines.native.layout import packed_sizes, padded
from workers.inference.engines.native.published_packing import pack_published
from workers.inference.packages.published_numbers import PublishedWeights


def make(channels: int, inputs: int, group: int) -> tuple[NDArray[np.uint8], ...]:
    chance = np.random.default_rng(3)
    shape = channels, -(-inputs // group)
    numbers = chance.integers(0, 16, (channels, inputs)).astype(np.uint8)
    return numbers, chance.integers(0, 16, shape).astype(np.uint8)


def make_scales(channels: int, inputs: int, group: int) -> NDArray[np.float32]:
    found = np.random.default_rng(4).lognormal(-5, 1, (channels, -(-inputs // group)))
    return found.astype(np.float16).astype(np.float32)


def unpacked(
    packed: tuple[NDArray[np.int8], NDArray[np.uint16], NDArray[np.float32]],
    channels: int,
    inputs: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The number, the 16th of the zero point and the scale of every weight, as `layout` says."""
    weights, scales, units = packed
    panels, groups = padded(channels, 16) // 16, padded(inputs, 64) // 32
    words = weights.view(np.uint16).reshape((panels, groups, 4, 16, 2)).astype(np.int64)
    codes = scales.reshape((panels, groups, 16)).astype(np.int64)
    c, k = np.indices((channels, inputs))
    place = k % 32
    word = words[c // 16, k // 32, place % 16 // 4, c % 16, place % 2]
    code = codes[c // 16, k // 32, c % 16]
    numbers = word >> (8 * (place // 16) + 4 * (place % 4 // 2)) & 15
    return numbers, code >> 8, units.astype(np.float64)[c] * (code & 255)


@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize(("channels", "inputs"), [(16, 128), (8, 256), (40, 384), (72, 200)])
def test_nothing_is_lost_but_a_little_of_the_scales(channels: int, inputs: int, group: int) -> None:
    numbers, zeros = make(channels, inputs, group)
    scales = make_scales(channels, inputs, group)
    packed = pack_published(numbers, zeros, scales, group)
    assert (packed[0].nbytes, len(packed[1])) == packed_sizes(channels, inputs, 4)
    assert len(packed[2]) == padded(channels, 16)
    found, sixteenths, held = unpacked(packed, channels, inputs)
    every = np.arange(inputs) // group
    assert np.array_equal(found, numbers)
    assert np.array_equal(sixteenths, 16 * zeros[:, every].astype(np.int64))
    bound = scales.max(1, keepdims=True) / 510
    assert (abs(held - scales[:, every]) <= bound * (1 + 1e-5)).all()


def test_scales_of_whole_255ths_are_kept_exactly() -> None:
    numbers, zeros = make(16, 256, 128)
    codes = np.random.default_rng(1).integers(0, 256, (16, 2)).astype(np.float32)
    codes[:, 0] = 255
    packed = pack_published(numbers, zeros, codes * np.float32(2**-12), 128)
    assert np.array_equal(unpacked(packed, 16, 256)[2], codes.repeat(128, 1) * 2.0**-12)


def test_a_scale_below_zero_is_that_of_the_numbers_turned_round() -> None:
    numbers, zeros = make(16, 256, 128)
    scales = make_scales(16, 256, 128)
    scales[::2, 1] *= -1
    found, sixteenths, held = unpacked(pack_published(numbers, zeros, scales, 128), 16, 256)
    assert (held >= 0).all()
    every = np.arange(256) // 128
    signs = np.sign(scales)[:, every].astype(np.int64)
    whole = 16 * (numbers.astype(np.int64) - zeros[:, every])
    assert np.array_equal(16 * found - sixteenths, signs * whole)
    assert found.min() == 0
    assert found.max() == 15


def test_a_block_of_channels_takes_little_more_than_its_numbers() -> None:
    """Nothing is ever held in float32; the words of a whole layer are 4 bits a number."""
    chance, channels, inputs = np.random.default_rng(0), 4096, 2048
    words = chance.integers(-(2**31), 2**31, (inputs, channels // 8)).astype(np.int32)
    zeros = chance.integers(-(2**31), 2**31, (inputs // 128, channels // 8)).astype(np.int32)
    scales = chance.random((inputs // 128, channels)).astype(np.float32)
    layer = PublishedWeights(PublishedBits("awq", 128), words, zeros, scales)
    block = 512
    tracemalloc.start()
    for begin in range(0, channels, block):
        pack_published(*layer.channels(begin, begin + block), 128)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * block * inputs


def test_channels_of_zeros_stay_zeros() -> None:
    numbers, zeros = make(16, 128, 128)
    packed = pack_published(numbers, zeros, np.zeros((16, 1), np.float32), 128)
    assert not packed[2].any()
    assert not unpacked(packed, 16, 128)[2].any()
