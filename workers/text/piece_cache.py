"""Pieces of text that were encoded before."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

CHARACTERS = 4_000_000
"""Of the pieces that are remembered, with their tokens some 8 MB: a million tokens."""


class PieceCache:
    """The tokens of pieces of text; those unused for longest are forgotten first.

    Args:
        encode: the tokens of a piece.
        room: characters of all of them.
    """

    def __init__(self, encode: Callable[[str], Sequence[int]], room: int = CHARACTERS) -> None:
        self._encode = encode
        self._room = room
        self._known: dict[str, array[int]] = {}

    def encode(self, piece: str) -> Sequence[int]:
        """Return the tokens of ``piece``."""
        found = self._known.pop(piece, None)
        if found is None:
            found = array("I", self._encode(piece))
            self._room -= len(piece)
        self._known[piece] = found
        while self._room < 0:
            oldest = next(iter(self._known))
            del self._known[oldest]
            self._room += len(oldest)
        return found
