"""One request for work that a frontend has made, and what comes back."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from shammah.bus import messages
from shammah.bus.messages import Cancel, Done, Failed, WorkReply
from shammah.errors import ShammahError

R = TypeVar("R")


class Task:
    """The replies to one request for work (a Generate, a Fetch). Iterate once; ends after
    exactly one of `messages.ENDS`.

    Args:
        request_id: of the request.
        pending: the connection's tasks that have not ended, by request.
        send: sends to the worker, without waiting.
    """

    def __init__(
        self, request_id: str, pending: dict[str, Task], send: Callable[[Cancel], None]
    ) -> None:
        self.request_id = request_id
        self.replies: queue.SimpleQueue[WorkReply | float] = queue.SimpleQueue()
        self._pending = pending
        self._send = send

    def __iter__(self) -> Iterator[WorkReply]:
        while True:
            reply = self.replies.get()
            if isinstance(reply, float):
                reply = self._last_word(reply)
            yield reply
            if isinstance(reply, messages.ENDS):
                return

    def end(self, kind: type[R]) -> R:
        """Wait for the reply that ends it, which is a ``kind``.

        Raises:
            ShammahError: it is Failed.
        """
        *_, reply = self
        if isinstance(reply, Failed):
            raise ShammahError(reply.code, reply.message, reply.hint)
        assert isinstance(reply, kind)
        return reply

    def ended(self) -> bool:
        """Whether nothing more will come. For a task that nobody iterates."""
        return self.request_id not in self._pending

    def cancel(self, wait_s: float = 0.0) -> None:
        """End it here at once, and have the worker end it at its next step.

        The iteration ends with ``Failed("cancelled")`` without waiting for the worker: on a
        slow machine one step takes a second, and the person wants the prompt back. Within
        ``wait_s`` seconds the worker's own ``Done``, which counts, is taken instead; nothing else
        comes any more. May be called from a signal handler: it only puts something into queues.
        """
        self._send(Cancel(self.request_id))
        if wait_s:
            self.replies.put(wait_s)
            return
        self._pending.pop(self.request_id, None)
        self.replies.put(self._cancelled())

    def _last_word(self, wait_s: float) -> WorkReply:
        deadline = time.monotonic() + wait_s
        try:
            reply: WorkReply | float = wait_s
            while not isinstance(reply, messages.ENDS):
                reply = self.replies.get(timeout=max(0.0, deadline - time.monotonic()))
            if isinstance(reply, Done):
                return replace(reply, finish_reason="cancelled")
        except queue.Empty:
            self._pending.pop(self.request_id, None)
        return self._cancelled()

    def _cancelled(self) -> Failed:
        return Failed("cancelled", "Cancelled.", "", self.request_id)
