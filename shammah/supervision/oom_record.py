"""What an inference worker records before it loads a model.

A process that the kernel kills because memory ran out cannot say so. It records in the runtime
directory what it is about to load and how often the kernel has killed anything so far; the
frontends that lose it, and the next worker, compare.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.cgroups import count_kills, kill_counter

OUT_OF_MEMORY = "out_of_memory"

CLOSE_OTHERS = "Close other programs, or choose a smaller model with --model."

VMSTAT = Path("/proc/vmstat")
"""Counts the kills on the whole machine."""


@record
class Attempt:
    """One load, which may have been the last thing its worker did.

    Attributes:
        asked: which model, with which settings, as a digest.
        pid: of the worker; 0: it exited normally.
        model: what was loaded, for people.
        level: how far it had stepped down (see `workers.inference.startup.offers`).
        kills: the files that count kills, the nearest first, and what they said.
        next_step: a sentence for people: what is done after a kill; empty: nothing is left.
        deaths: earlier kills of workers with the same ``asked``.
        dead_model: what the last of these had loaded.
        dead_level: and at which level.
        since: when the last of these was found, in seconds since 1970.
    """

    asked: str
    pid: int
    model: str
    level: int
    kills: dict[str, int]
    next_step: str = ""
    deaths: int = 0
    dead_model: str = ""
    dead_level: int = -1
    since: float = 0.0


def attempt_file(runtime: Path) -> Path:
    """Return where the attempt is recorded."""
    return runtime / "inference.attempt"


def read_attempt(path: Path) -> Attempt | None:
    """Return the last attempt; ``None`` if there is none or it is unreadable."""
    try:
        if not path.is_file():  # reading a pipe would wait for a writer
            return None
        return _attempt(json.loads(path.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _attempt(document: Any) -> Attempt:
    return Attempt(
        asked=str(document["asked"]),
        pid=int(document["pid"]),
        model=str(document["model"]),
        level=int(document["level"]),
        kills={str(name): int(count) for name, count in document["kills"].items()},
        next_step=str(document["next_step"]),
        deaths=int(document["deaths"]),
        dead_model=str(document["dead_model"]),
        dead_level=int(document["dead_level"]),
        since=float(document["since"]),
    )


def write_attempt(path: Path, attempt: Attempt) -> None:
    """Record the attempt, readable by its owner only."""
    from shammah.storage.files import replace_file  # only a worker writes it

    replace_file(path, json.dumps(asdict(attempt)).encode(), sync=False)


def forget_attempt(path: Path) -> None:
    """Let the next worker try what is set, however the last one ended."""
    with contextlib.suppress(OSError):
        path.unlink()


def kills_so_far() -> dict[str, int]:
    """Return `Attempt.kills` as of now, for this process."""
    own = kill_counter()
    counters = [own, VMSTAT] if own else [VMSTAT]
    return {str(counter): count_kills(counter) or 0 for counter in counters}


def was_killed(attempt: Attempt) -> bool:
    """Return whether its worker, which is gone, was killed because memory ran out."""
    if attempt.pid == 0:
        return False
    for counter, before in attempt.kills.items():
        now = count_kills(Path(counter))
        if now is not None:  # a group can go with its last process
            return now > before
    return False


def explain_death(path: Path, pid: int) -> ShammahError | None:
    """Explain the death of worker ``pid``, if memory ran out."""
    attempt = read_attempt(path)
    if attempt is None or attempt.pid != pid or not was_killed(attempt):
        return None
    then = f"{attempt.next_step} Ask again." if attempt.next_step else CLOSE_OTHERS
    return ShammahError(OUT_OF_MEMORY, killed(attempt.model), then)


def killed(model: str) -> str:
    """Say what the kernel did, for people."""
    return f"The system killed {model} because memory ran out."
