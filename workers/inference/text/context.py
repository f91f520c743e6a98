"""Makes a conversation fit into the context: whole turns go, the oldest first. Pure.

How much goes follows from the conversation alone, in coarse steps. So the beginning of the prompt
stays, and what an engine has computed of it, until a whole step more has to go; and another process
arrives at the same cut.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

from shammah.bus.messages import ChatMessage
from shammah.bus.record import record
from shammah.errors import ShammahError

LEAST_CHARACTERS = 40
"""Of a question. Where fewer fit it is not the question that is too long."""

ANSWER_ROOM = 256
"""Tokens that a conversation leaves for the answer, if the context is long enough."""

STEPS = 4
"""Turns go in steps of the context's length by this."""

WORDS_A_TOKEN, CHARACTERS_A_TOKEN = 2, 32
"""No tokenizer gets more into one on the whole. What is longer is refused without encoding it,
which takes ten seconds for some megabytes."""

SAMPLE = 4
"""Of what is not encoded, so many characters for each token of the context are, to tell how long
it is and how much of it would fit."""

NOTE = "(Earlier messages of this conversation have been left out.)\n\n"
"""Before the first message that is left: else a model denies what it has not seen. Not in the
system prompt, of which every conversation has computed the same."""

Encode = Callable[[Sequence[ChatMessage]], tuple[int, ...]]


@record
class FittedPrompt:
    """``unseen``: how many messages at the conversation's beginning had to go."""

    tokens: tuple[int, ...]
    unseen: int = 0


def fit(
    messages: Sequence[ChatMessage],
    encode: Encode,
    count: Callable[[ChatMessage], int],
    context: int,
    *,
    whole: bool = False,
) -> FittedPrompt:
    """Return the conversation as tokens, with room for an answer.

    The system prompt and the last question always stay.

    Args:
        messages: system prompt, if any, and the turns.
        encode: with the model's own tokenizer and template.
        count: about how many tokens a message takes among others; always the same for one.
        context: tokens that fit, the answer among them. For the answer at least `ANSWER_ROOM` are
            kept free by leaving turns out.
        whole: no turn may be left out.

    Raises:
        ShammahError: ``context_too_long``: not even the last question fits, or, where that is
            wanted, not the ``whole``; or what ``encode`` raises.
    """
    system = [message for message in messages[:1] if message.role == "system"]
    turns = messages[len(system) :]
    starts = [0, *(at for at, one in enumerate(turns) if at and one.role == "user")]
    last = [*system, *turns[starts[-1] :]]
    characters = sum(len(message.content) for message in last)
    if sum(_at_least(message, context) for message in last) > context:
        raise _much_too_long(last[-1], encode, context, characters)
    counted = messages if len(starts) > 1 else ()
    sizes = [_at_least(one, context) or count(one) for one in counted]
    before = list(accumulate(sizes[len(system) :], initial=0))
    room, step = context - min(ANSWER_ROOM, context // 4), max(1, context // STEPS)
    steps = max(0, -(-(sum(sizes) - room) // step))
    while True:
        at = bisect_left(starts, steps * step, hi=len(starts) - 1, key=before.__getitem__)
        start = starts[at]
        if start and whole:
            raise _refusal(f"The conversation has about {sum(sizes):,} tokens", context)
        tokens = encode([*system, *_noted(turns, start)])
        if len(tokens) <= room or at == len(starts) - 1:
            break
        steps += 1  # some more than was counted, so it would have been due soon
    if start and len(tokens) >= context:
        tokens = encode(last)
    if len(tokens) < context:
        return FittedPrompt(tokens, start)
    size = f"The question has {len(tokens):,} tokens with the system prompt"
    raise _refusal(size, context, room * characters / len(tokens))


def _noted(turns: Sequence[ChatMessage], start: int) -> Sequence[ChatMessage]:
    """``turns`` from ``start`` on; if that is not the first, the model is told."""
    if not start:
        return turns
    first = turns[start]
    return [replace(first, content=NOTE + first.content), *turns[start + 1 :]]


def _at_least(message: ChatMessage, context: int) -> int:
    """How many tokens a message has at least, if these are more than fit; else 0."""
    characters = len(message.content)
    if characters <= SAMPLE * context:
        return 0
    tokens = characters // CHARACTERS_A_TOKEN
    if tokens <= context:
        tokens = len(message.content.split()) // WORDS_A_TOKEN
    return tokens if tokens > context else 0


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
