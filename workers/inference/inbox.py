"""Where requests wait for the work thread."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from shammah.bus.messages import Generate, Prefill
from shammah.bus.record import record


@record
class Arrival:
    """A request, the moment it came, in seconds of the monotonic clock, and whose it is."""

    request: Generate
    at: float
    client: str = ""


@record
class Ahead:
    """A conversation to read ahead; else as `Arrival`."""

    request: Prefill
    at: float
    client: str = ""


@dataclass(slots=True)
class Delivery:
    """What came since the last `Inbox.take`; a cancelled request may be among the arrivals."""

    arrivals: list[Arrival] = field(default_factory=list)
    ahead: list[Ahead] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    closed: bool = False
    held: bool = False


class Inbox:
    """Filled from any thread without waiting, emptied by one."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: dict[str, Arrival | Ahead] = {}
        self._cancelled: list[str] = []
        self._closed = False
        self._held = False
        self.closed_at = 0.0

    def is_closed(self) -> bool:
        return self._closed

    def put(self, arrival: Arrival | Ahead) -> None:
        with self._changed:
            self._waiting[arrival.request.request_id] = arrival
            self._changed.notify()

    def withdraw(self, request_id: str) -> bool:
        """Take a request back; ``False``: it does not wait here (any more)."""
        with self._changed:
            return self._waiting.pop(request_id, None) is not None

    def cancel(self, request_id: str) -> None:
        """Have `take` name a request as cancelled."""
        with self._changed:
            self._cancelled.append(request_id)
            self._changed.notify()

    def close(self, at: float) -> None:
        """End the wait of `take`, for ever. ``at``: now, in seconds of the monotonic clock."""
        with self._changed:
            self._closed, self.closed_at = True, at
            self._changed.notify()

    def hold(self) -> None:
        """Have arrivals wait here, for another model, until `release`; ends the wait of `take`."""
        with self._changed:
            self._held = True
            self._changed.notify()

    def release(self) -> None:
        """Undo `hold`."""
        with self._changed:
            self._held = False

    def has_news(self) -> bool:
        """Whether `take` would not wait."""
        return bool(self._waiting or self._cancelled or self._closed or self._held)

    def take(self, *, wait: bool, most_s: float | None = None) -> Delivery:
        """Everything that has come; ``wait`` until there is something, or a `hold`, for ``most_s``
        seconds."""
        with self._changed:
            if wait:
                self._changed.wait_for(self.has_news, most_s)
            came = [] if self._held else list(self._waiting.values())
            arrivals = [one for one in came if isinstance(one, Arrival)]
            ahead = [one for one in came if isinstance(one, Ahead)]
            delivery = Delivery(arrivals, ahead, self._cancelled, self._closed, self._held)
            self._waiting = self._waiting if self._held else {}
            self._cancelled = []
            return delivery
