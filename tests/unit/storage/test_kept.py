"""Erasing what is kept of conversations."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.storage import kept
from shammah.storage.files import ENDING, UNUSED_S, YOUNG_S


def _write(home: Path, conversation: str, form: str) -> Path:
    path = kept.file_path(kept.kept_directory(home), conversation, form)
    path.parent.mkdir(exist_ok=True)
    path.write_text("numbers")
    return path


def test_one_conversation_goes_in_all_its_forms_and_no_other(tmp_path: Path) -> None:
    gone = [_write(tmp_path, "a", form) for form in ("int8", "int4")]
    stays = _write(tmp_path, "b", "int8")
    kept.erase(tmp_path, ["a"])
    assert [path.exists() for path in (*gone, stays)] == [False, False, True]
    directory = kept.kept_directory(tmp_path)
    assert kept.is_erased(directory, "a")  # so that a worker that still holds it does not write it
    assert not kept.is_erased(directory, "b")


def test_an_unfinished_file_of_a_worker_that_was_killed_goes_too(tmp_path: Path) -> None:
    path = _write(tmp_path, "a", "int8")
    draft = path.parent / f".{path.name[:40]}.0{ENDING}"
    draft.write_text("num")
    os.utime(draft, (0, draft.stat().st_mtime - 2 * YOUNG_S))
    kept.erase(tmp_path, ["a"])
    assert not draft.exists()


def test_where_nothing_was_ever_kept_nothing_is_made(tmp_path: Path) -> None:
    kept.erase(tmp_path, ["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_name_from_another_process_leads_nowhere_else(tmp_path: Path) -> None:
    assert kept.file_path(tmp_path, "../../x", "f").parent == tmp_path


def test_what_cannot_be_erased_is_told(tmp_path: Path) -> None:
    path = _write(tmp_path, "a", "int8")
    path.unlink()
    path.mkdir()
    with pytest.raises(ShammahError, match="Couldn't erase"):
        kept.erase(tmp_path, ["a"])


def test_marks_go_when_no_worker_can_hold_the_conversation(tmp_path: Path) -> None:
    directory = kept.kept_directory(tmp_path)
    directory.mkdir()
    kept.erase(tmp_path, ["a"])
    [mark] = directory.iterdir()
    now = mark.stat().st_mtime
    kept.sweep(directory, now + UNUSED_S - 1)
    assert kept.is_erased(directory, "a")
    kept.sweep(directory, now + UNUSED_S + 1)
    assert not kept.is_erased(directory, "a")
