"""Patterns are searched as `re` would, but in linear time."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.settings import patterns
from shammah.settings.patterns import Pattern, PatternError

TEXTS = ["", "a", "ab", "aab\nb", "A b", "a1_b", "é", "\n", "b\n", "ba ab", "123-45", "a\nb\n\n"]


@pytest.mark.parametrize(
    "source",
    [
        *("a", "ab", "a|b", "^a", "b$", "^$", r"\Aab\Z", r"\bb", r"\Ba", "[^a]", "[a-c1]", "."),
        *("a*b", "a+?b", "(?:a|ab)(?:c|b)", "(a)(b)", "a{2,3}", "(?i)A B", "(?m)^b$", "(?s)b.b"),
        *(r"\d{3}-\d\d", r"\w\W\w", r"[\s_]", "(?P<n>a)b", "", "(a?){3}b", r"\D$", "[^\n]\n", "é"),
    ],
)
def test_it_finds_what_re_finds(source: str) -> None:
    pattern = Pattern(source)
    for text in TEXTS:
        assert pattern.search(text) == bool(re.search(source, text)), text


ATOMS = st.sampled_from(["a", "b", "[ab]", "[^a]", ".", r"\b", "^", "$", r"\w", "c", r"\s"])
SOURCES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,3}", "{0,2}?"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
    ),
    max_leaves=6,
)


@given(SOURCES, st.text("abc \n", max_size=8))
def test_any_pattern_on_any_text(source: str, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Pattern(source).search(text) == bool(re.search(source, text))


@pytest.mark.parametrize("source", ["(a+)+$", "^(a|aa)*$", "(.*)*x$", "(a*)*b", ".*.*.*.*b$"])
def test_the_work_grows_with_the_text_and_no_more(
    source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In calls of functions when nothing is remembered, for `re` would need for ever."""
    monkeypatch.setattr(patterns, "MAX_MOVES", 0)
    monkeypatch.setattr(patterns, "MAX_SETS", 0)

    def work(length: int) -> int:
        pattern = Pattern(source)
        calls = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            found = pattern.search("a" * length + "!")
        finally:
            sys.setprofile(before)
        assert not found
        return calls

    assert 0 < work(2000) <= 2.1 * work(1000)


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("(", "is not a regular expression"),
        ("a**", "is not a regular expression"),
        (r"(a)\1", "back-reference"),
        ("(?=a)", "look-around"),
        ("(?<!a)b", "look-around"),
        ("(?>a)", "atomic"),
        ("a++", "possessive"),
        ("(a)?(?(1)b|c)", "condition"),
        ("(?i:a)", "flag inside"),
        ("a{5000}", "too big"),
        ("(a{100}){100}", "too big"),
        ("a{99999999999}", "is not a regular expression"),
    ],
)
def test_what_is_refused(source: str, why: str) -> None:
    with pytest.raises(PatternError, match=why):
        Pattern(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"\bЖуков\b", "Пришёл Жуков"),  # noqa: RUF001
        (r"\bÄrzte\b", "die Ärzte sagen"),
        (r"\bAndré\b", "von André gehört"),
        (r"Projekt \w+ geheim", "Projekt Größe geheim"),
        (r"[\w-]+@acme", "müller@acme"),
        (r"\d{4}", "\u0664\u0668\u0662\u0661"),
        (r"Jo\sDoe", "Jo\u00a0Doe"),
        ("geheim$", "geheim\n"),
        ("geheim", "\ud800 geheim"),
        ("geheim", "\0geheim"),
        (r"(?i)müller", "MÜLLER"),
    ],
)
def test_names_in_any_script_and_broken_text_are_found(source: str, text: str) -> None:
    """With RE2 most of these are found no more, without a word: its classes are those of ASCII."""
    assert Pattern(source).search(text)


def test_no_pattern_no_engine() -> None:
    """What most people have none of costs their prompt nothing."""
    look = (
        "import sys; from shammah.privacy import Rules;"
        "from shammah.settings.model import PrivacySettings;"
        "Rules(PrivacySettings(patterns={})).mark('hello');"
        "print('shammah.settings.patterns' in sys.modules)"
    )
    for patterns_set, loaded in (("()", "False"), ("('geheim',)", "True")):
        done = subprocess.run(
            [sys.executable, "-c", look.format(patterns_set)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == loaded
