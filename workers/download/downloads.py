"""What this package does for the service: fetch, plan, verify, repair."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shammah.bus import transfers
from shammah.errors import ShammahError
from shammah.storage.files import sync_file
from workers.download import failures
from workers.download.blobs import BlobStore
from workers.download.config_text import config_text
from workers.download.control import Control
from workers.download.hub import Hub
from workers.download.layout import RepositoryCache
from workers.download.limits import Limits
from workers.download.progress import Meter
from workers.download.rates import Rates
from workers.download.slots import Slots
from workers.download.snapshot import make_plan, trusted_etags, verify_snapshot
from workers.download.transfer import Environment, Transfer
from workers.listing import RepositoryListing, check_names, needed
from workers.manifest import (
    Manifest,
    boot_id,
    dump_manifest,
    is_complete,
    is_settled,
    manifest_path,
    read_manifest,
    snapshot_of,
)

Observer = Callable[[transfers.Transfer], None]


@dataclass(frozen=True, slots=True)
class Repair:
    """``bad`` is what was wrong before; ``snapshot`` is whole now."""

    snapshot: Path
    bad: tuple[transfers.BadFile, ...]


class Downloads:
    """Fetches models into the Hugging Face cache. Every method may be called from any thread.

    Args:
        cache: the cache's directory.
        limits: of time, numbers and space.
        endpoint: the Hub's address; ``None``: HF_ENDPOINT, or the public one.
        token: a Hub token; ``None``: the one that huggingface_hub finds, ``False``: none.
        rates: where the rate is remembered; ``None``: nowhere.
        clock: seconds, never going back.
        wall: seconds since 1970.
        jitter: evenly between 0 and 1.
    """

    def __init__(
        self,
        cache: Path,
        limits: Limits | None = None,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        rates: Rates | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        limits = limits or Limits()
        self._cache = cache
        self._limits = limits
        self._clock = clock
        self._rates = rates
        self._hub = Hub(limits, jitter, endpoint=endpoint, token=token, wall=wall)
        self._environment = Environment(limits, Slots(limits.connections), jitter, wall)
        self._settling: list[threading.Thread] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        """Wait until the disk has what was fetched (seconds), and close the connections.

        Downloads must have ended.
        """
        for thread in self._settling:
            thread.join()
        self._hub.close()

    # --- looking --------------------------------------------------------------------------

    def complete(self, model_id: str, revision: str = "main") -> Path | None:
        """The verified snapshot, if it is there. No network, a few milliseconds."""
        repository = self._repository(model_id, revision)
        commit = repository.resolve(revision)
        if commit is None or not is_complete(repository.package(commit)):
            return None
        return repository.package(commit)

    def plan(
        self,
        model_id: str,
        revision: str = "main",
        *,
        update: bool = False,
        config: bool = True,
    ) -> transfers.FetchPlan:
        """What `fetch` would do; with ``config`` the text of config.json, too (`config_text`).

        No network if the model is whole here, unless to ``update``.

        Raises:
            ShammahError: see `failures`.
        """
        repository = self._repository(model_id, revision)
        here = None if update else self.complete(model_id, revision)
        manifest = read_manifest(here) if here is not None else None
        if manifest is not None:
            listing = manifest.listing
        else:
            found = self._hub.listing(repository.model_id, revision, Control())
            listing = needed(found, repository.file)
        text = config_text(repository, listing, self._hub) if config else ""
        reserve, rate = self._limits.disk_reserve, self.last_rate
        plan = make_plan(repository, listing)
        return replace(plan, disk_reserve=reserve, config=text, rate=rate)

    @property
    def last_rate(self) -> float:
        """Bytes per second that this Hub was last measured with; 0: never."""
        return self._rates.last(self._hub.endpoint) if self._rates else 0.0

    def verify(
        self,
        model_id: str,
        revision: str = "main",
        *,
        hashes: bool,
        control: Control | None = None,
    ) -> list[transfers.BadFile]:
        """The files that are not as they should be. No network.

        Args:
            model_id: which model.
            revision: a branch, a tag or a commit.
            hashes: read every byte (seconds per gigabyte); otherwise only the sizes.
            control: to pause or cancel it.

        Raises:
            ShammahError: ``model_not_cached``: it was never fetched to its end.
        """
        control = control or Control()
        repository = self._repository(model_id, revision)
        package, manifest = self._manifest(repository, revision)
        if package is None or manifest is None:
            raise ShammahError(
                "model_not_cached",
                f"{model_id} has not been downloaded by Shammah (there is no manifest).",
                f"Run `shammah models pull {model_id}`; it checks and keeps files that are already "
                "there.",
            )
        return verify_snapshot(
            snapshot_of(package), manifest, hashes=hashes, check=lambda: control.check(model_id)
        )

    # --- doing ----------------------------------------------------------------------------

    def fetch(
        self,
        model_id: str,
        revision: str = "main",
        *,
        priority: int = 0,
        on_progress: Observer | None = None,
        control: Control | None = None,
        update: bool = False,
        force: bool = False,
    ) -> Path:
        """Make the model whole on this disk; takes as long as it takes.

        Args:
            model_id: owner/name, or owner/name:FILE.gguf for that file and its further parts.
            revision: a branch, a tag or a commit.
            priority: over other downloads; higher is more urgent.
            on_progress: gets snapshots, at most five a second; must be quick.
            control: to pause, resume or cancel, from another thread.
            update: ask the Hub whether the branch has moved even if the model is here.
            force: begin even if the disk looks too small.

        Returns:
            The snapshot's directory (or the GGUF file), every file of it verified.

        Raises:
            ShammahError: see `failures`. Partial downloads are kept.
        """
        control = control or Control()
        repository = self._repository(model_id, revision)
        if not update:
            here = self.complete(model_id, revision) or self._recover(repository, revision, control)
            if here is not None:
                return here
        teller = _teller(on_progress, model_id)
        listing = self._hub.listing(repository.model_id, revision, control, teller)
        control.check(model_id)
        wanted = needed(listing, repository.file)
        with self._disk_errors():
            trusted = trusted_etags(repository)
            store = BlobStore(repository, wanted, trusted)
            self._preflight(make_plan(repository, wanted), force=force)
            repository.prepare(wanted.revision)
            self._transfer(store, wanted, control, priority, on_progress)
            if len(wanted.files) == len(listing.files):
                # Where files are left out, the whole list would make the library call the
                # snapshot incomplete.
                repository.write_tree(listing)
            repository.write_ref(revision, wanted.revision)
            return self._declare_whole(repository, wanted)

    def repair(
        self,
        model_id: str,
        revision: str = "main",
        *,
        on_progress: Observer | None = None,
        control: Control | None = None,
    ) -> Repair:
        """Hash everything, put what is wrong into quarantine and fetch that alone again.

        Raises:
            ShammahError: see `verify` and `fetch`.
        """
        control = control or Control()
        bad = self.verify(model_id, revision, hashes=True, control=control)
        repository = self._repository(model_id, revision)
        package, manifest = self._manifest(repository, revision)
        if package is None or manifest is None:  # removed this moment
            raise failures.cancelled(model_id)
        if not bad:
            return Repair(package, ())
        listing = manifest.listing
        paths = {file.path for file in bad}
        damaged = RepositoryListing(
            listing.model_id,
            listing.revision,
            listing.licence,
            tuple(file for file in listing.files if file.path in paths),
        )
        with self._disk_errors():
            manifest_path(package).unlink(missing_ok=True)
            repository.prepare(listing.revision)
            store = BlobStore(repository, damaged, ())
            self._transfer(store, damaged, control, 0, on_progress)
            return Repair(self._declare_whole(repository, listing), tuple(bad))

    # --- inside ---------------------------------------------------------------------------

    def _repository(self, model_id: str, revision: str) -> RepositoryCache:
        repository = RepositoryCache(self._cache, model_id)
        check_names(repository.model_id, revision)
        return repository

    def _transfer(
        self,
        store: BlobStore,
        listing: RepositoryListing,
        control: Control,
        priority: int,
        on_progress: Observer | None,
    ) -> None:
        model_id, revision = listing.model_id, listing.revision
        expected = self.last_rate
        meter = Meter(
            model_id,
            revision,
            files=listing.files,
            observer=on_progress,
            clock=self._clock,
            expected=expected,
        )
        addresses = {
            file.path: self._hub.file_url(store.repository.model_id, revision, file.path)
            for file in listing.files
        }
        transfer = Transfer(
            store,
            addresses,
            headers=self._hub.headers(),
            environment=self._environment,
            control=control,
            priority=priority,
            meter=meter,
        )
        try:
            transfer.run()
        finally:
            if self._rates:
                self._rates.record(self._hub.endpoint, *meter.flow())
        meter.finish()

    def _preflight(self, plan: transfers.FetchPlan, *, force: bool) -> None:
        reserve = self._limits.disk_reserve
        if plan.missing and plan.disk_free - plan.missing < reserve and not force:
            raise failures.disk_full(self._cache, plan.missing, plan.disk_free, reserve)

    def _manifest(
        self, repository: RepositoryCache, revision: str
    ) -> tuple[Path | None, Manifest | None]:
        commit = repository.resolve(revision)
        if commit is None:
            return None, None
        package = repository.package(commit)
        return package, read_manifest(package)

    def _recover(self, repository: RepositoryCache, revision: str, control: Control) -> Path | None:
        """A snapshot that a power failure may have damaged, if it did not. No network."""
        package, manifest = self._manifest(repository, revision)
        if package is None or manifest is None or is_settled(manifest):
            return None
        model_id = manifest.listing.model_id
        bad = verify_snapshot(
            snapshot_of(package), manifest, hashes=True, check=lambda: control.check(model_id)
        )
        if bad:
            return None
        with self._disk_errors():
            return self._declare_whole(repository, manifest.listing)

    def _declare_whole(self, repository: RepositoryCache, listing: RepositoryListing) -> Path:
        """Write the manifest, and make sure in the background that the disk has the files."""
        package = repository.package(listing.revision)
        path = manifest_path(package)
        repository.write(path, dump_manifest(Manifest(listing, boot_id())))
        thread = threading.Thread(target=self._settle, args=(repository, listing), name="settle")
        with self._lock:
            thread.start()
            self._settling = [*filter(threading.Thread.is_alive, self._settling), thread]
        return package

    def _settle(self, repository: RepositoryCache, listing: RepositoryListing) -> None:
        snapshot = repository.snapshot(listing.revision)
        with contextlib.suppress(OSError):  # then the next start hashes the files
            for file in listing.files:
                sync_file(snapshot / file.path)
            sync_file(repository.blobs)
            package = repository.package(listing.revision)
            if read_manifest(package) == Manifest(listing, boot_id()):
                repository.write(manifest_path(package), dump_manifest(Manifest(listing)))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failures.describe_disk(error, self._cache, 0) from error


def _teller(on_progress: Observer | None, model_id: str) -> Callable[[str], None]:
    """Says what a download waits for of which nothing else is known yet."""

    def report(why: str) -> None:
        if on_progress is not None:
            on_progress(transfers.Transfer(model_id, detail=why))

    return report
