"""A conversation that has grown too long."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError
from workers.inference.text.context import fit


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


def test_what_fits_stays_whole() -> None:
    messages = _talk(3, "Be brief.")
    assert fit(messages, _encode, 2000, 100).tokens == _encode(messages)
    assert fit(messages, _encode, 2000, 100).left_out == 0


def test_whole_turns_go_and_the_system_prompt_stays() -> None:
    found = fit(_talk(5, "Be brief."), _encode, 750, 100)
    text = _text(found.tokens)
    assert text.startswith("Be brief.")
    assert text.endswith("last?")
    assert found.left_out == 4
    assert "001q" not in text
    assert "002q" in text
    assert len(found.tokens) <= 650


def test_without_a_system_prompt() -> None:
    found = fit(_talk(5), _encode, 750, 100)
    assert _text(found.tokens).startswith("002q")


def test_no_more_goes_than_must() -> None:
    """With one token more of context one turn more fits."""
    sizes = {context: fit(_talk(5), _encode, context, 50).left_out for context in range(400, 700)}
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    assert set(sizes.values()) <= {2, 4, 6, 8}


def test_the_last_question_stays_even_if_little_room_is_left_for_the_answer() -> None:
    messages = [*_talk(1)[:2], ChatMessage("user", "q" * 90)]
    found = fit(messages, _encode, 100, 50)
    assert found.left_out == 2
    assert len(found.tokens) == 93


def test_a_question_that_cannot_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(ShammahError, match=r"question has 1,203 tokens .* holds 1,000") as refused:
        fit([*_talk(2), ChatMessage("user", "q" * 1200)], _encode, 1000, 100)
    assert refused.value.code == "context_too_long"
    assert refused.value.hint == "Shorten it. About 890 characters of such text fit."
    with pytest.raises(ShammahError):
        fit([ChatMessage("user", "q" * 997)], _encode, 1000, 100)


def test_a_question_of_which_nothing_would_fit_is_not_said_to_be_too_long() -> None:
    with pytest.raises(ShammahError) as refused:
        fit([ChatMessage("user", "2+2?")], _encode, 3, 100)
    assert refused.value.hint.startswith("Raise inference.context_length")


@pytest.mark.parametrize("text", ["1\n" * 300_000, "語" * 600_000])
def test_what_is_much_too_long_is_refused_without_being_encoded_to_its_end(text: str) -> None:
    encoded: list[int] = []

    def encode(messages: Sequence[ChatMessage]) -> tuple[int, ...]:
        encoded.append(sum(len(message.content) for message in messages))
        return _encode(messages)

    with pytest.raises(ShammahError, match=r"about 600,0\d\d tokens .* holds 8,192") as refused:
        fit([ChatMessage("user", text)], encode, 8192, 100)
    assert encoded == [4 * 8192]  # the rest would take seconds
    assert refused.value.hint == "Shorten it. About 7,900 characters of such text fit."


def test_a_conversation_that_may_not_be_cut_is_refused_and_a_question_alone_is_not() -> None:
    fit([ChatMessage("user", "q" * 900)], _encode, 1000, 100, whole=True)
    fit(_talk(3), _encode, 2000, 100, whole=True)
    with pytest.raises(ShammahError, match=r"The conversation has 1,053 tokens, .* holds 750"):
        fit(_talk(5), _encode, 750, 100, whole=True)
