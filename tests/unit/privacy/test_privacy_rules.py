"""Rules, before the first text that needs them."""

from __future__ import annotations

import re

import pytest

from shammah.privacy import Rules
from shammah.settings.model import PrivacySettings


def test_after_preparing_an_answer_with_figures_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of the first answer must not wait for patterns that could have been compiled
    while the answer was being written."""
    rules = Rules(PrivacySettings())
    rules.prepare()
    compiled = []
    compile_pattern = re.compile

    def count(pattern: str, flags: int = 0) -> re.Pattern[str]:
        compiled.append(pattern)
        return compile_pattern(pattern, flags)

    monkeypatch.setattr(re, "compile", count)
    text = "In 2024 the keeper paid $1,234.50 for 12 of 40 lamps, at 3.5 % and 12 345 678 a year."
    assert not rules.mark(text).private
    assert compiled == []
