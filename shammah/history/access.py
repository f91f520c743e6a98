"""The history of one process: opened when it is needed, and anew when that is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from shammah.history.database import DamagedError, set_aside
from shammah.history.store import Store

Result = TypeVar("Result")


class Access:
    """Use it from one thread, and close it.

    Args:
        tell: called with a sentence for people when a damaged file was set aside.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        self.path = path
        self._tell = tell
        self._store: Store | None = None

    def use(self, work: Callable[[Store], Result]) -> Result:
        """What ``work`` returns. A damaged file is set aside, and a new one begun.

        Raises:
            ShammahError: as `shammah.history.database.Database` does.
        """
        try:
            return work(self._opened())
        except DamagedError as error:
            self.close()
            aside = set_aside(self.path, error.opened)
            if aside is not None:
                self._tell(
                    f"The history was damaged and is {aside} now; a new one has begun. "
                    f"`sqlite3 {aside.name} .recover` reads what can still be read of it."
                )
            return work(self._opened())
        finally:
            if self._store is not None and self._store.database.refusal is not None:
                self.close()  # the disk may have room the next time

    def _opened(self) -> Store:
        if self._store is not None and self._store.database.moved:
            self.close()  # deleted, or set aside by another frontend
        if self._store is None:
            self._store = Store(self.path)
        return self._store

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
