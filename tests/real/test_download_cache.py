"""The cache afterwards: other programs find the model, damage is found and mended."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import (
    hf_hub_download,
    scan_cache_dir,
    snapshot_download,
    try_to_load_from_cache,
)

from shammah.errors import ShammahError
from tests.fakes.sandbox import until
from tests.real.test_download_faults import FILES, MODEL, TOTAL, WEIGHTS, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from tests.real.test_download_faults import setup as setup
from workers import manifest as manifests
from workers.download import cache as caches
from workers.download import downloads as transfers
from workers.download.layout import RepositoryCache
from workers.download.snapshot import BadFile
from workers.manifest import manifest_path

pytestmark = pytest.mark.timeout(240)

DAY_S = 86_400


def age(path: Path, days: float, now_s: float) -> None:
    os.utime(path, (now_s - days * DAY_S,) * 2)


# --- for other programs -------------------------------------------------------------------


def test_the_library_finds_everything_offline(setup: Setup) -> None:
    snapshot = setup.arrives()
    cache = setup.cache
    assert snapshot_download(MODEL, cache_dir=cache, local_files_only=True) == str(snapshot)
    for path in FILES:
        found = str(snapshot / path)
        assert try_to_load_from_cache(MODEL, path, cache_dir=cache) == found
        assert hf_hub_download(MODEL, path, cache_dir=cache, local_files_only=True) == found
    scanned = scan_cache_dir(cache)
    assert scanned.warnings == []
    (repo,) = scanned.repos
    assert (repo.repo_id, repo.size_on_disk, set(repo.refs)) == (MODEL, TOTAL, {"main"})


def test_the_library_fetches_nothing_again(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = setup.arrives()
    found = snapshot_download(MODEL, cache_dir=setup.cache, endpoint=setup.hub.endpoint)
    assert found == str(snapshot)
    assert setup.hub.sent_bytes == TOTAL


def test_files_in_other_formats_are_left_out_and_not_missed(make: Callable[..., Setup]) -> None:
    setup = make({**FILES, "pytorch_model.bin": b"x" * 9000, "onnx/model.onnx": b"y"})
    snapshot = setup.fetch()
    assert {path.name for path in snapshot.iterdir()} == set(FILES)
    assert setup.hub.sent_bytes == TOTAL
    assert snapshot_download(MODEL, cache_dir=setup.cache, local_files_only=True) == str(snapshot)


def test_a_file_system_without_links(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "symlink_to", refuse)
    snapshot = setup.fetch()
    assert (snapshot / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert not (snapshot / WEIGHTS).is_symlink()
    assert setup.downloads().complete(MODEL) == snapshot


# --- from other programs ------------------------------------------------------------------


def test_a_half_snapshot_of_another_program_is_completed(setup: Setup) -> None:
    for path in (WEIGHTS, "config.json"):
        hf_hub_download(MODEL, path, cache_dir=setup.cache, endpoint=setup.hub.endpoint)
    assert setup.downloads().complete(MODEL) is None
    sent = setup.hub.sent_bytes
    setup.arrives()
    assert setup.hub.sent_bytes - sent == len(FILES["tokenizer.json"])


def test_and_not_trusted(setup: Setup) -> None:
    """The library takes wrong bytes of the right length for the file."""
    setup.hub.fault(WEIGHTS, "corrupt", at=7, times=2)  # its HEAD, and its GET
    got = hf_hub_download(MODEL, WEIGHTS, cache_dir=setup.cache, endpoint=setup.hub.endpoint)
    assert Path(got).read_bytes() != FILES[WEIGHTS]
    setup.arrives()
    (bad,) = (setup.root / "shammah" / "quarantine").iterdir()
    assert bad.name == hashlib.sha256(FILES[WEIGHTS]).hexdigest()
    assert bad.read_bytes() != FILES[WEIGHTS]


# --- complete -----------------------------------------------------------------------------


def test_a_complete_model_needs_no_connection(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = setup.arrives()
    attempts: list[Any] = []

    def refuse(address: Any, *_rest: Any, **_options: Any) -> socket.socket:
        attempts.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    downloads = setup.downloads()
    assert downloads.complete(MODEL) == snapshot
    assert downloads.fetch(MODEL) == snapshot
    assert downloads.fetch(MODEL, snapshot.name) == snapshot
    assert downloads.verify(MODEL, hashes=True) == []
    assert attempts == []


@pytest.mark.parametrize("last", ["trees", "refs", "manifest"])
def test_the_manifest_comes_last(setup: Setup, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Whatever is the last small file that could be written, no half snapshot is complete."""
    real = RepositoryCache.write

    def full(self: RepositoryCache, path: Path, text: str) -> None:
        if path.parent.name == last or (last == "manifest" and path.parent == self.own):
            raise OSError(28, "No space left on device")
        real(self, path, text)

    monkeypatch.setattr(RepositoryCache, "write", full)
    setup.fails("disk_full")
    monkeypatch.undo()
    sent = setup.hub.sent_bytes
    setup.arrives()
    assert setup.hub.sent_bytes == sent


def test_after_a_power_failure_files_are_hashed_but_not_fetched(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starts(system: str) -> None:
        for module in (manifests, transfers):
            monkeypatch.setattr(module, "boot_id", lambda: system)

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    starts("before")
    with monkeypatch.context() as broken:
        broken.setattr(transfers, "sync_file", fail)
        snapshot = setup.fetch()
    asked = len(setup.hub.asked)
    unsettled = manifest_path(snapshot).read_text()
    assert json.loads(unsettled)["unsynced_boot"] == "before"
    assert setup.downloads().complete(MODEL) == snapshot
    starts("after")
    assert setup.downloads().complete(MODEL) is None
    assert setup.downloads().fetch(MODEL) == snapshot
    assert len(setup.hub.asked) == asked
    (snapshot / WEIGHTS).resolve().write_bytes(bytes(len(FILES[WEIGHTS])))
    manifest_path(snapshot).write_text(unsettled)
    setup.arrives()
    assert setup.hub.sent[WEIGHTS] == 2 * len(FILES[WEIGHTS])


def test_a_manifest_is_settled_when_the_disk_has_the_files(setup: Setup) -> None:
    downloads = setup.downloads()
    snapshot = downloads.fetch(MODEL)
    downloads.close()
    assert "unsynced_boot" not in json.loads(manifest_path(snapshot).read_text())


# --- plan, verify, repair -----------------------------------------------------------------


def test_a_plan_counts_what_is_there(setup: Setup) -> None:
    downloads = setup.downloads()
    plan = downloads.plan(MODEL, config=False)
    assert (plan.total, plan.missing, plan.licence) == (TOTAL, TOTAL, "apache-2.0")
    assert plan.revision == setup.hub.main
    assert plan.disk_free > TOTAL
    assert setup.hub.sent_bytes == 0
    downloads.fetch(MODEL)
    assert downloads.plan(MODEL, config=False).missing == 0


def test_damage_is_found_and_that_file_alone_is_fetched(setup: Setup) -> None:
    snapshot = setup.arrives()
    downloads = setup.downloads()
    blob = (snapshot / WEIGHTS).resolve()
    damaged = bytearray(FILES[WEIGHTS])
    damaged[1000] ^= 1
    blob.write_bytes(damaged)
    (snapshot / "config.json").resolve().unlink()
    assert downloads.verify(MODEL, hashes=False) == [BadFile("config.json", "missing")]
    bad = [BadFile("config.json", "missing"), BadFile(WEIGHTS, "hash")]
    assert downloads.verify(MODEL, hashes=True) == bad
    sent, asked = setup.hub.sent_bytes, len(setup.hub.asked)
    during: list[Path | None] = []
    repair = downloads.repair(
        MODEL, on_progress=lambda _progress: during.append(downloads.complete(MODEL))
    )
    assert set(during) == {None}
    assert (repair.snapshot, list(repair.bad)) == (snapshot, bad)
    setup.check_whole(snapshot)
    assert setup.hub.sent_bytes - sent == len(FILES[WEIGHTS]) + len(FILES["config.json"])
    assert {request.path for request in setup.hub.asked[asked:]} == {WEIGHTS, "config.json"}
    assert (setup.root / "shammah" / "quarantine" / blob.name).read_bytes() == damaged
    assert downloads.repair(MODEL).bad == ()


def test_a_repair_that_fails_leaves_no_complete_model(setup: Setup) -> None:
    snapshot = setup.arrives()
    (snapshot / WEIGHTS).resolve().write_bytes(b"short")
    setup.hub.fault(WEIGHTS, "status", status=403, times=None)
    with pytest.raises(ShammahError) as caught:
        setup.downloads().repair(MODEL)
    assert caught.value.code == "hub_forbidden"
    assert setup.downloads().complete(MODEL) is None
    setup.hub.heal()
    setup.arrives()


def test_nothing_can_be_verified_that_was_not_fetched(setup: Setup) -> None:
    with pytest.raises(ShammahError) as caught:
        setup.downloads().verify(MODEL, hashes=False)
    assert caught.value.code == "model_not_cached"


# --- making room --------------------------------------------------------------------------


def test_shared_blobs_are_counted_and_removed_once(setup: Setup) -> None:
    first = setup.arrives()
    weights = random.Random(5).randbytes(50_000)
    setup.hub.publish({**FILES, WEIGHTS: weights})
    second = setup.downloads().fetch(MODEL, update=True)
    (model,), size = caches.list_models(setup.cache)
    assert model.model == MODEL
    assert model.size == size == TOTAL + len(weights)
    assert set(model.revisions) == {first.name, second.name}
    assert model.verified
    assert caches.remove_model(setup.cache, MODEL, "main") == len(weights)
    setup.check_whole(first)
    assert setup.downloads().complete(MODEL) is None
    assert caches.remove_model(setup.cache, MODEL) == TOTAL
    assert caches.list_models(setup.cache) == ((), 0)
    assert not setup.root.exists()


@pytest.mark.parametrize("revision", [None, "main", "f" * 40])
def test_what_is_not_there_cannot_be_removed(setup: Setup, revision: str | None) -> None:
    if revision == "f" * 40:
        setup.arrives()
    with pytest.raises(ShammahError) as caught:
        caches.remove_model(setup.cache, MODEL, revision)
    assert caught.value.code == "model_not_cached"


def test_a_revision_can_be_named_as_the_list_shows_it(setup: Setup) -> None:
    snapshot = setup.arrives()
    assert caches.remove_model(setup.cache, MODEL, snapshot.name[:8]) == TOTAL
    assert not snapshot.exists()


def test_an_unfinished_download_is_listed_and_removed(setup: Setup) -> None:
    setup.hub.fault(WEIGHTS, "reset", at=40_000, times=4)
    setup.hub.fault(WEIGHTS, "status", status=403, times=None)
    setup.fails("hub_forbidden")
    (model,), _size = caches.list_models(setup.cache)
    assert model.unfinished >= 40_000
    assert not model.verified
    assert caches.remove_model(setup.cache, MODEL) > 40_000
    assert not setup.root.exists()


def test_a_damaged_cache_can_still_be_listed_and_removed(setup: Setup) -> None:
    snapshot = setup.arrives()
    (snapshot / WEIGHTS).resolve().unlink()
    (model,), _size = caches.list_models(setup.cache)
    assert not model.verified
    with pytest.raises(ShammahError) as caught:
        caches.remove_model(setup.cache, MODEL, "main")
    assert caught.value.code == "cache_error"
    caches.remove_model(setup.cache, MODEL)
    assert not setup.root.exists()


def test_old_remains_are_swept_and_the_rest_is_not(setup: Setup) -> None:
    snapshot = setup.arrives()
    # Whose drafts would be old remains in the year of this test.
    until(lambda: "unsynced" not in manifests.manifest_path(snapshot).read_text(), "it has settled")
    now_s = 2_000_000_000.0
    parts = setup.root / "shammah" / "parts"
    orphan, fresh = setup.root / "blobs" / "aa.1234abcd.incomplete", parts / "bb.part"
    old, busy = parts / "cc.part", parts / "dd.part"
    for path, days in ((orphan, 2.0), (fresh, 2.0), (old, 20.0), (busy, 20.0)):
        path.write_bytes(b"x" * 5000)
        age(path, days, now_s)
    for blob in (setup.root / "blobs").iterdir():
        age(blob, 100.0, now_s)
    with RepositoryCache(setup.cache, MODEL).try_lock("dd") as held:
        assert held
        swept = caches.sweep(setup.cache, now_s)
    assert set(swept.paths) == {orphan, old}
    assert swept.size >= 10_000
    assert fresh.exists()
    fresh.unlink()
    busy.unlink()
    setup.check_whole(snapshot)


def test_an_empty_cache_has_nothing(tmp_path: Path) -> None:
    assert caches.list_models(tmp_path / "none") == ((), 0)
    assert caches.sweep(tmp_path / "none", 0.0).paths == ()
