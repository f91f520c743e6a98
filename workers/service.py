"""What a role's logic is to its host, and the host to it."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Protocol, TypeVar

from shammah.bus.messages import State, WorkReply


class Outlet:
    """The service's way out, from any thread. ``leave_s``: how long its thread may take to leave
    after a stop before the process ends anyway."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.queue: queue.SimpleQueue[WorkReply | State] = queue.SimpleQueue()
        self.progress = 0
        self.leave_s = 1.0
        self._wake = wake

    def reply(self, message: WorkReply) -> None:
        """Send a reply to the frontend that asked ``message.request_id``."""
        self.progress += 1
        self.queue.put(message)
        self._wake()

    def publish(self, state: State) -> None:
        """Make ``state`` the worker's state and tell everybody."""
        self.progress += 1
        self.queue.put(state)
        self._wake()

    def advance(self) -> None:
        """Count a unit of work that has nothing to tell (a prefill chunk)."""
        self.progress += 1


WorkOf = TypeVar("WorkOf", contravariant=True)


class Service(Protocol[WorkOf]):
    """The logic of one role, whose requests are ``WorkOf``. Only `run` may take time."""

    def run(self, outlet: Outlet) -> None:
        """Work until `stop`, on the work thread."""

    def submit(self, request: WorkOf, client: str) -> None:
        """Take a request. It must end in exactly one of `Ended` on the outlet.

        ``client`` is another one for each frontend."""

    def cancel(self, request_id: str) -> None:
        """End a request with ``Done(finish_reason="cancelled")``, if it still runs."""

    def stop(self) -> None:
        """Make `run` return soon."""
