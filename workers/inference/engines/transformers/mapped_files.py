"""Gives the memory of files that are mapped into this process back, while they are read.

What has been read of a mapped file stays resident until the system wants it. While weights are
converted that would be a second copy of them.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Iterable
from pathlib import Path

EVERY = 32
"""Calls, of one tensor each: the list of mappings is long."""

_MAPPING = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+ +(/.*)$(?:\n\w+:.*)*?\nAnonymous: +0 kB$",
    re.MULTILINE,
)
"""One whose pages are all the file's: none has been written to."""


def giving_back(files: Iterable[Path], advance: Callable[[], object]) -> Callable[[], None]:
    """An ``advance`` that also calls `give_back` now and then."""
    names = {str(path.resolve()) for path in files}
    calls = 0

    def both() -> None:
        nonlocal calls
        advance()
        calls += 1
        if calls % EVERY == 0:
            give_back(names)

    return both


def give_back(names: set[str]) -> None:
    """Let the pages of these mapped files go; who reads them again gets them from the file.

    Does nothing where the system does not list its mappings (all but Linux).
    """
    try:
        mappings = Path("/proc/self/smaps").read_text()
    except OSError:
        return
    library = ctypes.CDLL(None)
    for begin, end, name in _MAPPING.findall(mappings):
        if name in names:
            first, size = int(begin, 16), int(end, 16) - int(begin, 16)
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
