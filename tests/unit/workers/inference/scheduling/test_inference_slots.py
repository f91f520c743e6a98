"""Slots: who gets which, and what is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.inference.scheduling.slots import COPY_FROM, Placement, Slots, common

LONG = list(range(100, 100 + 3 * COPY_FROM))


def _hold(slots: Slots, owner: str, tokens: list[int]) -> int:
    """A finished sequence of ``tokens``; the slot that holds it."""
    place = slots.place(owner, tokens, len(tokens))
    assert place is not None
    slots.extend(place.slot, tokens[place.reused :])
    slots.free(place.slot)
    return place.slot


def test_the_next_turn_goes_on_where_the_last_one_ended() -> None:
    slots = Slots(2, 1000, reuses=True)
    number = _hold(slots, "a", LONG)
    assert slots.place("b", [*LONG, 1, 2], 60) == Placement(number, len(LONG))


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    slots = Slots(2, 1000, reuses=True)
    number = _hold(slots, "a", LONG)
    assert slots.place("b", LONG, 60) == Placement(number, len(LONG) - 1)


def test_a_branch_leaves_the_other_branch_alone() -> None:
    slots = Slots(2, 1000, reuses=True)
    first = _hold(slots, "a", LONG)
    edited = [*LONG[: 2 * COPY_FROM], 1, 2, 3]
    place = slots.place("b", edited, 60)
    assert place == Placement(1 - first, 2 * COPY_FROM, copy_from=first)
    assert slots.held(first) == len(LONG)


def test_what_a_running_sequence_has_computed_can_be_copied() -> None:
    slots = Slots(2, 1000, reuses=True)
    place = slots.place("a", LONG, 60)
    assert place is not None
    slots.extend(place.slot, LONG)
    assert slots.place("b", [*LONG, 7], 60) == Placement(
        1 - place.slot, len(LONG), copy_from=place.slot
    )


def test_little_in_common_is_not_copied() -> None:
    slots = Slots(2, 1000, reuses=True)
    first = _hold(slots, "a", LONG)
    assert slots.place("b", [*LONG[:3], 1, 2], 60) == Placement(1 - first, 0)


def test_the_only_free_slot_is_cut_back_to_what_is_common() -> None:
    slots = Slots(1, 1000, reuses=True)
    _hold(slots, "a", LONG)
    assert slots.place("b", [*LONG[:5], 1], 60) == Placement(0, 5)
    assert slots.held(0) == 5


def test_without_a_free_slot_one_waits() -> None:
    slots = Slots(1, 1000, reuses=True)
    assert slots.place("a", [1, 2], 10) is not None
    assert slots.place("b", [1, 2], 10) is None
    slots.free(0)
    assert slots.place("b", [1, 2], 10) is not None


def test_the_longest_unused_is_given_up_first() -> None:
    slots = Slots(3, 100, reuses=True)
    old = _hold(slots, "a", [1] * 40)
    new = _hold(slots, "b", [2] * 40)
    place = slots.place("c", [3] * 10, 60)
    assert place is not None
    assert place.released == (old,)
    assert (slots.held(old), slots.held(new)) == (0, 40)


def test_running_sequences_never_exceed_the_budget_together() -> None:
    slots = Slots(3, 100, reuses=True)
    assert slots.place("a", [1], 60) is not None
    assert slots.place("b", [2], 60) is None
    assert slots.place("c", [3], 40) is not None


def test_a_single_sequence_may_have_it_all() -> None:
    assert Slots(2, 100, reuses=True).place("a", [1], 100) is not None


def test_where_nothing_can_be_cut_back_nothing_is_reused() -> None:
    slots = Slots(2, 1000, reuses=False)
    number = _hold(slots, "a", LONG)
    assert slots.held(number) == 0
    place = slots.place("b", [*LONG, 1], 60)
    assert place is not None
    assert (place.reused, place.copy_from) == (0, None)


def test_what_failed_is_forgotten() -> None:
    slots = Slots(1, 1000, reuses=True)
    place = slots.place("a", LONG, 60)
    assert place is not None
    slots.extend(0, LONG)
    slots.forget(0)
    slots.free(0)
    assert slots.place("b", LONG, 60) == Placement(0, 0)


PROMPTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40), min_size=1, max_size=30)


@given(PROMPTS, st.data())
def test_what_is_reused_is_what_was_computed(prompts: list[list[int]], data: st.DataObject) -> None:
    """A model of the real memory: every slot's tokens as a runner would have written them."""
    slots = Slots(3, 90, reuses=True)
    written: dict[int, list[int]] = {0: [], 1: [], 2: []}
    running: list[int] = []
    for number, prompt in enumerate(prompts):
        place = slots.place(str(number), prompt, len(prompt))
        if place is None:
            assert running
            slots.free(running.pop(data.draw(st.integers(0, len(running) - 1))))
            continue
        if place.copy_from is not None:
            written[place.slot] = written[place.copy_from][: place.reused]
        assert written[place.slot][: place.reused] == prompt[: place.reused]
        assert place.reused < len(prompt)
        for released in place.released:
            assert released not in (*running, place.slot, place.copy_from)
            written[released] = []
        written[place.slot] = list(prompt)
        slots.extend(place.slot, prompt[place.reused :])
        running.append(place.slot)
        assert len(set(running)) == len(running)
        assert sum(map(slots.held, running)) <= 90


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_prefix(left: list[int], right: list[int]) -> None:
    count = common(left, right)
    assert left[:count] == right[:count]
    assert left[count : count + 1] != right[count : count + 1] or count == len(left) == len(right)


def test_memory_that_an_earlier_sequence_has_left_counts_until_something_is_computed() -> None:
    slots = Slots(2, 1000, reuses=True)
    number = _hold(slots, "a", list(range(900)))
    _hold(slots, "b", [2000])
    assert slots.place("c", [*range(500), 7], 600) == Placement(number, 500)
    other = list(range(4000, 4010))
    assert slots.place("d", other, 300) is None
    slots.extend(number, [7])
    assert slots.place("d", other, 300) is not None


def test_what_was_released_counts_no_more() -> None:
    slots = Slots(2, 1000, reuses=True)
    _hold(slots, "a", LONG)
    number = _hold(slots, "b", list(range(900)))
    slots.forget(number)
    assert slots.place("c", list(range(4000, 4010)), 950) == Placement(number, 0)


# --- what may be kept on disk -------------------------------------------------------------


def _talk(slots: Slots, conversation: str, tokens: list[int]) -> int:
    place = slots.place("x", tokens, len(tokens), conversation=conversation)
    assert place is not None
    slots.extend(place.slot, tokens[place.reused :])
    slots.free(place.slot)
    return place.slot


def test_only_what_may_be_kept_is_and_the_latest_first() -> None:
    slots = Slots(4, 1000, reuses=True)
    first = _talk(slots, "a", LONG)
    _talk(slots, "", [1, 2, 3])
    second = _talk(slots, "b", [4, 5, 6])
    assert [slot.number for slot in slots.unkept()] == [second, first]


def test_of_two_branches_of_a_conversation_the_latest_is_kept() -> None:
    slots = Slots(4, 1000, reuses=True)
    _talk(slots, "a", LONG)
    branch = _talk(slots, "a", [*LONG[: 2 * COPY_FROM], 1, 2, 3])
    assert [slot.number for slot in slots.unkept()] == [branch]


def test_what_is_kept_is_not_kept_again_until_it_grows() -> None:
    slots = Slots(2, 1000, reuses=True)
    _talk(slots, "a", LONG)
    for slot in slots.unkept():
        slot.kept = True
    assert slots.unkept() == []
    _talk(slots, "a", [*LONG, 7])
    assert [slot.tokens[-1] for slot in slots.unkept()] == [7]


def test_a_question_that_may_not_be_kept_takes_its_slot_out() -> None:
    slots = Slots(1, 1000, reuses=True)
    _talk(slots, "a", LONG)
    _talk(slots, "", [*LONG, 7])
    assert slots.unkept() == []
