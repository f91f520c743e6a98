"""Makes a conversation fit into the context: whole turns go, the oldest first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from shammah.bus.messages import ChatMessage
from shammah.bus.record import record
from shammah.errors import ShammahError

LEAST_CHARACTERS = 40
"""Of a question. Where fewer fit it is not the question that is too long."""

ANSWER_ROOM = 256
"""Tokens that a trimmed conversation leaves for the answer, if the context is long enough."""

WORDS_A_TOKEN, CHARACTERS_A_TOKEN = 2, 32
"""No tokenizer gets more into one on the whole. What is longer is refused without encoding it,
which takes ten seconds for some megabytes."""

SAMPLE = 4
"""Of what is not encoded, so many characters for each token of the context are, to tell how long
it is and how much of it would fit."""

Encode = Callable[[Sequence[ChatMessage]], tuple[int, ...]]


@record
class FittedPrompt:
    """``left_out``: how many messages at the conversation's beginning had to go."""

    tokens: tuple[int, ...]
    left_out: int = 0


def fit(
    messages: Sequence[ChatMessage],
    encode: Encode,
    context: int,
    answer: int,
    *,
    whole: bool = False,
) -> FittedPrompt:
    """Return the conversation as tokens, with room for an answer.

    The system prompt and the last question always stay.

    Args:
        messages: system prompt, if any, and the turns.
        encode: counts with the model's own tokenizer and template.
        context: tokens that fit, the answer among them.
        answer: tokens that the answer may have; of these at least `ANSWER_ROOM` are kept free
            by leaving turns out.
        whole: no turn may be left out.

    Raises:
        ShammahError: ``context_too_long``: not even the last question fits, or, where that is
            wanted, not the ``whole``; or what ``encode`` raises.
    """
    system = [message for message in messages[:1] if message.role == "system"]
    turns = list(messages[len(system) :])
    last = [*system, *turns[-1:]]
    words = sum(len(message.content.split()) for message in last)
    characters = sum(len(message.content) for message in last)
    if words > WORDS_A_TOKEN * context or characters > CHARACTERS_A_TOKEN * context:
        raise _much_too_long(turns[-1], encode, context, characters)
    tokens = encode(messages)
    if len(tokens) < context:
        return FittedPrompt(tokens)
    starts = [at for at, message in enumerate(turns) if at and message.role == "user"]
    if whole and starts:
        raise _refusal(f"The conversation has {len(tokens):,} tokens", context)
    room = context - min(answer, ANSWER_ROOM, context // 4)
    shortest = tokens
    for start in starts:
        shortest = encode([*system, *turns[start:]])
        if len(shortest) <= room:
            return FittedPrompt(shortest, start)
    if starts and len(shortest) < context:
        return FittedPrompt(shortest, starts[-1])
    size = f"The question has {len(shortest):,} tokens with the system prompt"
    raise _refusal(size, context, room * characters / len(shortest))


def _much_too_long(
    question: ChatMessage, encode: Encode, context: int, characters: int
) -> ShammahError:
    """Return the refusal of what is not encoded to its end."""
    beginning = question.content[: SAMPLE * context]
    tokens = len(encode([replace(question, role="user", content=beginning)]))
    share = len(beginning) / max(1, tokens)
    size = f"The question has about {characters / share:,.0f} tokens with the system prompt"
    return _refusal(size, context, (context - min(ANSWER_ROOM, context // 4)) * share)


def _round(number: float) -> int:
    """``number`` to two digits, downwards."""
    unit: int = 10 ** max(0, len(str(int(number))) - 2)
    return int(number) // unit * unit


def _refusal(size: str, context: int, fitting: float | None = None) -> ShammahError:
    """``fitting``: characters of such a text that there is room for, where that is known."""
    hint = "Shorten it."
    if fitting is not None:
        hint += f" About {_round(fitting):,} characters of such text fit."
        if fitting < LEAST_CHARACTERS:
            hint = "Raise inference.context_length, or choose another model with --model."
    why = f"{size}, but the local model holds {context:,}, including its answer."
    return ShammahError("context_too_long", why, hint)
