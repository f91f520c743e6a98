"""Keys and values leave their memory and come back."""

from __future__ import annotations

import numpy as np
import pytest

from workers.inference.engines.native.architecture import Architecture
from workers.inference.engines.native.kv_memory import KVMemory
from workers.inference.engines.native.layout import LANES

SHAPE = Architecture(
    layers=3,
    hidden=48,
    heads=4,
    kv_heads=2,
    head_size=12,
    intermediate=64,
    vocabulary=10,
    positions=1000,
    eps=1e-6,
    tied=True,
    has_bias=False,
    has_head_norms=False,
    frequencies=(1.0,) * 6,
)


def _filled(capacity: int) -> KVMemory:
    memory, dice = KVMemory(SHAPE, 3, capacity), np.random.default_rng(0)
    for array in memory.cache:
        array[:] = dice.integers(1, 2**16, array.shape, np.uint16)
    return memory


def _positions(memory: KVMemory, slot: int, end: int) -> tuple[object, object]:
    """Keys and values of the positions before ``end``, whatever their order in memory."""
    keys = np.moveaxis(memory.cache.keys[slot], -1, -2)
    keys = keys.reshape(*keys.shape[:2], -1, keys.shape[-1])[:, :, :end]
    return keys.tolist(), memory.cache.values[slot][:, :, :, :end].tolist()


@pytest.mark.parametrize("length", [1, LANES, 100, 256])
def test_what_is_taken_out_comes_back_in_another_slot(length: int) -> None:
    memory = _filled(300)
    memory.load(2, 0, length, memory.dump(0, 0, length))
    assert _positions(memory, 2, length) == _positions(memory, 0, length)


def test_the_rest_of_the_slot_stays_as_it_is() -> None:
    memory, other = _filled(300), _filled(300)
    memory.load(2, 64, 32, memory.dump(0, 64, 32))
    memory.load(2, 64, 32, other.dump(2, 64, 32))
    assert _positions(memory, 2, 300) == _positions(other, 2, 300)


def test_nothing_is_taken_out_of_what_lies_behind_it() -> None:
    memory = _filled(300)
    first = memory.dump(0, 0, 5)
    memory.cache.keys[0, :, :, 0, :, 5:] = 7
    memory.cache.values[0, :, :, :, 5:] = 7
    assert memory.dump(0, 0, 5) == first


def test_a_shorter_slot_takes_what_fits() -> None:
    longer, shorter = _filled(300), KVMemory(SHAPE, 1, 70)
    shorter.load(0, 64, 100, longer.dump(0, 64, 100))
    end = shorter.cache.values.shape[-2]
    assert end == 80
    keys, values = shorter.cache.keys[0, :, :, 4:], shorter.cache.values[0, :, :, :, 64:]
    assert (keys == longer.cache.keys[0, :, :, 4:5]).all()
    assert (values == longer.cache.values[0, :, :, :, 64:80]).all()
