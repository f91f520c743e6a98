"""The norm before the head of a model of mlx-lm's, for the rows alone whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class WantedRows(nn.Module):  # type: ignore[misc]
    """What comes after it, the head, is computed for these rows, too: for a chunk of a prompt it
    would take longer than all else."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self._rows = mx.array([0])

    def choose(self, rows: Sequence[int]) -> None:
        """From now on only these go on; if none, the first, as no array may be empty."""
        self._rows = mx.array(rows or [0])

    def __call__(self, x: mx.array) -> mx.array:
        normed: mx.array = self.inner(x[self._rows])
        return normed
