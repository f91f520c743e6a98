"""Runs a runner by hand: whole prompts, and single tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workers.inference.runner import Logits, Runner, Span


def prefill(
    runner: Runner, slot: int, start: int, tokens: Sequence[int], adapter: str = ""
) -> Logits:
    """The logits after the last of the tokens, computed in as large chunks as may be."""
    logits = np.empty((0, 0), np.float32)
    for begin in range(0, len(tokens), runner.limits.chunk):
        chunk = tokens[begin : begin + runner.limits.chunk]
        (logits,) = runner.forward([Span(slot, start + begin, chunk, adapter)])
    last: Logits = logits[-1]
    return last


def decode(
    runner: Runner,
    slots: Sequence[int],
    positions: Sequence[int],
    tokens: Sequence[int],
    adapters: Sequence[str] = (),
) -> Logits:
    """The logits after one token for each slot, in one pass; of tokens for the same slot one after
    the other, those are one span."""
    keys = list(adapters) or [""] * len(slots)
    spans: list[Span] = []
    for slot, position, token, key in zip(slots, positions, tokens, keys, strict=True):
        if spans and spans[-1].slot == slot:
            before = spans.pop()
            held = (*before.tokens, token)
            spans.append(Span(slot, before.start, held, key, len(held)))
        else:
            spans.append(Span(slot, position, (token,), key))
    return np.concatenate(runner.forward(spans))
