"""What counts as a yes."""

from __future__ import annotations

import pytest

from shammah.terminal.confirm import agrees


@pytest.mark.parametrize("line", ["y", "Y", "yes", " Yes "])
def test_a_yes(line: str) -> None:
    assert agrees(line)
    assert agrees(line, enter=True)


@pytest.mark.parametrize("line", [None, "n", "no", "yep", "ja", "y n"])
def test_anything_else_is_a_no(line: str | None) -> None:
    assert not agrees(line)
    assert not agrees(line, enter=True)


def test_an_empty_line_means_what_was_said_of_it() -> None:
    assert not agrees("")
    assert agrees("", enter=True)
    assert agrees("  ", enter=True)
