"""Makes a conversation fit into the context: whole turns go, the oldest first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shammah.bus.messages import ChatMessage
from shammah.errors import ShammahError

ANSWER_ROOM = 256
"""Tokens that a trimmed conversation leaves for the answer, if the context is long enough."""

WORDS_A_TOKEN = 2
"""No tokenizer gets more into one on the whole. What is longer is refused without encoding it,
which takes ten seconds for some megabytes."""

Encode = Callable[[Sequence[ChatMessage]], tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """``left_out``: how many messages at the conversation's beginning had to go."""

    tokens: tuple[int, ...]
    left_out: int = 0


def fit(messages: Sequence[ChatMessage], encode: Encode, context: int, answer: int) -> FittedPrompt:
    """The conversation as tokens, with room for an answer.

    The system prompt and the last question always stay.

    Args:
        messages: system prompt, if any, and the turns.
        encode: counts with the model's own tokenizer and template.
        context: tokens that fit, the answer among them.
        answer: tokens that the answer may have; of these at least `ANSWER_ROOM` are kept free
            by leaving turns out.

    Raises:
        ShammahError: ``context_too_long``: not even the last question fits; or what ``encode``
            raises.
    """
    system = [message for message in messages[:1] if message.role == "system"]
    turns = list(messages[len(system) :])
    words = sum(len(message.content.split()) for message in [*system, *turns[-1:]])
    if words > WORDS_A_TOKEN * context:
        raise _too_long(f"{words:,} words", context)
    whole = encode(messages)
    if len(whole) < context:
        return FittedPrompt(whole)
    room = context - min(answer, ANSWER_ROOM, context // 4)
    starts = [at for at, message in enumerate(turns) if at and message.role == "user"]
    shortest = whole
    for start in starts:
        shortest = encode([*system, *turns[start:]])
        if len(shortest) <= room:
            return FittedPrompt(shortest, start)
    if starts and len(shortest) < context:
        return FittedPrompt(shortest, starts[-1])
    raise _too_long(f"{len(shortest):,} tokens", context)


def _too_long(size: str, context: int) -> ShammahError:
    return ShammahError(
        "context_too_long",
        f"The question has {size} with the system prompt, and the local model holds {context:,} "
        "tokens with its answer.",
        "Shorten the question, or ask Claude with --cloud.",
    )
