#!/usr/bin/env python3
"""Learn the weights of the crisis detector from its labelled sentences.

    .venv/bin/python scripts/train_crisis.py            write them anew
    .venv/bin/python scripts/train_crisis.py --check    exit 1 if the sentences have changed

Softmax regression (gradient descent with momentum, L2) over the words and pairs of the "tuning"
sentences of tests/data/crisis_sentences.tsv, and of tests/data/categories.tsv, none of which is
a crisis. The "held-out" sentences are never looked at. Deterministic.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shammah.router.crisis import NONE, WEIGHTS, Danger, list_features  # noqa: E402

NAMES = [NONE, *(danger.value for danger in Danger)]
LEAST_SEEN, L2, STEP, MOMENTUM, ROUNDS = 3, 1e-3, 4.0, 0.9, 500


def read_sentences() -> Iterator[tuple[str, str]]:
    """Kind and text of every sentence to learn from."""
    for line in _lines("crisis_sentences.tsv"):
        split, kind, text = line.split("\t")
        if split == "tuning":
            yield kind, text
    for line in _lines("categories.tsv"):
        yield NONE, line.split("\t")[3]


def _lines(name: str) -> Iterator[str]:
    for line in (ROOT / "tests" / "data" / name).read_text("utf-8").splitlines():
        if not line.startswith("#"):
            yield line


def learn(sentences: list[tuple[str, str]]) -> dict[str, Any]:
    """The weights, in hundredths."""
    found = [list_features(text) for _, text in sentences]
    seen = Counter(each for one in found for each in one)
    names = sorted(each for each, times in seen.items() if times >= LEAST_SEEN)
    place = {name: number for number, name in enumerate(names)}
    inputs = np.zeros((len(found), len(names) + 1))
    for row, features in zip(inputs, found, strict=True):
        known = [place[each] for each in features if each in place]
        row[known] = 1.0 / np.sqrt(max(len(known), 1))
    inputs[:, -1] = 1.0
    wanted = np.eye(len(NAMES))[[NAMES.index(kind) for kind, _ in sentences]]
    weights = np.zeros((inputs.shape[1], len(NAMES)))
    speed = np.zeros_like(weights)
    for _ in range(ROUNDS):
        sums = inputs @ weights
        odds = np.exp(sums - sums.max(1, keepdims=True))
        error = odds / odds.sum(1, keepdims=True) - wanted
        slope = inputs.T @ error / len(wanted)
        slope[:-1] += L2 * weights[:-1]
        speed = MOMENTUM * speed - STEP * slope
        weights += speed
    whole = np.rint(100 * weights).astype(int).tolist()
    return {"names": NAMES, "bias": whole[-1], "weights": dict(zip(names, whole, strict=False))}


def digest(sentences: list[tuple[str, str]]) -> str:
    """Of what would be learnt from: with another digest the weights are out of date."""
    document = [[kind, sorted(list_features(text))] for kind, text in sentences]
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()[:16]


def main() -> int:
    sentences = list(read_sentences())
    if "--check" in sys.argv:
        return int(json.loads(WEIGHTS.read_text("utf-8"))["learnt_from"] != digest(sentences))
    learnt = {"learnt_from": digest(sentences), **learn(sentences)}
    text = json.dumps(learnt, ensure_ascii=False, separators=(",", ":"))
    WEIGHTS.write_text(text.replace("],", "],\n") + "\n", "utf-8")
    print(f"{len(learnt['weights'])} features in {WEIGHTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
