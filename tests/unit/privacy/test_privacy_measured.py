"""How much of generated personal data the rules find, and how much ordinary text they take for
it. ``scripts/measure_privacy.py`` prints the figures that docs/PRIVACY.md states."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from shammah.privacy import Rules, check_outgoing
from shammah.settings.model import PrivacySettings
from tests.fakes.ordinary_text import paragraphs, read_texts
from tests.fakes.personal_data import MAKERS, draw

DRAWN = 4000
ALARMS = {"source code": 0.1, "prose": 0.3, "logs": 0.8, "tables and dumps": 4.0, "mail": 0.0}
"""Paragraphs for 10,000 words that any rule may take for private."""


@pytest.mark.parametrize("seed", [1, 2])
def test_generated_personal_data_is_found(seed: int) -> None:
    """In six languages and in code, disguised as it comes out of other programs."""
    random, rules, drawn = Random(seed), Rules(PrivacySettings()), Counter[str]()
    missed: list[tuple[str, str]] = []
    for _ in range(DRAWN):
        rule, data, text = draw(random)
        drawn[rule] += 1
        if not rules.mark(text).private:
            missed.append((rule, data))
    assert {*drawn} == {*MAKERS}
    assert len(missed) <= DRAWN // 500, missed


@pytest.mark.parametrize("kind", ALARMS)
def test_ordinary_text_is_not_private(kind: str) -> None:
    rules, text = Rules(PrivacySettings()), read_texts()[kind]
    taken = [(mark.why, one) for one in paragraphs(text) if (mark := rules.mark(one)).private]
    print(f"{kind}: {len(taken)} of {len(text.split())} words")
    assert len(taken) * 10_000 <= ALARMS[kind] * len(text.split()), taken[:5]


def test_what_is_found_is_refused_at_the_door_and_not_repeated() -> None:
    random, rules = Random(3), Rules(PrivacySettings())
    for _ in range(300):
        rule, data, text = draw(random)
        with pytest.raises(ShammahError) as refused:
            check_outgoing((ChatMessage("user", text),), rules)
        assert refused.value.code == "private"
        assert data not in refused.value.message, rule
