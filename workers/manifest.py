"""What makes a snapshot whole: a manifest that matches the disk. Standard library only.

It is stored next to the snapshot (``<repository>/shammah/<commit>.json``), which stays as the
library made it, and is written last. A GGUF file, of which a repository often holds many, has one
of its own: wherever a snapshot is asked for here, such a file within one may be, too.

Files that have just been written may still be lost in a power failure, sizes and all. Until the
disk has them, the manifest carries the id of the running system: after a restart it counts for
nothing, and the files are hashed again.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from shammah.bus.record import record
from workers.listing import RemoteFile, RepositoryListing

FORMAT = 1

_SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})/")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@record
class Manifest:
    """The files of a verified snapshot. ``unsynced_boot``: they may not have reached the disk
    when the system with this id stops; empty: they have."""

    listing: RepositoryListing
    unsynced_boot: str = ""


def snapshot_of(package: Path) -> Path:
    """The snapshot itself, if ``package`` is a file in it."""
    for parent in package.parents[:2]:
        if parent.parent.name == "snapshots" and parent.parent.parent.name.startswith("models--"):
            return parent
    return package


def commit_of(path: Path) -> str:
    """The commit of the snapshot that a directory or a file lies in; empty: in none."""
    found = _SNAPSHOT.search(f"{path.absolute().as_posix()}/")
    return found[1] if found else ""


def manifest_path(snapshot: Path) -> Path:
    """Where the manifest of ``<repository>/snapshots/<commit>`` is, or of a file there."""
    root = snapshot_of(snapshot)
    file = "" if root == snapshot else f"-{quote(str(snapshot.relative_to(root)), safe=' ')}"
    return root.parent.parent / "shammah" / f"{root.name}{file}.json"


def is_complete(snapshot: Path) -> bool:
    """Whether every file of the manifest is there with its size: a model that may be loaded."""
    manifest = read_manifest(snapshot)
    return manifest is not None and is_settled(manifest) and not wrong_sizes(snapshot, manifest)


def is_settled(manifest: Manifest) -> bool:
    """Whether no power failure lies between the download and now that could have undone it."""
    return manifest.unsynced_boot in ("", boot_id())


def wrong_sizes(snapshot: Path, manifest: Manifest) -> list[RemoteFile]:
    """The files that are missing or have another size."""
    root = snapshot_of(snapshot)
    return [file for file in manifest.listing.files if _size(root / file.path) != file.size]


def read_manifest(snapshot: Path) -> Manifest | None:
    """``None``: there is none, or none that can be understood."""
    return read_manifest_file(manifest_path(snapshot))


def read_manifest_file(path: Path) -> Manifest | None:
    """The same for what is in ``path``."""
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            return None
        files = tuple(_file(path, facts) for path, facts in document["files"].items())
        listing = RepositoryListing(
            document["model"], document["revision"], document["licence"], files
        )
        return Manifest(listing, document.get("unsynced_boot", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def dump_manifest(manifest: Manifest) -> str:
    """The text that `read_manifest` reads."""
    listing = manifest.listing
    files = {}
    for file in listing.files:
        hashes = {"sha256": file.sha256, "git_sha1": file.git_sha1}
        files[file.path] = {"size": file.size, **{k: v for k, v in hashes.items() if v}}
    document = {
        "format": FORMAT,
        "model": listing.model_id,
        "revision": listing.revision,
        "licence": listing.licence,
        "files": files,
    }
    if manifest.unsynced_boot:
        document["unsynced_boot"] = manifest.unsynced_boot
    return json.dumps(document, indent=2) + "\n"


def boot_id() -> str:
    """Another one after every start of the system; empty where there is no such thing."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _file(path: str, facts: dict[str, Any]) -> RemoteFile:
    return RemoteFile(path, facts["size"], facts.get("sha256"), facts.get("git_sha1"))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
