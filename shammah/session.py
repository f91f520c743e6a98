"""A frontend's view of its workers, and one question's way to its answer.

`Link` keeps one worker attached: starts it, attaches, starts it again when it dies. `Session`
has the two that answer, asks the router, waits where it must, and yields what a person should
see. It prints nothing: the REPL and ``shammah ask`` render what it yields.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace

from shammah.bus.client import Peer, Task
from shammah.bus.endpoints import Endpoints, open_endpoints
from shammah.bus.messages import (
    ChatMessage,
    ClientInfo,
    Done,
    Event,
    Failed,
    Identity,
    NotAvailable,
    Sampling,
    State,
    Token,
)
from shammah.config import Settings
from shammah.errors import ShammahError
from shammah.router.decision import RouteDecision, Target, View, Wish, decide
from shammah.supervision import (
    RESTARTS,
    RestartBudget,
    WorkerInUseError,
    WorkerSpec,
    ensure,
    lend_hub_token,
    stop,
    worker_spec,
)

CLOSE_S = 0.5
RETRY_S = 10.0
"""What a worker failed for may be mended by then."""

WAIT_S = 0.5
"""How often a waiting question looks again even if nothing was heard."""

LOCAL_ROLE = "inference"
CLOUD_ROLE = "cloud"


class Link:
    """One worker, kept attached in the background.

    ``failure`` says why it cannot be had; ``in_use_by_others`` is set when that is because
    other frontends use a worker that was started with something else.

    Args:
        on_change: called from other threads when the state may have changed.
        before: called on the attaching thread before the worker is looked for.
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
        self._started_at = 0.0
        self._attaching: threading.Thread | None = None
        self._lock = threading.Lock()
        self._closed = False

    @property
    def state(self) -> State | None:
        """The worker's state; a Failed of our own if it cannot be had; ``None``: unknown."""
        peer = self.peer
        if peer is not None and peer.welcome is not None and peer.latest is not None:
            return peer.latest.status.state
        return self.failure

    @property
    def attached(self) -> bool:
        return self.peer is not None and self.peer.welcome is not None

    def start(self) -> None:
        """Begin to attach, in the background. Does nothing while that is under way or done.

        A worker that has failed is tried anew, but not at every question.
        """
        with self._lock:
            if self._closed or self._attaching is not None:
                return
            if self.attached and not self._worth_retrying():
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
            return False  # somebody said so
        return failed and time.monotonic() - self._started_at > RETRY_S

    def _attach(self) -> None:
        old, self.peer = self.peer, None
        if old is not None:
            old.close()
        peer: Peer | None = None
        failure: Failed | None = None
        try:
            self._before()
            peer = ensure(
                self.spec, self._endpoints, self._client, on_change=self._on_worker_change
            )
            self.in_use_by_others = None
        except ShammahError as error:
            failure = Failed(error.code, error.message, error.hint)
            if isinstance(error, WorkerInUseError):
                self.in_use_by_others = error.welcome.identity
        except Exception as error:  # a question waits for this: it must end in any case
            what = f"The {self.spec.role} worker cannot be had: {type(error).__name__}: {error}"
            failure = Failed("internal", what, f"{self.spec.log_file} may say more.")
        with self._lock:
            self._attaching = None
            self.failure = failure
            self.peer = peer
            closed = self._closed
        if closed and peer is not None:
            peer.close()
        self._on_change()

    def _on_worker_change(self, event: Event | None) -> None:
        peer = self.peer
        if event is None:
            self.spec = self._own_spec  # one that was joined is gone
        # One that was stopped on purpose stays away until it is needed, and a single question
        # needs none after its answer.
        restarts = self._client.program != "ask"
        if event is None and peer is not None and not peer.stopped and restarts:
            if self._budget.spend():
                self.start()  # have it back before the next question
            else:
                self.failure = Failed(
                    "worker_crashes",
                    f"The {self.spec.role} worker died {RESTARTS} times in a minute.",
                    f"{self.spec.log_file} says why; the next question starts it once more.",
                )
        self._on_change()

    def join(self, identity: Identity) -> None:
        """Be content with the worker that others have started."""
        self.spec = replace(self.spec, identity=identity, arguments=("--model", identity.model))
        self.start()

    def take_over(self) -> None:
        """End the worker that others use, and have ours.

        Raises:
            ShammahError: ``worker_unstoppable``.
        """
        stop(self.spec.role, self._endpoints)
        self.start()

    def close(self) -> None:
        """Give the lease back. The worker goes on for as long as its keep_alive says."""
        with self._lock:
            self._closed = True
            peer, attaching = self.peer, self._attaching
        if peer is not None:
            peer.close()
        if attaching is not None:
            # A lease that it still takes after this lapses by itself.
            attaching.join(CLOSE_S)


@dataclass(frozen=True, slots=True)
class Routed:
    """Who will answer, and why."""

    decision: RouteDecision


@dataclass(frozen=True, slots=True)
class Waiting:
    """The question waits for ``role``, which is in ``state``."""

    role: str
    state: State | None


Step = Routed | Waiting | Token | Done | Failed

CANCELLED = Failed("cancelled", "Cancelled.")


class Session:
    """The workers that answer, for one frontend."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        program: str,
        *,
        local_only: bool = False,
    ) -> None:
        self.settings = settings
        self._on_change: Callable[[], None] = lambda: None
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._generation: Task | None = None
        self._interrupted = False
        self._environ = environ
        self._stand_in = local_only or not settings.cloud_configured
        self._endpoints = open_endpoints(environ)
        self._client = ClientInfo(program, os.getpid(), _terminal())
        self.local = self._local_link()
        self.cloud: Link | None = None
        if settings.cloud_configured and not local_only:
            spec = worker_spec(settings, CLOUD_ROLE, environ)
            self.cloud = Link(spec, self._endpoints, self._client, self._changed)

    def start(self, *, local: bool = True, cloud: bool = True) -> None:
        """Begin to bring the workers up, in the background."""
        if cloud and self.cloud is not None:
            self.cloud.start()
        if local:
            self.local.start()

    def use_model(self, model: str) -> None:
        """Have another local model. The worker of the one before ends, and gives its memory
        back, before this one's begins, unless somebody else uses it."""
        self.settings = replace(self.settings, model=model)
        before, self.local = self.local, self._local_link()
        before.close()
        self.local.start()

    def unload(self) -> str:
        """End the local model's worker and have its memory back; says what became of it."""
        peer = self.local.peer
        if peer is None or peer.latest is None:
            return "No local model is loaded."
        others = peer.latest.status.clients - 1
        if others > 0:
            used = "Another terminal uses" if others == 1 else f"{others} other terminals use"
            return f"{used} it: it stays."
        stop(LOCAL_ROLE, self._endpoints, peer)
        return "The local model's memory is free again; the next question loads it."

    def watch(self, on_change: Callable[[], None]) -> None:
        """Have ``on_change`` called, from other threads, when a worker's state changes."""
        self._on_change = on_change

    def view(self) -> View:
        cloud = self.cloud.state if self.cloud is not None else None
        return View(self.local.state, cloud, self.cloud is not None)

    def answer(
        self,
        conversation: tuple[ChatMessage, ...],
        wish: Wish,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        max_new_tokens: int | None = None,
    ) -> Iterator[Step]:
        """One question's way: Waiting..., Routed, Token..., then exactly one Done or Failed.

        `interrupt` ends it early.
        """
        self._interrupted = False
        routed = yield from self._route(wish)
        if isinstance(routed, Failed):
            yield routed
            return
        decision, peer = routed
        yield Routed(decision)
        self._generation = peer.generate(conversation, sampling, max_new_tokens)
        if self._interrupted:
            self._generation.cancel()
        for reply in self._generation:
            if isinstance(reply, Token | Done | Failed):
                yield reply
        self._generation = None

    def interrupt(self) -> None:
        """End the question in hand. Safe in a signal handler: it only fills queues."""
        self._interrupted = True
        self._signals.put(None)
        if self._generation is not None:
            self._generation.cancel()

    def close(self) -> None:
        """Give the leases back."""
        for link in (self.local, self.cloud):
            if link is not None:
                link.close()

    def _local_link(self) -> Link:
        settings, environ = self.settings, self._environ
        return Link(
            worker_spec(settings, LOCAL_ROLE, environ, stand_in=self._stand_in),
            self._endpoints,
            self._client,
            self._changed,
            lambda: lend_hub_token(settings, environ, self._endpoints, self._client),
        )

    def _link(self, target: Target) -> Link:
        if target is Target.CLOUD and self.cloud is not None:
            return self.cloud
        return self.local

    def _route(self, wish: Wish) -> Generator[Step, None, tuple[RouteDecision, Peer] | Failed]:
        """Wait until somebody can answer; who, why and his connection."""
        self.start(
            local=wish.private or wish.target is not Target.CLOUD,
            cloud=not wish.private and wish.target is not Target.LOCAL,
        )
        while not self._interrupted:
            decision = decide(self.view(), wish)
            if isinstance(decision, Failed):
                return decision
            link = self._link(decision.target)
            peer = link.peer
            if not decision.wait and peer is not None and link.attached:
                return decision, peer
            if link.failure is None:
                link.start()  # it may have been stopped while the question waited
            yield Waiting(link.spec.role, link.state)
            with contextlib.suppress(queue.Empty):
                self._signals.get(timeout=WAIT_S)
        return CANCELLED

    def _changed(self) -> None:
        self._signals.put(None)
        self._on_change()


def _terminal() -> str:
    try:
        return os.ttyname(0)
    except OSError:
        return ""
