"""Which pages of a pool belong to which slot."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.models.catalogue import CATALOGUE, GIB
from shammah.models.footprint import KV_SHARE, kv_bytes
from workers.inference.engines.transformers.page_table import (
    NOTHING,
    PAGE,
    WASTE,
    PageTable,
    bucket,
    pages_of,
    pool_pages,
)
from workers.inference.scheduling.slots import Slots

SLOTS = 4
TOKENS = 9 * PAGE


def test_a_slot_has_the_pages_for_its_tokens_and_no_more() -> None:
    table = PageTable(pool_pages(TOKENS, SLOTS), SLOTS)
    first = table.fit(0, PAGE + 1)
    assert len(first) == 2
    assert table.fit(0, 2 * PAGE) == []
    assert table.pages(0) == first
    assert table.fit(0, 1) == []
    assert table.pages(0) == first[:1]
    assert table.fit(0, 0) == []
    assert table.pages(0) == []


def test_a_token_is_found_in_its_page() -> None:
    table = PageTable(pool_pages(TOKENS, SLOTS), SLOTS)
    table.fit(1, PAGE)
    table.fit(0, 3 * PAGE)
    pages = table.pages(0)
    assert [table.index(0, position) for position in (0, PAGE - 1, PAGE, 2 * PAGE + 7)] == [
        *(pages[0] * PAGE, pages[0] * PAGE + PAGE - 1),
        *(pages[1] * PAGE, pages[2] * PAGE + 7),
    ]


def test_what_there_is_no_room_for_changes_nothing() -> None:
    table = PageTable(pool_pages(PAGE, 1), 1)
    table.fit(0, 5)
    before = list(table.pages(0))
    with pytest.raises(MemoryError, match="3 pages, 1 are free"):
        table.fit(0, 3 * PAGE)
    assert table.pages(0) == before


@given(st.lists(st.tuples(st.integers(0, SLOTS - 1), st.integers(0, TOKENS)), max_size=40))
def test_however_slots_share_a_budget_there_are_pages_for_it(asked: list[tuple[int, int]]) -> None:
    table = PageTable(pool_pages(TOKENS, SLOTS), SLOTS)
    held = [0] * SLOTS
    for slot, tokens in asked:
        held[slot] = min(tokens, TOKENS - sum(held) + held[slot])
        table.fit(slot, held[slot])
        every = [page for number in range(SLOTS) for page in table.pages(number)]
        assert len(set(every)) == len(every)
        assert not {NOTHING, WASTE} & set(every)
        assert [len(table.pages(number)) for number in range(SLOTS)] == list(map(pages_of, held))


def test_shapes_are_few_and_little_is_in_vain() -> None:
    assert {bucket(count) for count in range(1, 129)} == {
        *(1, 2, 4, 8, 16, 32, 64, 128),
        *(3, 6, 12, 24, 48, 96),
    }
    assert all(count <= bucket(count) < 1.5 * count for count in range(1, 1000))


def test_24_gib_hold_sixteen_conversations_of_7b() -> None:
    """16-bit weights of 15.2 GB and 1 GiB of CUDA's own; half of the rest is for conversations."""
    model = next(one for one in CATALOGUE if one.size == "7B")
    token = kv_bytes(model.shape, 1, 2)
    assert token == 56 * 1024
    free = 24 * GIB - model.download_bytes - GIB
    budget = int(KV_SHARE * free) // token
    slots, table = Slots(16, budget, reuses=True), PageTable(pool_pages(budget, 16), 16)
    for number in range(16):
        place = slots.place(str(number), range(1000 * number, 1000 * number + 4000), 4096)
        assert place is not None
        table.fit(place.slot, 4096)
    assert pool_pages(budget, 16) * PAGE * token < 0.6 * free
