"""``shammah status`` in a pipe, or of one moment: a line for every event. Without
click, which takes longer to import than all of this."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shammah.bus import codec
from shammah.bus.endpoints import Endpoints, lock_holder
from shammah.bus.messages import Event
from shammah.bus.probe import GONE, ask_events, ask_status
from shammah.bus.transfers import Transferring
from shammah.cli.status_once import QUIET, not_running
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.output import describe_error, echo, print_json
from shammah.terminal.wording import describe_state, printable

if TYPE_CHECKING:
    from shammah.bus.client import Peer


HANGING = " " * 11
"""What a line goes on with: below the role stands nothing."""


class Tail:
    """The events of several workers, present or not, as lines."""

    def __init__(self, endpoints: Endpoints, roles: tuple[str, ...], *, as_json: bool) -> None:
        self._endpoints = endpoints
        self._roles = roles
        self._as_json = as_json
        self._events: queue.SimpleQueue[tuple[str, Event | None]] = queue.SimpleQueue()
        self._peers: dict[str, Peer] = {}
        self._noticed: set[str] = set()

    def once(self) -> int:
        """One line per role. Fails if a worker that is there does not answer."""
        code = ExitCode.OK
        for role in self._roles:
            if lock_holder(self._endpoints.lock(role)) is None:
                self._print(role, None)
                continue
            try:
                self._print(role, ask_status(self._endpoints, role))
            except ShammahError as error:
                if error.code == GONE:
                    self._print(role, None)
                    continue
                self._print_silent(role, error)
                code = ExitCode.FAILED
        return code

    def show_past(self, begin_s: float) -> None:
        """The events since ``begin_s`` that the workers have kept, in order."""
        found: list[tuple[float, str, Event]] = []
        for role in self._roles:
            if lock_holder(self._endpoints.lock(role)) is None:
                continue
            try:
                events = ask_events(self._endpoints, role).events
            except ShammahError as error:
                if error.code != GONE:
                    self._print_silent(role, error)
                continue
            kept = [event for event in events if event.wall_s >= begin_s]
            found += [
                (event.wall_s, role, event)
                for event in kept
                if self._as_json or event.what not in QUIET
            ]
        for _, role, event in sorted(found, key=lambda one: one[0]):
            self._print(role, event)

    def follow(self) -> None:
        """The present states, then events as they come, for ever."""
        from shammah.bus.client import Peer

        absent = set()
        for role in self._roles:
            if lock_holder(self._endpoints.lock(role)) is None:
                absent.add(role)
                self._print(role, None)
            self._peers[role] = Peer(self._endpoints, role, None, self._listener(role))
        seen: dict[str, str] = {}
        while True:
            role, event = self._events.get()
            if event is None:
                if seen.pop(role, None) is not None:
                    absent.add(role)
                    self._print(role, None)
                continue
            if role in absent:
                absent.discard(role)
                for missed in events_before(self._endpoints, role, event):
                    if self._as_json or missed.what not in QUIET:
                        seen[role] = missed.run_id
                        self._print(role, missed)
            if self._as_json or event.what not in QUIET or seen.get(role) != event.run_id:
                seen[role] = event.run_id
                self._print(role, event)

    def close(self) -> None:
        for peer in self._peers.values():
            peer.close()

    def _listener(self, role: str) -> Callable[[Event | None], None]:
        return lambda event: self._events.put((role, event))

    def _print(self, role: str, event: Event | None) -> None:
        if self._as_json:
            document: Mapping[str, object] = {
                "role": role,
                "running": event is not None,
                "event": codec.to_document(event) if event else None,
            }
            print_json(document)
        else:
            echo(_line(role, event), hanging=HANGING)
            for sentence in _notices(event):
                if sentence not in self._noticed:
                    self._noticed.add(sentence)
                    echo(f"{role:10} {sentence}", hanging=HANGING)

    def _print_silent(self, role: str, error: ShammahError) -> None:
        if self._as_json:
            told = describe_error(error)
            print_json({"role": role, "running": True, "event": None, "error": told})
        else:
            echo(f"{role:10} {error}", hanging=HANGING)


def events_before(endpoints: Endpoints, role: str, first: Event) -> list[Event]:
    """What a worker told before ``first``, the first that was heard of it, as far as it has kept
    that; nothing if it does not answer."""
    try:
        events = ask_events(endpoints, role).events
    except ShammahError:
        return []
    return [one for one in events if one.run_id == first.run_id and one.seq < first.seq]


def _line(role: str, event: Event | None) -> str:
    if event is None:
        return not_running(role)
    status = event.status
    clock = time.strftime("%H:%M:%S", time.localtime(event.wall_s))
    users = f"{status.clients} attached, {status.active} active, {status.tokens} tokens"
    return f"{role:10} {clock} {event.what:11} {describe_state(status.state)} [{users}]"


def _notices(event: Event | None) -> list[str]:
    """What the worker says that people should read, with the model it is about."""
    state = event.status.state if event else None
    if not isinstance(state, Transferring):
        return []
    return [printable(f"{one.model}: {said}") for one in state.transfers for said in one.notices]
