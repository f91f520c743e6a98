"""``shammah status``: how every worker is now, and what happens from now on."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Mapping

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.endpoints import ROLES, Endpoints, lock_holder
from shammah.bus.messages import Event, GetStatus, Replay, Replayed
from shammah.bus.transfers import Transferring
from shammah.errors import ExitCode, ShammahError
from shammah.wording import describe_state, printable

ANSWER_S = 5.0
"""How long one worker may take to tell its status; a loading one holds the interpreter."""

QUIET = frozenset({"subscribed", "status"})
"""Events that only say that somebody looked."""


def show_status(endpoints: Endpoints, roles: tuple[str, ...], *, once: bool, as_json: bool) -> int:
    """Print the present state of ``roles``; then, unless ``once``, every event until Ctrl-C."""
    tail = Tail(endpoints, roles or ROLES, as_json=as_json)
    if once:
        return tail.once()
    try:
        tail.follow()
    except KeyboardInterrupt:
        return ExitCode.OK
    finally:
        tail.close()
    return ExitCode.OK


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
            peer = Peer(self._endpoints, role, None)
            try:
                self._print(role, _ask_status(peer))
            except ShammahError as error:
                self._print_silent(role, error)
                code = ExitCode.FAILED
            finally:
                peer.close()
        return code

    def follow(self) -> None:
        """The present states, then events as they come, for ever."""
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
                for missed in self._beginning(role, event):
                    seen[role] = missed.run_id
                    self._print(role, missed)
            if self._as_json or event.what not in QUIET or seen.get(role) != event.run_id:
                seen[role] = event.run_id
                self._print(role, event)

    def _beginning(self, role: str, first: Event) -> list[Event]:
        """What a worker that came up under our eyes told before the connection was there."""
        try:
            reply = self._peers[role].request(Replay(new_request_id()), ANSWER_S)
        except ShammahError:
            return []
        assert isinstance(reply, Replayed)
        return [
            event
            for event in reply.events
            if (event.run_id, event.seq < first.seq) == (first.run_id, True)
            and (self._as_json or event.what not in QUIET)
        ]

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
            print(json.dumps(document, ensure_ascii=False), flush=True)
        else:
            print(_line(role, event), flush=True)
            for sentence in _notices(event):
                if sentence not in self._noticed:
                    self._noticed.add(sentence)
                    print(f"{role:10} {sentence}", flush=True)

    def _print_silent(self, role: str, error: ShammahError) -> None:
        if self._as_json:
            failure = {"code": error.code, "message": error.message, "hint": error.hint}
            document = {"role": role, "running": True, "event": None, "error": failure}
            print(json.dumps(document), flush=True)
        else:
            print(f"{role:10} {error}", flush=True)


def _line(role: str, event: Event | None) -> str:
    if event is None:
        return f"{role:10} not running"
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


def _ask_status(peer: Peer) -> Event:
    """Ask again and again until the connection is there."""
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            reply = peer.request(GetStatus(new_request_id()), 0.2)
        except ShammahError:
            if time.monotonic() > until:
                raise
            continue
        assert isinstance(reply, Event)
        return reply
