"""Products of whole numbers, as each kind of processor forms them."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest

from workers.inference.engines.native import pairs
from workers.inference.engines.native.lanes import store_floats
from workers.inference.engines.native.pairs import (
    floats_of,
    load_weights,
    multiply_pairs,
    no_ints_of,
)


@pytest.mark.parametrize("features", [{"AVX2"}, {"ASIMD"}])
def test_pairs_are_multiplied_and_added_exactly(
    features: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARM's way is plain enough to be tried anywhere."""
    monkeypatch.setattr(pairs, "compiled_for", frozenset(features))

    def compute(weights: Any, numbers: Any, out: Any) -> None:
        total = no_ints_of(0)
        for k in range(0, numbers.shape[0], 2):
            total = multiply_pairs(total, load_weights(weights, 16 * k), numbers, k)
        store_floats(out, 0, floats_of(total))

    multiply, random = numba.njit(compute), np.random.default_rng(0)
    for extreme in (False, True):
        weights = random.integers(-127, 128, (2, 16, 2)).astype(np.int8)
        numbers = random.integers(-32767, 32768, 4).astype(np.int16)
        if extreme:
            weights[:], numbers[:] = -127, (-32767, -32767, 1, 32767)
        out = np.zeros(16, np.float32)
        multiply(weights.reshape(-1), numbers, out)
        exact = np.einsum("pce,pe->c", weights.astype(np.int64), numbers.reshape(2, 2))
        assert out.tolist() == exact.astype(np.float32).tolist()
