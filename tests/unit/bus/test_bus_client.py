"""A connection whose worker says what the test wants: silence, nonsense, the same twice."""

from __future__ import annotations

import fcntl
import os
import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from shammah.bus import client, codec
from shammah.bus.client import Peer
from shammah.bus.messages import (
    Accepted,
    ChatMessage,
    ClientInfo,
    Detach,
    Done,
    Event,
    Failed,
    Generate,
    GetStatus,
    Hello,
    Identity,
    Loading,
    Ping,
    Pong,
    Provenance,
    Reply,
    Request,
    Status,
    Stopping,
    Timings,
    Token,
    Usage,
    Welcome,
)
from shammah.errors import ShammahError
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.scripted_worker import ScriptedWorker, event

pytestmark = pytest.mark.timeout(300)

QUESTION = (ChatMessage("user", "hello"),)


def done(request_id: str) -> Done:
    return Done(request_id, "stop", Usage(), Timings(), Provenance("inference", "starter"))


@pytest.fixture
def worker(sandbox: Sandbox) -> Iterator[ScriptedWorker]:
    scripted = ScriptedWorker(sandbox)
    yield scripted
    scripted.close()


@pytest.fixture
def changes() -> queue.SimpleQueue[Event | None]:
    return queue.SimpleQueue()


@pytest.fixture
def peer(
    sandbox: Sandbox, worker: ScriptedWorker, changes: queue.SimpleQueue[Event | None]
) -> Iterator[Peer]:
    """Attached to ``worker``."""
    connection = Peer(sandbox.endpoints, "inference", ClientInfo("test", 1), changes.put)
    worker.welcome()
    assert connection.wait_welcome(LIMIT_S)
    worker.wait_subscriber()
    yield connection
    connection.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes the connection's clocks run out early."""

    def set_limits(**limits: object) -> None:
        for name, value in limits.items():
            monkeypatch.setattr(client, name, value)

    return set_limits


class Clock:
    """Stands in for the module ``time``: it goes on when the test says so."""

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


def all_heard(worker: ScriptedWorker, peer: Peer) -> None:
    """Return when ``peer`` has heard all that was replied so far: it reads before it sends, and by
    the second request what was replied before the first has arrived."""
    for _ in range(2):
        peer.send(GetStatus("status"))
        worker.expect(GetStatus)


def last(generation: client.Task) -> Reply:
    return list(generation)[-1]


class TestAGeneration:
    def test_gives_its_replies_in_order_up_to_the_end(
        self, worker: ScriptedWorker, peer: Peer
    ) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        replies = [Accepted(asked), Token(asked, 1, "a"), Token(asked, 2, "b"), done(asked)]
        worker.reply(*replies, Token(asked, 3, "too late"))
        assert list(generation) == replies

    def test_gets_only_its_own(self, worker: ScriptedWorker, peer: Peer) -> None:
        one, two = peer.generate(QUESTION), peer.generate(QUESTION)
        first, second = worker.expect(Generate), worker.expect(Generate)
        for asked in (second.request_id, "unknown", "", first.request_id):
            worker.reply(Token(asked, 1, asked), done(asked))
        assert [r.request_id for r in one] == [first.request_id] * 2
        assert [r.request_id for r in two] == [second.request_id] * 2

    def test_ignores_what_is_no_message(self, worker: ScriptedWorker, peer: Peer) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        for frame in (b"", b"\xc1", b"garbage", codec.encode(Ping("from a worker"))):
            worker.reply_bytes(frame)
        worker.reply(done(asked))
        assert list(generation) == [done(asked)]

    def test_ends_when_the_worker_dies(self, worker: ScriptedWorker, peer: Peer) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        worker.reply(Token(asked, 1, "a"))
        until(lambda: not generation.replies.empty(), "the token has come")
        worker.close()
        replies = list(generation)
        assert [type(reply) for reply in replies] == [Token, Failed]
        assert getattr(replies[-1], "code", "") == "worker_died"
        assert peer.welcome is None
        assert peer.latest is None

    def test_keeps_a_last_word_that_came_with_the_end(
        self, worker: ScriptedWorker, peer: Peer
    ) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        worker.reply(done(asked))
        until(lambda: not generation.replies.empty(), "it has come")
        worker.close()
        assert list(generation) == [done(asked)]

    def test_ends_at_once_where_no_worker_is(self, sandbox: Sandbox) -> None:
        lonely = Peer(sandbox.endpoints, "inference", ClientInfo("test", 1))
        try:
            assert getattr(last(lonely.generate(QUESTION)), "code", "") == "worker_died"
        finally:
            lonely.close()

    def test_ends_when_the_worker_falls_silent(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        quick(SILENCE_S=0.2)
        failure = last(peer.generate(QUESTION))
        assert getattr(failure, "code", "") == "worker_silent"

    def test_hint_after_silence_does_not_promise_what_does_not_happen(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        """The process lives, so nobody starts it anew; a person can end it."""
        quick(SILENCE_S=0.2)
        failure = last(peer.generate(QUESTION))
        assert isinstance(failure, Failed)
        assert "restarted" not in failure.hint
        assert "shammah stop inference" in failure.hint

    def test_ends_when_the_worker_answers_and_does_nothing(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        quick(STALL_S=0.3, PING_S=0.02)
        generation = peer.generate(QUESTION)
        while generation.replies.empty():
            ping = worker.expect(Ping)
            worker.reply(Pong(ping.request_id, "run", True, 7))
        assert getattr(last(generation), "code", "") == "worker_stalled"

    def test_lives_while_the_worker_makes_progress_without_a_word(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        clock = Clock()
        quick(time=clock, STALL_S=3.0, PING_S=1.0, SILENCE_S=1000.0)
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        for progress in range(10):  # more than three times the limit
            clock.now += 1.0
            ping = worker.expect(Ping)
            worker.reply(Pong(ping.request_id, "run", True, progress))
            all_heard(worker, peer)
        worker.reply(done(asked))
        assert list(generation) == [done(asked)]

    def test_ends_when_the_connection_is_closed(self, worker: ScriptedWorker, peer: Peer) -> None:
        generation = peer.generate(QUESTION)
        worker.expect(Generate)
        peer.close()
        assert getattr(last(generation), "code", "") == "worker_lost"

    def test_ends_at_once_on_a_closed_connection(self, worker: ScriptedWorker, peer: Peer) -> None:
        peer.close()
        generation = peer.generate(QUESTION)
        assert isinstance(generation.replies.get(timeout=LIMIT_S), Failed)

    def test_ends_when_the_lease_has_lapsed(self, worker: ScriptedWorker, peer: Peer) -> None:
        """Such a worker has dropped the answer and says nothing more of it."""
        generation = peer.generate(QUESTION)
        worker.expect(Generate)
        worker.reply(Pong("p", "run", False, 1))
        assert isinstance(generation.replies.get(timeout=LIMIT_S), Failed)

    def test_is_cancelled_once_however_often(self, worker: ScriptedWorker, peer: Peer) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        generation.cancel()
        generation.cancel()
        worker.reply(Token(asked, 1, "late"), done(asked))
        replies = list(generation)
        assert [getattr(reply, "code", "") for reply in replies] == ["cancelled"]

    @pytest.mark.parametrize("reason", ["cancelled", "stop"])
    def test_that_is_cancelled_ends_with_the_workers_own_count(
        self, worker: ScriptedWorker, peer: Peer, reason: str
    ) -> None:
        generation = peer.generate(QUESTION)
        asked = worker.expect(Generate).request_id
        generation.cancel(LIMIT_S)
        generation.cancel(LIMIT_S)
        worker.reply(Token(asked, 1, "late"), replace(done(asked), finish_reason=reason))
        (reply,) = generation
        assert reply == replace(done(asked), finish_reason="cancelled")

    def test_that_is_cancelled_does_not_wait_for_long(
        self, worker: ScriptedWorker, peer: Peer
    ) -> None:
        generation = peer.generate(QUESTION)
        generation.cancel(0.01)
        assert [getattr(reply, "code", "") for reply in generation] == ["cancelled"]
        assert generation.ended()

    def test_that_is_too_long_is_not_sent(self, worker: ScriptedWorker, peer: Peer) -> None:
        long = (ChatMessage("user", "x" * codec.MAX_FRAME_BYTES),)
        failure = last(peer.generate(long))
        assert getattr(failure, "code", "") == "message_too_long"
        peer.generate(QUESTION)
        assert worker.expect(Generate).messages == QUESTION


class TestTheLease:
    def test_is_renewed_by_pings(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        quick(PING_S=0.02)
        ids = {worker.expect(Ping).request_id for _ in range(3)}
        assert len(ids) == 3

    def test_is_begun_anew_when_it_has_lapsed(self, worker: ScriptedWorker, peer: Peer) -> None:
        worker.reply(Pong("p", "run", False, 0))
        worker.expect(Hello)

    def test_is_begun_anew_with_the_next_worker(
        self, worker: ScriptedWorker, peer: Peer, sandbox: Sandbox,
        changes: queue.SimpleQueue[Event | None],
    ) -> None:  # fmt: skip
        worker.close()
        while changes.get(timeout=LIMIT_S) is not None:
            pass
        successor = ScriptedWorker(sandbox)
        try:
            successor.welcome()
            assert peer.wait_welcome(LIMIT_S)
            assert not peer.stopped
        finally:
            successor.close()

    def test_is_given_back_on_close(self, worker: ScriptedWorker, peer: Peer) -> None:
        peer.close()
        worker.expect(Detach)

    def test_that_was_asked_for_is_given_back_though_nobody_has_answered(
        self, worker: ScriptedWorker, sandbox: Sandbox
    ) -> None:
        """The worker reads both when it has time; or it would count one who is gone."""
        leaving = Peer(sandbox.endpoints, "inference", ClientInfo("test", 1))
        worker.expect(Hello)
        leaving.close()
        worker.expect(Detach)

    def test_of_a_watcher_is_none(self, worker: ScriptedWorker, sandbox: Sandbox) -> None:
        watcher = Peer(sandbox.endpoints, "inference", None)
        try:
            until(lambda: watcher.send(GetStatus("s")) or worker.hears(), "connected")
            worker.expect(Ping)  # which asks how the worker is
            worker.reply(Pong("p", "run", False, 0))
        finally:
            watcher.close()
        while worker.hears():
            assert isinstance(worker.expect(object), GetStatus | Ping)  # not a Hello


class TestEvents:
    def test_the_latest_snapshot_is_kept(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        loading = Status(Loading("m", "weights"))
        worker.publish(event(3, loading), event(2), event(3), event(5))
        until(lambda: peer.latest == event(5), "the last has come")
        seen = [changes.get() for _ in range(changes.qsize())]
        assert [one.seq for one in seen if one] == sorted({one.seq for one in seen if one})

    def test_of_a_flood_the_newest_is_told_now_and_then(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        """A thread that wakes for each takes the interpreter from the keyboard."""
        worker.publish(*(event(seq) for seq in range(2, 502)))
        until(lambda: peer.latest == event(501), "the last has come")
        assert changes.qsize() < 250

    def test_who_only_watches_hears_of_each(
        self, worker: ScriptedWorker, sandbox: Sandbox, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        watcher = Peer(sandbox.endpoints, "inference", None, changes.put)
        try:
            worker.wait_subscriber()
            worker.publish(*(event(seq) for seq in range(1, 501)))
            seen = [changes.get(timeout=LIMIT_S) for _ in range(500)]
        finally:
            watcher.close()
        assert [one.seq for one in seen if one] == list(range(1, 501))

    def test_a_state_that_no_event_tells_comes_with_a_pong(
        self, worker: ScriptedWorker, peer: Peer, quick: Callable[..., None]
    ) -> None:
        quick(PING_S=0.02)
        ready = event(7)
        while peer.latest != ready:
            ping = worker.expect(Ping)
            worker.reply(Pong(ping.request_id, "run", True, 1, ready))

    def test_who_only_watches_learns_it_so_too_and_misses_none(
        self, worker: ScriptedWorker, sandbox: Sandbox, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        """A pong overtakes the events that were sent before it."""
        watcher = Peer(sandbox.endpoints, "inference", None, changes.put)
        try:
            worker.wait_subscriber()
            worker.expect(Ping)
            worker.reply(Pong("p", "run", False, 1, event(3)))
            worker.expect(Ping)
            worker.reply(Pong("p", "run", False, 1, event(6)))
            worker.publish(event(4), event(5), event(6))
            seen = [changes.get(timeout=LIMIT_S) for _ in range(4)]
        finally:
            watcher.close()
        assert [one.seq for one in seen if one] == [3, 4, 5, 6]

    def test_what_a_pong_told_is_not_true_of_the_next_worker(
        self, worker: ScriptedWorker, peer: Peer, sandbox: Sandbox,
        changes: queue.SimpleQueue[Event | None],
    ) -> None:  # fmt: skip
        worker.expect(Ping)
        worker.reply(Pong("p", "run", True, 1, event(7)))
        all_heard(worker, peer)
        worker.close()
        while changes.get(timeout=LIMIT_S) is not None:
            pass
        successor = ScriptedWorker(sandbox)
        try:
            successor.welcome()
            successor.expect(Ping)
            successor.expect(Ping)
            assert peer.latest == event(1)
        finally:
            successor.close()

    def test_another_run_begins_at_its_own_number(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        """And is believed from its welcome on, also what it said before that."""
        worker.publish(event(50, run_id="dead"), event(50))
        while (seen := changes.get(timeout=LIMIT_S)) and seen.seq != 50:
            pass
        assert seen == peer.latest == event(50)
        worker.publish(event(2, run_id="next"))
        identity = Identity("inference", "starter", "d")
        worker.reply(Welcome("h", 1, "0", "next", 1, identity, event(1, run_id="next")))
        while (seen := changes.get(timeout=LIMIT_S)) != event(2, run_id="next"):
            assert seen == event(1, run_id="next")
        assert peer.latest == seen

    def test_garbage_among_them_is_ignored(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        for frame in (b"", b"\xc1", codec.encode(Pong("p", "r", True, 1))):
            worker.publish_bytes(frame)
        worker.publish(event(2))
        assert [changes.get(timeout=LIMIT_S) for _ in range(2)] == [event(1), event(2)]

    def test_a_loss_is_told_once_with_none(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        changes.get(timeout=LIMIT_S)
        worker.close()
        assert changes.get(timeout=LIMIT_S) is None
        peer.close()
        assert changes.empty()

    def test_an_end_on_purpose_is_remembered(
        self, worker: ScriptedWorker, peer: Peer, changes: queue.SimpleQueue[Event | None]
    ) -> None:
        assert not peer.stopped
        worker.reply(Stopping("", 1))
        until(lambda: peer.stopped, "it has been heard")
        worker.close()
        while changes.get(timeout=LIMIT_S) is not None:
            pass
        assert peer.stopped


def test_a_refused_hello_is_an_error(worker: ScriptedWorker, sandbox: Sandbox) -> None:
    peer = Peer(sandbox.endpoints, "inference", ClientInfo("test", 1))
    try:
        hello: Request = worker.expect(Hello)
        worker.reply(Failed("protocol_version", "Too old.", "Stop it.", hello.request_id))
        with pytest.raises(ShammahError, match=r"Too old\. Stop it\."):
            peer.wait_welcome(LIMIT_S)
        assert peer.welcome is None
    finally:
        peer.close()


def test_closing_twice_is_harmless(worker: ScriptedWorker, peer: Peer) -> None:
    peer.close()
    peer.close()


def test_opening_and_closing_leaves_no_descriptor(sandbox: Sandbox) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    for round_ in range(3):
        Peer(sandbox.endpoints, "inference", None).close()
        if round_ == 0:
            before = descriptors()
    assert descriptors() == before


def test_its_descriptors_are_not_inherited(worker: ScriptedWorker, peer: Peer) -> None:
    for name in os.listdir("/proc/self/fd"):
        try:
            flags = fcntl.fcntl(int(name), fcntl.F_GETFD)
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        assert "socket:" not in target or flags & fcntl.FD_CLOEXEC


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_connection_whose_thread_has_failed_leaves_nobody_waiting(
    sandbox: Sandbox, worker: ScriptedWorker
) -> None:
    def fail(change: Event | None) -> None:
        if change is not None and change.seq > 1:
            raise ValueError("planted")

    connection = Peer(sandbox.endpoints, "inference", ClientInfo("test", 1), fail)
    worker.welcome()
    assert connection.wait_welcome(LIMIT_S)
    worker.wait_subscriber()
    generation = connection.generate(QUESTION)
    worker.expect(Generate)
    worker.publish(event(2))
    assert isinstance(last(generation), Failed)
    assert isinstance(last(connection.generate(QUESTION)), Failed)
    connection.close()
