"""Keys and values of conversations on disk, so that one goes on where it was when its worker has
ended.

Each conversation has one file of each form (`kept_file`): erasing it is exact, and what two of them
share is found in either. The tokens themselves are compared, to the last one that is the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from shammah import __version__
from shammah.bus.record import record
from shammah.models.catalogue import GIB
from shammah.storage import kept
from workers.inference.engine import LoadSettings
from workers.inference.kept_file import (
    BLOCK,
    DamagedError,
    Header,
    read_blocks,
    read_header,
    write_kept,
)
from workers.inference.packages.checkpoint import CONFIG, Checkpoint, digest_of_files
from workers.inference.runner import KVAccess
from workers.inference.scheduling.slots import Slot, common

log = logging.getLogger(__name__)

RESERVE_BYTES = GIB
"""Of the disk, which stay free."""


class InterruptedWriteError(Exception):
    """Somebody asks something; what was begun is dropped."""


@record
class Found:
    """A file that has the first ``shared`` tokens of a prompt."""

    path: Path
    header: Header
    shared: int


class KeptConversations:
    """One model's, for one thread.

    Args:
        directory: of the files of all models.
        most_bytes: that all files together may take.
        model: the model and its weights, in a word.
        access: to the keys and values in memory.
    """

    def __init__(self, directory: Path, most_bytes: int, model: str, access: KVAccess) -> None:
        self.directory = directory
        self.most_bytes = most_bytes
        self.model = model
        self.access = access
        self._known: dict[str, dict[Path, Header]] = {}

    def prepare(self) -> None:
        """Have a directory to write to, and nothing in it that is of no use."""
        try:
            if self.most_bytes:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.directory.is_dir():
                kept.sweep(self.directory, time.time())
                self._room(0)
        except OSError as error:
            log.warning("conversations cannot be kept in %s: %s", self.directory, error)

    def find(self, prompt: Sequence[int], adapter: str, held: int) -> Found | None:
        """Return the file with the most of ``prompt``, if that is a block more than the ``held``
        tokens. Of the last token the logits are wanted, so it is computed in any case."""
        if len(prompt) <= held + BLOCK:
            return None
        every = self._headers(adapter)
        shared = {path: common(header.tokens, prompt) for path, header in every.items()}
        path = max(shared, key=shared.__getitem__, default=None)
        count = min(shared[path], len(prompt) - 1) if path is not None else 0
        if path is None or count < held + BLOCK:
            return None
        return Found(path, every[path], count)

    def read(self, found: Found, slot: int, held: int, adapter: str) -> bool:
        """Have the keys and values in ``slot``, which has the first ``held``; false: the file is
        gone or damaged, and what the slot holds after those is anything."""
        first, end = held // BLOCK, -(-found.shared // BLOCK)
        began = time.perf_counter()
        try:
            for number, block in enumerate(
                read_blocks(found.path, found.header, first, end), first
            ):
                start = number * BLOCK
                count = min(BLOCK, len(found.header.tokens) - start)
                self.access.load(slot, start, count, block)
            os.utime(found.path)  # as used just now
        except (OSError, DamagedError) as error:
            log.warning("a kept conversation cannot be used: %s", error)
            self._headers(adapter).pop(found.path, None)
            with contextlib.suppress(OSError):
                found.path.unlink()
            return False
        seconds = time.perf_counter() - began
        log.info("read the keys and values of %d tokens in %.2f s", found.shared - held, seconds)
        return True

    def write(
        self,
        slot: Slot,
        enough: Callable[[], bool],
        *,
        last: bool,
        at: Callable[[str], None] = lambda stage: None,
    ) -> None:
        """Write what ``slot`` holds of its conversation, if that is at least a block.

        Args:
            enough: whether to stop.
            last: then keep what is written by then, if that is more than there was.

        Raises:
            InterruptedWriteError: nothing was written.
        """
        tokens, form = slot.tokens, self._form(slot.adapter)
        path = kept.file_path(self.directory, slot.conversation, form)
        known = self._headers(slot.adapter)

        def blocks() -> Iterator[bytes]:
            room = self._room(len(tokens) * self.access.bytes_per_token, path)
            before = len(known[path].tokens) if path in known else 0
            for start in range(0, len(tokens), BLOCK):
                count = min(BLOCK, len(tokens) - start)
                room -= count * self.access.bytes_per_token
                if room < 0 or enough():
                    if last and start > before:
                        return
                    raise InterruptedWriteError
                yield self.access.dump(slot.number, start, count)

        try:
            if len(tokens) < BLOCK or kept.is_erased(self.directory, slot.conversation):
                return
            held = write_kept(path, form, array("i", tokens), blocks(), at=at)
            if kept.is_erased(self.directory, slot.conversation):
                path.unlink(missing_ok=True)
                known.pop(path, None)
                return
            known[path] = read_header(path)
            log.info("kept the keys and values of %d tokens", held)
        except (OSError, DamagedError) as error:
            log.warning("a conversation cannot be kept: %s", error)

    def _form(self, adapter: str) -> str:
        return "\n".join((__version__, self.model, self.access.form, adapter))

    def _headers(self, adapter: str) -> dict[Path, Header]:
        """What there is for this model and ``adapter``; what is damaged goes."""
        form = self._form(adapter)
        if form not in self._known:
            found = self._known[form] = {}
            for path in kept.files_of_form(self.directory, form):
                try:
                    header = read_header(path)
                    if header.form == form:
                        found[path] = header
                except OSError as error:
                    log.warning("%s cannot be read: %s", path, error)
                except DamagedError as error:
                    log.warning("removed %s: %s", path, error)
                    path.unlink(missing_ok=True)
        return self._known[form]

    def _room(self, wanted: int, replaced: Path | None = None) -> int:
        """Remove the files that were unused for longest until there is room for ``wanted`` bytes;
        how much there is."""
        stats = {path: path.stat() for path in self.directory.glob(f"*{kept.ENDING}")}
        others = [path for path in stats if path != replaced]
        taken = sum(stats[path].st_size for path in others)
        free = shutil.disk_usage(self.directory).free
        most = min(self.most_bytes, taken + free - RESERVE_BYTES)
        for path in sorted(others, key=lambda path: stats[path].st_mtime):
            if taken + min(wanted, most) <= most:
                break
            taken -= stats[path].st_size
            path.unlink(missing_ok=True)
            for known in self._known.values():
                known.pop(path, None)
        return max(0, most - taken)


def open_kept(
    settings: LoadSettings, checkpoint: Checkpoint, access: KVAccess | None
) -> KeptConversations | None:
    """Return what there is of a loaded model's; ``None``: nothing can be kept."""
    if settings.home is None or access is None:
        return None
    configuration = checkpoint.directory / CONFIG
    model = digest_of_files("keys and values", (configuration, *checkpoint.weights))
    found = KeptConversations(
        kept.kept_directory(settings.home), int(settings.kv_disk * GIB), model, access
    )
    found.prepare()
    return found if settings.kv_disk else None
