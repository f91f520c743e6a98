"""One request for work that a frontend has made, and what comes back."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator

from shammah.bus import messages
from shammah.bus.messages import Cancel, Failed, WorkReply


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
        self.replies: queue.SimpleQueue[WorkReply] = queue.SimpleQueue()
        self._pending = pending
        self._send = send

    def __iter__(self) -> Iterator[WorkReply]:
        while True:
            reply = self.replies.get()
            yield reply
            if isinstance(reply, messages.ENDS):
                return

    def ended(self) -> bool:
        """Whether nothing more will come. For a task that nobody iterates."""
        return self.request_id not in self._pending

    def cancel(self) -> None:
        """End it here at once, and have the worker end it at its next step.

        The iteration ends with ``Failed("cancelled")`` without waiting for the worker: on a
        slow machine one step takes a second, and the person wants the prompt back. May be
        called from a signal handler: it only puts something into queues.
        """
        self._send(Cancel(self.request_id))
        self._pending.pop(self.request_id, None)
        self.replies.put(Failed("cancelled", "Cancelled.", "", self.request_id))
