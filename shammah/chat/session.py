"""A frontend's workers, and one question's way to its answer.

`Session` asks the router, waits where it must, and yields what a person should see; it prints
nothing.
"""

from __future__ import annotations

import contextlib
import copy
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import replace

from shammah.bus.client import Peer, Task, new_request_id
from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import (
    ChatMessage,
    ClientInfo,
    Done,
    Failed,
    NotAvailable,
    Prefill,
    PromptProgress,
    Provenance,
    Retrying,
    Timings,
    Token,
    Usage,
)
from shammah.chat.conversation import Notice, Step, TurnInProgress, Waiting, origin
from shammah.chat.failover import HUNG, TOO_LONG, fail_over, with_text
from shammah.chat.neighbours import see_servers
from shammah.errors import ShammahError
from shammah.learning.adapter_choice import choose_adapter, learnt_private
from shammah.privacy.gate import DECLINED, NEVER, Gate, Outgoing, report_left_out
from shammah.router.crisis import describe_care
from shammah.router.decision import Override, Reason, RouteDecision, Target, View
from shammah.router.route import AUTO, Question
from shammah.router.service import Routing
from shammah.settings.model import Settings
from shammah.supervision.lifecycle import lend_hub_token, stop, worker_spec
from shammah.supervision.link import Link
from shammah.supervision.oom_record import attempt_file, forget_attempt

CANCEL_S = {Target.LOCAL: 0.0, Target.SERVER: 0.0, Target.CLOUD: 0.5}
"""How long a cancelled answer waits for its worker's own count. Of a free answer every token that
was shown is counted here, and the person wants the prompt back; the cloud worker knows the cost."""

WAIT_S = 0.5
"""How often a waiting question looks again if nothing is heard."""

UNHEARD_LOOKS = 36
"""So many looks (18 s) a question that others may answer waits to hear from a running local worker.
Looks are counted, not seconds: while the machine stood still, nothing could respond."""

LOCAL_ROLE = "inference"
SERVERS_ROLE = "servers"
CLOUD_ROLE = "cloud"


CANCELLED = Failed("cancelled", "Cancelled.")
FIXED_TEXT = "a fixed text"
"""The model's name in the answer to someone in danger where no model can, or should, answer."""

Opened = tuple[RouteDecision, Peer, Outgoing]
"""Who answers, the connection to it, and what it is sent."""

Notified = str | Callable[[], Iterable[str]]


class Notices:
    """Sentences that any thread puts, and that are shown between two questions.

    Attributes:
        on_put: called by the thread that puts, after each.
    """

    def __init__(self) -> None:
        self.on_put: Callable[[], None] = lambda: None
        self._waiting: queue.SimpleQueue[Notified] = queue.SimpleQueue()

    def put(self, notice: Notified) -> None:
        """Have a sentence shown, or those that a function returns; it is called by the thread that
        shows them, so that what it does disturbs no answer."""
        self._waiting.put(notice)
        self.on_put()

    def take(self) -> list[str]:
        """What has not been shown yet, in its order."""
        found: list[str] = []
        while not self._waiting.empty():
            notice = self._waiting.get()
            found += [notice] if isinstance(notice, str) else notice()
        return found


class _UnansweredError(Exception):
    """Nobody answers; ``failure`` says why."""

    def __init__(self, failure: Failed) -> None:
        self.failure = failure


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
        self.notices = Notices()
        self._on_change: Callable[[], None] = lambda: None
        self._signals: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._generation: Task | None = None
        self._cancel_s = 0.0
        self._ahead: Task | None = None
        self._interrupted = False
        self.environ = environ
        self.gate = Gate(settings, environ)
        self.routing = Routing(settings, environ, self.notices.put)
        self._declined = False
        self._endpoints = open_endpoints(environ)
        self._client = ClientInfo(program, os.getpid(), _terminal())
        self.local = self._local_link()
        self._local_only = local_only
        self.servers = self._link(SERVERS_ROLE) if settings.beside and not local_only else None
        self.cloud: Link | None = None
        if settings.cloud_configured and not local_only:
            self.cloud = self._link(CLOUD_ROLE)
        self.routing.start()

    def beside(self) -> Session:
        """A session for another turn at the same time, with the same workers and the same router.
        Whoever closes this one closes both."""
        other = copy.copy(self)
        other.gate = copy.copy(self.gate)
        other._signals = queue.SimpleQueue()
        other._generation = other._ahead = None
        other._interrupted = other._declined = False
        return other

    def wake(self) -> None:
        """Have a question that waits look at the workers again."""
        self._signals.put(None)

    def start(self, *, local: bool = True, servers: bool = True, cloud: bool = True) -> None:
        """Start the workers, in the background."""
        if cloud and self.cloud is not None:
            self.cloud.start()
        if servers and self.servers is not None:
            self.servers.start()
        if local:
            self.local.start()

    def use_model(self, model: str, *, take_over: bool = False) -> None:
        """Switch the local model. The old worker ends before the new one starts, unless another
        frontend uses it (``take_over``: even then)."""
        self.settings = replace(self.settings, model=model)
        before, self.local = self.local, self._local_link()
        before.close()
        if self.servers is not None:  # one of them may be the local model now, or no longer
            self.servers.close()
        beside = self.settings.beside and not self._local_only
        self.servers = self._link(SERVERS_ROLE) if beside else None
        (self.local.take_over if take_over else self.local.start)()

    def load(self) -> None:
        """Load the local model, even if it failed before."""
        if isinstance(self.local.state, Failed):
            forget_attempt(attempt_file(self._endpoints.runtime))
        self.local.start(retry=True)

    def unload(self) -> str:
        """End the local model's worker to free its memory; return a sentence about it."""
        others = self.local.count_others()
        if others:
            used = "another terminal uses" if others == 1 else f"{others} other terminals use"
            return f"Not unloaded: {used} it."
        if others is None or not self.local.end():
            return "No local model is loaded."
        return "Unloaded the local model. The next question loads it again."

    def watch(self, on_change: Callable[[], None]) -> None:
        """Call ``on_change``, from other threads, when a worker's state changes."""
        self._on_change = on_change

    def view(self) -> View:
        cloud = self.cloud.state if self.cloud is not None else None
        configured = self.cloud is not None and not self._declined
        peer = self.local.peer
        active = peer.latest.status.active if peer is not None and peer.latest is not None else 0
        active -= min(active, self.reads_ahead())
        named = self.settings.beside if self.servers is not None else {}
        servers, unknown = see_servers(named, self.servers.state if self.servers else None)
        return View(
            self.local.state,
            cloud,
            configured,
            self.settings.cloud_model,
            local_active=active,
            local_silent=self.local.silent,
            cloud_name=self.settings.cloud_name,
            servers=servers,
            servers_unknown=unknown and self.servers is not None and not self.servers.silent,
        )

    def preview(self, override: Override, tokens: int, view: View) -> RouteDecision | Failed:
        """Who would answer now in a conversation of so many ``tokens``. Waits for nothing."""
        private = override.private or self.gate.private
        override = replace(override, private=private)
        return self.routing.decide(Question(tokens=tokens), override, view, wait=False)

    def read_ahead(self, turns: tuple[ChatMessage, ...], adapter: str = AUTO) -> None:
        """Have the ready local model read ``turns``, private ones too, before the next question.
        ``adapter``: as `Override` has it. From any thread; waits for nothing."""
        peer = self.local.peer
        if peer is not None and self.local.attached:
            with contextlib.suppress(ShammahError):  # too long to be sent: so is the question
                name = choose_adapter(self.settings.home, adapter, self.local.state)
                self._ahead = peer.begin(Prefill(new_request_id(), turns, name))

    def reads_ahead(self) -> bool:
        """Whether the local model is doing so; a question need not wait for that."""
        if self._ahead is not None and self._ahead.ended():
            self._ahead = None
        return self._ahead is not None

    def answer(self, turn: TurnInProgress, conversation: tuple[ChatMessage, ...]) -> Iterator[Step]:
        """One question's way: Notice..., Waiting..., RouteDecision, Retrying... or
        PromptProgress..., Token..., then exactly one Done or Failed; ``turn`` has taken in each.

        If a backend fails and another continues, all of that comes once more before the end.
        `interrupt` ends it early, also one from before.

        Args:
            turn: begun just now.
            conversation: ends with the question; every message has its mark.
        """
        self._declined = False
        try:
            for step in self._steps(turn, conversation):
                turn.feed(step)
                yield step
        finally:
            self._interrupted = False  # not at the beginning: it may have come by then

    def answer_is_private(self, turn: TurnInProgress) -> bool:
        """Whether the answer so far must stay here, whatever was asked."""
        if self.gate.answer_is_private(turn.text, local=turn.local):
            return True
        return learnt_private(self.settings.home, turn.adapter)

    def _steps(self, turn: TurnInProgress, conversation: tuple[ChatMessage, ...]) -> Iterator[Step]:
        turn.conversation, override = conversation, turn.override
        turn.question = self.routing.examine(conversation)
        if contacts := self.routing.help_text(turn.question):
            yield Notice(contacts, urgent=True)
        if override.target is Target.CLOUD and not override.private and self.gate.never:
            yield NEVER
            return
        try:
            opened = yield from self._open(turn, override, conversation)
            while isinstance(end := (yield from self._generate(turn, *opened)), Failed):
                opened = yield from self._fail_over(turn, opened[0], end)
            yield end
        except _UnansweredError as unanswered:
            yield from self._end_unanswered(turn, self._advise(unanswered.failure, override))

    def _advise(self, failure: Failed, override: Override) -> Failed:
        """``failure`` with the hint that only this frontend can give."""
        kept = override.target is not Target.LOCAL or override.private or self.gate.never
        if failure.code != TOO_LONG or kept or not self.settings.cloud_configured:
            return failure
        cloud = self.settings.cloud_name
        ways = {"ask": f"{cloud} with --cloud", "gateway": "the model cloud"}
        other = ways.get(self._client.program, f"{cloud} with /cloud")
        return replace(failure, hint=f"{failure.hint} Or ask {other}; it holds more.")

    def _end_unanswered(self, turn: TurnInProgress, failure: Failed) -> Iterator[Step]:
        """Someone in danger gets an answer in any case."""
        danger = turn.question.danger
        if danger is None or turn.text or failure.code == CANCELLED.code:
            yield failure
            return
        yield RouteDecision(Target.LOCAL, Reason.CRISIS, question=turn.question)
        yield Token("", 0, describe_care(danger))
        yield Done("", "stop", Usage(), Timings(), Provenance(LOCAL_ROLE, FIXED_TEXT))

    def _open(
        self, turn: TurnInProgress, override: Override, conversation: tuple[ChatMessage, ...]
    ) -> Generator[Step, None, Opened]:
        """Wait for a backend, and for consent to send it what it is sent."""
        decision, peer = yield from self._route(turn, override)
        if decision.target is Target.LOCAL:
            return decision, peer, Outgoing(conversation)
        outgoing = self.gate.open(conversation, self.settings.beside.get(decision.server))
        if outgoing == DECLINED and self._interrupted:
            raise _UnansweredError(CANCELLED)
        if outgoing == DECLINED and override.target is None:
            self._declined = True
            wait_for_local = replace(override, target=Target.LOCAL)
            return (yield from self._open(turn, wait_for_local, conversation))
        if isinstance(outgoing, Failed):
            raise _UnansweredError(outgoing)
        return decision, peer, outgoing

    def _generate(
        self, turn: TurnInProgress, decision: RouteDecision, peer: Peer, outgoing: Outgoing
    ) -> Generator[Step, None, Done | Failed]:
        """Have one backend answer, or continue an answer; how that ended."""
        yield decision
        turn.trims_nothing = turn.prompt.whole or self._could_leave(turn, decision)
        self._cancel_s = CANCEL_S[decision.target]  # before a signal can find the task
        task = self._generation = peer.generate(
            outgoing.messages,
            turn.prompt.sampling,
            turn.room,
            decision.adapter,
            whole=turn.trims_nothing,
            think=self.settings.inference.think != "off",
            ongoing=self._goes_on(turn),
            kept_as=turn.kept_as if decision.target is Target.LOCAL else "",
            model=self.settings.cloud_model if decision.target is Target.CLOUD else "",
            server=decision.server,
        )
        turn.send(blind=not self._sees_private(decision))
        if self._interrupted:
            task.cancel(self._cancel_s)
        for reply in task:
            if isinstance(reply, Retrying | PromptProgress | Token):
                yield reply
        self._generation = None
        if isinstance(reply, Failed) and reply.code == CANCELLED.code:
            reply = turn.cancelled(origin(decision, self.local.state, self.settings))
        assert isinstance(reply, Done | Failed), "a task ends with one"
        question = turn.conversation[-1].content
        turn.outcome = self.routing.record(decision, reply, question=question, answer=turn.text)
        return reply if isinstance(reply, Failed) else report_left_out(reply, outgoing)

    def _sees_private(self, decision: RouteDecision) -> bool:
        server = self.settings.beside.get(decision.server)
        return decision.target is Target.LOCAL or (server is not None and server.takes_private)

    def _goes_on(self, turn: TurnInProgress) -> bool:
        """Whether more questions are likely to follow in this conversation."""
        later = any(message.role == "assistant" for message in turn.conversation)
        return self._client.program == "repl" or (self._client.program == "gateway" and later)

    def _could_leave(self, turn: TurnInProgress, decision: RouteDecision) -> bool:
        """Whether the cloud could have the question if it is too long for the local model."""
        view, override = self.view(), turn.override
        able = view.cloud_configured and not isinstance(view.cloud, Failed | NotAvailable)
        free = override.target is None and not override.private and self.gate.openable
        return decision.target is Target.LOCAL and able and free and not turn.restarts

    def _fail_over(
        self, turn: TurnInProgress, decision: RouteDecision, failure: Failed
    ) -> Generator[Step, None, Opened]:
        """Find a backend for the rest of a turn."""
        seen = not turn.blind and any(message.private for message in turn.conversation)
        tied = turn.local and (seen or self.answer_is_private(turn))
        view = self.routing.with_failures(self.view())
        following = fail_over(turn, failure, view, tied=tied, openable=self.gate.openable)
        if isinstance(following, Failed):
            raise _UnansweredError(following)
        if following.note:
            # Who answers someone in danger, if anybody, is seen when it is found.
            yield Notice(failure.message if turn.question.danger else following.note)
        if failure.code in HUNG:
            again = following.override.target is decision.target  # by the same worker
            yield from self._end_hung(decision.target, wait=again)
        conversation = with_text(turn.conversation, turn.text, tied=tied)
        try:
            opened = yield from self._open(turn, following.override, conversation)
        except _UnansweredError as unanswered:
            if unanswered.failure != DECLINED or self._interrupted:
                raise
            self._declined = True
            return (yield from self._fail_over(turn, decision, failure))
        turn.restarts += 1
        return replace(opened[0], reason=following.reason), *opened[1:]

    def _end_hung(self, target: Target, *, wait: bool) -> Iterator[Step]:
        """End a hung worker, so that a new one can take its place."""
        link = self._link_to(target)
        role, peer = link.spec.role, link.peer

        def end() -> None:
            with contextlib.suppress(ShammahError):  # the next question meets it again
                stop(role, self._endpoints)
                if peer is not None:
                    peer.forget_welcome()

        ending = threading.Thread(target=end, name=f"attach-{role}-end", daemon=True)
        ending.start()
        while wait and ending.is_alive() and not self._interrupted:
            yield Waiting(role, None)
            ending.join(WAIT_S)

    def interrupt(self) -> None:
        """End the current question. Safe in a signal handler: it only fills queues."""
        self._interrupted = True
        self._signals.put(None)
        if self._generation is not None:
            self._generation.cancel(self._cancel_s)

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` ended the current question."""
        return self._interrupted

    def close(self) -> None:
        """Give the leases back."""
        for link in (self.local, self.servers, self.cloud):
            if link is not None:
                link.close()
        self.routing.close()

    def _link(self, role: str) -> Link:
        spec = worker_spec(self.settings, role, self.environ)
        return Link(spec, self._endpoints, self._client, self._changed)

    def _link_to(self, target: Target) -> Link:
        links = {Target.SERVER: self.servers, Target.CLOUD: self.cloud}
        link = links.get(target, self.local)
        assert link is not None, "the view had it"
        return link

    def _local_link(self) -> Link:
        settings, environ = self.settings, self.environ
        return Link(
            worker_spec(settings, LOCAL_ROLE, environ),
            self._endpoints,
            self._client,
            self._changed,
            lambda: lend_hub_token(settings, environ, self._endpoints, self._client),
        )

    def _route(
        self, turn: TurnInProgress, override: Override
    ) -> Generator[Step, None, tuple[RouteDecision, Peer]]:
        """Wait until a backend can answer; which, why, and the connection to it."""
        self.start(
            local=override.private or override.target in (None, Target.LOCAL),
            servers=override.target in (None, Target.SERVER),
            cloud=not override.private and override.target in (None, Target.CLOUD),
        )
        looks = 0
        while not self._interrupted:
            view = self.view()
            adapter = choose_adapter(self.settings.home, override.adapter, view.local)
            decision = self.routing.decide(turn.question, override, replace(view, adapter=adapter))
            if isinstance(decision, Failed):
                raise _UnansweredError(decision)
            link = self._link_to(decision.target)
            peer = link.peer
            if not decision.wait and peer is not None and link.attached:
                return decision, peer
            if link.failure is None:
                link.start()  # it may have been stopped while the question waited
            yield Waiting(link.spec.role, link.state)
            try:
                self._signals.get(timeout=WAIT_S)
            except queue.Empty:
                looks += decision.reason is Reason.MODEL_UNKNOWN
                if looks == UNHEARD_LOOKS and not link.silent:
                    looks = 0
                    link.note_silence()
                    yield tell_silence(link.spec.role)
        raise _UnansweredError(CANCELLED)

    def _changed(self) -> None:
        self.wake()
        self._on_change()


def tell_silence(role: str) -> Notice:
    """What a person reads when a worker has kept a question waiting in vain."""
    return Notice(
        f"The {role} worker has not responded for {UNHEARD_LOOKS * WAIT_S:.0f} s, so others are "
        f"asked instead. `shammah stop {role}` ends it; the next question starts a new one."
    )


def _terminal() -> str:
    try:
        return os.ttyname(0)
    except OSError:
        return ""
