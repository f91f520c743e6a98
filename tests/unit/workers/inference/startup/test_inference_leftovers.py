"""What is removed when it is of no use any more, and what is not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shammah.bus.endpoints import RoleLock
from shammah.storage.files import new_file, remove_abandoned
from tests.fakes.sandbox import until
from tests.real.models import write_checkpoint
from workers.inference.engines.native import kernels
from workers.inference.startup import leftovers
from workers.inference.startup.leftovers import UNUSED_S, Sweeper, made_from, sweep

DAY_S = 24 * 3600.0
NOW = 2e9


class Home:
    """A home with packed weights and machine code of any age."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "home"
        self.quantized = self.directory / "quantized"
        self.kernels = self.directory / "kernels"
        self.models = directory / "models"
        for made in (self.quantized, self.kernels, self.models):
            made.mkdir(parents=True)

    def model(self, name: str) -> Path:
        return write_checkpoint(self.models / name)

    def pack(self, model: Path, age: float = 0.0) -> Path:
        """As if ``model`` had been loaded in its first form."""
        path = made_from(model, self.directory)[0]
        return self.file(path.name, age)

    def file(self, name: str, age: float = 0.0) -> Path:
        path = self.quantized / name
        path.write_text("weights")
        os.utime(path, (NOW - age, NOW - age))
        return path

    def code(self, name: str, age: float = 0.0) -> Path:
        path = self.kernels / name
        (path / "native").mkdir(parents=True)
        os.utime(path, (NOW - age, NOW - age))
        return path

    def sweep(self, model: Path, days: float = 0.0) -> set[str]:
        """The names of what a sweep removes."""
        return {path.name for path in sweep(self.directory, model, NOW + days * DAY_S)}

    def names(self) -> set[str]:
        return {path.name for path in self.quantized.iterdir()}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setattr(kernels, "kernel_directory", lambda home: home / "kernels")
    return Home(tmp_path)


def test_what_belongs_to_a_model_that_is_here_stays(home: Home) -> None:
    one, other = home.model("one"), home.model("other")
    kept = {home.pack(one), home.pack(other)}
    assert home.sweep(one) == home.sweep(other) == set()
    assert home.sweep(one, days=100) == set()
    assert {path for path in kept if path.exists()} == kept


def test_when_its_model_has_gone_it_goes_with_all_that_belongs_to_it(home: Home) -> None:
    one, other = home.model("one"), home.model("other")
    gone, kept = home.pack(one), home.pack(other)
    home.sweep(one)
    shutil.rmtree(one)
    assert home.sweep(other) == {gone.name}
    assert home.names() == {f"{kept.stem}{end}" for end in (".safetensors", ".source")}


def test_when_its_model_has_changed_it_goes_after_a_week(home: Home) -> None:
    one = home.model("one")
    before = home.pack(one, age=UNUSED_S + DAY_S)
    home.sweep(one)
    os.utime(before.with_suffix(".source"), (NOW, NOW))
    os.utime(one / "model.safetensors", (1, 1))
    after = home.pack(one)
    assert before != after
    assert home.sweep(one, days=6) == set()
    assert home.sweep(one, days=8) == {before.name}
    assert after.exists()


def test_what_nobody_knows_stays_for_a_week(home: Home) -> None:
    one = home.model("one")
    home.file(f"{'0' * 32}.safetensors")
    home.file(f"{'1' * 32}.safetensors", age=UNUSED_S + 1)
    home.file("notes.txt", age=100 * DAY_S)
    assert home.sweep(one) == {f"{'1' * 32}.safetensors"}
    assert home.names() == {f"{'0' * 32}.safetensors", "notes.txt"}


def test_what_is_not_whole_stays_as_long_as_somebody_makes_it(home: Home) -> None:
    home.file("new.making")
    home.file("file.making", age=DAY_S)
    (home.quantized / "directory.making").mkdir()
    os.utime(home.quantized / "directory.making", (NOW - DAY_S, NOW - DAY_S))
    with new_file(home.quantized / "made") as held:
        os.utime(held, (NOW - DAY_S, NOW - DAY_S))
        assert home.sweep(home.models) == {"file.making", "directory.making"}
        assert home.names() == {"new.making", held.name}
    assert home.names() == {"new.making", "made"}


def test_what_a_killed_process_was_making_goes(home: Home) -> None:
    """The next worker does this before it loads anything."""
    command = [sys.executable, "-c", MAKER, str(home.quantized)]
    maker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"making\n"
        later = time.time() + 10.0
        assert list(remove_abandoned(home.quantized, later)) == []
        maker.kill()
        maker.wait()
        (gone,) = remove_abandoned(home.quantized, later)
        assert gone.suffix == ".making"
    finally:
        maker.kill()
        maker.communicate()
    assert home.names() == set()


MAKER = """
import sys
from pathlib import Path
from workers.inference.engines.native.quantized_file import Part, new_file
with new_file(Path(sys.argv[1], "x.safetensors"), (Part("a", "F32", (4, 4)),)):
    print("making", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("note", [b"\xff\xfe", b""])
def test_a_damaged_note_is_no_note(home: Home, note: bytes) -> None:
    one = home.model("one")
    path = home.file(f"{'0' * 32}.safetensors")
    path.with_suffix(".source").write_bytes(note)
    home.sweep(one)
    assert path.exists()


def test_machine_code_of_other_versions_goes_when_it_is_not_used(home: Home) -> None:
    one = home.model("one")
    own = home.code(kernels.own_directory(home.kernels).name, age=100 * DAY_S)
    home.code("recent", age=DAY_S)
    home.code("old", age=UNUSED_S + 1)
    assert home.sweep(one) == {"old"}
    assert {path.name for path in home.kernels.iterdir()} == {own.name, "recent"}
    assert own.stat().st_mtime == NOW  # another version sees that it is in use


def test_one_sweeps_at_a_time(home: Home) -> None:
    home.file("y.making", age=UNUSED_S + 1)
    other = RoleLock(home.directory / "sweep.lock")
    assert other.acquire()
    assert home.sweep(home.models) == set()
    other.release()
    assert home.sweep(home.models) == {"y.making"}


def test_without_a_home_there_is_nothing_to_sweep(tmp_path: Path) -> None:
    assert sweep(tmp_path / "none", tmp_path, NOW) == []


def test_it_waits_for_a_moment_without_work(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    looked, swept = [], threading.Event()
    monkeypatch.setattr(leftovers, "sweep", lambda *given: swept.set())

    def is_idle() -> bool:
        looked.append(swept.is_set())
        return len(looked) == 3

    Sweeper(home.directory, home.models, is_idle, after=0.001)
    assert swept.wait(60)
    assert looked == [False] * 3


def test_one_that_is_stopped_does_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    swept = threading.Event()
    monkeypatch.setattr(leftovers, "sweep", lambda *given: swept.set())
    sweeper = Sweeper(home.directory, home.models, lambda: True, after=3600)
    sweeper.stop()
    until(lambda: not [t for t in threading.enumerate() if t.name == "sweep"], "it has ended")
    assert not swept.is_set()
