"""Wrong bytes, lengths and ETags, servers without ranges, other origins, full disks, odd names."""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from tests.real.test_download_faults import (
    FILES,
    LATER,
    MODEL,
    SEGMENT,
    SIZE,
    TOTAL,
    WEIGHTS,
    Setup,
)
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from tests.real.test_download_faults import setup as setup

pytestmark = pytest.mark.timeout(240)


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
    setup.empty()
    setup.hub.asked.clear()
    setup.hub.fault(f"cdn/{WEIGHTS}", "truncate", at=10)
    setup.hub.fault(f"cdn/{WEIGHTS}", "status", status=403)
    setup.arrives(connections=1)
    assert setup.hub.count(WEIGHTS) == 2


@pytest.mark.parametrize("kind", ["reset", "truncate", "stall"])
def test_the_storage_breaks(make: Callable[..., Setup], kind: str) -> None:
    setup = make(redirect=True)
    setup.hub.fault(f"cdn/{WEIGHTS}", kind, at=30_000, times=3)
    setup.arrives(**(LATER if kind == "stall" else {}))


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
    kept = setup.downloads().plan(MODEL, config=False)
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
    print(error.code, downloads.plan("acme/tiny", config=False).missing, error.message)
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
        timeout=120,
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
