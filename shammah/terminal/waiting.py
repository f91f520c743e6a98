"""What is told of a wait that nobody can see the reason of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

LATE_S = 1.0
"""Whoever has waited so long may wonder what for."""


@contextlib.contextmanager
def announced(report: Callable[[str], None], sentence: str) -> Iterator[None]:
    """Have ``report`` be given ``sentence`` if what is done meanwhile takes longer than `LATE_S`.

    It is called from another thread, while this one waits; never after the end.
    """
    timer = threading.Timer(LATE_S, report, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
