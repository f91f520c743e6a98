"""Every way in which a Hub can fail: the model arrives verified, or one clear error comes.

In either case within a bounded number of requests, and nothing wrong is in the cache.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tqdm import tqdm  # type: ignore[import-untyped]

from shammah.errors import ShammahError
from tests.fakes.hub import StandInHub
from workers.download.downloads import Downloads
from workers.download.limits import Limits

pytestmark = pytest.mark.timeout(240)

MODEL = "acme/tiny"
WEIGHTS = "model.safetensors"
SEGMENT = 64 * 1024
SIZE = 12 * SEGMENT + 1000
FILES = {
    "config.json": b'{"model_type": "qwen2"}',
    "tokenizer.json": random.Random(1).randbytes(6000),
    WEIGHTS: random.Random(2).randbytes(SIZE),
}
TOTAL = sum(len(content) for content in FILES.values())
LIMITS: dict[str, Any] = {
    "connections": 4,
    "segment_bytes": SEGMENT,
    "connect_s": 30.0,
    # A machine may put the hub aside for seconds: only a test of silence is impatient.
    "metadata_s": 30.0,
    "stall_s": 30.0,
    "attempts": 4,
    "backoff_s": 0.001,
    "retry_after_max_s": 0.05,
    "disk_reserve": 0,
}
SOON = {"metadata_s": 0.4, "stall_s": 0.4}
"""For where silence is all that comes: if it is noticed too early, that is the same."""
LATER = {"metadata_s": 2.0, "stall_s": 2.0}
"""For where something comes after it."""
NO_WAIT = {"backoff_s": 1000.0, "backoff_max_s": 1000.0}
"""Whoever waits for another attempt waits too long for any test."""
MOST_REQUESTS = LIMITS["connections"] * LIMITS["attempts"] + 2 * 13 + 10
"""What a fault that never ends may cost: each connection's attempts, and the file twice."""


class Setup:
    """A hub, an empty cache, and downloads from the one into the other."""

    def __init__(self, hub: StandInHub, cache: Path) -> None:
        self.hub = hub
        self.cache = cache
        self.root = cache / "models--acme--tiny"
        self.at_end: list[Callable[[], None]] = []
        self._open: list[Downloads] = []

    def downloads(self, token: str | bool = False, **limits: Any) -> Downloads:
        made = Downloads(
            self.cache, Limits(**{**LIMITS, **limits}), endpoint=self.hub.endpoint, token=token
        )
        self._open.append(made)
        return made

    def fetch(self, **limits: Any) -> Path:
        return self.downloads(**limits).fetch(MODEL)

    def fails(self, code: str, **limits: Any) -> ShammahError:
        """Fetch, which ends with this code and with nothing wrong in the cache."""
        with pytest.raises(ShammahError) as caught:
            self.fetch(**limits)
        assert caught.value.code == code, caught.value
        assert len(self.hub.asked) <= MOST_REQUESTS
        self.check_blobs()
        assert self.downloads().complete(MODEL) is None
        return caught.value

    def arrives(self, **limits: Any) -> Path:
        """Fetch, which ends well."""
        snapshot = self.fetch(**limits)
        self.check_whole(snapshot)
        return snapshot

    def check_whole(self, snapshot: Path) -> None:
        self.check_blobs()
        files = self.hub.commits[snapshot.name]
        found = {path.name: path.read_bytes() for path in snapshot.iterdir()}
        assert found == {path: file.content for path, file in files.items()}
        assert self.downloads().complete(MODEL, snapshot.name) == snapshot
        parts = {path.stem for path in (self.root / "shammah" / "parts").iterdir()}
        assert not parts & {file.etag for file in files.values()}

    def check_blobs(self) -> None:
        """Every blob has the content that its name promises, and every link leads to one."""
        for blob in (self.root / "blobs").glob("*"):
            content = blob.read_bytes()
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            assert blob.name in (hashlib.sha256(content).hexdigest(), git)
        for path in (self.root / "snapshots").rglob("*"):
            assert path.is_dir() or path.resolve().parent == self.root / "blobs"

    def empty(self) -> None:
        """Remove the model, when what its download does afterwards is done, too."""
        for downloads in self._open:
            downloads.close()
        shutil.rmtree(self.root)

    def close(self) -> None:
        for act in self.at_end:
            act()
        for downloads in self._open:
            downloads.close()


@pytest.fixture(autouse=True)
def _quiet_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have imported huggingface_hub before it was told to be."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # otherwise a thread of its stays


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Setup]]:
    """Makes a `Setup` whose hub has these options."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    made: list[Setup] = []

    def start(files: dict[str, bytes] | None = None, **options: Any) -> Setup:
        made.append(Setup(StandInHub(files or FILES, **options), tmp_path / "hub"))
        return made[-1]

    threads = set(threading.enumerate())
    yield start
    for setup in made:
        setup.close()
        setup.hub.close()
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(30)
        assert not thread.is_alive(), f"{thread.name} was left behind"


@pytest.fixture
def setup(make: Callable[..., Setup]) -> Setup:
    return make()


def test_without_a_fault_every_byte_is_sent_once(setup: Setup) -> None:
    setup.arrives()
    assert setup.hub.sent_bytes == TOTAL
    assert setup.hub.count(WEIGHTS) == 13
    assert setup.hub.count("config.json") == 1


def test_a_tree_of_many_pages(make: Callable[..., Setup]) -> None:
    setup = make(page=1)
    setup.arrives()
    assert setup.hub.count("tree") == len(FILES)


# --- the connection -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
@pytest.mark.parametrize("at", [0, 1, 30_000])
def test_a_connection_breaks_once(setup: Setup, kind: str, at: int) -> None:
    setup.hub.fault(WEIGHTS, kind, at=at)
    setup.hub.fault("config.json", kind, at=min(at, 5))
    setup.arrives(**(LATER if kind == "stall" else {}))
    assert setup.hub.sent_bytes <= TOTAL + 70_000


@pytest.mark.parametrize("kind", ["reset", "truncate"])
def test_every_answer_breaks_but_brings_something(setup: Setup, kind: str) -> None:
    setup.hub.fault(WEIGHTS, kind, at=20_000, times=None)
    setup.arrives()
    assert setup.hub.sent_bytes == TOTAL
    assert setup.hub.count(WEIGHTS) >= SIZE // 20_000


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall", "silent"])
def test_no_answer_ever_brings_a_byte(setup: Setup, kind: str) -> None:
    setup.hub.fault(WEIGHTS, kind, times=None)
    failure = setup.fails("hub_unreachable", stall_s=SOON["stall_s"])
    assert setup.hub.endpoint in failure.message


def test_a_refused_port_is_no_network(setup: Setup) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        setup.hub.endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        failure = setup.fails("hub_unreachable", **NO_WAIT)
    assert "refused" in failure.message


def test_a_name_that_does_not_resolve_is_no_network(setup: Setup) -> None:
    setup.hub.endpoint = "http://hub.invalid"
    failure = setup.fails("hub_unreachable")
    assert "hub.invalid" in failure.message


@pytest.mark.parametrize("question", ["revision", "tree"])
def test_a_hub_that_accepts_and_never_answers(setup: Setup, question: str) -> None:
    setup.hub.fault(question, "silent", times=None)
    failure = setup.fails("hub_unreachable", **SOON, **NO_WAIT)
    assert "stopped answering" in failure.message


def test_offline_mode_is_no_network(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "is_offline_mode", lambda: True)
    failure = setup.fails("hub_unreachable")
    assert "HF_HUB_OFFLINE" in failure.message
    assert setup.hub.asked == []


# --- statuses -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("path", [WEIGHTS, "revision", "tree"])
def test_a_status_that_passes(setup: Setup, status: int, path: str) -> None:
    setup.hub.fault(path, "status", status=status, times=2)
    setup.arrives()


@pytest.mark.parametrize("path", [WEIGHTS, "revision", "tree"])
def test_a_server_that_stays_out_of_order(setup: Setup, path: str) -> None:
    setup.hub.fault(path, "status", status=503, times=None)
    failure = setup.fails("hub_error")
    assert "503" in failure.message


@pytest.mark.parametrize("when", ["1000", "date"])
def test_retry_after_is_obeyed_up_to_a_limit(setup: Setup, when: str) -> None:
    """Without the limit it would wait for longer than any test may."""
    value = formatdate(time.time() + 1000, usegmt=True) if when == "date" else when
    setup.hub.fault("config.json", "status", status=429, headers={"Retry-After": value})
    setup.hub.fault("revision", "status", status=429, headers={"Retry-After": value})
    began_s = time.monotonic()
    setup.arrives(retry_after_max_s=0.3)
    assert time.monotonic() - began_s >= 0.6


@pytest.mark.parametrize(
    ("status", "error_code", "code"),
    [
        (401, "RepoNotFound", "model_not_found"),
        (404, "RepoNotFound", "model_not_found"),
        (404, "RevisionNotFound", "revision_not_found"),
        (401, "GatedRepo", "model_gated"),
        (403, "GatedRepo", "model_gated"),
        (401, "", "hub_forbidden"),
        (403, "", "hub_forbidden"),
        (404, "", "model_not_found"),
        (400, "", "hub_error"),
    ],
)
@pytest.mark.parametrize("path", ["revision", "tree"])
def test_a_refusal_ends_at_once(
    setup: Setup, status: int, error_code: str, code: str, path: str
) -> None:
    headers = {"X-Error-Code": error_code} if error_code else {}
    setup.hub.fault(path, "status", status=status, headers=headers, times=None)
    setup.fails(code)
    assert setup.hub.count(path) == 1


@pytest.mark.parametrize(
    ("status", "error_code", "code"),
    [
        (401, "", "hub_forbidden"),
        (403, "", "hub_forbidden"),
        (403, "GatedRepo", "model_gated"),
        (404, "EntryNotFound", "hub_error"),
        (404, "RevisionNotFound", "revision_not_found"),
        (410, "", "hub_error"),
    ],
)
def test_a_refused_file_ends_at_once(setup: Setup, status: int, error_code: str, code: str) -> None:
    headers = {"X-Error-Code": error_code} if error_code else {}
    setup.hub.fault(WEIGHTS, "status", status=status, headers=headers, times=None)
    setup.fails(code)
    assert setup.hub.count(WEIGHTS) <= LIMITS["connections"]


def test_something_else_than_a_hub_answers(setup: Setup) -> None:
    """A captive portal, say: status 200 and a page."""
    setup.hub.fault("revision", "status", status=200, times=None)
    failure = setup.fails("hub_error")
    assert "does not behave like a Hugging Face Hub" in failure.message
