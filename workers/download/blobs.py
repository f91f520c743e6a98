"""The files of one snapshot: taken over if they are right, else put there."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from workers.download.layout import RepositoryCache
from workers.download.part import Part, hash_range, part_paths
from workers.listing import RemoteFile, RepositoryListing


class BlobStore:
    """Where a transfer puts its files.

    Args:
        repository: in the cache.
        listing: the model, the commit and the files.
        trusted: etags whose blobs have been verified before; the others are hashed.
    """

    def __init__(
        self, repository: RepositoryCache, listing: RepositoryListing, trusted: Collection[str]
    ) -> None:
        self.repository = repository
        self.listing = listing
        self._trusted = trusted

    def has(self, file: RemoteFile) -> bool:
        """Whether there is a blob of that name, right or wrong."""
        return self.repository.blob(file).is_file()

    def adopt(self, file: RemoteFile, check: Callable[[], None]) -> bool:
        """Link a blob that is there and right; put one that is wrong into quarantine.

        Returns:
            Whether the file is in the snapshot now.
        """
        if not self.has(file):
            return False
        blob = self.repository.blob(file)
        trusted = file.etag in self._trusted and blob.stat().st_size == file.size
        if trusted or is_right(blob, file, check):
            self.repository.link(file, self.listing.revision)
            for left in part_paths(self.repository.parts, file):  # by whom was killed meanwhile
                left.unlink(missing_ok=True)
            return True
        self.repository.quarantine(blob)
        return False

    @contextlib.contextmanager
    def part(self, file: RemoteFile, segment_bytes: int) -> Iterator[Part]:
        """The unfinished file, kept on the disk if it is not `accept`-ed."""
        part = Part(self.repository.parts, file, segment_bytes)
        try:
            yield part
        finally:
            part.close()

    def accept(self, file: RemoteFile, part: Part) -> None:
        """Make a verified part a blob of the snapshot."""
        part.move_to(self.repository.blob(file))
        self.repository.link(file, self.listing.revision)


def is_right(path: Path, file: RemoteFile, check: Callable[[], None] = lambda: None) -> bool:
    """Whether a file has the size and the hash it should have.

    ``check`` is called now and then, and may raise.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(fd).st_size
        if size != file.size:
            return False
        digest = file.digest()
        hash_range(fd, 0, size, digest.update, check)
        return digest.hexdigest() == file.etag
    finally:
        os.close(fd)
