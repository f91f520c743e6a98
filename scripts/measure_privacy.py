#!/usr/bin/env python3
"""Measure the built-in privacy rules: what they find, and what they take for private wrongly.

    .venv/bin/python scripts/measure_privacy.py                 the text that the tests use
    .venv/bin/python scripts/measure_privacy.py FILE...         files in which nothing is private

Found: of personal data in the forms of tests/fakes/personal_data.py, disguised as a PDF or a
web page does it, in sentences of six languages and in code. False alarms: paragraphs that a rule
takes for private, for every 10,000 words.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shammah.privacy import RULES  # noqa: E402
from shammah.privacy.text import forms  # noqa: E402
from tests.fakes.ordinary_text import paragraphs, read_texts  # noqa: E402
from tests.fakes.personal_data import MAKERS, draw  # noqa: E402

DRAWN = 20_000


def main(files: list[str]) -> int:
    """Print both tables."""
    random, drawn, found = Random(7), Counter[str](), Counter[str]()
    for _ in range(DRAWN):
        rule, _, text = draw(random)
        drawn[rule] += 1
        found[rule] += any(map(RULES[rule][0], forms(text)))
    print("found: " + ", ".join(f"{rule} {found[rule] / drawn[rule]:.2%}" for rule in MAKERS))
    texts = {one: Path(one).read_text("utf-8", "replace") for one in files} or read_texts()
    for name, text in texts.items():
        words, alarms = len(text.split()), Counter[str]()
        for paragraph in paragraphs(text):
            seen = forms(paragraph)
            alarms.update(rule for rule, (check, _) in RULES.items() if any(map(check, seen)))
        each = ", ".join(
            f"{rule} {alarms[rule] * 1e4 / words:.2f}" for rule in RULES if alarms[rule]
        )
        print(f"{name}: {words:,} words; for 10,000: {each or 'no false alarm'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
