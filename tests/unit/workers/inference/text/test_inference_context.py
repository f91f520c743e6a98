"""A conversation that has grown too long."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import pytest

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from workers.inference.scheduling.slots import common
from workers.inference.text.context import NOTE, FittedPrompt, fit


def _encode(messages: Sequence[ChatMessage]) -> tuple[int, ...]:
    """A token for each character, and three for each message."""
    return tuple(sum(((0, 0, 0, *map(ord, m.content)) for m in messages), ()))


def _talk(turns: int, system: str = "", length: int = 100) -> list[ChatMessage]:
    messages = [ChatMessage("system", system)] if system else []
    for number in range(turns):
        messages.append(ChatMessage("user", f"{number:03}" + "q" * length))
        messages.append(ChatMessage("assistant", "a" * length))
    return [*messages, ChatMessage("user", "last?")]


def _text(tokens: tuple[int, ...]) -> str:
    return "".join(chr(token) for token in tokens if token)


def _fit(messages: Sequence[ChatMessage], context: int, *, whole: bool = False) -> FittedPrompt:
    return fit(messages, _encode, lambda one: len(_encode([one])), context, whole=whole)


def test_what_fits_stays_whole() -> None:
    messages = _talk(3, "Be brief.")
    assert _fit(messages, 2000) == FittedPrompt(_encode(messages))


def test_whole_turns_go_and_the_system_prompt_stays() -> None:
    found = _fit(_talk(5, "Be brief."), 1000)
    text = _text(found.tokens)
    assert text.startswith(f"Be brief.{NOTE}003q")
    assert text.endswith("last?")
    assert found.unseen == 6  # 315 tokens too many, so two steps of 250
    assert "002q" not in text


def test_the_model_is_told_where_the_beginning_would_be() -> None:
    assert _text(_fit(_talk(5), 1000).tokens).startswith(f"{NOTE}003q")


def test_the_last_question_stays_even_if_little_room_is_left_for_the_answer() -> None:
    messages = [*_talk(1)[:2], ChatMessage("user", "q" * 90)]
    found = _fit(messages, 100)
    assert found.unseen == 2
    assert _text(found.tokens) == "q" * 90  # the note does not take the room of the question


def _grow(context: int, turns: int = 200) -> Iterator[tuple[list[ChatMessage], FittedPrompt]]:
    """A conversation of turns of many lengths, with what is sent of it at each."""
    messages = [ChatMessage("system", "Be brief.")]
    for number in range(turns):
        messages.append(ChatMessage("user", f"{number:03}" + "q" * (number * 7 % 40)))
        yield messages, _fit(messages, context)
        messages.append(ChatMessage("assistant", "a" * (30 + number * 11 % 60)))


def test_two_hundred_turns_are_cut_seldom_and_compute_little_but_for_what_is_new() -> None:
    context, before, cuts, computed, sent = 2000, FittedPrompt(()), 0, [], []
    for _, found in _grow(context):
        if found.unseen != before.unseen:
            assert found.unseen > before.unseen
            assert len(found.tokens) <= context * 3 // 4  # a quarter is free again
            cuts += 1
        computed.append(len(found.tokens) - common(before.tokens, found.tokens))
        sent.append(len(found.tokens))
        before = found
    total = sum(computed)
    assert (cuts, total, max(sent)) == (32, 53_350, 1744)
    assert statistics.median(computed) < 0.15 * statistics.median(sent)


def test_the_cut_follows_from_the_conversation_alone() -> None:
    """No state: what a process finds that sees a conversation for the first time, its own or
    another one's, is what comes turn after turn."""
    for messages, found in _grow(1500, 80):
        assert _fit(list(messages), 1500) == found
    assert _fit(messages[:-1], 1500).unseen in (found.unseen, found.unseen - 2)


def test_what_a_template_adds_beyond_the_count_advances_the_cut_by_a_step() -> None:
    """And to where it would soon be in any case, so it stays for many turns all the same."""
    before, cuts = 0, 0
    for number in range(1, 60):
        found = fit(_talk(number), _encode, lambda one: len(one.content), 2000)
        assert len(found.tokens) <= 1744
        assert found.unseen >= before
        cuts, before = cuts + (found.unseen != before), found.unseen
    assert cuts == 21


def test_a_message_longer_than_the_context_goes_without_being_counted() -> None:
    """A pasted file that Claude has answered: neither encoded, nor ever sent again."""
    counted: list[str] = []

    def count(message: ChatMessage) -> int:
        counted.append(message.content)
        return len(_encode([message]))

    giant = [ChatMessage("user", "x" * 1_000_000), ChatMessage("assistant", "a file")]
    found = fit([*giant, *_talk(2)], _encode, count, 1000)
    assert found.unseen == 2
    assert max(map(len, counted)) < 200


def test_a_question_that_cannot_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ShammahError, match=r"question has 1,203 tokens .* holds 1,000") as refused:
        _fit([*_talk(2), ChatMessage("user", "q" * 1200)], 1000)
    assert refused.value.code == "context_too_long"
    assert refused.value.hint == "Shorten it. About 740 characters of such text fit."
    with pytest.raises(ShammahError):
        _fit([ChatMessage("user", "q" * 997)], 1000)


def test_a_question_of_which_nothing_would_fit_is_not_said_to_be_too_long() -> None:
    with pytest.raises(ShammahError) as refused:
        _fit([ChatMessage("user", "2+2?")], 3)
    assert refused.value.hint.startswith("Raise inference.context_length")


@pytest.mark.parametrize("text", ["1\n" * 300_000, "語" * 600_000])
def test_what_is_much_too_long_is_refused_without_being_encoded_to_its_end(text: str) -> None:
    encoded: list[int] = []

    def encode(messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        encoded.append(sum(len(message.content) for message in messages))
        return _encode(messages)

    with pytest.raises(ShammahError, match=r"about 600,0\d\d tokens .* holds 8,192") as refused:
        fit([ChatMessage("user", text)], encode, lambda _: 1, 8192)
    assert encoded == [4 * 8192]  # the rest would take seconds
    assert refused.value.hint == "Shorten it. About 7,900 characters of such text fit."


def test_a_conversation_that_may_not_be_cut_is_refused_and_a_question_alone_is_not() -> None:
    _fit([ChatMessage("user", "q" * 900)], 1000, whole=True)
    _fit(_talk(3), 2000, whole=True)
    with pytest.raises(ShammahError, match=r"conversation has about 1,053 tokens, .* holds 750"):
        _fit(_talk(5), 750, whole=True)
