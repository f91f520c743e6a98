"""One conversation's keys and values in a file: blocks, then a header that says what they are.

    blocks       of `BLOCK` tokens each, the last one of fewer
    header       JSON: form, tokens, and of each block its length and CRC-32
    length       of the header, 8 bytes
    digest       of the header, 32 bytes
    mark         `_MARK`

So it is written in one go, and a file that is cut short has no header.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from shammah.bus.record import record
from shammah.storage import files

BLOCK = 256
"""Tokens."""

SYNC_BYTES = 32 * 2**20
"""After so many the writer waits for the disk, so that it knows how fast that is."""

_MARK = b"shammah kv 1\n"
_END = struct.Struct(f"<Q32s{len(_MARK)}s")


class DamagedError(Exception):
    """The file is not what its header says."""


@record
class Header:
    """What a file holds. ``form``: all that the numbers depend on besides the tokens; ``blocks``:
    bytes and CRC-32 of each."""

    form: str
    tokens: array[int]
    blocks: tuple[tuple[int, int], ...]


def write_kept(
    path: Path,
    form: str,
    tokens: array[int],
    blocks: Iterable[bytes],
    *,
    at: Callable[[str], None] = lambda stage: None,
) -> int:
    """Write the file; it appears whole or not at all.

    Args:
        blocks: of the first tokens; there may be fewer than for all of them.
        at: is told each stage, for tests that end the process there.

    Returns:
        How many tokens it holds.

    Raises:
        OSError: there is no new file. Whatever else ``blocks`` raises: the same.
    """
    at("begin")
    with files.new_file(path) as draft, draft.open("r+b") as file:
        known, unsynced = list[tuple[int, int]](), 0
        for block in blocks:
            file.write(block)
            known.append((len(block), zlib.crc32(block)))
            unsynced += len(block)
            if unsynced >= SYNC_BYTES:
                file.flush()
                os.fsync(file.fileno())
                unsynced = 0
            at("block")
        held = tokens[: len(known) * BLOCK]
        text = json.dumps({"form": form, "tokens": held.tolist(), "blocks": known}).encode()
        file.write(text)
        at("header")
        file.write(_END.pack(len(text), hashlib.sha256(text).digest(), _MARK))
        file.flush()
        at("end")
    at("renamed")
    return len(held)


def read_header(path: Path) -> Header:
    """Read what a file holds.

    Raises:
        OSError: it cannot be read.
        DamagedError: it is not whole, or of another version.
    """
    with files.open_file(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size))
        end = file.read()
        if len(end) != _END.size:
            raise DamagedError("it is too short")
        length, digest, mark = _END.unpack(end)
        if mark != _MARK or not 0 < length <= size - _END.size:
            raise DamagedError("it has no header of this version")
        file.seek(size - _END.size - length)
        text = file.read(length)
    if hashlib.sha256(text).digest() != digest:
        raise DamagedError("its header has changed")
    document = json.loads(text)
    blocks = tuple((int(count), int(check)) for count, check in document["blocks"])
    header = Header(document["form"], array("i", document["tokens"]), blocks)
    if sum(count for count, _ in blocks) + length + _END.size != size:
        raise DamagedError("its length has changed")
    return header


def read_blocks(path: Path, header: Header, first: int, end: int) -> Iterator[bytes]:
    """Yield the blocks from ``first`` to before ``end``, each of them checked.

    Raises:
        OSError: they cannot be read.
        DamagedError: one is not as it was written.
    """
    begin = sum(count for count, _ in header.blocks[:first])
    wanted = header.blocks[first:end]
    with files.open_file(path) as file:
        if hasattr(os, "posix_fadvise"):  # the disk reads on while a block is checked
            length = sum(count for count, _ in wanted)
            os.posix_fadvise(file.fileno(), begin, length, os.POSIX_FADV_WILLNEED)
        file.seek(begin)
        for count, check in wanted:
            block = file.read(count)
            if len(block) != count or zlib.crc32(block) != check:
                raise DamagedError("a block has changed")
            yield block
