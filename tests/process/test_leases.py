"""Who uses a worker, and when it leaves: real frontends, killed, stopped and well-behaved."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest

from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import (
    Accepted,
    Cancel,
    ChatMessage,
    Detach,
    Detached,
    Done,
    Event,
    Failed,
    GetStatus,
    Ping,
    Pong,
    Stop,
    Stopping,
    Token,
)
from shammah.supervision.lifecycle import stop
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.wire import Listener, RawFrontend
from workers.lease import LEASE_S

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Connect = Callable[..., Peer]
Dial = Callable[..., RawFrontend]
Listen = Callable[[], Listener]

REAL_LEASE = ("--lease-s", f"{LEASE_S:g}")

FRONTEND = textwrap.dedent(
    """
    import os, sys
    from shammah.bus.client import Peer
    from shammah.bus.endpoints import open_endpoints
    from shammah.bus.messages import ChatMessage, ClientInfo
    peer = Peer(open_endpoints(os.environ), "inference", ClientInfo("victim", os.getpid()))
    assert peer.wait_welcome(60)
    print("attached", flush=True)
    for reply in peer.generate((ChatMessage("user", sys.argv[1]),)) if sys.argv[1:] else ():
        print(type(reply).__name__, flush=True)
    sys.stdin.read()
    """
)


class Victim:
    """A frontend in a process of its own; ``asking`` something, it prints each reply."""

    def __init__(self, *asking: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FRONTEND, *asking],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._said = ""

    def expect(self, line: str, limit: float = LIMIT_S) -> None:
        """Wait until it says ``line``."""
        assert self.process.stdout is not None
        fd = self.process.stdout.fileno()
        while line not in self._said.splitlines():
            if not select.select([fd], [], [], limit)[0]:
                raise TimeoutError(f"it does not say {line!r}, only {self._said[-200:]!r}")
            self._said += os.read(fd, 65536).decode()
        self._said = ""

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


StartVictim = Callable[..., Victim]


@pytest.fixture
def victim() -> Iterator[StartVictim]:
    made: list[Victim] = []

    def start(*asking: str) -> Victim:
        made.append(Victim(*asking))
        return made[-1]

    yield start
    for one in made:
        one.end()


def test_two_frontends_share_one_worker(start_echo: StartEcho, connect: Connect) -> None:
    echo = start_echo()
    first = connect(program="repl")
    second = connect(program="ask")
    assert first.welcome is not None
    assert second.welcome is not None
    assert first.welcome.pid == second.welcome.pid == echo.pid
    assert [other.program for other in second.welcome.others] == ["repl"]
    for peer in (first, second):
        done = list(peer.generate((ChatMessage("user", "hello there"),)))[-1]
        assert isinstance(done, Done)
    assert echo.status().status.clients == 2


def test_a_killed_frontend_lapses_and_its_answer_is_ended(
    start_echo: StartEcho, listen: Listen, victim: StartVictim, dial: Dial
) -> None:
    echo = start_echo("--delay-ms", "5", *REAL_LEASE)
    listener = listen()
    doomed = victim("forever")
    doomed.expect("Token")
    assert listener.until("accepted")[-1].status.active == 1
    doomed.process.kill()
    while (status := listener.next().status).clients or status.active:
        pass  # lapsed, or found to be gone when the next token was sent
    raw = dial()
    raw.attach()
    raw.ask("next")  # would wait behind an answer without end
    assert raw.wait_for(Done).usage.output_tokens == 1
    assert echo.alive()


def test_a_killed_frontend_does_not_keep_an_unused_worker(
    start_echo: StartEcho, victim: StartVictim
) -> None:
    echo = start_echo("--keep-alive", "0", *REAL_LEASE)
    doomed = victim()
    doomed.expect("attached")
    doomed.process.kill()
    assert echo.wait() == 0


def test_keep_alive_0_ends_the_worker_with_its_last_frontend(
    start_echo: StartEcho, connect: Connect
) -> None:
    echo = start_echo("--keep-alive", "0")
    first, second = connect(), connect()
    first.close()
    assert second.generate((ChatMessage("user", "still there?"),))
    assert echo.alive()
    second.close()
    assert echo.wait() == 0


def test_a_worker_with_keep_alive_stays_for_the_next_frontend(
    start_echo: StartEcho, connect: Connect, listen: Listen
) -> None:
    echo = start_echo("--keep-alive", "300")
    listener = listen()
    connect().close()
    listener.until("detached")
    again = connect().welcome
    assert again is not None
    assert again.pid == echo.pid
    assert again.others == ()


def test_a_detached_frontend_holds_no_lease(start_echo: StartEcho, dial: Dial) -> None:
    start_echo()
    raw = dial()
    raw.attach()
    raw.send(Detach(new_request_id()))
    raw.expect(Detached)
    assert not raw.ping().attached
    raw.ask("hello")
    assert raw.expect(Failed).code == "not_attached"


def test_a_frontend_that_detaches_in_the_middle_of_an_answer_ends_it(
    start_echo: StartEcho, dial: Dial
) -> None:
    start_echo("--delay-ms", "5")
    leaving, staying = dial(), dial()
    leaving.attach()
    staying.attach()
    leaving.ask("forever")
    leaving.expect(Token)
    staying.ask("mine")
    leaving.send(Detach(new_request_id()))
    assert staying.expect(Done).finish_reason == "stop"


def test_cancel_ends_an_answer_within_one_step(start_echo: StartEcho, dial: Dial) -> None:
    """Counted, not timed: steps up to the cancel's arrival, and the one under way."""
    start_echo("--delay-ms", "20")
    asker, watcher = dial(), dial()
    asker.attach()
    asked = asker.ask("forever")
    asker.expect(Token)
    asker.send(Cancel(asked))
    asker.send(Ping(new_request_id()))
    done: Done | None = None
    pong: Pong | None = None
    while done is None or pong is None:  # whichever is first
        match asker.receive():
            case Done() as done:
                pass
            case Pong() as pong:  # the same connection: the cancel was read before
                pass
    assert done.finish_reason == "cancelled"
    # Ready counts as well.
    assert done.usage.output_tokens <= pong.progress - 1 + 1
    assert watcher.ping().progress == done.usage.output_tokens + 2


def test_cancel_ends_the_frontends_iteration_at_once(
    start_echo: StartEcho, connect: Connect
) -> None:
    """Though the worker's step never ends."""
    start_echo("--hang")
    generation = connect().generate((ChatMessage("user", "hello"),))
    generation.cancel()
    replies = list(generation)
    assert isinstance(replies[-1], Failed)
    assert replies[-1].code == "cancelled"
    assert not [reply for reply in replies[:-1] if isinstance(reply, Done | Failed)]


def test_cancelling_what_waits_leaves_what_runs(start_echo: StartEcho, dial: Dial) -> None:
    start_echo("--delay-ms", "2")
    raw = dial()
    raw.attach()
    running = raw.ask("forever")
    waiting = raw.ask("never said")
    raw.send(Cancel(waiting))
    raw.ping()  # it was read
    for _ in range(10):
        assert raw.expect(Token).request_id == running
    raw.send(Cancel(running))
    ends = {reply.request_id: reply for reply in (raw.expect(Done), raw.expect(Done))}
    assert ends[running].usage.output_tokens >= 10
    assert ends[waiting].finish_reason == "cancelled"
    assert ends[waiting].usage.output_tokens == 0


def test_accepted_says_how_many_come_first(start_echo: StartEcho, dial: Dial) -> None:
    start_echo("--hang")
    raw = dial()
    raw.attach()
    for ahead in range(3):
        raw.ask("queued")
        assert raw.expect(Accepted).ahead == ahead


def test_control_is_answered_while_the_work_thread_is_busy(
    start_echo: StartEcho, dial: Dial
) -> None:
    """One step takes longer than the whole test may."""
    echo = start_echo("--delay-ms", "60000")
    raw = dial()
    raw.attach()
    raw.ask("a very long step")
    raw.expect(Token)
    assert raw.ping().attached
    raw.send(GetStatus("s"))
    assert raw.expect(Event).request_id == "s"
    raw.send(Stop("end"))
    assert raw.expect(Stopping).pid == echo.pid
    failure = raw.expect(Failed)
    assert failure.code == "worker_stopped"
    assert echo.wait() == 0


def test_a_frontend_that_was_frozen_in_an_answer_is_told_that_it_ended(
    start_echo: StartEcho, listen: Listen, victim: StartVictim
) -> None:
    """Ctrl-Z and fg: the lease has lapsed, the worker has dropped the answer."""
    start_echo("--delay-ms", "20", *REAL_LEASE)
    listener = listen()
    frozen = victim("forever")
    frozen.expect("Token")
    frozen.process.send_signal(signal.SIGSTOP)
    listener.until("lapsed")
    frozen.process.send_signal(signal.SIGCONT)
    frozen.expect("Failed")


def test_a_frontend_that_was_frozen_at_its_prompt_attaches_again(
    start_echo: StartEcho, listen: Listen, victim: StartVictim
) -> None:
    start_echo(*REAL_LEASE)
    listener = listen()
    frozen = victim()
    frozen.expect("attached")
    frozen.process.send_signal(signal.SIGSTOP)
    listener.until("lapsed")
    frozen.process.send_signal(signal.SIGCONT)
    assert listener.until("attached")[-1].status.clients == 1


def test_a_question_of_a_frontend_that_is_gone_before_it_is_read_is_not_worked_on(
    start_echo: StartEcho, dial: Dial
) -> None:
    """The worker is frozen while the question is sent and the connection closed."""
    echo = start_echo("--delay-ms", "5")
    leaving, staying = dial(), dial()
    leaving.attach()
    echo.freeze()
    leaving.ask("forever")
    leaving.close(linger_ms=2000)
    echo.thaw()
    staying.attach()
    staying.ask("mine")  # would wait behind an answer without end and without owner
    assert staying.expect(Done).finish_reason == "stop"


def test_a_worker_that_nobody_ever_used_stays_for_its_first_frontend(
    start_echo: StartEcho, connect: Connect
) -> None:
    """keep_alive 0 counts from the first lease on."""
    echo = start_echo("--keep-alive", "0")
    assert echo.status().status.clients == 0
    assert connect().welcome is not None
    assert echo.alive()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_ends_the_worker_and_tells_its_frontends(
    start_echo: StartEcho, dial: Dial, number: signal.Signals
) -> None:
    echo, raw = start_echo("--delay-ms", "5"), dial()
    raw.attach()
    raw.ask("forever")
    raw.expect(Token)
    echo.send(number)
    assert raw.expect(Stopping).pid == echo.pid
    assert raw.expect(Failed).code == "worker_stopped"
    assert echo.wait() == 0


def test_the_lock_of_a_killed_worker_is_free_at_once(
    start_echo: StartEcho, sandbox: Sandbox
) -> None:
    echo = start_echo()
    os.kill(echo.pid, signal.SIGKILL)
    until(lambda: sandbox.holder() is None, "the kernel has freed the lock", LIMIT_S)
    assert (sandbox.endpoints.runtime / "inference.sock").exists()  # stale, and harmless
    assert start_echo().status().run_id


def test_an_orderly_end_is_never_taken_for_a_death(
    start_echo: StartEcho, connect: Connect, sandbox: Sandbox
) -> None:
    """The last words of a worker must not be lost with its connection, even when this process
    has more to do: it would start again what was stopped on purpose."""
    for _ in range(3):
        echo, peer = start_echo(), connect()
        list(peer.generate((ChatMessage("user", "hello"),)))
        stop("inference", sandbox.endpoints)
        echo.wait()
        until(lambda peer=peer: peer.welcome is None, "the end is seen")  # type: ignore[misc]
        assert peer.stopped
        peer.close()


def test_a_killed_frontend_is_not_counted_when_somebody_looks(
    start_echo: StartEcho, victim: StartVictim, dial: Dial
) -> None:
    """Its lease would last for half a minute here."""
    echo = start_echo()
    staying = dial()
    staying.attach()
    first, second = victim(), victim("forever")
    first.expect("attached")
    second.expect("Accepted")
    first.end()
    second.end()
    assert echo.status().status.clients == 1
    assert echo.status().status.active == 0
    third = victim()
    third.expect("attached")
    third.end()
    assert dial().attach().event.status.clients == 2
