"""What is remembered of earlier questions: clients send the whole conversation with each. Pure.

Of any thread. What is forgotten, being too long ago, is judged anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import pairwise, starmap
from typing import TypeVar

from shammah.bus.messages import ChatMessage
from shammah.bus.record import record
from shammah.chat.conversation import Turn
from shammah.chat.session import Session
from shammah.privacy import Mark, split_prefix
from workers.gateway.api import calls_of

KNOWN = 2000
"""Of each kind."""

Value = TypeVar("Value")


@record
class Known:
    """A conversation in the history: its number, 0 for none, and the key of its first turn."""

    number: int = 0
    key: str = ""


class Memory:
    """Marks, and places in the history, by the messages that led to them."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._private: OrderedDict[str, Mark] = OrderedDict()
        self._told: OrderedDict[str, None] = OrderedDict()
        self._recalled = set[str]()

    def recall(self, turns: Iterable[tuple[str, str]]) -> None:
        """Know private turns from before the gateway was started, by question and answer."""
        self._recalled.update(starmap(_digest_turn, turns))

    def marks(self, session: Session, messages: tuple[ChatMessage, ...]) -> list[Mark]:
        """Whether each message is private: by a rule, because it says so, or because its turn once
        was. What Claude itself has answered tells the cloud nothing new."""
        marks = []
        for message, key in zip(messages, _digests(messages), strict=True):
            if split_prefix(message.content)[1]:
                marks.append(Mark(True))
            elif message.role == "assistant" and _digest(message) in self._told:
                marks.append(self._private.get(key, Mark()))
            else:
                said = [
                    message.content,
                    *(f"{call.name}\n{call.arguments}" for call in message.tool_calls),
                ]
                mark = session.gate.rules.mark("\n".join(said))
                marks.append(self._private.get(key, mark))
        for at, (asked, answer) in enumerate(pairwise(messages) if self._recalled else ()):
            turn = split_prefix(asked.content)[0], answer.content
            if answer.role == "assistant" and _digest_turn(*turn) in self._recalled:
                marks[at] = marks[at + 1] = Mark(True)
        return marks

    def known(self, messages: tuple[ChatMessage, ...]) -> Known:
        """The conversation that has these messages so far."""
        return self._known.get(_last(_digests(messages)), Known())

    def learn(self, messages: tuple[ChatMessage, ...], turn: Turn, known: Known) -> None:
        """Remember how a question ended, and which conversation it belongs to."""
        answer = ChatMessage("assistant", turn.answer, tool_calls=calls_of(turn))
        *_, asked, answered = _digests((*messages, answer))
        if turn.private:
            for key in (asked, answered):
                _keep(self._private, key, Mark(True))
        elif not turn.local:
            _keep(self._told, _digest(answer), None)
        if known.number:
            _keep(self._known, answered, known)


def _digests(messages: Iterable[ChatMessage]) -> Iterator[str]:
    """A name for the conversation up to and with each message."""
    running = hashlib.sha256()
    for message in messages:
        running.update(json.dumps([message.role, message.content, message.tool_call_id]).encode())
        for call in message.tool_calls:  # a client may write its arguments in another order
            said = [call.id, call.name, json.loads(call.arguments)]
            running.update(json.dumps(said, sort_keys=True).encode())
        yield running.hexdigest()


def _digest(message: ChatMessage) -> str:
    return _last(_digests([message]))


def _digest_turn(question: str, answer: str) -> str:
    said = json.dumps([question.strip(), answer.strip()])
    return hashlib.sha256(said.encode()).hexdigest()


def _last(digests: Iterable[str]) -> str:
    return next(reversed([*digests]), "")


def _keep(kept: OrderedDict[str, Value], key: str, value: Value) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > KNOWN:
        kept.popitem(last=False)
