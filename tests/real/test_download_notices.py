"""What a download tells of bad files and of waits, besides how far it is."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest

from shammah.bus.transfers import Transfer
from tests.fakes.sandbox import LIMIT_S
from tests.real.test_download_faults import FILES, MODEL, TOTAL, WEIGHTS, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from tests.real.test_download_faults import setup as setup
from workers.download import progress as progress_module
from workers.download import transfer as transfer_module
from workers.download.control import Control

pytestmark = pytest.mark.timeout(240)


def watched(setup: Setup, **options: Any) -> list[Transfer]:
    """Fetch, and everything that was told meanwhile."""
    seen: list[Transfer] = []
    setup.downloads(**options).fetch(MODEL, on_progress=seen.append)
    return seen


@pytest.mark.parametrize("path", [WEIGHTS, "config.json"])
def test_a_file_that_arrives_damaged_is_told(setup: Setup, path: str) -> None:
    setup.hub.fault(path, "corrupt", at=5)
    (notice,) = watched(setup, connections=1)[-1].notices
    assert notice == (f"{path} arrived damaged (its hash was wrong). Downloading it again.")


def test_a_file_that_was_damaged_on_the_disk_is_told_and_fetched_alone(setup: Setup) -> None:
    downloads = setup.downloads()
    snapshot = downloads.fetch(MODEL)
    downloads.close()  # it writes the manifest once more when the disk has all
    blob = (snapshot / WEIGHTS).resolve()
    blob.write_bytes(bytes(len(FILES[WEIGHTS])))
    for manifest in (setup.root / "shammah").glob("*.json"):
        manifest.unlink()
    sent = setup.hub.sent_bytes
    (notice,) = watched(setup)[-1].notices
    assert notice.startswith(f"{WEIGHTS} was damaged on the disk (its hash was wrong): it is in")
    assert "quarantine" in notice
    assert (setup.root / "shammah" / "quarantine" / blob.name).exists()
    assert setup.hub.sent_bytes - sent == len(FILES[WEIGHTS])
    setup.check_whole(snapshot)


def test_what_an_earlier_download_left_damaged_is_told(setup: Setup) -> None:
    control = Control()
    setup.hub.on_sent = lambda total: control.cancel() if total > TOTAL // 2 else None
    with pytest.raises(Exception, match="was cancelled"):
        # One connection: the first segment is here before the next is asked for.
        setup.downloads(connections=1).fetch(MODEL, control=control)
    setup.hub.on_sent = None
    etag = setup.hub.commits[setup.hub.main][WEIGHTS].etag
    part = setup.root / "shammah" / "parts" / f"{etag}.part"
    with part.open("r+b") as file:
        file.write(b"\xff" * 16 if FILES[WEIGHTS][:1] != b"\xff" else b"\0" * 16)
    (notice,) = watched(setup)[-1].notices
    assert notice.startswith(f"{WEIGHTS} was damaged in an earlier download")


def test_a_download_without_faults_has_no_news(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SILENCE_S", 300.0)  # however slow the machine is
    assert {(progress.notices, progress.detail) for progress in watched(setup)} == {((), "")}


def test_a_server_that_refuses_for_long_is_told_and_why(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SILENCE_S", 0.05)
    setup.hub.fault(WEIGHTS, "status", status=503, times=6, headers={"Retry-After": "0.05"})
    seen = watched(setup, connections=1, attempts=8)
    details = {progress.detail for progress in seen}
    why = f"{setup.hub.endpoint} returned HTTP 503 for {WEIGHTS}"
    assert f"attempt 3 of 8 in 0 s, since {why}" in details
    assert seen[-1].detail == ""


def test_a_server_that_refuses_to_list_the_model_is_told_before_anything_is_known(
    setup: Setup,
) -> None:
    setup.hub.fault("revision", "status", status=503)
    first = watched(setup)[0]
    assert (first.total, first.files) == (0, ())
    assert first.detail == (
        f"attempt 2 of 4 in 0 s, since {setup.hub.endpoint} returned HTTP 503 for the model"
    )


def test_a_connection_that_stalls_is_told_while_it_does(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SILENCE_S", 0.1)
    monkeypatch.setattr(progress_module, "INTERVAL_S", 0.01)
    monkeypatch.setattr(transfer_module, "TICK_S", 0.02)
    told = threading.Event()
    setup.hub.fault(WEIGHTS, "hook", at=1000, call=lambda: told.wait(LIMIT_S))
    details: list[str] = []

    def watch(progress: Transfer) -> None:
        details.append(progress.detail)
        if progress.detail:
            told.set()

    setup.downloads(connections=1, stall_s=2 * LIMIT_S).fetch(MODEL, on_progress=watch)
    assert any(re.fullmatch(r"no data for \d+ s", detail) for detail in details)
    assert details[-1] == ""


def test_every_byte_is_here_before_every_hash_is_right(setup: Setup) -> None:
    seen = watched(setup)
    assert any(
        one.phase == "verifying" and not all(file.verified for file in one.files) for one in seen
    )
    assert seen[-1].phase == "verifying"
    assert all(file.verified for file in seen[-1].files)
