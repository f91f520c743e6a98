"""Memory of mapped files goes back while they are read, and nothing is lost."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from workers.inference.engines.transformers.mapped_files import EVERY, give_back, giving_back

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists mappings")

MIB = 2**20
SIZE = 32 * MIB


def resident_files() -> int:
    """Bytes of mapped files that are resident in this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights with a name"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    return path


def touch(mapped: mmap.mmap) -> int:
    return sum(mapped[:: mmap.PAGESIZE])


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_what_has_been_read_goes_and_can_be_read_again(file: Path, access: int) -> None:
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=access)
    before, expected = resident_files(), touch(mapped)
    assert resident_files() - before > SIZE * 0.9
    give_back({str(file)})
    assert resident_files() - before < SIZE * 0.1
    assert touch(mapped) == expected
    give_back({str(file.with_name("another"))})
    assert resident_files() - before > SIZE * 0.9


def test_what_has_been_written_to_stays(file: Path) -> None:
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    mapped[5 * MIB] = 77
    give_back({str(file)})
    assert mapped[5 * MIB] == 77


def test_every_call_is_passed_on_and_some_give_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    given: list[set[str]] = []
    monkeypatch.setattr(
        "workers.inference.engines.transformers.mapped_files.give_back", given.append
    )
    passed: list[int] = []
    advance = giving_back([link], lambda: passed.append(1))
    for _ in range(2 * EVERY + 1):
        advance()
    assert len(passed) == 2 * EVERY + 1
    assert given == [{str(file)}] * 2


def test_elsewhere_nothing_is_done(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    monkeypatch.setattr(ctypes, "CDLL", None)
    give_back({str(file)})
