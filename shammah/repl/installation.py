"""What scripts/run still installs behind the prompt: shown while it lasts, told when it ends."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from shammah.terminal.text import printable

VARIABLE = "SHAMMAH_INSTALLING"
"""Names the file that says in a line what is being installed, and is removed at the end."""

LOOK_S = 1.0
_MOST_BYTES = 200


class Installation:
    """Follows the file that an environment names.

    Args:
        environ: may name none.
        on_change: called when there is something else to show.
        tell: gets what a person should know at the end.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        on_change: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        name = environ.get(VARIABLE)
        self._path = Path(name) if name else None
        self._on_change = on_change
        self._tell = tell
        self._closed = threading.Event()
        self.shown = self._read()
        if self.shown:
            threading.Thread(target=self._follow, name="installation", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def _follow(self) -> None:
        while not self._closed.wait(LOOK_S):
            before, self.shown = self.shown, self._read()
            if self.shown != before:
                self._on_change()
            if not self.shown:
                self._tell("Training and the other engines are installed.")
                return

    def _read(self) -> str:
        if self._path is None:
            return ""
        try:
            with self._path.open("rb") as file:
                text = os.fsdecode(file.read(_MOST_BYTES))
        except OSError:
            return ""
        return printable(text.strip())
