"""Wrong bytes on every socket of a worker: it lives, answers where it can, changes nothing."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable

import msgpack
import pytest
import zmq

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import (
    PROTOCOL,
    Accepted,
    Cancel,
    ChatMessage,
    ClientInfo,
    Detach,
    Detached,
    Done,
    Event,
    Failed,
    Generate,
    GetStatus,
    Hello,
    Pong,
    Ready,
    Replay,
    Replayed,
    Token,
    Welcome,
)
from shammah.errors import ExitCode
from tests.fakes.command import run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.wire import Listener, RawFrontend
from workers.lease import LEASE_S

pytestmark = pytest.mark.timeout(300)

StartEcho = Callable[..., EchoProcess]
Dial = Callable[..., RawFrontend]

HELLO = codec.encode(Hello("h", PROTOCOL, ClientInfo("test", 1)))


def packed(**fields: object) -> bytes:
    return bytes(msgpack.packb(fields))


def assert_unharmed(echo: EchoProcess) -> None:
    """It lives, is ready, has no users, and nothing is under way."""
    until(lambda: isinstance(echo.status().status.state, Ready), "it has finished its start")
    assert echo.alive()
    status = echo.status().status
    assert (status.clients, status.active) == (0, 0)


BAD_FRAMES = {
    "empty": b"",
    "no messagepack": b"\xc1",
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "noise": random.Random(2).randbytes(4096),
    "truncated": HELLO[:-1],
    "trailing byte": HELLO + b"\x00",
    "deep": b"\x91" * 100_000,
    "array of 4e9": b"\xdd\xff\xff\xff\xff",
    "no map": msgpack.packb([1, 2]),
    "unknown type": packed(type="Shutdown"),
    "a value is no message": packed(type="Usage"),
    "a reply is no request": codec.encode(Pong("r", "", True, 0)),
    "missing field": packed(type="Hello", request_id="x"),
    "wrong type": packed(type="Ping", request_id=7),
    "type is no text": packed(type=["Ping"]),
    "over-long": b"\x00" * (codec.MAX_FRAME_BYTES + 1),
}


@pytest.mark.parametrize("attached", [False, True], ids=["stranger", "attached"])
def test_bad_frames_are_refused_and_change_nothing(
    start_echo: StartEcho, dial: Dial, attached: bool
) -> None:
    echo, raw = start_echo(), dial()
    if attached:
        raw.attach()
    for name, frame in BAD_FRAMES.items():
        failure = raw.refusal(frame)
        assert (failure.code, bool(failure.message)) == ("protocol", True), name
    assert raw.ping().attached == attached
    raw.send(Detach(new_request_id()))
    raw.expect(Detached)
    assert_unharmed(echo)


def test_a_refusal_names_the_request_where_it_can_be_read(
    start_echo: StartEcho, dial: Dial
) -> None:
    start_echo()
    raw = dial()
    assert raw.refusal(packed(type="Generate", request_id="r7")).request_id == "r7"
    assert raw.refusal(codec.encode(Pong("r8", "", True, 0))).request_id == "r8"
    assert raw.refusal(packed(type="Generate", request_id=["r9"])).request_id == ""


def test_a_message_of_another_number_of_frames_than_one_is_refused(
    start_echo: StartEcho, dial: Dial
) -> None:
    echo, raw = start_echo(), dial()
    for frames in ([b"", b""], [HELLO, HELLO], [b"", HELLO], [HELLO] * 100):
        assert raw.refusal(*frames).code == "protocol", len(frames)
    assert_unharmed(echo)


def test_a_frame_beyond_the_limit_of_the_sockets_ends_only_its_connection(
    start_echo: StartEcho, dial: Dial
) -> None:
    echo = start_echo()
    raw = dial()
    raw.send_frames(b"\x00" * (2 * codec.MAX_FRAME_BYTES + 1))
    # The sender is dropped without a word; it connects again and is served.
    until(lambda: _served(raw), "the same frontend is served again")
    assert_unharmed(echo)


def _served(raw: RawFrontend) -> bool:
    raw.send(GetStatus(new_request_id()))
    try:
        return isinstance(raw.receive(0.3), Event)
    except TimeoutError:
        return False


def test_what_one_asks_for_can_fail_only_that(start_echo: StartEcho, dial: Dial) -> None:
    echo = start_echo()
    unlucky, other = dial(), dial()
    unlucky.attach()
    other.attach()
    waiting = other.ask("forever and ever")
    other.expect(Accepted)
    failed = [unlucky.ask("cannot be taken")]
    assert unlucky.expect(Failed).request_id == failed[0]
    other.send(Cancel(waiting))
    assert other.expect(Done).request_id == waiting
    failed.append(unlucky.ask("uncountable words"))
    refusal = unlucky.expect(Failed)
    assert (refusal.request_id, refusal.code) == (failed[1], "internal")
    asked = other.ask("hello")
    assert other.expect(Done).request_id == asked
    for raw in (unlucky, other):
        raw.send(Detach(new_request_id()))
        raw.expect(Detached)
    assert_unharmed(echo)


UPSTREAM_GARBAGE = {
    "empty": [b""],
    "garbage": [b"\x02garbage"],
    "long subscription": [b"\x01" * 30_000],
    "never subscribed": [b"\x00topic"],
    "frames": [b"many", b"frames", b""],
    "a request": [HELLO],
    "over-long": [b"\x00" * (2 * codec.MAX_FRAME_BYTES + 1)],
}


def test_garbage_to_the_event_socket_changes_nothing(
    start_echo: StartEcho, sandbox: Sandbox, listen: Callable[[], Listener]
) -> None:
    echo = start_echo()
    for name, frames in UPSTREAM_GARBAGE.items():
        context = zmq.Context()
        try:
            upstream = context.socket(zmq.XSUB)
            upstream.connect(sandbox.endpoints.events("inference"))
            upstream.send_multipart(frames)
            upstream.send(b"\x01")
            # Whoever sends more than the limit is dropped; everybody else hears something.
            assert name == "over-long" or upstream.poll(LIMIT_S * 1000), name
        finally:
            context.destroy(linger=0)
    assert listen().next().role == "inference"
    assert_unharmed(echo)


NO_ZMTP = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "half a greeting": b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f",
    "ones": b"\xff" * 100_000,
    "noise": random.Random(3).randbytes(65536),
    "nothing": b"",
}


@pytest.mark.parametrize("name", ["inference.sock", "inference.events"])
def test_bytes_that_are_no_zmtp_change_nothing(
    start_echo: StartEcho, sandbox: Sandbox, name: str
) -> None:
    echo = start_echo()
    for raw_bytes in NO_ZMTP.values():
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.settimeout(LIMIT_S)
            stranger.connect(str(sandbox.endpoints.runtime / name))
            with contextlib.suppress(OSError):  # it may have hung up on us already
                stranger.sendall(raw_bytes)
            assert echo.alive()
    assert_unharmed(echo)


def test_a_stranger_that_connects_and_says_nothing_delays_nobody(
    start_echo: StartEcho, sandbox: Sandbox, dial: Dial
) -> None:
    start_echo()
    silent = [socket.socket(socket.AF_UNIX) for _ in range(20)]
    try:
        for stranger in silent:
            stranger.connect(str(sandbox.endpoints.runtime / "inference.sock"))
        raw = dial()
        raw.attach()
        raw.ask("still there")
        assert raw.expect(Done).usage.output_tokens == 2
    finally:
        for stranger in silent:
            stranger.close()


def test_a_request_of_a_frontend_that_has_not_attached_is_refused(
    start_echo: StartEcho, dial: Dial
) -> None:
    echo = start_echo()
    raw = dial()
    asked = raw.ask("hello")
    failure = raw.expect(Failed)
    assert (failure.code, failure.request_id) == ("not_attached", asked)
    assert_unharmed(echo)


@pytest.mark.parametrize("second_id", ["", "same"])
def test_a_request_id_that_is_empty_or_in_use_is_refused(
    start_echo: StartEcho, dial: Dial, second_id: str
) -> None:
    start_echo("--delay-ms", "5")
    raw = dial()
    raw.attach()
    raw.send(Generate("same", (ChatMessage("user", "forever"),)))
    raw.expect(Token)
    raw.send(Generate(second_id, (ChatMessage("user", "again"),)))
    refusal = raw.expect(Failed)
    assert (refusal.code, refusal.request_id) == ("protocol", second_id)
    raw.expect(Token)  # the first goes on
    raw.send(Cancel("same"))
    assert raw.expect(Done).finish_reason == "cancelled"


def test_nobody_cancels_what_another_asked(start_echo: StartEcho, dial: Dial) -> None:
    start_echo("--delay-ms", "1")
    owner, other = dial(), dial()
    owner.attach()
    other.attach()
    asked = owner.ask("w " * 50 + "w")
    owner.expect(Accepted)
    other.send(Cancel(asked))
    done = owner.expect(Done)
    assert (done.finish_reason, done.usage.output_tokens) == ("stop", 51)


def test_a_conversation_without_messages_does_not_end_the_worker(
    start_echo: StartEcho, dial: Dial
) -> None:
    """The stand-in's work thread fails on it; the worker says so and still answers pings."""
    echo = start_echo()
    raw = dial()
    raw.attach()
    raw.send(Generate(new_request_id(), ()))
    assert raw.expect(Failed).code == "internal"
    assert raw.ping().attached
    assert echo.alive()
    raw.ask("and now")
    assert raw.expect(Failed).code == "internal"


@pytest.mark.parametrize("spoken", [PROTOCOL - 1, PROTOCOL + 1])
def test_another_protocol_version_is_refused_in_one_sentence(
    start_echo: StartEcho, sandbox: Sandbox, spoken: int
) -> None:
    start_echo("--protocol", str(spoken))
    peer = Peer(sandbox.endpoints, "inference", ClientInfo("test", os.getpid()))
    try:
        with pytest.raises(Exception, match=f"speaks protocol {spoken} ") as refused:
            peer.wait_welcome(LIMIT_S)
        assert "shammah stop inference" in str(refused.value)
        assert "\n" not in str(refused.value)
    finally:
        peer.close()


def test_a_worker_of_before_an_upgrade_is_named_with_what_replaces_it(
    start_echo: StartEcho,
) -> None:
    echo = start_echo("--protocol", str(PROTOCOL - 1))
    ended = run("ask", "--local", "hello")
    assert ended.code == ExitCode.FAILED
    assert ended.err.count(f"speaks protocol {PROTOCOL - 1} ") == 1
    assert "Run `shammah stop inference` and ask again: a new worker will start." in ended.err
    assert run("stop", "inference").code == 0
    assert not echo.alive()


def test_replay_gives_the_events_that_were_missed(
    start_echo: StartEcho, dial: Dial, listen: Callable[[], Listener]
) -> None:
    start_echo()
    listener, raw = listen(), dial()
    listener.next()
    raw.attach()
    for question in ("one", "two"):
        raw.ask(question)
        raw.expect(Done)
    seen = [*listener.until("stop"), *listener.until("stop")]
    since = seen[0].seq
    raw.send(Replay(new_request_id(), since))
    replayed = raw.expect(Replayed)
    assert replayed.complete
    assert list(replayed.events)[: len(seen) - 1] == seen[1:]
    raw.send(Replay(new_request_id(), 0))
    assert [event.seq for event in raw.expect(Replayed).events][:3] == [1, 2, 3]


def test_sequence_numbers_have_no_gaps(
    start_echo: StartEcho, dial: Dial, listen: Callable[[], Listener]
) -> None:
    start_echo()
    listener, raw = listen(), dial()
    first = listener.next()
    raw.attach()
    for _ in range(30):
        raw.ask("a b c")
        raw.expect(Done)
    events = [first]
    while events[-1].status.tokens < 90:
        events.append(listener.next())
    assert [event.seq for event in events] == list(range(first.seq, first.seq + len(events)))
    assert len({event.run_id for event in events}) == 1


def test_a_late_subscriber_gets_the_present_state_at_once(
    start_echo: StartEcho, listen: Callable[[], Listener]
) -> None:
    echo = start_echo()
    echo.status()  # it is Ready by now or soon
    until(lambda: isinstance(echo.status().status.state, Ready), "ready")
    for _ in range(3):
        assert isinstance(listen().next().status.state, Ready)


def test_a_stopped_subscriber_does_not_delay_an_answer(
    start_echo: StartEcho, sandbox: Sandbox, dial: Dial
) -> None:
    """Far more events than its high-water mark and the kernel's buffer hold."""
    start_echo()
    listener = subprocess.Popen([*_STAND_STILL, sandbox.endpoints.events("inference")])
    try:
        raw = dial()
        welcome = raw.attach()
        until(lambda: _subscribed(raw, welcome), "the stopped one has subscribed")
        raw.close()
        raw = dial()
        raw.attach()
        for _ in range(1500):
            raw.ask("x")
            raw.expect(Done)
    finally:
        listener.kill()
        listener.wait()


_STAND_STILL = [
    sys.executable,
    "-c",
    "import os, signal, sys, zmq\n"
    "socket = zmq.Context().socket(zmq.SUB)\n"
    "socket.subscribe(b'')\n"
    "socket.connect(sys.argv[1])\n"
    "socket.poll()\n"
    "os.kill(os.getpid(), signal.SIGSTOP)\n",
]


def _subscribed(raw: RawFrontend, welcome: Welcome) -> bool:
    raw.send(Replay(new_request_id(), welcome.event.seq - 1))
    return any(event.what == "subscribed" for event in _all_events(raw))


def _all_events(raw: RawFrontend) -> tuple[Event, ...]:
    raw.send(Replay(new_request_id(), 0))
    return raw.expect(Replayed).events


def test_a_stopped_frontend_does_not_delay_the_others(start_echo: StartEcho, dial: Dial) -> None:
    """It reads nothing while its answer, longer than every buffer, is generated."""
    start_echo("--lease-s", f"{LEASE_S:g}")
    deaf, other = dial(), dial()
    deaf.attach()
    deaf.ask("forever " + "x" * 100_000)
    other.attach()
    other.ask("short")
    assert other.wait_for(Done).usage.output_tokens == 1


_FLOOD = [
    sys.executable,
    "-c",
    "import sys, zmq\n"
    "socket = zmq.Context().socket(zmq.DEALER)\n"
    "socket.connect(sys.argv[1])\n"
    "while True: socket.send(b'garbage')\n",
]


def test_a_flood_of_garbage_does_not_starve_an_answer(
    start_echo: StartEcho, sandbox: Sandbox, dial: Dial
) -> None:
    echo, raw = start_echo(), dial()
    raw.attach()
    floods = [
        subprocess.Popen([*_FLOOD, sandbox.endpoints.requests("inference")]) for _ in range(2)
    ]
    try:
        until(lambda: echo.log().count("refused") > 1000, "the flood has begun")
        raw.ask("one two three")
        assert raw.expect(Done).usage.output_tokens == 3
    finally:
        for flood in floods:
            flood.kill()
            flood.wait()


def test_a_fast_engine_does_not_lose_a_frontend_that_reads(
    start_echo: StartEcho, connect: Callable[..., Peer]
) -> None:
    """Tokens come faster than they are read: none may be lost, and the lease stays."""
    start_echo()
    count = 10_000
    generation = connect().generate((ChatMessage("user", "x " * (count - 1) + "x"),))
    replies = list(generation)
    assert isinstance(replies[-1], Done), replies[-1]
    tokens = [reply.index for reply in replies if isinstance(reply, Token)]
    assert tokens == list(range(1, count + 1))
