"""A frontend's connection to one worker.

Synchronous for its users; inside, one thread owns the sockets. It renews the lease, passes replies
on, keeps the worker's latest snapshot, and ends every open request when the worker dies.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

from shammah.bus import codec, messages
from shammah.bus.connection import Connection
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import (
    Cancel,
    ChatMessage,
    ClientInfo,
    Detach,
    Done,
    Ended,
    Event,
    Failed,
    Generate,
    Hello,
    Identity,
    Ping,
    Pong,
    Reply,
    Request,
    Sampling,
    Stopping,
    Welcome,
    Work,
    WorkReply,
)
from shammah.bus.messages import new_request_id as new_request_id
from shammah.errors import ShammahError

R = TypeVar("R")

PING_S = 1.0
"""A third of the worker's lease, so that two may be lost. The pong says how the worker is."""

SILENCE_S = 30.0
"""How long a live worker may be silent: importing torch from a cold disk takes seconds."""

STALL_S = 120.0
"""How long a worker that answers pings may take for one step (one token or one prefill chunk,
seconds on the slowest machine) before it counts as stuck."""

TICK_MS = 100
RESTARTING = "Ask again: it is being restarted."


def is_newer(event: Event, newest: Mapping[str, Event]) -> bool:
    """Whether ``event`` is later than the newest of its run; ``newest``: by run. Pure."""
    known = newest.get(event.run_id)
    return known is None or known.seq < event.seq


class Task:
    """The replies to one request for work (a Generate, a Fetch). Iterate once; it ends after
    exactly one of `Ended`.

    Args:
        request_id: of the request.
        pending: the connection's tasks that have not ended, by request.
        send: sends to the worker, without waiting.
    """

    def __init__(
        self, request_id: str, pending: dict[str, Task], send: Callable[[Cancel], None]
    ) -> None:
        self.request_id = request_id
        self.replies: queue.SimpleQueue[WorkReply | None] = queue.SimpleQueue()
        self._pending = pending
        self._send = send
        self._deadline: float | None = None

    def __iter__(self) -> Iterator[WorkReply]:
        reply: WorkReply | None = None
        while not isinstance(reply, Ended):
            deadline = self._deadline
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                reply = self.replies.get(timeout=left)
            except queue.Empty:
                reply = Failed("cancelled", "Cancelled.", "", self.request_id)
            if deadline is not None and isinstance(reply, Done):
                reply = replace(reply, finish_reason="cancelled")
            if reply is not None and (deadline is None or isinstance(reply, Ended)):
                yield reply
        self._pending.pop(self.request_id, None)

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
        """End it here, and have the worker end it at its next step.

        On a slow machine one step takes a second, and the person wants the prompt back: within
        ``wait_s`` seconds the iteration ends with the worker's own ``Done``, which has the counts,
        else with ``Failed("cancelled")``; no text comes any more. May be called from a signal
        handler: it only fills queues.
        """
        self._send(Cancel(self.request_id))
        if self._deadline is None:
            self._deadline = time.monotonic() + wait_s
        if not wait_s:
            self._pending.pop(self.request_id, None)
        self.replies.put(None)  # wakes the iteration


class Peer:
    """The connection; `close` gives the lease back.

    ``latest`` is the worker's last snapshot, ``welcome`` its answer to our Hello (both ``None``
    while there is no worker), ``stopped`` whether it announced that it ends.

    Args:
        endpoints: where the workers' sockets are.
        role: which worker.
        client: this frontend; ``None`` only watches and holds no lease.
        on_change: called on the connection's thread after each event, and with ``None`` when
            the worker is lost. Must return at once.
        explain: given the pid of a worker that died, returns why, if known.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        role: str,
        client: ClientInfo | None,
        on_change: Callable[[Event | None], None] = lambda event: None,
        explain: Callable[[int], ShammahError | None] = lambda pid: None,
    ) -> None:
        self.role = role
        self.latest: Event | None = None
        self.welcome: Welcome | None = None
        self.refusal: Failed | None = None
        self.stopped = False
        self._pinned = ""
        self._endpoints = endpoints
        self._client = client
        self._on_change = on_change
        self._explain = explain
        self._changed = threading.Condition()
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._tasks: dict[str, Task] = {}
        self._heard = self._moved = self._pinged = time.monotonic()
        self._progress = -1
        self._newest: dict[str, Event] = {}  # of each run: a dead one's may be read late
        self._told: Event | None = None  # by the last pong
        self._hello_id = ""
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"bus-{role}", daemon=True)
        self._thread.start()

    # --- for the frontend's threads -------------------------------------------------------

    def send(self, message: Request) -> None:
        """Send without waiting; from any thread and from signal handlers.

        Raises:
            ShammahError: ``message_too_long``.
        """
        frame = codec.encode(message)
        if len(frame) > codec.MAX_FRAME_BYTES:
            size, limit = f"{len(frame):,} bytes", f"{codec.MAX_FRAME_BYTES:,}"
            what = f"The conversation is {size} long; the limit is {limit}."
            hint = "Start a new conversation, or shorten the text."
            raise ShammahError("message_too_long", what, hint)
        self._post(frame)

    def generate(
        self,
        conversation: tuple[ChatMessage, ...],
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        max_new_tokens: int | None = None,
        adapter: str = "",
        *,
        whole: bool = False,
        think: bool = False,
        ongoing: bool = False,
        kept_as: str = "",
        model: str = "",
        server: str = "",
    ) -> Task:
        """Request an answer to ``conversation``; the rest is as `Generate` has it."""
        generate = Generate(new_request_id(), conversation, sampling, max_new_tokens)
        generate = replace(generate, adapter=adapter, whole=whole, think=think, model=model)
        generate = replace(generate, ongoing=ongoing, conversation=kept_as, server=server)
        return self.begin(generate)

    def begin(self, request: Work) -> Task:
        """Request work."""
        task = Task(request.request_id, self._tasks, self.send)
        self._tasks[request.request_id] = task
        self._moved = time.monotonic()
        try:
            self.send(request)
        except ShammahError as error:
            self._fail(request.request_id, error.code, error.message, error.hint)
        if self.welcome is None or self._closing:
            # It may have died between the caller's look and our entry in the table.
            self._fail_all("worker_died", f"The {self.role} worker is not running.")
        return task

    def wait_welcome(self, timeout: float) -> Welcome | None:
        """The worker's answer to our Hello, or ``None`` if there is none within ``timeout``.

        Raises:
            ShammahError: the worker refused us (``protocol_version``).
        """
        with self._changed:
            self._changed.wait_for(lambda: self.welcome or self.refusal, timeout)
            refusal, welcome = self.refusal, self.welcome
        if refusal is not None:
            raise ShammahError(refusal.code, refusal.message, refusal.hint)
        return welcome

    def pin(self, identity: Identity) -> None:
        """Accept only a worker of this identity from now on: the connection is renewed when a
        worker is replaced, and another model must not answer unnoticed."""
        self._pinned = identity.digest

    def forget_welcome(self) -> None:
        """Wait for the next worker's welcome: the one that sent this has ended."""
        with self._changed:
            self.welcome = None

    def close(self) -> None:
        """Give the lease back and close the sockets."""
        self._closing = True
        self._post(None)
        self._thread.join()
        self._wake_in.close()
        self._wake_out.close()

    def _post(self, frame: bytes | None) -> None:
        self._outbox.put(frame)
        # A full pipe has woken the thread already; a closed one means that it has ended.
        with contextlib.suppress(OSError):
            self._wake_in.send(b"\0")

    # --- the connection's thread ----------------------------------------------------------

    def _run(self) -> None:
        every = self._client is None  # a watcher may show each of them
        where = (self._endpoints, self.role, self._wake_out.fileno())
        self._connection = Connection(*where, every_event=every)
        try:
            self._loop()
        finally:
            self._closing, self.welcome = True, None
            self._fail_all("worker_lost", f"The connection to the {self.role} worker was closed.")
            # A watcher has nothing to give back, and would wait a second for nothing.
            self._connection.close(at_once=self._client is None)

    def _loop(self) -> None:
        due = 0.0
        while not self._closing:
            ready, heard = self._connection.wait(TICK_MS), self._heard
            if self._wake_out.fileno() in ready:
                self._wake_out.recv(4096)
            for reply in self._connection.replies():
                self._heard = time.monotonic()
                self._on_reply(reply)
            if len(ready) == 1 and heard < self._heard < due:
                continue  # a token: to look at all the rest would cost more than the token
            due = time.monotonic() + TICK_MS / 1000
            for event in self._connection.events():
                self._heard = time.monotonic()
                self._on_event(event)
            for up in self._connection.changes():
                self._heard = time.monotonic()
                if up:
                    self._say_hello()
                    continue
                for reply in self._connection.replies():  # its last words
                    self._on_reply(reply)
                for event in self._connection.events(at_once=True):
                    self._on_event(event)
                self._on_lost()
            self._drain_outbox()
            self._keep_lease(time.monotonic())
        if self._client is not None:  # even before the welcome: our Hello may be on its way
            self._transmit(Detach(new_request_id()))

    def _drain_outbox(self) -> None:
        while True:
            try:
                frame = self._outbox.get_nowait()
            except queue.Empty:
                return
            if frame is None:
                return
            self._connection.send(frame)

    def _transmit(self, message: Request) -> None:
        self._connection.send(codec.encode(message))

    def _say_hello(self) -> None:
        if self._client is not None:
            self._hello_id = new_request_id()
            self._transmit(Hello(self._hello_id, messages.PROTOCOL, self._client))

    def _keep_lease(self, now: float) -> None:
        if self.welcome is None and self._client is not None:
            return
        if now - self._pinged >= PING_S:
            self._pinged = now
            if self._told is not None:  # the events before it have had time to arrive
                self._on_event(self._told)
            self._transmit(Ping(new_request_id()))
        if not self._tasks:
            return
        hint = f"`shammah stop {self.role}` stops it; then ask again."
        if now - self._heard > SILENCE_S:
            self._fail_all("worker_silent", f"The {self.role} worker stopped responding.", hint)
        elif now - self._moved > STALL_S:
            why = f"The {self.role} worker is not making progress."
            self._fail_all("worker_stalled", why, hint)

    # --- what arrives ---------------------------------------------------------------------

    def _on_reply(self, reply: Reply) -> None:
        if isinstance(reply, Welcome):
            self._on_welcome(reply)
        elif isinstance(reply, Pong):
            self._on_pong(reply)
        elif isinstance(reply, Stopping):
            self.stopped = True
        elif isinstance(reply, WorkReply):
            self._on_work(reply)

    def _on_welcome(self, welcome: Welcome) -> None:
        if self._pinned and welcome.identity.digest != self._pinned:
            self._transmit(Detach(new_request_id()))
            return
        self._progress = -1
        self.stopped = False
        with self._changed:
            self.welcome, self.refusal = welcome, None
            self._changed.notify_all()
        event = welcome.event
        if not is_newer(event, self._newest):  # a later one has arrived on the events socket
            event = self._newest[event.run_id]
        self._newest[event.run_id] = self.latest = event
        self._on_change(event)

    def _on_pong(self, pong: Pong) -> None:
        self._told = pong.event
        if not pong.attached and self._client is not None:
            why = "This terminal was suspended, so its answer was dropped."
            self._fail_all("lease_lapsed", why)
            self._say_hello()
        if pong.progress != self._progress:
            self._progress = pong.progress
            self._moved = time.monotonic()

    def _on_work(self, reply: WorkReply) -> None:
        if isinstance(reply, Failed) and reply.request_id == self._hello_id:
            with self._changed:
                self.refusal = reply
                self._changed.notify_all()
            return
        task = self._tasks.get(reply.request_id)
        if task is None:
            return
        self._moved = time.monotonic()
        if isinstance(reply, Ended):
            self._tasks.pop(reply.request_id, None)
        task.replies.put(reply)

    def _on_event(self, event: Event) -> None:
        if not is_newer(event, self._newest):
            return
        self._newest[event.run_id] = event
        if self.welcome is None or self.welcome.event.run_id == event.run_id:
            self.latest = event
            self._on_change(event)

    def _on_lost(self) -> None:
        with self._changed:
            lost, self.welcome = self.welcome, None
            self.latest = self._told = None
            if lost is not None:
                self._newest.pop(lost.event.run_id, None)
        known = None if lost is None or self.stopped else self._explain(lost.pid)
        if known is not None:
            self._fail_all(known.code, known.message, known.hint)
        else:
            what = "was stopped" if self.stopped else "died"
            self._fail_all("worker_died", f"The {self.role} worker {what}.")
        self._on_change(None)

    def _fail_all(self, code: str, message: str, hint: str = RESTARTING) -> None:
        for request_id in list(self._tasks):
            self._fail(request_id, code, message, hint)

    def _fail(self, request_id: str, code: str, message: str, hint: str) -> None:
        task = self._tasks.pop(request_id, None)
        if task is not None:
            task.replies.put(Failed(code, message, hint, request_id))
