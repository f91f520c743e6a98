"""The file of packed weights: whole, or made anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shammah.errors import ShammahError
from tests.real.models import write_checkpoint
from workers.inference.engines.native.quantized_file import Part, cache_path, new_file, open_parts
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.packages.safetensors_header import read_header

PARTS = (Part("norm", "F32", (2, 3)), Part("w", "I8", (2, 64)), Part("s", "BF16", (2, 1)))


def make(path: Path) -> None:
    with new_file(path, PARTS) as writer:
        for layer in (1, 0):
            writer.write("norm", layer, 0, np.full(3, layer, np.float32))
            writer.write("s", layer, 0, np.full(1, 7 + layer, np.uint16))
            writer.write("w", layer, 32, np.full(32, 2 + layer, np.int8))
            writer.write("w", layer, 0, np.full(32, -layer, np.int8))


def test_what_was_written_is_mapped(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.safetensors"
    make(path)
    found = open_parts(path, PARTS)
    assert found is not None
    assert found["norm"].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found["s"].tolist() == [[7], [8]]
    assert found["w"][1].tolist() == [-1] * 32 + [3] * 32
    assert not any(array.flags.writeable for array in found.values())
    assert [tensor.name for tensor in read_header(path)] == ["norm", "w", "s"]
    assert os.listdir(path.parent) == ["a.safetensors"]
    assert {p.stat().st_mode & 0o777 for p in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def break_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\0\0\0")


@pytest.mark.parametrize("damage", [cut, lengthen, break_header, Path.unlink])
def test_a_damaged_file_counts_as_none_and_is_made_again(damage: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make(path)
    damage(path)
    assert open_parts(path, PARTS) is None
    make(path)
    assert open_parts(path, PARTS) is not None


def test_a_file_for_another_architecture_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    make(path)
    assert open_parts(path, (Part("norm", "F32", (3, 2)), *PARTS[1:])) is None


def test_what_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt), new_file(path, PARTS):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def test_a_directory_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShammahError) as caught, new_file(tmp_path / "file" / "a", PARTS):
        pass
    assert caught.value.code == "quantized_cache_unwritable"
    assert str(tmp_path / "file") in caught.value.message


def test_a_full_disk_is_said_before_anything_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(ShammahError) as caught, new_file(tmp_path / "a", PARTS):
        raise AssertionError
    assert caught.value.code == "quantized_cache_unwritable"
    assert not list(tmp_path.iterdir())


def test_the_path_is_of_one_state_and_quantization_of_one_model(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path / "model"))
    first = cache_path(tmp_path, checkpoint, "int8")
    assert cache_path(tmp_path, checkpoint, "int8") == first
    small = cache_path(tmp_path, checkpoint, "int4")
    os.utime(checkpoint.weights[0], ns=(1, 1))
    changed = cache_path(tmp_path, checkpoint, "int8")
    other = inspect_checkpoint(write_checkpoint(tmp_path / "other"))
    assert len({first, small, changed, cache_path(tmp_path, other, "int8")}) == 4
