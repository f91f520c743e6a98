"""Reporting a wait whose reason nobody sees."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

LATE_S = 1.0
"""A longer wait makes a person wonder."""


@contextlib.contextmanager
def announced(report: Callable[[str], None], sentence: str) -> Iterator[None]:
    """Report ``sentence`` if the block takes longer than `LATE_S`, from another thread, and never
    after its end."""
    timer = threading.Timer(LATE_S, report, (sentence,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
