"""Points in time as people type them, for every command that takes one."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from shammah.errors import UsageError

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DAY = timedelta(days=1)


class Moment(click.ParamType[float]):
    """A point in time, in seconds since 1970; ``utc`` as `parse_since` has it."""

    name = "when"

    def __init__(self, *, utc: bool = False) -> None:
        self._utc = utc

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> float:
        return value if isinstance(value, float) else parse_since(value, time.time(), utc=self._utc)


def since_option(*, utc: bool = False) -> Callable[[F], F]:
    """``--since``: the command's ``since``."""
    words = "Start 90s, 10m, 2h, 7d or 2w ago, at 14:30 or on 2026-11-24."
    return click.option("--since", type=Moment(utc=utc), metavar="WHEN", help=words)


def parse_since(text: str, now_s: float, *, utc: bool = False) -> float:
    """Parse ``90s``, ``10m``, ``2h``, ``7d`` or ``2w`` ago, ``14:30`` (the last time it was that
    late), or a date such as ``2026-11-24``, perhaps with a time, in seconds since 1970.

    Args:
        utc: whether clock and calendar are UTC's, not this machine's.

    Raises:
        ShammahError: ``usage``.
    """
    span = re.fullmatch(r"([0-9]{1,6})([smhdw])", text)
    if span:
        return max(0.0, now_s - int(span[1]) * _UNITS[span[2]])
    clock = re.fullmatch(r"([01]?[0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9]))?", text)
    try:
        if clock:
            now = datetime.fromtimestamp(now_s, UTC if utc else None)
            hour, minute, second = (int(part or 0) for part in clock.groups())
            then = now.replace(hour=hour, minute=minute, second=second, microsecond=0)
            return _seconds(then - _DAY if then > now else then)
        when = datetime.fromisoformat(text)
        return _seconds(when.replace(tzinfo=UTC) if utc and when.tzinfo is None else when)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{text!r:.40} is not a valid time.",
            "Use an age (90s, 10m, 2h, 7d, 2w), a time (14:30) or a date (2026-11-24).",
        ) from None


def _seconds(when: datetime) -> float:
    return max(0.0, when.timestamp())
