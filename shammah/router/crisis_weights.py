"""How dangerous a sentence sounds: a sum of weights that were learnt from labelled sentences.

The phrases of ``data/crisis.json`` are sure but find only what somebody thought of. This finds
two thirds of the rest. ``data/crisis_weights.json`` is made by ``scripts/train_crisis.py``.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

DATA = Path(__file__).with_name("data") / "crisis_weights.json"

NONE = "none"
LEAST = 0.6
"""How sure that it is not nothing. Ordinary text never came near it (docs/ROUTING.md)."""

SPOKEN = 100
"""What the words with a meaning of their own must add up to, in hundredths: "I am", which most
cries for help begin with, says nothing by itself."""

CLASSES = ("PERSON", "PILLS", "WEAPON", "MACHINE", "GAME", "HIT", "SEXUAL", "THEMSELF", "CLOSE")
"""The names of ``crisis.json`` whose words count as one."""


def read_features(words: list[str], classes: Mapping[str, str]) -> set[str]:
    """Words, pairs, and pairs with one word between them; of a class, its name.

    Args:
        words: of one sentence.
        classes: word to the name of its class.
    """
    named = ["^", *(classes.get(word, word) for word in words), "$"]
    pairs = {f"{one} {other}" for one, other in pairwise(named)}
    gaps = {f"{one} _ {other}" for one, other in zip(named, named[2:], strict=False)}
    return set(named[1:-1]) | pairs | gaps


def weigh(features: set[str], common: frozenset[str]) -> str:
    """The name of the likeliest danger, or `NONE`.

    Softmax over the sums of the known features' weights, divided by the root of their number.

    Args:
        features: of one sentence.
        common: words that speak for no danger, alone or with each other.
    """
    names, bias, weights = _weights()
    known = [weights[one] for one in features if one in weights]
    scale = 100.0 * math.sqrt(max(len(known), 1))
    sums = [
        bias[each] / 100.0 + sum(one[each] for one in known) / scale for each in range(len(names))
    ]
    highest = max(sums)
    odds = [math.exp(one - highest) for one in sums]
    if 1.0 - odds[0] / sum(odds) < LEAST:
        return NONE
    likeliest = max(range(1, len(names)), key=odds.__getitem__)
    telling = [one for one in features & weights.keys() if not common.issuperset(one.split())]
    spoken = sum(weights[one][likeliest] - weights[one][0] for one in telling)
    return names[likeliest] if spoken > SPOKEN else NONE


@functools.cache
def _weights() -> tuple[list[str], list[int], dict[str, list[int]]]:
    document = json.loads(DATA.read_text("utf-8"))
    return document["names"], document["bias"], document["weights"]
