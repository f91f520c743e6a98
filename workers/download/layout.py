"""The Hugging Face cache of one repository, and what Shammah stores next to it.

::

    <cache>/.locks/models--OWNER--NAME/<etag>.lock
    <cache>/models--OWNER--NAME/
        blobs/<etag>                    the content
        snapshots/<commit>/<path>       -> ../../blobs/<etag>
        refs/<branch or tag>            the commit
        trees/<commit>.json             what the whole repository holds (the library's)
        shammah/<commit>.json           our manifest: this snapshot is whole
        shammah/<commit>-<file>.json    the same for a GGUF file in it
        shammah/parts/                  unfinished files
        shammah/drafts/                 small files for a moment, before they take their place
        shammah/quarantine/             damaged ones
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # lazily exported

from shammah.models.gguf_files import part_names
from workers.listing import RemoteFile, RepositoryListing

LOCK_TURN_S = 0.5
"""How often somebody who waits for a lock looks whether the download is still wanted."""

_CACHEDIR_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n"
_TREE_FORMAT = 1


class RepositoryCache:
    """Paths and atomic changes of one repository in the cache.

    Args:
        cache: its directory.
        model_id: owner/name, or owner/name:FILE.gguf for one model in GGUF among several.
    """

    def __init__(self, cache: Path, model_id: str) -> None:
        self.cache = cache
        self.model_id, _, file = model_id.partition(":")
        self.file = part_names(file)[0]
        self.name = f"models--{self.model_id.replace('/', '--')}"
        self.root = cache / self.name
        self.blobs = self.root / "blobs"
        self.own = self.root / "shammah"
        self.parts = self.own / "parts"
        self.drafts = self.own / "drafts"
        self.quarantine_directory = self.own / "quarantine"

    def blob(self, file: RemoteFile) -> Path:
        return self.blobs / file.etag

    def snapshot(self, revision: str) -> Path:
        return self.root / "snapshots" / revision

    def package(self, revision: str) -> Path:
        """The model: the snapshot, or the GGUF file in it."""
        return self.snapshot(revision) / self.file

    def prepare(self, revision: str) -> None:
        """Make the directories that a download writes to."""
        self.cache.mkdir(parents=True, exist_ok=True)
        tag = self.cache / "CACHEDIR.TAG"
        if not tag.exists():  # backups leave out directories with this file
            tag.write_text(_CACHEDIR_TAG)
        for directory in (self.blobs, self.snapshot(revision), self.parts):
            directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def lock(self, etag: str, check: Callable[[], None]) -> Iterator[None]:
        """Hold the library's own lock on a blob, so that nobody else fetches it meanwhile.

        ``check`` is called while waiting, and may raise.
        """
        while True:
            check()
            with self.try_lock(etag) as held:
                if held:
                    yield
                    return

    @contextlib.contextmanager
    def try_lock(self, etag: str) -> Iterator[bool]:
        """Hold the lock on a blob, or say (after `LOCK_TURN_S`) that somebody else does."""
        path = self.cache / ".locks" / self.name / f"{etag}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(WeakFileLock(path, timeout=LOCK_TURN_S))
                held = True
            except TimeoutError:
                held = False
            yield held

    def link(self, file: RemoteFile, revision: str) -> None:
        """Let the snapshot's path lead to the blob."""
        path = self.snapshot(revision) / file.path
        blob = self.blob(file)
        target = os.path.relpath(blob, path.parent)
        if path.is_symlink() and os.readlink(path) == target:
            return
        with self._draft(path) as draft:
            try:
                draft.symlink_to(target)
            except OSError:  # a file system without links
                shutil.copyfile(blob, draft)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch or tag named when it was last fetched."""
        if re.fullmatch(r"[0-9a-f]{40}", revision):
            return revision
        try:
            return (self.root / "refs" / revision).read_text().strip() or None
        except OSError:
            return None

    def write_ref(self, name: str, revision: str) -> None:
        """Remember which commit a branch or tag names."""
        if name != revision:
            self.write(self.root / "refs" / name, revision)

    def write_tree(self, listing: RepositoryListing) -> None:
        """Tell other programs what the whole repository holds, in the library's form."""
        files = {}
        for file in sorted(listing.files, key=lambda file: file.path):
            files[file.path] = {"size": file.size, "blob_id": file.git_sha1}
            if file.sha256:
                files[file.path] |= {"lfs_sha256": file.sha256, "lfs_size": file.size}
            if file.xet_hash:
                files[file.path]["xet_hash"] = file.xet_hash
        document = {"format_version": _TREE_FORMAT, "files": files}
        path = self.root / "trees" / f"{listing.revision}.json"
        self.write(path, json.dumps(document, indent=1))

    def quarantine(self, blob: Path) -> Path:
        """Put a damaged blob where nobody takes it for a good one."""
        self.quarantine_directory.mkdir(parents=True, exist_ok=True)
        target = self.quarantine_directory / blob.name
        os.replace(blob, target)
        return target

    def write(self, path: Path, text: str) -> None:
        """Write a small file so that every reader sees the old or the new one, whole."""
        with self._draft(path) as draft:
            draft.write_text(text)

    @contextlib.contextmanager
    def _draft(self, path: Path) -> Iterator[Path]:
        """A new name; what is made there takes the place of ``path`` at the end."""
        # Elsewhere, since other programs read everything in refs/ and snapshots/.
        self.drafts.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.drafts / uuid.uuid4().hex
        try:
            yield draft
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)
