"""A merged model appears whole, and what a killed merge has left goes with the next."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from workers.train.merging import write_model


class Model:
    """As transformers' models save themselves."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error = error

    def save_pretrained(self, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"weights")
        if self._error is not None:
            raise self._error


def test_it_is_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    source = tmp_path / "base"
    source.mkdir()
    (source / "tokenizer.json").write_text("{}")
    write_model(Model(), source, tmp_path / "made" / "it")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"it"}
    found = {path.name for path in (tmp_path / "made" / "it").iterdir()}
    assert found == {"model.safetensors", "tokenizer.json"}


def test_one_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ShammahError) as failed:
        write_model(Model(OSError(28, "No space left on device")), tmp_path, tmp_path / "it")
    assert failed.value.code == "directory_unwritable"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_one_has_left_goes_and_nothing_of_others(tmp_path: Path) -> None:
    names = (".it.abc.making", ".other.abc.making", "it.making", ".it.notes")
    for name in names:
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1, 1))
    write_model(Model(), tmp_path, tmp_path / "it")
    assert {path.name for path in tmp_path.iterdir()} == {"it", *names[1:]}
