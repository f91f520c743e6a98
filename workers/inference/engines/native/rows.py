"""What one step is asked to compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rows:
    """A row is a token at a position of a slot.

    ``run`` rows in turn belong to one slot, at rising positions. Logits are wanted for the last
    ``answers`` rows. ``adapters``: the key of each row's adapter, empty for none; no keys: no row
    has one.
    """

    slots: Sequence[int]
    positions: Sequence[int]
    tokens: Sequence[int]
    run: int
    answers: int
    adapters: Sequence[str] = ()
