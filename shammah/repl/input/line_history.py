"""The lines typed at earlier prompts, in a file of the home: one JSON string a line.

Several prompts write at once, each line with one append. A torn or foreign line is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit.history import History

from shammah.storage.files import append_line, open_file, replace_file

KEPT_BYTES = 256 * 1024
"""What is read at the start, from the end of the file."""
LONGEST_FILE = 4 * KEPT_BYTES
"""A file that has grown beyond this is cut to `KEPT_BYTES`."""


class LineHistory(History):
    """Reads the file when it is made, which may be on another thread.

    Args:
        path: the file; ``None`` remembers nothing beyond this prompt.
        may_store: whether a line may be written to the file. All can be had back while this
            prompt lasts.
    """

    def __init__(self, path: Path | None, may_store: Callable[[str], bool]) -> None:
        super().__init__()
        self._path = path
        self._may_store = may_store
        self._read = _read(path) if path is not None else []

    def load_history_strings(self) -> Iterable[str]:
        """The lines of the file, the latest first."""
        return reversed(self._read)

    def store_string(self, string: str) -> None:
        """Append ``string`` to the file, unless it is private."""
        self._read.append(string)  # it may come before the first look at them
        if self._path is None or not self._may_store(string):
            return
        data = (json.dumps(string) + "\n").encode()
        with contextlib.suppress(OSError):  # a full disk takes no line away from the person
            append_line(Path(os.path.realpath(self._path)), data)


def _read(path: Path) -> list[str]:
    try:
        with open_file(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - KEPT_BYTES))
            data = file.read()
    except OSError:
        return []
    if size > KEPT_BYTES:
        data = data.partition(b"\n")[2]
    if size > LONGEST_FILE:
        # What another prompt appends meanwhile may be lost: a line of history, not of a file.
        with contextlib.suppress(OSError):
            replace_file(path, data)
    found = []
    for line in data.splitlines():
        with contextlib.suppress(ValueError):
            text = json.loads(line)
            if isinstance(text, str):
                found.append(text)
    return found
