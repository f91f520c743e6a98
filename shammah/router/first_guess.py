"""How good a model's answers probably are while nobody has judged any: by its size. Pure.

Only what is shown: decisions begin with trust (`measured`), so that a local model is asked until
its answers have spoken against it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from shammah.models.catalogue import STARTER
from shammah.router.categories import Category
from shammah.router.route import Arm, Target

SIZES = (0.135, 0.5, 1.5, 3.0, 7.0, 14.0)
"""Billions of parameters of the models that the shares below are for: SmolLM2-135M-Instruct, then
Qwen2.5-Instruct."""

KNOWLEDGE = (0.30, 0.47, 0.61, 0.66, 0.74, 0.80)
"""MMLU of the base models, 5-shot, by Qwen2.5's report (arXiv 2412.15115); the first by SmolLM2's
card, in its own form."""
CODE = (0.03, 0.35, 0.62, 0.74, 0.85, 0.84)
"""HumanEval of the instruct models by the same; the first writes no program that runs."""
SUMS = (0.02, 0.50, 0.73, 0.87, 0.92, 0.95)
"""GSM8K of the instruct models by the same two."""
TALK = (0.60, 0.75, 0.85, 0.90, 0.95, 0.95)
"""Our own guess: greetings and opinions have many good answers."""

CLOUD, UNKNOWN = 0.95, 0.6
"""Of Claude; of a local model whose name has no size."""

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([BbMm])(?![A-Za-z])")
_SUM = re.compile(
    r"\d\s*(?:[+*/\u00d7\u00f7^%]|plus|minus|times|divided by|mod)\s*\(?\d|\d\s+-\s+\(?\d",
    re.IGNORECASE,
)


def guess_quality(arm: Arm, *, sums: bool) -> float:
    """The share of good answers, 0 to 1. ``sums``: the question is to calculate."""
    if arm.target is Target.CLOUD:
        return CLOUD
    size = size_of(arm.model)
    if size is None:
        return UNKNOWN
    shares: Sequence[float] = KNOWLEDGE
    if sums:
        shares = SUMS
    elif arm.category in (Category.CODE, Category.DEBUGGING):
        shares = CODE
    elif arm.category in (Category.GREETING, Category.OPINION):
        shares = TALK
    return _between(math.log(size), [math.log(one) for one in SIZES], shares)


def size_of(model: str) -> float | None:
    """Billions of parameters, by the name of ``model``; ``None``: it does not say."""
    if model == STARTER:
        return SIZES[0]
    found = _SIZE.search(model.rpartition("/")[2].replace("-", " ").replace("_", " "))
    if found is None or not float(found[1]):
        return None
    return float(found[1]) / (1 if found[2] in "Bb" else 1000)


def is_sum(text: str) -> bool:
    """Whether a question is to calculate with numbers."""
    return _SUM.search(text) is not None


def _between(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """The broken line through ``values`` at ``places``, level beyond its ends."""
    if at <= places[0]:
        return values[0]
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return values[-1]
