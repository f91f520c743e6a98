"""Every order in which a worker and a frontend can do what they do, with the product's own
decisions: what is known of a worker (`link.known_state`), which event counts (`client.is_news`),
and where a question goes (`decision.decide`).

The model has a worker that another frontend or our own starts, that binds its sockets, loads,
becomes ready and dies; two ways from it to the frontend, each in order and neither in step with
the other; and one question. Whatever can happen next is tried from every situation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from shammah.bus.client import is_newer
from shammah.bus.messages import Event, Initializing, Loading, Ready, State, Status
from shammah.router.decision import Override, RouteDecision, Target, View, decide
from shammah.router.route import Question
from shammah.router.statistics import Snapshot
from shammah.settings.model import RouterSettings
from shammah.supervision.link import known_state

RUNS = 2
"""So many workers may live, one after the other."""

CLAUDE = Ready("claude")
PHASES: dict[str, State] = {
    "booting": Initializing(),  # holds the lock, says nothing yet
    "loading": Loading("m", "weights"),
    "ready": Ready("m", context_length=4096),
}
NEXT = {"booting": "loading", "loading": "ready"}


@dataclass(frozen=True)
class Worker:
    run: int
    phase: str = "booting"
    seq: int = 0
    greeted: bool = False

    def event(self) -> Event:
        return Event("inference", str(self.run), self.seq, 0.0, 0.0, "state", self.status())

    def status(self) -> Status:
        return Status(PHASES[self.phase])


@dataclass(frozen=True)
class Situation:
    """``replies`` and ``events`` are on their way: a welcome with its event, or ``None`` for the
    loss of the connection. ``unbroken``: since the frontend began to look, one worker has been
    ready all the time."""

    worker: Worker | None = None
    runs: int = 0
    replies: tuple[Event | None, ...] = ()
    events: tuple[Event, ...] = ()
    # the frontend: its link, its peer, its question
    attaching: bool = False
    accepted: bool = False
    absent: bool = False
    child: int = 0
    attached: str | None = None
    newest: tuple[Event, ...] = ()
    asked: bool = False
    routed: RouteDecision | None = None
    unbroken: bool = False

    @property
    def known(self) -> State | None:
        heard = self.heard.get(self.attached) if self.accepted and self.attached else None
        return known_state(heard, None, absent=self.absent)

    @property
    def heard(self) -> dict[str, Event]:
        return {event.run_id: event for event in self.newest}

    def hears(self, event: Event) -> Situation:
        if not is_newer(event, self.heard):
            return self
        newest = self.heard | {event.run_id: event}
        return replace(self, newest=tuple(newest[run] for run in sorted(newest)))

    def decision(self, *, key: bool = True) -> RouteDecision:
        view = View(self.known, CLAUDE if key else None, key)
        decided = decide(Question(), Override(), view, Snapshot(), RouterSettings())
        assert isinstance(decided, RouteDecision)
        return decided


def what_may_follow(now: Situation) -> Iterator[Situation]:
    yield from of_the_worker(now)
    yield from of_the_frontend(now)
    yield from of_the_question(now)


def of_the_worker(now: Situation) -> Iterator[Situation]:
    worker = now.worker
    if worker is None:
        if now.runs < RUNS:  # another frontend starts one
            yield replace(now, worker=Worker(now.runs + 1), runs=now.runs + 1)
        return
    listens = now.attaching or now.accepted
    if (phase := NEXT.get(worker.phase)) is not None:
        moved = replace(worker, phase=phase, seq=worker.seq + 1)
        events = (*now.events, moved.event()) if listens else now.events
        yield replace(now, worker=moved, events=events)
    if worker.phase != "booting" and listens and not worker.greeted:
        said = (*now.replies, worker.event())
        yield replace(now, worker=replace(worker, greeted=True), replies=said)
    lost = (*now.replies, None) if worker.greeted else now.replies
    yield replace(now, worker=None, replies=lost, unbroken=False)


def of_the_frontend(now: Situation) -> Iterator[Situation]:
    if not now.attaching and now.attached is None:  # for the first time, or after a loss
        ready = now.worker is not None and now.worker.phase == "ready"
        worker = None if now.worker is None else replace(now.worker, greeted=False)
        fresh = Situation(worker, now.runs, asked=now.asked, routed=now.routed)
        yield replace(fresh, attaching=True, absent=worker is None, unbroken=ready)
    if now.attaching:
        if now.worker is None and now.runs < RUNS:  # nobody holds the lock: it starts one
            run = now.runs + 1
            yield replace(now, worker=Worker(run), runs=run, child=run, absent=True)
        elif now.worker is not None:
            yield replace(now, absent=now.worker.run == now.child)
        if now.attached is not None:
            yield replace(now, attaching=False, accepted=True, absent=False)
    if now.replies:
        yield hear(replace(now, replies=now.replies[1:]), now.replies[0])
    if now.events:
        yield replace(now, events=now.events[1:]).hears(now.events[0])


def hear(now: Situation, reply: Event | None) -> Situation:
    if reply is None:  # lost: the link attaches anew when it sees that
        newest = tuple(event for event in now.newest if event.run_id != now.attached)
        return replace(now, attached=None, newest=newest)
    return replace(now, attached=reply.run_id).hears(reply)


def of_the_question(now: Situation) -> Iterator[Situation]:
    if not now.asked:
        yield replace(now, asked=True)
    elif now.routed is None:
        decision = now.decision()
        reachable = decision.target is Target.CLOUD or (now.accepted and now.attached is not None)
        if not decision.wait and reachable:
            yield replace(now, routed=decision)


def every_situation() -> set[Situation]:
    seen, new = {Situation()}, [Situation()]
    while new:
        for following in what_may_follow(new.pop()):
            if following not in seen:
                seen.add(following)
                new.append(following)
    return seen


SITUATIONS = every_situation()
SETTLED = [one for one in SITUATIONS if not one.replies and not one.events]


def test_the_model_gets_about() -> None:
    assert len(SITUATIONS) > 10_000
    routed = {one.routed.target for one in SITUATIONS if one.routed is not None}
    assert routed == {Target.LOCAL, Target.CLOUD}
    assert any(one.unbroken and one.routed for one in SITUATIONS)


def test_nothing_leaves_while_the_state_is_unknown() -> None:
    for now in SITUATIONS:
        if now.known is None:
            decision = now.decision()
            assert (decision.target, decision.wait) == (Target.LOCAL, True), now


def test_a_worker_that_was_ready_before_the_look_and_still_is_answers() -> None:
    """In whatever order its words arrive."""
    for now in SITUATIONS:
        if now.unbroken:
            assert now.decision().target is Target.LOCAL, now


def test_what_is_believed_is_true_once_everything_has_arrived() -> None:
    for now in SETTLED:
        worker = now.worker
        if now.accepted and worker is not None and worker.greeted:
            assert now.known == PHASES[worker.phase], now


def test_a_question_never_waits_for_nothing() -> None:
    """Something can still happen that is not somebody's death, or the question may go."""
    for now in SETTLED:
        if now.asked and now.routed is None and now.decision().wait and now.runs < RUNS:
            assert [one for one in what_may_follow(now) if one.worker is not None], now
