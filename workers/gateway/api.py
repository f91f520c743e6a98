"""What an API is to the application: it reads requests and writes answers. Pure."""

from __future__ import annotations

import json
from typing import Any, Protocol

from shammah.bus.messages import Done, ToolCall
from shammah.chat.conversation import Turn
from workers.gateway.asking import Asked
from workers.gateway.fields import Fields
from workers.gateway.refusals import Dialect, RefusedError, describe

Document = dict[str, Any]


class Writer(Protocol):
    """Writes one answer: whole, or as a stream's events."""

    def whole(self, turn: Turn, model: str) -> Document:
        """The document of a finished answer, given by ``model``."""

    def begin(self, model: str) -> str:
        """The stream's first events."""

    def piece(self, text: str) -> str:
        """More of the answer."""

    def thought(self, text: str) -> str:
        """More of the thoughts before it."""

    def idle(self) -> str:
        """What keeps a connection awake on which nothing comes."""

    def end(self, turn: Turn) -> str:
        """The stream's last events."""


class Api(Protocol):
    """One way to ask."""

    dialect: Dialect

    def read(self, fields: Fields) -> Asked:
        """What is asked.

        Raises:
            RefusedError: the request means nothing, or something that is not supported.
        """

    def writer(self, asked: Asked, number: str, now: int) -> Writer:
        """A writer for the answer; ``number`` names it, ``now`` is in seconds since 1970."""


def calls_of(turn: Turn) -> tuple[ToolCall, ...]:
    """The calls that an answer ends with."""
    return turn.end.tool_calls if isinstance(turn.end, Done) else ()


def event(document: Document, name: str = "") -> str:
    """A server-sent event."""
    data = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"


def encode(document: Document) -> bytes:
    """As JSON. The arguments of a call may hold half a character, which UTF-8 cannot."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def failed(refused: RefusedError, dialect: Dialect) -> str:
    """The event of an answer that broke off."""
    name = "error" if dialect is Dialect.ANTHROPIC else ""
    return event(dict(describe(refused, dialect)), name)
