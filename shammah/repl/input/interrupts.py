"""Ctrl-C, which never falls into what is half done.

Python's own handler raises wherever the program stands: in an import, in the end of an event
loop, in a callback whose exceptions go nowhere. Here a Ctrl-C calls what is in force; by default
that notes it, and `Interrupts.check` raises it where it does no harm.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


class Interrupts:
    """What a Ctrl-C does. For the main thread.

    Attributes:
        noted: there was one, and nobody has heard of it yet.
    """

    def __init__(self) -> None:
        self.noted = False
        self._handler: Callable[[], None] = self.note

    def install(self) -> None:
        """From now on, and to the end of the program."""
        signal.signal(signal.SIGINT, lambda number, frame: self._handler())

    def note(self) -> None:
        """There was one; somebody will ask."""
        self.noted = True

    def check(self) -> None:
        """
        Raises:
            KeyboardInterrupt: there was a Ctrl-C that nobody has heard of yet. Who catches it
                says so: ``noted = False``.
        """
        if self.noted:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def calling(self, handler: Callable[[], None]) -> Iterator[None]:
        """Meanwhile a Ctrl-C calls ``handler``."""
        before, self._handler = self._handler, handler
        try:
            yield
        finally:
            self._handler = before

    @contextlib.contextmanager
    def raised(self) -> Iterator[None]:
        """Meanwhile it is raised at once: for what may wait for ever.

        Raises:
            KeyboardInterrupt: also for one from before.
        """
        with self.calling(self._raise):
            self.check()
            yield

    def _raise(self) -> None:
        self._handler = self.note  # once is enough, and what ends now is not to be disturbed
        self.note()  # should it be raised where exceptions go nowhere
        raise KeyboardInterrupt
