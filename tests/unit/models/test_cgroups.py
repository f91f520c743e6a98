"""What control groups leave to this process, and how the kernel counts its kills."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.models.cgroups import count_kills, kill_counter, memory_left
from tests.fakes.memory_group import MemoryGroup, can_make_groups
from workers.inference.memory import free_main_memory

UNLIMITED = str(0x7FFF_FFFF_FFFF_F000)
MIB = 2**20


class World:
    """Hierarchies of files, as they are mounted."""

    def __init__(self, directory: Path) -> None:
        self.root = directory / "cgroup"
        self.membership = directory / "groups"
        self.member("")

    def member(self, groups: str) -> None:
        self.membership.write_text(groups)

    def group(self, path: str, **files: str) -> None:
        for name, text in files.items():
            file = self.root / path / name.replace("__", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")

    def left(self) -> list[int]:
        return memory_left(self.root, self.membership)

    def counter(self) -> str | None:
        found = kill_counter(self.root, self.membership)
        return None if found is None else str(found.relative_to(self.root))


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_used_memory_is_not_left_but_cached_files_are(world: World) -> None:
    world.member("0::/a\n")
    stat = "anon 500\nfile 300\ninactive_file 200\nactive_file 60"
    world.group("a", memory__max="1000", memory__current="800", memory__stat=stat)
    assert world.left() == [1000 - 800 + 260]


def test_the_files_of_v1_are_those_of_the_groups_below_too(world: World) -> None:
    world.member("4:memory:/a\n0::/\n")
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 30\ntotal_active_file 40"
    files = {"memory__limit_in_bytes": "1000", "memory__usage_in_bytes": "900"}
    world.group("memory/a", **files, memory__stat=stat)
    assert world.left() == [170]


@pytest.mark.parametrize("stat", ["", "nonsense", "inactive_file x"])
def test_without_a_list_all_that_is_used_is_used(world: World, stat: str) -> None:
    world.member("0::/a\n")
    world.group("a", memory__max="1000", memory__current="800", memory__stat=stat)
    assert world.left() == [200]


def test_every_group_above_counts(world: World) -> None:
    world.member("0::/a/b\n")
    world.group("a", memory__max="1000", memory__current="950")
    world.group("a/b", memory__max="800", memory__high="700", memory__current="100")
    assert sorted(world.left()) == [50, 600]


def test_more_than_the_limit_can_be_used(world: World) -> None:
    world.member("0::/a\n")
    world.group("a", memory__max="1000", memory__current="1200")
    assert world.left() == [0]


def test_no_limit_or_no_usage_is_nothing_to_go_by(world: World) -> None:
    world.member("0::/a\n")
    world.group("a", memory__max="max", memory__current="100")
    assert world.left() == []
    world.group("b", memory__max="1000")
    world.member("0::/b\n")
    assert world.left() == []


def test_kills_are_counted_in_our_own_group(world: World) -> None:
    assert world.counter() is None
    world.member("0::/user/me\n")
    world.group("user", memory__events="oom 9\noom_kill 7\noom_group_kill 0")
    assert world.counter() == "user/memory.events"
    world.group("user/me", memory__events="oom 9\noom_kill 2\noom_group_kill 0")
    assert world.counter() == "user/me/memory.events"
    assert count_kills(world.root / "user/me/memory.events") == 2
    world.member("4:memory:/x\n0::/user/me\n")
    world.group("memory/x", memory__oom_control="under_oom 0\noom_kill 3")
    assert world.counter() == "memory/x/memory.oom_control"


def test_a_counter_that_has_gone_tells_nothing(tmp_path: Path) -> None:
    assert count_kills(tmp_path / "gone") is None
    (tmp_path / "other").write_text("oom 7\n")
    assert count_kills(tmp_path / "other") is None


# --- a real one ---------------------------------------------------------------------------


@pytest.fixture
def real() -> Iterator[MemoryGroup]:
    if not can_make_groups():
        pytest.skip("no memory cgroup can be made here")
    with MemoryGroup.make(256 * MIB) as group:
        yield group


def test_a_real_group(real: MemoryGroup, tmp_path: Path) -> None:
    """Anonymous memory is taken, read files are not."""
    (tmp_path / "big").write_bytes(os.urandom(64 * MIB))
    code = (
        "from workers.inference.memory import free_main_memory as free\n"
        "before = free()\n"
        f"kept = bytearray(b'x') * (100 * {MIB})\n"
        "taken = free()\n"
        f"open({str(tmp_path / 'big')!r}, 'rb').read({16 * MIB})\n"
        "print(before, taken, free())"
    )
    ended = real.run([sys.executable, "-c", code])
    before, taken, after = map(int, ended.stdout.split())
    assert 128 * MIB < before < 256 * MIB < free_main_memory()
    assert abs(before - taken - 100 * MIB) < 8 * MIB
    assert abs(taken - after) < 8 * MIB  # what was read is cache now


def test_a_real_kill_is_counted(real: MemoryGroup) -> None:
    code = (
        "import json\n"
        "from shammah.supervision.oom_record import kills_so_far\n"
        "print(json.dumps(kills_so_far()), flush=True)\n"
        "kept = [bytearray(b'x') * 2**20 for _ in range(512)]"
    )
    ended = real.run([sys.executable, "-c", code])
    assert ended.returncode == -9
    (counter, before), _ = json.loads(ended.stdout).items()
    assert Path(counter).parent == real.directory
    assert count_kills(Path(counter)) == before + 1
