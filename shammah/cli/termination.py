"""Signals that end the program, turned into an exception so that it can finish its business."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_ENDS = (signal.SIGHUP, signal.SIGTERM)


class TerminatedError(BaseException):
    """A signal ends the program.

    Attributes:
        status: the exit status, as shells report it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.status = 128 + number


@contextlib.contextmanager
def raising_terminated() -> Iterator[None]:
    """Turn signals that end the program into `TerminatedError`; a second one ends it at once.
    Ignored signals, as under nohup, stay ignored."""

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise TerminatedError(number)

    ends = [number for number in _ENDS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in ends:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
