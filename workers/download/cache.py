"""What is in the cache, and making room in it. No network."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.errors import CacheNotFound

from shammah.bus.transfers import CachedModel
from shammah.errors import ShammahError
from shammah.models.gguf_files import ENDING, is_model_file, part_names
from workers.download.layout import RepositoryCache
from workers.listing import CONFIG
from workers.manifest import is_complete, manifest_path

DAY_S = 86_400.0

_PREFIX = "models--"


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was removed; ``size`` in bytes."""

    paths: tuple[Path, ...]
    size: int


def list_models(cache: Path) -> tuple[tuple[CachedModel, ...], int]:
    """Every model in the cache, whichever program put it there, in the order of their names; and
    the bytes of them all, what they share counted once."""
    sizes: dict[tuple[int, int], int] = {}
    models = []
    for repository in _repositories(cache):
        own: dict[tuple[int, int], int] = {}
        snapshots = _children(repository.root / "snapshots")
        for snapshot in snapshots:
            own.update(_sizes(snapshot))
        unfinished = sum(_sizes(repository.parts, allocated=True).values())
        if snapshots or unfinished:
            sizes.update(own)
            revisions = tuple(snapshot.name for snapshot in snapshots)
            whole = any(map(is_complete, snapshots))
            size = sum(own.values())
            files = list(_gguf_models(repository, snapshots))
            rest = any((one / CONFIG).exists() for one in snapshots) or unfinished or not files
            if rest:
                model_id = repository.model_id
                models.append(CachedModel(model_id, revisions, size, whole, unfinished))
            models += files
    return tuple(models), sum(sizes.values())


def _gguf_models(repository: RepositoryCache, snapshots: list[Path]) -> Iterator[CachedModel]:
    """Every GGUF file of a repository is a model."""
    held: dict[str, list[Path]] = {}
    for snapshot in snapshots:
        for path in sorted(snapshot.rglob(f"*{ENDING}")):
            file = path.relative_to(snapshot).as_posix()
            if is_model_file(file):
                held.setdefault(file, []).append(snapshot)
    for file, within in held.items():
        sizes: dict[tuple[int, int], int] = {}
        for part in (snapshot / name for snapshot in within for name in part_names(file)):
            with contextlib.suppress(OSError):
                facts = part.stat()
                sizes[facts.st_dev, facts.st_ino] = facts.st_size
        whole = any(is_complete(snapshot / file) for snapshot in within)
        revisions = tuple(snapshot.name for snapshot in within)
        yield CachedModel(f"{repository.model_id}:{file}", revisions, sum(sizes.values()), whole)


def remove_model(cache: Path, model_id: str, revision: str | None = None) -> int:
    """Remove a model, or one revision of it; what other revisions share with it stays.

    No download of the model may be running.

    Returns:
        The bytes that became free.

    Raises:
        ShammahError: ``model_not_cached`` or ``cache_error``.
    """
    repository = RepositoryCache(cache, model_id)
    snapshots = _children(repository.root / "snapshots")
    revisions = [one.name for one in snapshots if repository.package(one.name).exists()]
    size = list_models(cache)[1]
    unfinished = 0 if repository.file else sum(_sizes(repository.parts, allocated=True).values())
    commit = None if revision is None else repository.resolve(revision)
    if revision and commit is None:  # as the list shows it
        begin_so = [one for one in revisions if one.startswith(revision)]
        commit = begin_so[0] if len(begin_so) == 1 else None
    doomed = [found for found in revisions if revision is None or found == commit]
    if not doomed and (revision is not None or not unfinished):
        what = model_id if revision is None else f"{model_id} at {revision}"
        message = f"{what} is not in the cache."
        raise ShammahError("model_not_cached", message, "`shammah models list` shows what is.")
    for commit in doomed:  # first, so that nobody takes a half removed snapshot for a whole one
        manifest_path(repository.package(commit)).unlink(missing_ok=True)
        if not repository.file:
            for manifest in repository.own.glob(f"{commit}-*.json"):
                manifest.unlink(missing_ok=True)
            (repository.root / "trees" / f"{commit}.json").unlink(missing_ok=True)
    if repository.file:
        _remove_file(repository, doomed)
    else:
        _remove_revisions(repository, doomed, whole=revision is None)
    freed = size - list_models(cache)[1]
    return freed + (unfinished if not repository.root.exists() else 0)


def sweep(
    cache: Path, now_s: float, *, orphan_age_s: float = DAY_S, part_age_s: float = 14 * DAY_S
) -> Sweep:
    """Remove what interrupted downloads have left behind.

    Args:
        cache: its directory.
        now_s: seconds since 1970.
        orphan_age_s: the library's ``.incomplete`` files, which nobody ever takes up again,
            and our drafts, when they have not been written to for so long.
        part_age_s: the same for our unfinished and quarantined files.
    """
    removed, size = [], 0
    for repository in _repositories(cache):
        orphans = [*repository.blobs.glob("*.incomplete"), *repository.drafts.glob("*")]
        kept = [*repository.parts.glob("*"), *repository.quarantine_directory.glob("*")]
        aged = [(path, orphan_age_s) for path in orphans] + [(path, part_age_s) for path in kept]
        for path, age_s in aged:
            # The name begins with the etag, and its writer holds that lock.
            # A draft may be done with meanwhile.
            etag = path.name.partition(".")[0]
            with contextlib.suppress(FileNotFoundError), repository.try_lock(etag) as free:
                found = path.stat()
                if free and now_s - found.st_mtime >= age_s:
                    path.unlink()
                    removed.append(path)
                    size += found.st_blocks * 512
    return Sweep(tuple(removed), size)


def _remove_file(repository: RepositoryCache, commits: list[str]) -> None:
    """Remove one model in GGUF, but no bytes that something else in the repository leads to."""
    parts = [
        repository.snapshot(commit) / name
        for commit in commits
        for name in part_names(repository.file)
    ]
    blobs = {path.resolve() for path in parts}
    for path in parts:
        path.unlink(missing_ok=True)
    kept, snapshots = set(), _children(repository.root / "snapshots")
    for snapshot in snapshots:
        files = {path.resolve() for path in snapshot.rglob("*") if not path.is_dir()}
        kept |= files
        if not files:
            shutil.rmtree(snapshot, ignore_errors=True)
    for blob in blobs - kept:
        blob.unlink(missing_ok=True)
    if not kept and not any(repository.parts.glob("*")):
        shutil.rmtree(repository.root, ignore_errors=True)


def _remove_revisions(repository: RepositoryCache, commits: list[str], *, whole: bool) -> None:
    # The library knows which blobs other revisions need, and about those shared by models.
    try:
        scanned = scan_cache_dir(repository.cache)
    except CacheNotFound:
        return
    if any(repo.repo_path == repository.root for repo in scanned.repos):
        scanned.delete_revisions(*commits).execute()
    elif not whole:
        message = (
            f"The cache of {repository.model_id} is damaged, so single revisions cannot be removed."
        )
        raise ShammahError("cache_error", message, "Remove the whole model.")
    if whole:
        shutil.rmtree(repository.root, ignore_errors=True)


def _repositories(cache: Path) -> Iterator[RepositoryCache]:
    for path in _children(cache):
        if path.name.startswith(_PREFIX):
            yield RepositoryCache(cache, path.name.removeprefix(_PREFIX).replace("--", "/"))


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir())
    except OSError:
        return []


def _sizes(directory: Path, *, allocated: bool = False) -> dict[tuple[int, int], int]:
    """Bytes by file, links followed; ``allocated``: those on the disk, without holes."""
    found: dict[tuple[int, int], int] = {}
    for root, _directories, names in os.walk(directory):
        for name in names:
            try:
                facts = os.stat(os.path.join(root, name))
            except OSError:
                continue  # a link to a blob that is gone
            size = facts.st_blocks * 512 if allocated else facts.st_size
            found[facts.st_dev, facts.st_ino] = size
    return found
