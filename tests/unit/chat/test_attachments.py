"""Files and pipes as parts of a question: bounds, bytes that are no text, where they came from."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.chat.attachments import (
    MAX_BYTES,
    Attachment,
    compose,
    decode_text,
    fence,
    read_attachment,
    read_bounded,
)
from shammah.errors import ExitCode, ShammahError


def refused(path: Path) -> ShammahError:
    with pytest.raises(ShammahError) as refusal:
        read_attachment(str(path), print)
    assert refusal.value.exit_code == ExitCode.USAGE
    return refusal.value


def test_a_file_is_read_with_where_it_came_from(tmp_path: Path) -> None:
    real = tmp_path / "real.txt"
    real.write_text("Zürich ☃\n")
    link = tmp_path / "link"
    link.symlink_to(real)
    found = read_attachment(str(link), print)
    assert (found.text, found.replaced) == ("Zürich ☃\n", 0)
    assert found.sources == (str(link), os.path.realpath(real))


@pytest.mark.parametrize(
    ("make", "code", "says"),
    [
        (lambda path: None, "file_unreadable", "No such file"),
        (lambda path: path.mkdir(), "file_unreadable", "Is a directory"),
        (lambda path: path.write_bytes(b"\x7fELF\0\0"), "file_not_text", "NUL bytes"),
        (lambda path: path.symlink_to("/dev/zero"), "file_too_long", "4.2 MB"),
        (lambda path: path.write_bytes(b"x" * (MAX_BYTES + 1)), "file_too_long", "4.2 MB"),
    ],
    ids=["missing", "directory", "binary", "endless", "long"],
)
def test_what_cannot_be_asked_about_is_said(
    tmp_path: Path, make: object, code: str, says: str
) -> None:
    make(tmp_path / "it")  # type: ignore[operator]
    error = refused(tmp_path / "it")
    assert error.code == code
    assert says in error.message


def test_the_longest_there_may_be() -> None:
    assert len(read_bounded(io.BytesIO(b"x" * 10).read, "it", 10)) == 10
    with pytest.raises(ShammahError):
        read_bounded(io.BytesIO(b"x" * 11).read, "it", 10)


def test_bytes_that_are_no_text_are_counted() -> None:
    assert decode_text(b"caf\xe9 \xff!", "it") == ("caf\ufffd \ufffd!", 2)
    assert decode_text(b"\xef\xbb\xbfhello", "it") == ("hello", 0)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_every_text_comes_through(text: str) -> None:
    assert decode_text(text.encode(), "it") == (text.removeprefix("\ufeff"), 0)


@given(st.text())
def test_no_text_ends_its_own_block(text: str) -> None:
    first, *inside, last = fence(text).split("\n")
    assert first == last
    assert not any(line.startswith(first) for line in inside)


def test_a_question_is_the_words_the_files_and_the_pipe() -> None:
    file, pipe = Attachment("a.py", "x = 1\n"), Attachment("", "piped\r\n")
    assert compose("Why?", [file], pipe) == "Why?\n\nFile a.py:\n```\nx = 1\n```\n\npiped"
    assert compose("", [], pipe) == "piped"
    assert compose("", [], None) == ""
    assert compose("Why?", [], Attachment("", " \n\n")) == "Why?"


@pytest.mark.parametrize("text", ["    return x", "\tx\n y", " a\n-b\n+c ", "\n\n  x\n"])
def test_blanks_before_and_after_are_part_of_a_text(text: str) -> None:
    assert compose("", [], Attachment("", text + "\n")) == text
    shown = text.removesuffix("\n")
    files = f"File a:\n```\n{shown}\n```"
    assert compose(text, [Attachment("a", text)], None) == f"{shown}\n\n{files}"
