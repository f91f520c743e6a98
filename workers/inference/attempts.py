"""What a worker that the kernel kills leaves behind, so that the next one asks for less.

A process that is killed for want of memory cannot say so. It has written down what it was
about to load, and how often the kernel had killed anything by then; the next worker compares.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

REMEMBERED_S = 24 * 3600.0
"""After that, memory may be another one: it is tried whole again."""

_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Attempt:
    """``level``: how far it has stepped down; ``kills``: see `count_kills`, then."""

    model: str
    level: int
    kills: int


class Attempts:
    """The last attempt, in a file.

    Args:
        path: of the file.
        count_kills: see `count_kills`.
        wall: seconds since 1970.
    """

    def __init__(
        self, path: Path, count_kills: Callable[[], int], wall: Callable[[], float]
    ) -> None:
        self._path = path
        self._count_kills = count_kills
        self._wall = wall

    def begin(self, model: str) -> int:
        """Write down an attempt at ``model``; the level to begin at."""
        last = self._last()
        level = 0
        if last is not None and last.model == model:
            level = last.level + (1 if self._count_kills() > last.kills else 0)
        self.step(model, level)
        return level

    def step(self, model: str, level: int) -> None:
        """Write down an attempt at a level."""
        text = json.dumps(asdict(Attempt(model, level, self._count_kills())))
        draft = self._path.with_suffix(".new")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(text)
        os.replace(draft, self._path)

    def end(self) -> None:
        """The worker ends by itself. What had to step down will have to again."""
        last = self._last()
        if last is None or last.level == 0:
            self._path.unlink(missing_ok=True)
        else:
            self.step(last.model, last.level)

    def _last(self) -> Attempt | None:
        try:
            if self._wall() - self._path.stat().st_mtime > REMEMBERED_S:
                return None
            document = json.loads(self._path.read_text())
            return Attempt(str(document["model"]), int(document["level"]), int(document["kills"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def count_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """How many processes the kernel has killed for want of memory, where that can be read.

    In our own control group (v2) if it tells, else on the whole machine.
    """
    texts = []
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        texts.append(cgroups / own.lstrip("/") / "memory.events")
    except OSError:
        pass
    for path in (*texts, proc / "vmstat"):
        try:
            found = _KILLS.search(path.read_text())
        except OSError:
            continue
        if found:
            return int(found[1])
    return 0
