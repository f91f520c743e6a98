"""What of a snapshot is on the disk, and whether it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shammah.bus.transfers import BadFile, FetchPlan, PlannedFile
from workers.download import failures
from workers.download.blobs import is_right
from workers.download.layout import RepositoryCache
from workers.download.part import held_bytes
from workers.listing import RepositoryListing
from workers.manifest import Manifest, is_settled, read_manifest_file


def make_plan(repository: RepositoryCache, listing: RepositoryListing) -> FetchPlan:
    """What is missing of ``listing``. Blobs on the disk count by their size."""
    files = tuple(
        PlannedFile(file.path, file.size, _held(repository, listing, index))
        for index, file in enumerate(listing.files)
    )
    return FetchPlan(
        "",
        listing.model_id,
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
        manifest = read_manifest_file(path)
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
