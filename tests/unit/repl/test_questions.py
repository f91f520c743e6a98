"""Files that a question brings along."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shammah.chat.attachments import Attachment, compose
from shammah.errors import ShammahError
from shammah.repl.questions import check_room, read_references


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("one\ntwo\n")
    (tmp_path / "my notes.txt").write_text("mine")
    (tmp_path / "code.py").write_text("x = '```'\n")
    (tmp_path / "src").mkdir()
    return tmp_path


@pytest.fixture
def told() -> list[str]:
    return []


def read(question: str, told: list[str]) -> list[Attachment]:
    return read_references(question, told.append, lambda asked: told.append(asked) is None)


def refusal(question: str) -> ShammahError:
    with pytest.raises(ShammahError) as refused:
        read(question, [])
    return refused.value


def test_several_files_each_once(files: Path, told: list[str]) -> None:
    found = read('compare @notes.txt, @"my notes.txt" and (see @code.py): @./notes.txt?', told)
    assert [one.name for one in found] == ["notes.txt", "my notes.txt", "code.py"]
    assert found[0].text == "one\ntwo\n"
    assert found[0].sources[0] == str(files / "notes.txt")
    assert told == []


def test_what_is_no_file_is_text(files: Path, told: list[str]) -> None:
    assert read("@property @alice me@notes.txt @", told) == []
    assert told == []
    assert read("what is in @src", told) == []
    assert told.pop() == "src is a directory, so it is sent as text."
    assert read("what is @acme/lib, @pytest.fixture, @app.get('/notes.txt')", told) == []
    assert told == [
        "There is no file acme/lib, so it is sent as text.",
        "There is no file pytest.fixture, so it is sent as text.",
        "There is no file app.get('/notes.txt, so it is sent as text.",
    ]


def test_the_person_is_asked_about_what_can_only_be_a_file(files: Path, told: list[str]) -> None:
    assert read("what is in @missing.txt?", told) == []
    assert told == ["There is no file missing.txt. Send it as text?"]
    with pytest.raises(ShammahError, match="Not sent"):
        read_references("what is in @missing.txt?", told.append, lambda asked: False)


def test_a_link_names_both_places(files: Path) -> None:
    (files / "link").symlink_to(files / "notes.txt")
    (found,) = read("@link", [])
    assert found.sources == (str(files / "link"), os.path.realpath(files / "notes.txt"))


@pytest.mark.parametrize("name", ["./none", "/none/at/all", '"none here"', "~/none"])
def test_a_path_that_is_not_there_is_an_error(files: Path, name: str) -> None:
    assert "There is no file" in refusal(f"see @{name}").message


def test_what_is_no_text_is_refused(files: Path) -> None:
    (files / "zeros").write_bytes(b"a\0b")
    os.mkfifo(files / "pipe")
    assert f"{files}/zeros is not text" in refusal(f"@{files}/zeros").message
    assert "./src is a directory" in refusal("@./src").message
    assert "pipe is not a file" in refusal("@pipe").message


def test_bytes_that_are_no_text_are_told(files: Path, told: list[str]) -> None:
    (files / "latin").write_bytes(b"caf\xe9")
    (found,) = read("@latin", told)
    assert found.text == "caf\ufffd"
    assert told == ["latin: 1 of its bytes are not UTF-8 and became \ufffd."]


def test_a_file_that_is_too_large_is_not_read(files: Path) -> None:
    with (files / "big").open("wb") as big:
        big.truncate(10**12)
    assert "big is larger than" in refusal("@big").message


def test_a_fence_is_longer_than_any_in_the_file(files: Path) -> None:
    text = compose("see @code.py", read("see @code.py", []))
    assert text == "see @code.py\n\nFile code.py:\n````py\nx = '```'\n````"


@pytest.mark.parametrize(
    ("tokens", "local", "cloud", "fits"),
    [
        (8192, 4096, None, True),
        (8194, 4096, None, False),
        (8194, 4096, 200_000, True),
        (400_002, 4096, 200_000, False),
        (300_000, 0, None, True),
        (300_000, 0, 200_000, True),
    ],
)
def test_what_nobody_can_take_is_refused_with_the_numbers(
    tokens: int, local: int, cloud: int | None, fits: bool
) -> None:
    limits = {"the local model": local} | ({"Claude": cloud} if cloud is not None else {})
    if fits:
        check_room(tokens, limits)
        return
    with pytest.raises(ShammahError) as refused:
        check_room(tokens, limits)
    for number in (tokens, *limits.values()):
        assert f"{number:,}" in refused.value.message
