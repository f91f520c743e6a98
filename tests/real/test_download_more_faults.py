"""What a relay does to answers on their way, metadata above all; disks; the program's last word."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from shammah.errors import ExitCode
from tests.fakes.command import SHAMMAH, Ran, run
from tests.fakes.hub import RESET_ON_CLOSE, StandInHub
from tests.fakes.sandbox import Sandbox, online
from tests.real.local_hub import MIB, QWEN, kill_workers, tiny_files
from tests.real.test_download_faults import MODEL, SEGMENT, SOON, TOTAL, WEIGHTS, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from tests.real.test_download_faults import setup as setup

pytestmark = pytest.mark.timeout(400)

LIMIT_S = 120.0


@dataclass(frozen=True)
class Passing:
    """An answer on its way, and what happens after its last byte: ``close``, ``reset`` or
    ``stall``."""

    subject: str
    status: str
    headers: dict[str, str]
    body: bytes
    then: str = "close"

    def cut(self, at: int, then: str = "close") -> Passing:
        """The same with only ``at`` bytes of the body, though more were announced."""
        return replace(self, body=self.body[:at], then=then)

    def without(self, *names: str) -> Passing:
        """The same without these headers."""
        kept = {name: value for name, value in self.headers.items() if name not in names}
        return replace(self, headers=kept)

    def serialized(self) -> bytes:
        lines = [self.status, *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "connection: close", "", ""]).encode() + self.body


Change = Callable[[Passing], Passing]


class Relay(socketserver.ThreadingTCPServer):
    """A proxy before the hub; one request for each connection."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: StandInHub) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        self.upstream = urlsplit(hub.endpoint)
        self.change: Change = lambda answer: answer
        self.subjects: list[str] = []
        self.released = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Relayed(socketserver.BaseRequestHandler):
    server: Relay
    request: socket.socket

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the client has gone
            head = self._head()
            if head:
                self._answer(head)

    def _head(self) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = self.request.recv(65536)
            if not piece:
                return b""
            head += piece
        return head

    def _answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1].decode()
        subject = next((word for word in ("revision", "tree") if f"/{word}/" in path), "")
        subject = subject or path.partition("/resolve/")[2].partition("/")[2]
        self.server.subjects.append(subject)
        answer = self.server.change(self._upstream(head, subject))
        self.request.sendall(answer.serialized())
        if answer.then == "reset":
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.request.close()
        elif answer.then == "stall":
            self.server.released.wait()

    def _upstream(self, head: bytes, subject: str) -> Passing:
        to = self.server.upstream
        with socket.create_connection((to.hostname or "", to.port or 0)) as hub:
            hub.sendall(re.sub(rb"(?i)\r\nconnection: [^\r]*", b"\r\nconnection: close", head))
            received = b""
            while piece := hub.recv(MIB):
                received += piece
        start, _, body = received.partition(b"\r\n\r\n")
        status, *lines = start.decode().split("\r\n")
        pairs = (line.partition(": ") for line in lines)
        return Passing(subject, status, {name.lower(): value for name, _, value in pairs}, body)


@pytest.fixture
def relay(setup: Setup) -> Iterator[Relay]:
    made = Relay(setup.hub)
    setup.hub.endpoint = f"http://127.0.0.1:{made.server_address[1]}"
    yield made
    setup.close()
    made.close()


def only(subject: str, change: Change, times: int | None = None) -> Change:
    """``change`` for answers about this, the first ``times`` of them."""
    left = [times]
    lock = threading.Lock()

    def changed(answer: Passing) -> Passing:
        if answer.subject != subject:
            return answer
        with lock:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    return answer
        return change(answer)

    return changed


# --- answers about the model --------------------------------------------------------------


def test_a_relay_that_changes_nothing(setup: Setup, relay: Relay) -> None:
    setup.arrives()
    assert setup.hub.sent_bytes == TOTAL


@pytest.mark.parametrize("then", ["close", "reset"])
@pytest.mark.parametrize("at", [0, 10])
@pytest.mark.parametrize("question", ["revision", "tree"])
def test_an_answer_about_the_model_breaks_once(
    setup: Setup, relay: Relay, question: str, at: int, then: str
) -> None:
    relay.change = only(question, lambda answer: answer.cut(at, then), times=1)
    setup.arrives()
    assert relay.subjects.count(question) == 2


@pytest.mark.parametrize("then", ["close", "reset", "stall"])
@pytest.mark.parametrize("question", ["revision", "tree"])
def test_every_answer_about_the_model_breaks(
    setup: Setup, relay: Relay, question: str, then: str
) -> None:
    relay.change = only(question, lambda answer: answer.cut(10, then))
    setup.fails("hub_unreachable", **(SOON if then == "stall" else {}))
    # Silence is told after one time-out: no network is the everyday case.
    asked = relay.subjects.count(question)
    assert asked <= 1 if then == "stall" else asked == 4


@pytest.mark.parametrize("question", ["revision", "tree"])
def test_an_answer_about_the_model_ends_early_and_nobody_can_tell(
    setup: Setup, relay: Relay, question: str
) -> None:
    """Without a length, the end of the connection is the end of the answer."""
    relay.change = only(question, lambda answer: answer.without("content-length").cut(10))
    failure = setup.fails("hub_error")
    assert "does not behave like a Hugging Face Hub" in failure.message


def test_metadata_of_another_origin_gets_no_token(make: Callable[..., Setup]) -> None:
    setup, other = make(token="hf_secret"), make()
    for question, rest in (("revision", "main"), ("tree", setup.hub.main)):
        where = f"{other.hub.endpoint}/api/models/{MODEL}/{question}/{rest}"
        setup.hub.fault(question, "status", status=307, headers={"Location": where})
    setup.check_whole(setup.downloads(token="hf_secret").fetch(MODEL))
    assert {asked.authorization for asked in setup.hub.asked} == {"Bearer hf_secret"}
    assert [asked.path for asked in other.hub.asked] == ["revision", "tree"]
    assert {asked.authorization for asked in other.hub.asked} == {""}


# --- answers with files -------------------------------------------------------------------


def test_a_server_that_does_not_name_the_commit(setup: Setup, relay: Relay) -> None:
    relay.change = lambda answer: answer.without("x-repo-commit")
    setup.arrives()


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_a_server_that_tells_no_length_and_ignores_ranges(
    setup: Setup, relay: Relay, path: str
) -> None:
    """As olah does."""
    setup.hub.fault(path, "ignore_range", times=None)
    relay.change = only(path, lambda answer: answer.without("content-length", "accept-ranges"))
    setup.arrives()


def test_and_ends_early(setup: Setup, relay: Relay) -> None:
    setup.hub.fault(WEIGHTS, "ignore_range", times=None)
    relay.change = only(
        WEIGHTS, lambda answer: answer.without("content-length").cut(5 * SEGMENT), times=3
    )
    setup.arrives()
    setup.empty()
    relay.change = only(WEIGHTS, lambda answer: answer.without("content-length").cut(5 * SEGMENT))
    failure = setup.fails("hub_unreachable")
    assert "too early" in failure.message


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("bytes 0-{last}/{size}", "hub_error"),
        ("bytes {first}-{beyond}/{size}", "hub_error"),
        ("bytes {first}-{last}/12", "size_mismatch"),
        ("", "hub_error"),
    ],
)
def test_a_range_that_was_not_asked_for(setup: Setup, relay: Relay, told: str, code: str) -> None:
    def change(answer: Passing) -> Passing:
        first, last, size = map(int, re.findall(r"\d+", answer.headers["content-range"]))
        claim = told.format(first=first, last=last, beyond=last + 1, size=size)
        if told.startswith("bytes 0") and first == 0:
            return answer.cut(0, "stall")  # this one would be right
        return replace(answer, headers={**answer.headers, "content-range": claim})

    relay.change = only(WEIGHTS, change)
    setup.fails(code)


# --- through the program ------------------------------------------------------------------


@pytest.fixture
def hub(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """The only Hub that the program knows."""
    files = tiny_files(tmp_path / "model", 8 * MIB)
    with StandInHub(files, model_id=QWEN) as serving:
        online(monkeypatch, serving.endpoint)
        yield serving
        kill_workers(sandbox)


def assert_one_clear_error(ended: Ran, *words: str) -> None:
    assert (ended.code, ended.out) == (ExitCode.FAILED, "")
    assert ended.err.count("shammah: ") == 1
    assert "Traceback" not in ended.err
    for word in words:
        assert word in ended.err


def snapshots(sandbox: Sandbox) -> list[Path]:
    return list(sandbox.home.glob(".cache/huggingface/hub/*/snapshots/*/*"))


@pytest.mark.parametrize(
    ("path", "kind", "how", "words"),
    [
        ("revision", "status", {"status": 403}, "HTTP 403"),
        ("tree", "status", {"status": 404}, "There is no model"),
        (WEIGHTS, "status", {"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "is gated"),
        (WEIGHTS, "etag", {"value": ""}, "sent no ETag"),
        (WEIGHTS, "length", {"at": 1000}, "should have"),
        (WEIGHTS, "corrupt", {"at": 5}, "arrived damaged"),
    ],
)
def test_what_stays_wrong_is_one_clear_error(
    hub: StandInHub, sandbox: Sandbox, path: str, kind: str, how: dict[str, object], words: str
) -> None:
    hub.fault(path, kind, times=None, **how)
    ended = run("models", "pull", QWEN, limit=LIMIT_S)
    assert_one_clear_error(ended, words)
    assert not any(found.name == WEIGHTS for found in snapshots(sandbox))
    hub.heal()
    assert run("models", "pull", QWEN, limit=LIMIT_S).code == 0
    assert run("models", "verify", QWEN, "--hashes").out == f"{QWEN}: complete\n"


@pytest.fixture
def small_disk(tmp_path: Path) -> tuple[str, ...]:
    """``shammah`` where the cache lies on a disk of 5 MiB, which only it sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'mount -t tmpfs -o size=5m tmpfs {disk} && export HF_HOME={disk} && exec "$@"'
    mounted = ("unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    return (*mounted, *SHAMMAH)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(
    hub: StandInHub, small_disk: tuple[str, ...]
) -> None:
    ended = run("models", "pull", QWEN, command=small_disk, limit=LIMIT_S)
    assert_one_clear_error(ended, "The disk is too small", "are free")
    assert hub.sent[WEIGHTS] == 0


def test_a_disk_that_fills_up_is_told_and_keeps_what_it_has(
    hub: StandInHub, small_disk: tuple[str, ...]
) -> None:
    twice = 'shammah=$0; "$shammah" models pull --force "$1"; exec "$shammah" models list --json'
    pull = (*small_disk[:-1], "sh", "-c", twice, small_disk[-1])
    ended = run(QWEN, command=pull, limit=LIMIT_S)
    assert "The disk is too small" in ended.err
    assert ended.err.count("shammah: ") == 1
    assert '"verified": false' in ended.out
    kept = re.search(r'"unfinished": (\d+)', ended.out)
    assert kept is not None
    assert 2 * MIB < int(kept[1]) <= 5 * MIB
