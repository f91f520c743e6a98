"""Keys and values on disk: found again if they are exactly those, and never otherwise."""

from __future__ import annotations

import itertools
import os
import stat
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from shammah.models.catalogue import GIB
from shammah.storage import kept
from workers.inference import kept_conversations
from workers.inference.kept_conversations import InterruptedWriteError, KeptConversations
from workers.inference.kept_file import BLOCK, DamagedError, read_header
from workers.inference.runner import KVAccess
from workers.inference.scheduling.slots import Slot

TOKENS = list(range(2 * BLOCK + 40))
WIDTH = 4


class Memory:
    """Slots whose keys and values are bytes; those of a token are its number."""

    def __init__(self, form: str = "int8") -> None:
        self.slots: dict[int, bytearray] = {}
        self.access = KVAccess(form, WIDTH, self.dump, self.load)

    def fill(self, slot: int, tokens: list[int]) -> None:
        self.slots[slot] = bytearray(b"".join(one.to_bytes(WIDTH, "big") for one in tokens))

    def dump(self, slot: int, start: int, count: int) -> bytes:
        return bytes(self.slots[slot][WIDTH * start : WIDTH * (start + count)])

    def load(self, slot: int, start: int, count: int, data: bytes) -> None:
        assert len(data) == WIDTH * count
        memory = self.slots.setdefault(slot, bytearray(WIDTH * 10 * BLOCK))
        memory[WIDTH * start : WIDTH * (start + count)] = data


def opened(directory: Path, memory: Memory, model: str = "m", most: int = GIB) -> KeptConversations:
    found = KeptConversations(directory, most, model, memory.access)
    found.prepare()
    return found


def slot_of(tokens: list[int], conversation: str = "c", adapter: str = "") -> Slot:
    return Slot(0, list(tokens), conversation=conversation, adapter=adapter)


def write(store: KeptConversations, memory: Memory, slot: Slot, *, last: bool = False) -> None:
    memory.fill(slot.number, slot.tokens)
    store.write(slot, lambda: False, last=last)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def directory(tmp_path: Path, memory: Memory) -> Path:
    """With one conversation of `TOKENS`."""
    path = tmp_path / "conversations"
    write(opened(path, memory), memory, slot_of(TOKENS))
    return path


def only_file(directory: Path) -> Path:
    [path] = directory.iterdir()
    return path


def test_a_later_process_reads_what_was_written(directory: Path, memory: Memory) -> None:
    store = opened(directory, memory)
    found = store.find([*TOKENS, 7, 8], "", 0)
    assert found is not None
    assert found.shared == len(TOKENS)
    assert store.read(found, 5, 0, "")
    memory.fill(0, TOKENS)
    assert memory.slots[5][: WIDTH * len(TOKENS)] == memory.slots[0]


def test_only_its_owner_may_read_it(directory: Path) -> None:
    assert stat.S_IMODE(only_file(directory).stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


@pytest.mark.parametrize("same", [BLOCK, BLOCK + 1, 2 * BLOCK + 39])
def test_a_shared_beginning_is_found_to_the_token(
    directory: Path, memory: Memory, same: int
) -> None:
    found = opened(directory, memory).find([*TOKENS[:same], *range(9000, 9500)], "", 0)
    assert found is not None
    assert found.shared == same


def test_the_last_token_of_a_prompt_is_always_computed(directory: Path, memory: Memory) -> None:
    found = opened(directory, memory).find(TOKENS, "", 0)
    assert found is not None
    assert found.shared == len(TOKENS) - 1


@pytest.mark.parametrize(
    ("prompt", "held"),
    [
        (TOKENS[: BLOCK - 1], 0),
        ([1, *TOKENS], 0),
        ([*TOKENS, 7], len(TOKENS) - BLOCK + 1),
        ([*TOKENS[: BLOCK - 1], 7, *TOKENS], 0),
    ],
)
def test_less_than_a_block_is_not_worth_it(
    directory: Path, memory: Memory, prompt: list[int], held: int
) -> None:
    assert opened(directory, memory).find(prompt, "", held) is None


def test_only_what_memory_lacks_is_read(directory: Path, memory: Memory) -> None:
    store = opened(directory, memory)
    found = store.find([*TOKENS, 7], "", BLOCK + 3)
    assert found is not None
    loads: list[int] = []
    store.access = replace(store.access, load=lambda slot, start, count, data: loads.append(start))
    assert store.read(found, 5, BLOCK + 3, "")
    assert loads == [BLOCK, 2 * BLOCK]


@pytest.mark.parametrize("other", ["model", "adapter", "form", "version"])
def test_numbers_of_anything_else_are_never_used(
    directory: Path, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if other == "version":
        monkeypatch.setattr(kept_conversations, "__version__", "0.0.0")
    memory = Memory("int4" if other == "form" else "int8")
    store = opened(directory, memory, "other" if other == "model" else "m")
    assert store.find([*TOKENS, 7], "tidy@1" if other == "adapter" else "", 0) is None


def test_a_file_under_the_name_of_another_form_is_not_used(directory: Path) -> None:
    other = Memory("int4")
    store = opened(directory, other)
    named = "\n".join((kept_conversations.__version__, "m", "int4", ""))
    only_file(directory).rename(kept.file_path(directory, "c", named))
    assert store.find([*TOKENS, 7], "", 0) is None


def test_a_file_with_any_byte_changed_is_never_used(directory: Path, memory: Memory) -> None:
    path = only_file(directory)
    whole = path.read_bytes()
    places = {*range(0, len(whole), 61), *range(len(whole) - 120, len(whole))}
    for place, bit in itertools.product(sorted(places), (0x01, 0x80)):
        changed = bytearray(whole)
        changed[place] ^= bit
        path.write_bytes(changed)
        store = opened(directory, memory)
        found = store.find([*TOKENS, 7], "", 0)
        assert found is None or not store.read(found, 5, 0, "")
        assert not path.exists()
        assert store.find([*TOKENS, 7], "", 0) is None


def test_a_file_that_is_cut_short_or_longer_is_never_used(directory: Path, memory: Memory) -> None:
    path = only_file(directory)
    whole = path.read_bytes()
    for changed in (b"", whole[:20], whole[:-1], whole[1:], whole + b"x", b"x" + whole):
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            read_header(path)
        assert opened(directory, memory).find([*TOKENS, 7], "", 0) is None


def test_a_file_that_was_erased_meanwhile_only_costs_the_computing(
    directory: Path, memory: Memory
) -> None:
    store = opened(directory, memory)
    found = store.find([*TOKENS, 7], "", 0)
    assert found is not None
    only_file(directory).unlink()
    assert not store.read(found, 5, 0, "")


def test_an_erased_conversation_is_not_written_again(directory: Path, memory: Memory) -> None:
    store = opened(directory, memory)
    kept.erase(directory.parent, ["c"])
    write(store, memory, slot_of(TOKENS))
    assert list(directory.glob("*.kv")) == []


def test_nor_if_it_was_erased_while_it_was_written(directory: Path, memory: Memory) -> None:
    store = opened(directory, memory)
    memory.fill(0, TOKENS)

    def at(stage: str) -> None:
        if stage == "end":
            kept.erase(directory.parent, ["c"])

    store.write(slot_of(TOKENS), lambda: False, last=False, at=at)
    assert list(directory.glob("*.kv")) == []


def test_a_question_interrupts_the_writing_and_leaves_what_was_there(
    directory: Path, memory: Memory
) -> None:
    store, looks = opened(directory, memory), iter([False, True])
    longer = [*TOKENS, *range(5000, 6000)]
    memory.fill(0, longer)
    with pytest.raises(InterruptedWriteError):
        store.write(slot_of(longer), lambda: next(looks), last=False)
    assert read_header(only_file(directory)).tokens.tolist() == TOKENS


def after(blocks: int) -> Callable[[], bool]:
    looks = itertools.count()
    return lambda: next(looks) >= blocks


def test_the_end_keeps_what_there_was_time_for(directory: Path, memory: Memory) -> None:
    store = opened(directory, memory)
    longer = [*TOKENS, *range(5000, 6000)]
    memory.fill(0, longer)
    with pytest.raises(InterruptedWriteError):  # less than there was
        store.write(slot_of(longer), after(2), last=True)
    assert read_header(only_file(directory)).tokens.tolist() == TOKENS
    store.write(slot_of(longer), after(4), last=True)
    assert read_header(only_file(directory)).tokens.tolist() == longer[: 4 * BLOCK]
    found = store.find([*longer, 7], "", 0)
    assert found is not None
    assert found.shared == 4 * BLOCK


def test_what_was_unused_for_longest_makes_room(tmp_path: Path, memory: Memory) -> None:
    store = opened(tmp_path, memory, most=3 * WIDTH * BLOCK + 20_000)
    prompts = {name: list(range(at, at + BLOCK)) for name, at in (("a", 0), ("b", 500), ("c", 999))}
    for at, (name, tokens) in enumerate(prompts.items()):
        write(store, memory, slot_of(tokens, name))
        for path in tmp_path.glob("*.kv"):
            os.utime(path, (0, min(path.stat().st_mtime, at)))
    found = store.find([*prompts["a"], 7, 8], "", 0)
    assert found is not None
    assert store.read(found, 5, 0, "")  # so that b is the oldest
    store.most_bytes = sum(path.stat().st_size for path in tmp_path.glob("*.kv")) + 100
    write(store, memory, slot_of(list(range(2000, 2000 + BLOCK)), "d"))
    known = {name: store.find([*tokens, 7, 8], "", 0) for name, tokens in prompts.items()}
    assert [name for name, found in known.items() if found] == ["a", "c"]


def test_of_a_longer_conversation_than_there_is_room_for_the_beginning_is_kept(
    tmp_path: Path, memory: Memory
) -> None:
    store = opened(tmp_path, memory, most=WIDTH * (BLOCK + 10))
    write(store, memory, slot_of(TOKENS), last=True)
    assert read_header(only_file(tmp_path)).tokens.tolist() == TOKENS[:BLOCK]


def test_a_full_disk_stays_as_free_as_it_is(
    directory: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(path: Path) -> object:
        return SimpleNamespace(free=GIB // 2)

    monkeypatch.setattr(kept_conversations.shutil, "disk_usage", usage)
    store = opened(directory, memory)
    assert list(directory.iterdir()) == []
    with pytest.raises(InterruptedWriteError):
        write(store, memory, slot_of(TOKENS))
    assert list(directory.iterdir()) == []


def test_with_0_nothing_stays(directory: Path, memory: Memory) -> None:
    opened(directory, memory, most=0)
    assert list(directory.iterdir()) == []


def test_a_disk_that_fails_costs_the_warmth_alone(
    directory: Path, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(directory, memory)

    def fail(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zlib, "crc32", fail)
    write(store, memory, slot_of([*TOKENS, 1]))
    monkeypatch.undo()
    assert read_header(only_file(directory)).tokens.tolist() == TOKENS
