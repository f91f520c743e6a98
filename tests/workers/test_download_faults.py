"""Every way in which a Hub can fail: the model arrives verified, or one clear error comes.

In either case within a bounded number of requests, and nothing wrong is in the cache.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
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
from tests.standins.hub import StandInHub
from workers.download.downloads import Downloads
from workers.download.limits import Limits

pytestmark = pytest.mark.timeout(60)

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
    "connect_s": 2.0,
    "metadata_s": 0.4,
    "stall_s": 0.4,
    "attempts": 4,
    "backoff_s": 0.001,
    "retry_after_max_s": 0.05,
    "disk_reserve": 0,
}
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
def make(tmp_path: Path) -> Iterator[Callable[..., Setup]]:
    """Makes a `Setup` whose hub has these options."""
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
        thread.join(5)
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
    setup.arrives()
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
    failure = setup.fails("hub_unreachable")
    assert setup.hub.endpoint in failure.message


def test_a_refused_port_is_no_network(setup: Setup) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        setup.hub.endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        began_s = time.monotonic()
        failure = setup.fails("hub_unreachable")
    assert "refused" in failure.message
    assert time.monotonic() - began_s < 5


def test_a_name_that_does_not_resolve_is_no_network(setup: Setup) -> None:
    setup.hub.endpoint = "http://hub.invalid"
    failure = setup.fails("hub_unreachable")
    assert "hub.invalid" in failure.message


@pytest.mark.parametrize("question", ["revision", "tree"])
def test_a_hub_that_accepts_and_never_answers(setup: Setup, question: str) -> None:
    setup.hub.fault(question, "silent", times=None)
    began_s = time.monotonic()
    failure = setup.fails("hub_unreachable")
    assert "stopped answering" in failure.message
    assert time.monotonic() - began_s < 5


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


@pytest.mark.parametrize("when", ["1", "date"])
def test_retry_after_is_obeyed_up_to_a_limit(setup: Setup, when: str) -> None:
    value = formatdate(time.time() + 2, usegmt=True) if when == "date" else when
    setup.hub.fault("config.json", "status", status=429, headers={"Retry-After": value})
    setup.hub.fault("revision", "status", status=429, headers={"Retry-After": value})
    began_s = time.monotonic()
    setup.arrives(retry_after_max_s=0.3)
    assert 0.6 <= time.monotonic() - began_s < 5


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
    assert "does not answer as a Hub" in failure.message


# --- the content --------------------------------------------------------------------------


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_wrong_bytes_are_fetched_again(setup: Setup, path: str) -> None:
    setup.hub.fault(path, "corrupt", at=5)
    setup.arrives()


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_bytes_that_stay_wrong_are_refused(setup: Setup, path: str) -> None:
    setup.hub.fault(path, "corrupt", at=5, times=None)
    failure = setup.fails("hash_mismatch")
    assert path in failure.message
    size = len(FILES[path])
    assert setup.hub.sent[path] == 2 * size
    etag = setup.hub.commits[setup.hub.main][path].etag
    assert not list((setup.root / "shammah" / "parts").glob(f"{etag}*"))


@pytest.mark.parametrize("by", [-1000, 1000])
@pytest.mark.parametrize("path", [WEIGHTS, "tokenizer.json"])
def test_a_wrong_length_is_refused(setup: Setup, by: int, path: str) -> None:
    setup.hub.fault(path, "length", at=by, times=None)
    failure = setup.fails("size_mismatch")
    assert str(len(FILES[path])) in failure.message


@pytest.mark.parametrize(
    ("value", "words"), [("", "no ETag"), ("missing", "no ETag"), ("0" * 64, "not the one")]
)
@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_an_etag_must_be_the_listed_one(setup: Setup, value: str, words: str, path: str) -> None:
    setup.hub.fault(path, "etag", value=value, times=None)
    failure = setup.fails("hub_error")
    assert words in failure.message


def test_a_file_of_another_commit_is_refused(setup: Setup) -> None:
    setup.hub.fault(WEIGHTS, "commit", value="f" * 40, times=None)
    failure = setup.fails("hub_error")
    assert "another commit" in failure.message


# --- ranges -------------------------------------------------------------------------------


def test_a_server_that_ignores_ranges(make: Callable[..., Setup]) -> None:
    setup = make(rate=1_000_000, send_buffer=16 * 1024)
    setup.hub.fault(WEIGHTS, "ignore_range", times=None)
    setup.arrives()
    assert setup.hub.sent[WEIGHTS] < 1.5 * SIZE  # one thread reads, the others let go


def test_a_server_that_ignores_ranges_after_a_break(setup: Setup) -> None:
    setup.hub.fault(WEIGHTS, "truncate", at=20_000, times=4)
    setup.hub.fault(WEIGHTS, "ignore_range", times=None)
    setup.arrives()


def test_a_server_that_ignores_ranges_and_breaks(make: Callable[..., Setup]) -> None:
    """One segment: the request is for the whole file at first, and for the rest later."""
    files = {**FILES, WEIGHTS: random.Random(3).randbytes(SEGMENT)}
    setup = make(files)
    setup.hub.fault(WEIGHTS, "truncate", at=20_000)
    setup.hub.fault(WEIGHTS, "ignore_range", times=None)
    setup.arrives()
    assert setup.hub.sent[WEIGHTS] == 20_000 + SEGMENT


# --- other origins ------------------------------------------------------------------------


def test_the_token_never_goes_to_another_origin(
    make: Callable[..., Setup], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    setup = make(redirect=True, token="hf_secret")
    snapshot = setup.downloads(token="hf_secret").fetch(MODEL)
    setup.check_whole(snapshot)
    asked = {"hub": set(), "storage": set()}  # type: dict[str, set[str]]
    for request in setup.hub.asked:
        asked[request.origin].add(request.authorization)
    assert asked == {"hub": {"Bearer hf_secret"}, "storage": {""}}
    for record in caplog.records:
        assert "hf_secret" not in record.getMessage()
        if record.levelno > logging.DEBUG:
            assert "signature" not in record.getMessage()


def test_an_address_is_asked_for_once_and_again_when_it_has_expired(
    make: Callable[..., Setup],
) -> None:
    setup = make(redirect=True)
    setup.arrives(connections=1)
    assert setup.hub.count(WEIGHTS) == 1
    setup.close()
    shutil.rmtree(setup.root)
    setup.hub.asked.clear()
    setup.hub.fault(f"cdn/{WEIGHTS}", "truncate", at=10)
    setup.hub.fault(f"cdn/{WEIGHTS}", "status", status=403)
    setup.arrives(connections=1)
    assert setup.hub.count(WEIGHTS) == 2


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
def test_the_storage_breaks(make: Callable[..., Setup], kind: str) -> None:
    setup = make(redirect=True)
    setup.hub.fault(f"cdn/{WEIGHTS}", kind, at=30_000, times=3)
    setup.arrives()


def test_a_storage_that_refuses_for_good(make: Callable[..., Setup]) -> None:
    setup = make(redirect=True)
    setup.hub.fault(f"cdn/{WEIGHTS}", "status", status=403, times=None)
    setup.fails("hub_forbidden")


def test_a_circle_of_redirects(setup: Setup) -> None:
    where = f"{setup.hub.endpoint}/{MODEL}/resolve/{setup.hub.main}/{WEIGHTS}"
    setup.hub.fault(WEIGHTS, "status", status=302, headers={"Location": where}, times=None)
    with pytest.raises(ShammahError) as caught:
        setup.fetch()
    assert caught.value.code == "hub_error"
    assert "circle" in caught.value.message


# --- the disk -----------------------------------------------------------------------------


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(setup: Setup) -> None:
    failure = setup.fails("disk_full", disk_reserve=2**60)
    assert "GiB" in failure.message
    assert setup.hub.sent_bytes == 0
    assert setup.downloads(disk_reserve=2**60).fetch(MODEL, force=True)


def test_the_disk_fills_up(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    real, room = os.pwrite, [300_000]

    def full(fd: int, data: bytes, offset: int) -> int:
        room[0] -= len(data)
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    setup.fails("disk_full")
    monkeypatch.undo()
    kept = setup.downloads().plan(MODEL)
    assert 0 < kept.missing < TOTAL - 100_000
    sent = setup.hub.sent_bytes
    setup.arrives()
    assert setup.hub.sent_bytes - sent == kept.missing


_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from shammah.errors import ShammahError
from workers.download.downloads import Downloads
from workers.download.limits import Limits
endpoint, cache = sys.argv[1:]
limits = Limits(connections=2, segment_bytes=65536, disk_reserve=0)
downloads = Downloads(Path(cache), limits, endpoint=endpoint, token=False)
try:
    downloads.fetch("acme/tiny", force=True)
except ShammahError as error:
    print(error.code, downloads.plan("acme/tiny").missing, error.message)
downloads.close()
"""


def test_a_small_tmpfs(make: Callable[..., Setup], tmp_path: Path) -> None:
    setup = make({**FILES, WEIGHTS: random.Random(4).randbytes(2_000_000)})
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    mounted = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"]).returncode:
        pytest.skip("no file system can be mounted here")
    ran = subprocess.run(
        [*mounted, sys.executable, "-c", _ON_A_SMALL_DISK, setup.hub.endpoint, str(disk)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    code, missing, message = ran.stdout.split(maxsplit=2)
    assert code == "disk_full"
    assert "are free" in message
    assert 1_000_000 < int(missing) < 1_400_000  # the part was kept


def test_a_cache_that_may_not_be_written(setup: Setup) -> None:
    setup.cache.parent.mkdir(exist_ok=True)
    setup.cache.write_text("a file")
    with pytest.raises(ShammahError) as caught:
        setup.fetch()
    assert caught.value.code == "cache_error"
    setup.cache.unlink()


# --- names --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tiny", "a/b/c", "../x", "acme/ti ny", "a--b/c", ""])
def test_a_name_that_can_be_no_model(setup: Setup, name: str) -> None:
    with pytest.raises(ShammahError) as caught:
        setup.downloads().fetch(name)
    assert caught.value.code == "model_not_found"
    assert setup.hub.asked == []


def test_an_unknown_model_and_an_unknown_revision(setup: Setup) -> None:
    for model_id, revision, code in [
        ("acme/other", "main", "model_not_found"),
        (MODEL, "v9", "revision_not_found"),
        (MODEL, "../../etc", "revision_not_found"),
        (MODEL, "", "revision_not_found"),
    ]:
        with pytest.raises(ShammahError) as caught:
            setup.downloads().fetch(model_id, revision)
        assert caught.value.code == code


def test_a_gated_model_names_the_way_in(make: Callable[..., Setup]) -> None:
    setup = make(token="hf_right")
    failure = setup.fails("model_gated")
    assert "hf auth login" in failure.hint
