"""Which parts of a request the API is asked to keep in its cache. Pure.

A mark says how far a cached beginning reaches; it adds no text, so a request holds the same
conversation with marks and without.

A cached token costs 1.25 prices when it is written and 0.1 in each later request, where it would
cost 1 (`models`). That pays if the next question comes, within five minutes, in more than 28 of
100 cases: at a prompt, or in a conversation that has gone on already. It does not for a single
command, which nothing follows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from workers.cloud.models import Model

if TYPE_CHECKING:
    from anthropic.types import CacheControlEphemeralParam, MessageParam

MARK: CacheControlEphemeralParam = {"type": "ephemeral"}


def is_worth(model: Model, turns: Sequence[MessageParam], tokens: int, *, ongoing: bool) -> bool:
    """Whether to cache ``tokens`` tokens of a conversation, which probably goes on (``ongoing``)
    or has done so."""
    follows = ongoing or any(turn["role"] == "assistant" for turn in turns)
    return model.priced and follows and tokens >= model.cache_least


def mark_turns(turns: Sequence[MessageParam]) -> list[MessageParam]:
    """``turns`` with marks on the last two questions: the next request begins with all of this,
    and the request before ended, and was written, at the first of them."""
    marked = list(turns)
    for at in [at for at, turn in enumerate(turns) if turn["role"] == "user"][-2:]:
        marked[at] = {"role": "user", "content": mark(as_blocks(turns[at]["content"]))}
    return marked


def as_blocks(content: str | Iterable[Any]) -> list[Any]:
    """``content`` of a turn or a system prompt as blocks."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def mark(blocks: Sequence[Any]) -> list[Any]:
    """``blocks`` with a mark on the last one."""
    return [*blocks[:-1], {**blocks[-1], "cache_control": MARK}]
