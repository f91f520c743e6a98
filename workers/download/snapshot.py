"""What of a snapshot is on the disk, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from workers.download import failures
from workers.download.blobs import is_right
from workers.download.layout import RepositoryCache
from workers.download.part import held_bytes
from workers.listing import RepositoryListing
from workers.manifest import Manifest, is_settled, read_manifest


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """One file of a plan: ``held`` of its ``size`` bytes are on the disk."""

    path: str
    size: int
    held: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What a download would do; all numbers are bytes.

    Attributes:
        model_id: of which model.
        revision: the commit.
        licence: as the repository names it; empty: it does not.
        total: of all files that are needed.
        missing: to be fetched.
        disk_free: where the cache is, now.
        files: each of them.
    """

    model_id: str
    revision: str
    licence: str
    total: int
    missing: int
    disk_free: int
    files: tuple[PlannedFile, ...]

    @property
    def disk_left(self) -> int:
        """Free bytes afterwards; negative: it does not fit."""
        return self.disk_free - self.missing


@dataclass(frozen=True, slots=True)
class BadFile:
    """``reason`` is ``missing``, ``size`` or ``hash``."""

    path: str
    reason: str


def make_plan(repository: RepositoryCache, listing: RepositoryListing) -> Plan:
    """What is missing of ``listing``. Blobs that are there count by their size."""
    files = tuple(
        PlannedFile(file.path, file.size, _held(repository, listing, index))
        for index, file in enumerate(listing.files)
    )
    return Plan(
        model_id=listing.model_id,
        revision=listing.revision,
        licence=listing.licence,
        total=listing.size,
        missing=sum(file.size - file.held for file in files),
        disk_free=failures.free_bytes(repository.cache),
        files=files,
    )


def verify_snapshot(
    snapshot: Path, manifest: Manifest, *, hashes: bool, check: Callable[[], None] = lambda: None
) -> list[BadFile]:
    """The files that are not as the manifest says.

    Args:
        snapshot: its directory.
        manifest: what should be there.
        hashes: read every byte; otherwise look at the sizes alone.
        check: called now and then, may raise.
    """
    bad = []
    for file in manifest.listing.files:
        path = snapshot / file.path
        try:
            size = path.stat().st_size
            if size != file.size:
                bad.append(BadFile(file.path, "size"))
            elif hashes and not is_right(path, file, check):
                bad.append(BadFile(file.path, "hash"))
        except FileNotFoundError:
            bad.append(BadFile(file.path, "missing"))
        except OSError:  # the disk cannot read it any more
            bad.append(BadFile(file.path, "hash"))
    return bad


def trusted_etags(repository: RepositoryCache) -> set[str]:
    """The blobs that a manifest vouches for."""
    found: set[str] = set()
    for path in repository.own.glob("*.json"):
        manifest = read_manifest(repository.snapshot(path.stem))
        if manifest is not None and is_settled(manifest):
            found.update(file.etag for file in manifest.listing.files)
    return found


def _held(repository: RepositoryCache, listing: RepositoryListing, index: int) -> int:
    file = listing.files[index]
    if any(other.etag == file.etag for other in listing.files[:index]):
        return file.size  # the same content again
    try:
        if repository.blob(file).stat().st_size == file.size:
            return file.size
    except OSError:
        pass
    return held_bytes(repository.parts, file)
