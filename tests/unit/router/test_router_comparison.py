"""Which of two answers was better, and how it counts."""

from __future__ import annotations

import pytest

from shammah.router.statistics import Label, Verdict, labels, parse_verdict


@pytest.mark.parametrize(
    ("typed", "verdict"),
    [
        ("1", Verdict.FIRST),
        (" 2 ", Verdict.SECOND),
        ("Same", Verdict.SAME),
        ("s", Verdict.SAME),
        ("", Verdict.SKIP),
        (None, Verdict.SKIP),
        ("what is 1?", Verdict.SKIP),
    ],
)
def test_only_a_clear_word_says_something(typed: str | None, verdict: Verdict) -> None:
    assert parse_verdict(typed) is verdict


@pytest.mark.parametrize(
    ("verdict", "first", "second"),
    [
        (Verdict.FIRST, Label.BETTER, Label.WORSE),
        (Verdict.SECOND, Label.WORSE, Label.BETTER),
        (Verdict.SAME, Label.SAME, Label.SAME),
        (Verdict.SKIP, Label.REDO, None),
    ],
)
def test_a_verdict_labels_both(verdict: Verdict, first: Label, second: Label | None) -> None:
    assert labels(verdict, None) == (first, second)


@pytest.mark.parametrize("before", [Label.GOOD, Label.BAD, Label.EDIT, Label.SAME])
def test_silence_does_not_undo_what_was_said(before: Label) -> None:
    assert labels(Verdict.SKIP, before) == (None, None)
    assert labels(Verdict.SECOND, before) == (Label.WORSE, Label.BETTER)


def test_what_a_person_says_or_does_outweighs_what_a_text_looks_like() -> None:
    texts = (Label.TEXT_GOOD, Label.TEXT_BAD, Label.BROKEN)
    done = [label for label in Label if label not in texts]
    assert min(label.weight for label in done) > max(label.weight for label in texts)
    good = {Label.GOOD, Label.BETTER, Label.SAME}
    assert {label for label in done if label.is_good} == good
