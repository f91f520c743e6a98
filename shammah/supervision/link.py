"""One worker, kept attached: started, attached to, restarted when it dies."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints, lock_holder
from shammah.bus.messages import (
    ClientInfo,
    Event,
    Failed,
    Identity,
    Initializing,
    NotAvailable,
    State,
)
from shammah.bus.probe import ask_status
from shammah.errors import ShammahError
from shammah.supervision.lifecycle import (
    RESTARTS,
    RestartBudget,
    WorkerSpec,
    ensure,
    stop,
)
from shammah.supervision.refusals import WorkerInUseError

CLOSE_S = 0.5
RETRY_S = 10.0
"""The cause of a failure may be fixed by then."""


def known_state(heard: Event | None, failure: Failed | None, *, absent: bool) -> State | None:
    """Return what is known of a worker; ``None``: nothing, which differs from not ready. Pure.

    Args:
        heard: the worker's last event, while it is attached.
        failure: why it is unavailable.
        absent: none ran when its lock was checked, and none has been attached since.
    """
    if heard is not None:
        return heard.status.state
    if failure is not None:
        return failure
    return Initializing() if absent else None


class Link:
    """One worker, kept attached in the background.

    ``failure`` says why it is unavailable; ``in_use_by_others`` is set when that is because
    other frontends use a worker that was started with something else.

    Args:
        on_change: called from other threads when the state may have changed.
        before: called on the attaching thread before it looks for the worker.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        endpoints: Endpoints,
        client: ClientInfo,
        on_change: Callable[[], None],
        before: Callable[[], None] = lambda: None,
    ) -> None:
        self.spec = spec
        self.peer: Peer | None = None
        self.failure: Failed | None = None
        self.in_use_by_others: Identity | None = None
        self._endpoints = endpoints
        self._client = client
        self._on_change = on_change
        self._before = before
        self._budget = RestartBudget()
        self._own_spec = spec
        self._absent = self._silent = False
        self._started_at = 0.0
        self._attaching: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def state(self) -> State | None:
        """The worker's state; Initializing if none runs yet; a Failed of our own if it is
        unavailable; ``None``: unknown, since it may run but has not reported yet."""
        peer = self.peer
        heard = peer.latest if peer is not None and peer.welcome is not None else None
        return known_state(heard, self.failure, absent=self._absent or self.resting)

    @property
    def attached(self) -> bool:
        return self.peer is not None and self.peer.welcome is not None

    @property
    def resting(self) -> bool:
        """Whether it was stopped on purpose, and stays stopped until it is needed."""
        peer = self.peer
        return peer is not None and peer.stopped and self._attaching is None

    @property
    def silent(self) -> bool:
        """Whether a question has waited in vain for the worker's state. No other question waits
        for it until it is known."""
        return self._silent and self.state is None

    def note_silence(self) -> None:
        """Note that a question has waited for the worker's state as long as it may."""
        self._silent = True

    def start(self, *, retry: bool = False) -> None:
        """Attach in the background. Does nothing while that is under way or done.

        A worker that has failed is tried again, but not at every question; ``retry``: now.
        """
        with self._lock:
            if self._closed or self._attaching is not None:
                return
            failed = retry and isinstance(self.state, Failed | NotAvailable)
            if self.attached and not failed and not self._worth_retrying():
                return
            self._started_at = time.monotonic()
            self.failure = None
            self._attaching = threading.Thread(
                target=self._attach, name=f"attach-{self.spec.role}", daemon=True
            )
            self._attaching.start()

    def _worth_retrying(self) -> bool:
        state = self.state
        failed = isinstance(state, Failed | NotAvailable)
        if isinstance(state, Failed) and state.code == "download_cancelled":
            return False  # on purpose
        return failed and time.monotonic() - self._started_at > RETRY_S

    def _attach(self) -> None:
        old, self.peer = self.peer, None
        peer: Peer | None = None
        failure: Failed | None = None
        try:
            if old is not None:
                old.close()
            # What comes before the start may take its time.
            self._on_presence(lock_holder(self._endpoints.lock(self.spec.role)) is not None)
            self._before()
            peer = ensure(
                self.spec,
                self._endpoints,
                self._client,
                on_change=self._on_worker_change,
                on_presence=self._on_presence,
            )
            self.in_use_by_others = None
        except ShammahError as error:
            failure = Failed(error.code, error.message, error.hint)
            if isinstance(error, WorkerInUseError):
                self.in_use_by_others = error.welcome.identity
        except Exception as error:  # a question waits for this: it must end in any case
            what = f"The {self.spec.role} worker is unavailable: {type(error).__name__}: {error}"
            failure = Failed("internal", what, f"Its log: {self.spec.log_file}.")
        with self._lock:
            self._attaching = None
            self._absent = False
            self.failure = failure
            self.peer = peer
            closed = self._closed
        if closed and peer is not None:
            peer.close()
        elif peer is not None and peer.welcome is None:  # lost before it was ours to lose
            self._on_worker_change(None)
        self._on_change()

    def _on_presence(self, present: bool) -> None:
        if self._absent is present:
            self._absent = not present
            self._on_change()

    def _on_worker_change(self, event: Event | None) -> None:
        peer = self.peer
        if event is not None:
            self._silent = False
        else:
            self.spec = self._own_spec  # one that was joined is gone
        # One that was stopped on purpose stays stopped until it is needed.
        if event is None and peer is not None and not peer.stopped:
            if not self._budget.spend():
                self.failure = Failed(
                    "worker_crashes",
                    f"The {self.spec.role} worker died {RESTARTS} times in a minute.",
                    f"The next question tries again. Its log: {self.spec.log_file}.",
                )
            elif self._client.program != "ask":  # which needs none after its answer
                self.start()  # be ready for the next question
        self._on_change()

    def join(self, identity: Identity) -> None:
        """Use the worker that others started."""
        self.spec = replace(self.spec, identity=identity, arguments=("--model", identity.model))
        self.start()

    def take_over(self) -> None:
        """Stop the worker that others use, and start ours.

        Raises:
            ShammahError: ``worker_unstoppable``.
        """
        stop(self.spec.role, self._endpoints)
        self.start()

    def count_others(self) -> int | None:
        """Return how many other frontends use the worker; ``None``: it does not run. The worker is
        asked: its last event may be outdated, and another frontend would lose its model."""
        peer = self.peer
        if peer is None or peer.welcome is None:
            return None
        latest = peer.latest
        with contextlib.suppress(ShammahError):  # silent: its last event must do
            latest = ask_status(self._endpoints, self.spec.role)
        return None if latest is None else max(0, latest.status.clients - 1)

    def end(self) -> bool:
        """Stop the worker until it is needed again, and return false if none ran."""
        peer = self.peer
        if peer is None:
            return False
        peer.stopped = True  # on purpose, whether or not its Stopping arrives
        ended = stop(self.spec.role, self._endpoints, peer) is not None
        # So that the next question sees at once that it is gone.
        peer.forget_welcome()
        return ended

    def close(self) -> None:
        """Give the lease back. The worker stays for as long as its keep_alive says."""
        with self._lock:
            self._closed = True
            peer, attaching = self.peer, self._attaching
        if peer is not None:
            peer.close()
        if attaching is not None:
            # A lease taken after this expires on its own.
            attaching.join(CLOSE_S)
