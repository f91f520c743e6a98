"""The marks around what is pasted."""

from __future__ import annotations

import pytest

from shammah.terminal.tty import PASTE_BEGIN as BEGIN
from shammah.terminal.tty import PASTE_END as END
from shammah.terminal.tty import in_paste, split_paste, without_marks


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("", False),
        ("typed", False),
        (f"{BEGIN}a", True),
        (f"typed {BEGIN}a\nb", True),
        (f"{BEGIN}a{END}", False),
        (f"{BEGIN}a{END} typed", False),
        (f"{BEGIN}a{END}{BEGIN}b", True),
    ],
)
def test_a_paste_is_open_until_its_end(text: str, open_: bool) -> None:
    assert in_paste(text) is open_


def test_what_was_typed_after_it_is_told_apart() -> None:
    assert split_paste(f"x{BEGIN}a\nb{END} typed\n") == (f"x{BEGIN}a\nb{END}", " typed\n")
    assert split_paste(f"{BEGIN}a\nb") == (f"{BEGIN}a\nb", "")


def test_the_marks_are_no_part_of_the_text() -> None:
    assert without_marks(f"x{BEGIN}a\nb{END} y{BEGIN}{END}") == "xa\nb y"
