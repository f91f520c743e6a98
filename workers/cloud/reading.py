"""The state of one answer's stream so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from shammah.bus.messages import Timings, ToolCall, Usage
from workers.outgoing.errors import MalformedStreamError

if TYPE_CHECKING:
    from anthropic.types import RawMessageStreamEvent

_FINISH_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "tool_call",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "refusal",
}


_MOST_TOKENS = 2**40
"""More is no count, and no sum of money could be made of it."""

STOP_REASON_MAX = 40
"""Characters of a stop reason that are shown."""


class Reading:
    """Takes events in, gives text out, and keeps usage and times.

    The SDK builds events without checking them, so any field may be missing or of another
    type; a server is not trusted to send what the types promise.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.began = False
        self.pieces = 0
        """Pieces of content so far, text or not."""
        self.model = ""
        self.stop_reason: str | None = None
        self.stop = ""
        """The text that ended the answer; empty: none did."""
        self._clock = clock
        self._started_s = clock()
        self._text_s: float | None = None
        self._first_s = 0.0
        self._last_s = 0.0
        self._input_tokens = self._read_tokens = self._written_tokens = 0
        self._output_tokens = 0
        self._held = ""
        self._calls: list[ToolCall] = []

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls that the answer ends with; none of one that was cut off in them."""
        return tuple(self._calls) if self.stop_reason == "tool_use" else ()

    @property
    def finish_reason(self) -> str:
        """``stop_reason`` in the words of `Done`."""
        return _FINISH_REASONS.get(self.stop_reason or "", "other")

    @property
    def notices(self) -> tuple[str, ...]:
        """What a person should know of how the answer ended."""
        if self.finish_reason != "other":
            return ()
        reason = _printable(self.stop_reason)[:STOP_REASON_MAX]
        return (f"The server ended the answer for an unknown reason ({reason}).",)

    def take(self, event: RawMessageStreamEvent) -> str:
        """Take one event in; returns the new text, always whole characters.

        Raises:
            MalformedStreamError: the event has not the form that its type promises.
        """
        try:
            return self._take(event)
        except (AttributeError, TypeError):
            raise MalformedStreamError(type(event).__name__) from None

    def _take(self, event: RawMessageStreamEvent) -> str:
        self.began = True
        if event.type == "message_start":
            self.model = _printable(event.message.model)
            self._count(event.message.usage)
        elif event.type == "content_block_start":
            block = event.content_block
            if block.type == "text" and block.text:
                self._mark()
                return self._whole(block.text)
            if block.type == "tool_use":
                self._calls.append(ToolCall(_printable(block.id), _printable(block.name), ""))
        elif event.type == "content_block_delta":
            self._mark()
            if event.delta.type == "text_delta":
                return self._whole(event.delta.text)
            if event.delta.type == "input_json_delta" and self._calls:
                call = self._calls[-1]
                arguments = call.arguments + event.delta.partial_json
                self._calls[-1] = replace(call, arguments=arguments)
        elif event.type == "message_delta":
            self._count(event.usage)
            if event.delta.stop_reason == "tool_use":
                self._calls = [_checked(call) for call in self._calls]
            if isinstance(event.delta.stop_reason, str):
                self.stop_reason = event.delta.stop_reason
            if isinstance(stop := getattr(event.delta, "stop_sequence", None), str):
                self.stop = _encodable(stop)
        return ""

    def _mark(self) -> None:
        self._last_s = self._clock()
        if self.pieces == 0:
            self._first_s = self._last_s
        self.pieces += 1

    def _whole(self, text: str) -> str:
        """``text`` without half characters: JSON can carry half of a surrogate pair, and the
        other half comes with the next event."""
        text = self._held + text
        self._held = ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        if text and self._text_s is None:
            self._text_s = self._clock()
        return _encodable(text)

    def _count(self, usage: object) -> None:
        """Counts are cumulative, some events leave some out, and cached input is apart."""
        read = _tokens(usage, "cache_read_input_tokens")
        written = _tokens(usage, "cache_creation_input_tokens")
        input_tokens = _tokens(usage, "input_tokens") + read + written
        self._input_tokens = max(self._input_tokens, input_tokens)
        self._read_tokens = max(self._read_tokens, read)
        self._written_tokens = max(self._written_tokens, written)
        self._output_tokens = max(self._output_tokens, _tokens(usage, "output_tokens"))

    def usage(self) -> Usage:
        """Tokens as reported; of an answer that was broken off, which has no final count, at
        least one for each piece that came."""
        output = self._output_tokens
        if self.stop_reason is None:
            output = max(output, self.pieces)
        return Usage(
            self._input_tokens, output, self._read_tokens, written_tokens=self._written_tokens
        )

    def timings(self, arrived_s: float) -> Timings:
        """Seconds since ``arrived_s``. The prefill rate is not knowable from here; the decode
        rate counts the tokens after the first, over the time in which they came."""
        span = self._last_s - self._first_s
        tokens = self.usage().output_tokens
        return Timings(
            queue_s=self._started_s - arrived_s,
            ttft_s=0.0 if self._text_s is None else self._text_s - arrived_s,
            total_s=self._clock() - arrived_s,
            decode_tokens_per_second=(tokens - 1) / span if span > 0 and tokens > 1 else 0.0,
        )


def _checked(call: ToolCall) -> ToolCall:
    arguments = call.arguments or "{}"
    if not isinstance(json.loads(arguments), dict):
        raise MalformedStreamError("tool_use")
    return replace(call, arguments=arguments)


def _tokens(usage: object, name: str) -> int:
    value = getattr(usage, name, None)
    return value if type(value) is int and 0 < value < _MOST_TOKENS else 0


def _printable(name: object) -> str:
    return name if isinstance(name, str) and name.isprintable() else ""


def _encodable(text: str) -> str:
    """``text`` as it can be sent on: pairs joined, single halves replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
