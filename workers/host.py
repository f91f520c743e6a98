"""What makes a worker process of a service: lock, sockets, leases, signals, events.

Two threads. The main thread owns the sockets and answers ping, cancel, status and stop at
once; the work thread runs the service (imports, loading, generating). They meet in two places
only: the service's `submit`/`cancel`/`stop`, which never block, and the `Outlet`, a queue.
So control never waits behind work.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import zmq

import shammah
from shammah.bus import codec, messages
from shammah.bus.endpoints import Endpoints, RoleLock
from shammah.bus.messages import (
    WORK,
    Accepted,
    Cancel,
    Detach,
    Detached,
    Done,
    Ended,
    Failed,
    GetStatus,
    Hello,
    Identity,
    Initializing,
    NotAvailable,
    Ping,
    Pong,
    Prove,
    Proved,
    Replay,
    Replayed,
    Reply,
    State,
    Status,
    Stop,
    Stopping,
    Welcome,
    Work,
    WorkReply,
)
from workers.journal import Journal
from workers.lease import LeaseTable
from workers.logs import describe
from workers.service import Outlet, Service
from workers.sockets import Sockets

log = logging.getLogger(__name__)

TICK_MS = 250
"""How often leases are looked at when nothing else happens."""

REQUESTS_A_TURN = 1000  # a flood must not keep tokens from the others

OUTLIVES_CLIENT = frozenset({"download", "train"})
"""Roles whose work goes on when the frontend that asked for it has gone."""


class Confined(Protocol):
    """See `workers.confinement.proof.Confined`."""

    @property
    def holds(self) -> tuple[str, ...]: ...

    def prove(self, asked: Prove) -> Proved: ...


class Host:
    """One worker process around one service. `run` returns when the worker shall end."""

    def __init__(
        self,
        service: Service[Any],
        identity: Identity,
        endpoints: Endpoints,
        lock: RoleLock,
        keep_alive: float,
        on_tick: Callable[[], object] = lambda: None,
        confined: Confined | None = None,
    ) -> None:
        self._service = service
        self._identity = identity
        self._role = identity.role
        self._lock = lock
        self._run_id = os.urandom(16).hex()
        self._on_tick = on_tick
        self._confined = confined
        self._leases = LeaseTable(keep_alive, time.monotonic())
        self._journal = Journal(self._role, self._run_id)
        self._state: State = Initializing()
        self._tokens = 0
        self._owners: dict[str, bytes] = {}
        self._orphans: set[str] = set()
        self._stopping: str | None = None
        self._replaced = False
        self._signal: int | None = None
        self._due = 0.0  # when leases must be looked at
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._outlet = Outlet(self._wake)
        self._sockets = Sockets(endpoints, self._role)
        self._requests, self._events = self._sockets.requests, self._sockets.events
        self._handlers: dict[type, Callable[[bytes, Any], None]] = {
            Hello: self._on_hello,
            Ping: self._on_ping,
            Detach: self._on_detach,
            GetStatus: self._on_get_status,
            Replay: self._on_replay,
            Prove: self._on_prove,
            Cancel: self._on_cancel,
            Stop: self._on_stop,
        }

    # --- the loop -------------------------------------------------------------------------

    def run(self) -> None:
        """Serve until stopped, out of users, or signalled."""
        self._install_signals()
        work = threading.Thread(target=self._work, name="work", daemon=True)
        work.start()
        self._record("started")
        log.info("started: run %s, model %s", self._run_id, self._identity.model)
        poller = zmq.Poller()
        for source in (self._requests, self._events, self._wake_out.fileno()):
            poller.register(source, zmq.POLLIN)
        while self._stopping is None:
            self._turn(poller)
        self._leave(work)

    def _turn(self, poller: zmq.Poller) -> None:
        ready, now = dict(poller.poll(TICK_MS)), time.monotonic()
        woken = self._wake_out.fileno() in ready and self._wake_out.recv(4096)
        if woken and len(ready) == 1 and self._signal is None and now < self._due:
            self._drain_outlet()  # a token: to look at all the rest would cost more
            return
        self._due = now + TICK_MS / 1000
        # Everything that has arrived is read before any lease is judged: while an import
        # holds the interpreter, pings wait in the socket and must still count.
        self._drain_requests()
        self._drain_subscriptions()
        self._drain_outlet()
        for peer in self._leases.lapse(now):
            self._forget(peer, "lapsed")
        if self._signal is not None:
            self._begin_stop(f"signal {signal.Signals(self._signal).name}")
        elif self._leases.expired(now) and not self._orphans:
            self._begin_stop("unused")
        elif not self._lock.keep():
            self._replaced = True
            self._begin_stop("its lock file was deleted")
        else:
            self._sockets.restore()
        self._on_tick()

    def _leave(self, work: threading.Thread) -> None:
        self._service.stop()
        work.join(self._outlet.leave_s)
        self._drain_outlet()
        for request_id in list(self._owners):
            self._answer(self._stopped(request_id))
        self._record("stopped")
        log.info("stopped: %s", self._stopping)
        self._sockets.close()
        signal.set_wakeup_fd(-1)
        self._wake_in.close()
        self._wake_out.close()

    def _begin_stop(self, why: str) -> None:
        if self._stopping is None:
            self._stopping = why
            self._record("stopping")
            # So that no frontend takes the end for a crash and starts the worker again: unless
            # nobody wanted it, for then they shall find the other one, or start it.
            for peer in () if self._replaced else self._leases.peers():
                self._send(peer, Stopping("", os.getpid()))

    def _work(self) -> None:
        try:
            self._service.run(self._outlet)
        except BaseException as error:  # a panic in a library written in Rust is no Exception
            log.exception("the work thread failed")
            why = f"The {self._role} worker failed: {describe(error)}"
            self._outlet.publish(Failed("internal", why, "See its log file."))

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it has been woken already; closed: it has left
            self._wake_in.send(b"\0")

    def _install_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_in.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signal = number

    # --- what comes in --------------------------------------------------------------------

    def _drain_requests(self) -> None:
        for _ in range(REQUESTS_A_TURN):
            try:
                peer, *frames = self._requests.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._dispatch(peer, frames)

    def _dispatch(self, peer: bytes, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise codec.ProtocolError(f"A message has {len(frames)} frames instead of one.")
            message = codec.decode(frames[0])
            if not isinstance(message, messages.Request):
                raise codec.ProtocolError(
                    f"A {type(message).__name__} is not a request.",
                    getattr(message, "request_id", ""),
                )
        except codec.ProtocolError as error:
            log.warning("refused a frame: %s", error.message)
            self._send(peer, Failed(error.code, error.message, error.hint, error.request_id))
            return
        try:
            self._handlers.get(type(message), self._on_work)(peer, message)
        except Exception as error:
            self._break_off(message.request_id, error, peer)

    def _drain_subscriptions(self) -> None:
        while True:
            try:
                frame = self._events.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if frame[:1] == b"\x01":  # a new subscriber: give it the present state
                self._record("subscribed")

    def _on_hello(self, peer: bytes, hello: Hello) -> None:
        if hello.protocol != messages.PROTOCOL:
            why = (
                f"This {self._role} worker speaks protocol {messages.PROTOCOL} (Shammah "
                f"{shammah.__version__}), the frontend speaks {hello.protocol}."
            )
            hint = f"Run `shammah stop {self._role}` and ask again: a new worker will start."
            self._send(peer, Failed("protocol_version", why, hint, hello.request_id))
            return
        self._find_gone()
        self._leases.attach(peer, hello.client, time.monotonic())
        event = self._record("attached", hello.request_id)
        self._send(
            peer,
            Welcome(
                hello.request_id,
                messages.PROTOCOL,
                version=shammah.__version__,
                run_id=self._run_id,
                pid=os.getpid(),
                identity=self._identity,
                event=event,
                others=self._leases.others(peer),
            ),
        )

    def _on_ping(self, peer: bytes, ping: Ping) -> None:
        held = self._leases.renew(peer, time.monotonic())
        self._send(peer, self._pong(ping.request_id, attached=held))

    def _pong(self, request_id: str, *, attached: bool) -> Pong:
        progress, latest = self._outlet.progress, self._journal.latest
        return Pong(request_id, self._run_id, attached, progress, latest)

    def _find_gone(self) -> None:
        """Give back the leases of frontends that have ended without a word, which were killed
        perhaps: nothing can be sent to them."""
        for peer in self._leases.peers():
            self._send(peer, self._pong("", attached=True))

    def _on_detach(self, peer: bytes, detach: Detach) -> None:
        self._send(peer, Detached(detach.request_id))
        if self._leases.detach(peer, time.monotonic()):
            self._forget(peer, "detached")

    def _on_get_status(self, peer: bytes, request: GetStatus) -> None:
        self._find_gone()
        self._send(peer, self._record("status", request.request_id))

    def _on_replay(self, peer: bytes, replay: Replay) -> None:
        events, complete = self._journal.since(replay.since_seq)
        self._send(peer, Replayed(replay.request_id, events, complete))

    def _on_prove(self, peer: bytes, request: Prove) -> None:
        if self._confined is not None:
            self._send(peer, self._confined.prove(request))

    def _on_work(self, peer: bytes, request: Work) -> None:
        failure = self._refusal(peer, request)
        if failure is not None:
            self._send(peer, failure)
            return
        ahead = len(self._owners)
        self._owners[request.request_id] = peer
        self._send(peer, Accepted(request.request_id, ahead))
        if request.request_id in self._owners:  # its frontend may just have gone
            self._record("accepted", request.request_id)
            self._service.submit(request, peer.hex())

    def _refusal(self, peer: bytes, request: Work) -> Failed | None:
        if not isinstance(request, WORK[self._role]):
            why = f"A {self._role} worker does not do {type(request).__name__}."
            return Failed("protocol", why, "", request.request_id)
        if not self._leases.renew(peer, time.monotonic()):
            why = "A frontend must attach (Hello) before it asks."
            return Failed("not_attached", why, "", request.request_id)
        known = request.request_id in self._owners or request.request_id in self._orphans
        if known or not request.request_id:
            why = "A request id must be new and not empty."
            return Failed("protocol", why, "", request.request_id)
        return self._inability(request.request_id)

    def _inability(self, request_id: str) -> Failed | None:
        """Why this worker cannot answer anything in its present state."""
        match self._state:
            case Failed(code, message, hint):
                return Failed(code, message, hint, request_id)
            case NotAvailable(reason, hint):
                return Failed("not_available", reason, hint, request_id)
        return None

    def _on_cancel(self, peer: bytes, cancel: Cancel) -> None:
        # Only the owner cancels; a request that has ended already needs no answer.
        if self._owners.get(cancel.request_id) == peer:
            self._service.cancel(cancel.request_id)

    def _on_stop(self, peer: bytes, stop: Stop) -> None:
        self._send(peer, Stopping(stop.request_id, os.getpid()))
        self._begin_stop("on request")

    # --- what goes out --------------------------------------------------------------------

    def _drain_outlet(self) -> None:
        while True:
            try:
                message = self._outlet.queue.get_nowait()
            except queue.Empty:
                return
            try:
                self._pass_on(message)
            except Exception as error:  # a number that no message can carry
                self._break_off(getattr(message, "request_id", ""), error)

    def _pass_on(self, message: WorkReply | State) -> None:
        # Failed is both: the end of a request if it names one, else a state.
        if isinstance(message, WorkReply) and message.request_id:
            self._answer(message)
        elif isinstance(message, State):
            self._enter(message)

    def _break_off(self, request_id: str, error: Exception, peer: bytes = b"") -> None:
        """Whatever a request or a state was, the others go on."""
        log.error("a message could not be handled", exc_info=error)
        what = f"The {self._role} worker failed: {describe(error)}"
        failed = Failed("internal", what, "See its log file.", request_id)
        if request_id in self._owners:
            self._service.cancel(request_id)
            self._answer(failed)
        elif peer:
            self._send(peer, failed)
        elif not request_id:
            self._enter(failed)

    def _enter(self, state: State) -> None:
        self._state = state
        self._record("state")
        for request_id in list(self._owners):
            # Whoever waits for a model that will not come is told so now.
            failure = self._inability(request_id)
            if failure is not None:
                self._answer(failure)

    def _stopped(self, request_id: str) -> Failed:
        message = f"The {self._role} worker was stopped ({self._stopping})."
        outlives = self._role in OUTLIVES_CLIENT
        hint = "The same command continues from there." if outlives else "Ask again."
        code = "worker_died" if self._replaced else "worker_stopped"
        return Failed(code, message, hint, request_id)

    def _answer(self, reply: WorkReply) -> None:
        if self._stopping is not None and _is_cancellation(reply):
            reply = self._stopped(reply.request_id)  # who waits for it has not cancelled it
        peer = self._owners.get(reply.request_id)
        if peer is not None:
            self._send(peer, reply)
        if isinstance(reply, Ended) and self._end(reply.request_id):
            what = type(reply).__name__.lower()
            if isinstance(reply, Done):
                what = reply.finish_reason
                self._tokens += reply.usage.output_tokens
            self._record(what, reply.request_id)

    def _end(self, request_id: str) -> bool:
        """Forget a request; false if its frontend had gone and nothing was left of it."""
        if request_id in self._orphans:
            self._orphans.discard(request_id)
            return True
        return self._owners.pop(request_id, None) is not None

    def _send(self, peer: bytes, reply: Reply) -> None:
        try:
            self._requests.send_multipart([peer, codec.encode(reply)], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # EHOSTUNREACH: it is gone. EAGAIN: it reads nothing; a stopped terminal must not
            # make the others wait.
            log.debug("a frontend is not reachable (%s)", error)
            if self._leases.detach(peer, time.monotonic()):
                self._forget(peer, "detached")

    def _forget(self, peer: bytes, what: str) -> None:
        """End what a frontend without a lease has asked for."""
        for request_id, owner in list(self._owners.items()):
            if owner != peer:
                continue
            del self._owners[request_id]
            if self._role in OUTLIVES_CLIENT:
                self._orphans.add(request_id)
            else:
                self._service.cancel(request_id)
        self._record(what)

    def _record(self, what: str, request_id: str = "") -> messages.Event:
        active = len(self._owners) + len(self._orphans)
        held = self._confined.holds if self._confined else ()
        status = Status(self._state, len(self._leases), active, self._tokens, held)
        event = self._journal.record(what, status, request_id)
        with contextlib.suppress(zmq.Again):
            self._events.send(codec.encode(event), zmq.NOBLOCK)
        return event


def _is_cancellation(reply: WorkReply) -> bool:
    match reply:
        case Done(finish_reason="cancelled") | Failed(code="download_cancelled"):
            return True
    return False
