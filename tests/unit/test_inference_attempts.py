"""What a killed worker leaves behind, and how the next one asks for less."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.config import InferenceSettings
from shammah.errors import ShammahError
from shammah.models import LocatedModel
from tests.workers.models import CONTEXT_LENGTH, write_checkpoint
from workers.inference.attempts import REMEMBERED_S, Attempts, count_kills
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.loading import LEAN_CONTEXT, Loader


class Kernel:
    """Counts its kills."""

    def __init__(self) -> None:
        self.kills = 3
        self.now = 1e9

    def attempts(self, directory: Path) -> Attempts:
        return Attempts(directory / "attempt", lambda: self.kills, lambda: self.now)


@pytest.fixture
def kernel(tmp_path: Path) -> Kernel:
    kernel = Kernel()
    kernel.now = (tmp_path / ".").stat().st_mtime
    return kernel


def test_a_kill_between_two_attempts_is_a_step_down(tmp_path: Path, kernel: Kernel) -> None:
    levels = []
    for _ in range(4):
        levels.append(kernel.attempts(tmp_path).begin("m"))
        kernel.kills += 1
    assert levels == [0, 1, 2, 3]


def test_another_death_is_none(tmp_path: Path, kernel: Kernel) -> None:
    assert [kernel.attempts(tmp_path).begin("m") for _ in range(3)] == [0, 0, 0]


def test_another_model_begins_anew(tmp_path: Path, kernel: Kernel) -> None:
    kernel.attempts(tmp_path).begin("m")
    kernel.kills += 1
    assert kernel.attempts(tmp_path).begin("n") == 0


def test_an_orderly_end_forgets_what_needed_no_step(tmp_path: Path, kernel: Kernel) -> None:
    attempts = kernel.attempts(tmp_path)
    attempts.begin("m")
    attempts.end()
    kernel.kills += 1
    assert kernel.attempts(tmp_path).begin("m") == 0


def test_what_had_to_step_down_does_so_again_until_a_day_has_passed(
    tmp_path: Path, kernel: Kernel
) -> None:
    attempts = kernel.attempts(tmp_path)
    attempts.begin("m")
    attempts.step("m", 1)
    attempts.end()
    kernel.kills += 1  # somebody else's
    assert kernel.attempts(tmp_path).begin("m") == 2
    kernel.attempts(tmp_path).step("m", 1)
    assert kernel.attempts(tmp_path).begin("m") == 1
    kernel.now += REMEMBERED_S + 60
    assert kernel.attempts(tmp_path).begin("m") == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": "m"}', '{"level": "x"}'])
def test_a_damaged_file_counts_for_nothing(tmp_path: Path, kernel: Kernel, text: str) -> None:
    (tmp_path / "attempt").write_text(text)
    assert kernel.attempts(tmp_path).begin("m") == 0


def test_the_file_is_for_its_owner_alone(tmp_path: Path, kernel: Kernel) -> None:
    kernel.attempts(tmp_path).begin("m")
    assert (tmp_path / "attempt").stat().st_mode & 0o777 == 0o600


def test_kills_are_read_from_our_own_group_or_the_machine(tmp_path: Path) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (cgroups / "user" / "me").mkdir(parents=True)
    assert count_kills(proc, cgroups) == 0
    (proc / "vmstat").write_text("nr_free 7\noom_kill 5\n")
    assert count_kills(proc, cgroups) == 5
    (proc / "self" / "cgroup").write_text("4:memory:/x\n0::/user/me\n")
    assert count_kills(proc, cgroups) == 5
    (cgroups / "user" / "me" / "memory.events").write_text("oom 9\noom_kill 2\noom_group_kill 0\n")
    assert count_kills(proc, cgroups) == 2


MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.mark.skipif(not os.access(MEMORY, os.W_OK), reason="no memory cgroup can be made here")
def test_a_real_kill_is_counted() -> None:
    group = MEMORY / f"shammah-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text("64M")
        before = count_kills()
        code = (
            f"import os; open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "kept = [bytearray(2**20) for _ in range(256)]"
        )
        ended = subprocess.run([sys.executable, "-c", code], check=False)
        assert ended.returncode == -9
        assert count_kills() > before
    finally:
        group.rmdir()


# --- the loader ---------------------------------------------------------------------------


class PickyEngine:
    """Loads only what ``accepts`` says."""

    stages = ("weigh",)
    active = waiting = 0

    def __init__(self, accepts: Callable[[Checkpoint, LoadSettings], bool]) -> None:
        self._accepts = accepts

    def prepare(self) -> None:
        """Nothing to import."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        if not self._accepts(checkpoint, settings):
            raise ShammahError("out_of_memory", "It needs 9 GiB, and 4 are free.", "Buy more.")
        return EngineFacts("fake", "cpu", "bfloat16" if settings.lean else "float32")


class Watcher:
    def __init__(self) -> None:
        self.models: list[str] = []

    def located(self, model: str, stages: int) -> None:
        self.models.append(model)

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


class World:
    """A big model and a small one."""

    def __init__(self, tmp_path: Path, kernel: Kernel) -> None:
        self.big = LocatedModel("big", write_checkpoint(tmp_path / "big"), "big")
        small = write_checkpoint(tmp_path / "small")
        self.small = LocatedModel("small", small, "big", stand_in=True)
        self.watcher = Watcher()
        self.kernel = kernel
        self._attempts = kernel.attempts(tmp_path)

    def loader(self, accepts: Callable[[Checkpoint, LoadSettings], bool]) -> Loader:
        return Loader(
            InferenceSettings(),
            lambda checkpoint: PickyEngine(accepts),
            self._attempts,
            lambda located: self.small if located == self.big else None,
            self.watcher,
        )


@pytest.fixture
def world(tmp_path: Path, kernel: Kernel) -> World:
    return World(tmp_path, kernel)


def test_enough_memory_is_no_step(world: World) -> None:
    ready = world.loader(lambda checkpoint, settings: True).load(world.big).ready
    assert (ready.model, ready.dtype, ready.context_length) == ("big", "float32", CONTEXT_LENGTH)
    assert ready.note == ""


def test_first_less_of_the_same_model(world: World) -> None:
    asked: list[LoadSettings] = []

    def lean_only(checkpoint: Checkpoint, settings: LoadSettings) -> bool:
        asked.append(settings)
        return settings.lean

    ready = world.loader(lean_only).load(world.big).ready
    assert (ready.model, ready.dtype) == ("big", "bfloat16")
    assert asked[-1].context_length == LEAN_CONTEXT
    assert ready.note == "It needs 9 GiB, and 4 are free. big runs with less of it now."


def test_then_a_smaller_model(world: World) -> None:
    loader = world.loader(lambda checkpoint, settings: checkpoint.directory.name == "small")
    ready = loader.load(world.big).ready
    assert (ready.model, ready.stand_in) == ("small", True)
    assert ready.note == "big: It needs 9 GiB, and 4 are free."
    assert world.watcher.models == ["big", "big", "small"]


def test_then_nothing(world: World) -> None:
    with pytest.raises(ShammahError, match="9 GiB") as refused:
        world.loader(lambda checkpoint, settings: False).load(world.big)
    assert refused.value.code == "out_of_memory"
    with pytest.raises(ShammahError):
        world.loader(lambda checkpoint, settings: False).load(world.small)


def test_after_a_kill_the_same_is_not_tried_again(world: World) -> None:
    everything = world.loader(lambda checkpoint, settings: True)
    everything.load(world.big)
    world.kernel.kills += 1
    ready = everything.load(world.big).ready
    assert (ready.model, ready.dtype) == ("big", "bfloat16")
    assert "stopped it for want of memory" in ready.note
    world.kernel.kills += 1
    assert everything.load(world.big).ready.model == "small"
    assert world.watcher.models == ["big", "big", "small"]


def test_another_failure_is_no_reason_to_step_down(world: World) -> None:
    def broken(checkpoint: Checkpoint, settings: LoadSettings) -> bool:
        raise ShammahError("model_corrupt", "It is damaged.", "Fetch it.")

    with pytest.raises(ShammahError, match="damaged"):
        world.loader(broken).load(world.big)
    assert world.watcher.models == ["big"]
