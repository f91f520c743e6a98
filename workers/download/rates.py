"""How fast downloads from each Hub were, remembered for the next one."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from shammah.storage.files import replace_file
from workers.download import failures

log = logging.getLogger(__name__)

LEAST_BYTES = 8 * 1024**2
"""Less tells more about the begin of a connection than about the rate."""


class Rates:
    """The last measured rate of each Hub, in a file. It is of use, but never needed: what goes
    wrong with it is only logged.

    Args:
        path: a JSON object, from a Hub's address to bytes per second.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def last(self, endpoint: str) -> float:
        """Bytes per second; 0: never measured."""
        return self._read().get(failures.origin(endpoint), 0.0)

    def record(self, endpoint: str, received: int, seconds: float) -> None:
        """Remember a download, if it was long enough to tell anything."""
        if received < LEAST_BYTES or seconds <= 0:
            return
        rates = {**self._read(), failures.origin(endpoint): round(received / seconds, 1)}
        try:
            replace_file(self._path, (json.dumps(rates, indent=1) + "\n").encode(), sync=False)
        except OSError as error:
            log.warning("%s cannot be written: %s", self._path, error)

    def _read(self) -> dict[str, float]:
        try:
            document = json.loads(self._path.read_bytes())
            return {name: rate for name, rate in document.items() if _is_rate(rate)}
        except (OSError, ValueError, AttributeError, RecursionError):
            return {}


def _is_rate(rate: object) -> bool:
    return type(rate) is float and math.isfinite(rate) and rate > 0
