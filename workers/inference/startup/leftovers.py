"""What was made once for a model or a machine, and is of no use any more.

Packed weights are as large as a model, and are made again from it: when the model has gone, or
its files are other ones, they go. What another version of Shammah has made may be in use by it,
so that goes after a week without use; machine code does, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from shammah.bus.endpoints import RoleLock
from shammah.errors import ShammahError
from shammah.storage.files import UNUSED_S, remove_abandoned
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import inspect_checkpoint

log = logging.getLogger(__name__)

AFTER_S = 60.0
"""After the model is ready, and again until nobody is being answered."""

WEIGHTS, SOURCE = ".safetensors", ".source"
"""Endings: of weights, and of the note from which model they were made."""


class Sweeper:
    """Sweeps once, on a thread of its own, in a moment without work.

    Args:
        home: where everything is kept.
        model: the directory of the model that is loaded.
        is_idle: whether nothing is being computed.
        after: seconds until it looks, and between looks.
    """

    def __init__(
        self, home: Path, model: Path, is_idle: Callable[[], bool], after: float = AFTER_S
    ) -> None:
        self._home, self._model = home, model
        self._is_idle = is_idle
        self._after = after
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Does not wait for what it is about to remove."""
        self._stopped.set()
        self._is_idle = lambda: False  # the engine's memory may be needed

    def _run(self) -> None:
        while not self._stopped.wait(self._after):
            if self._is_idle():
                try:
                    sweep(self._home, self._model, time.time())
                except Exception:
                    log.exception("the sweep failed")
                return


def sweep(home: Path, model: Path, now: float) -> list[Path]:
    """Remove what is of no use, unless another process is doing so; return what was removed.

    Args:
        home: where everything is kept.
        model: the directory of the model that is loaded; its weights are noted as used.
        now: seconds since 1970.
    """
    lock = RoleLock(home / "sweep.lock")
    if not home.is_dir() or not lock.acquire():
        return []
    try:
        removed = list(sweep_weights(home, model, now))
        for engine in ENGINES.values():
            removed += engine.sweep(home, now)
    finally:
        lock.release()
    for path in removed:
        log.info("removed, of no use any more: %s", path)
    return removed


def sweep_weights(home: Path, model: Path, now: float) -> Iterator[Path]:
    """Remove quantised weights whose model has gone or is another one; what was removed."""
    directory = home / "quantized"
    for path in made_from(model, home):
        if path.exists():
            path.with_suffix(SOURCE).write_text(str(model))
    yield from remove_abandoned(directory, now)
    for path in sorted(directory.glob(f"*{WEIGHTS}")):
        if not _is_of_use(path, home, now):
            path.unlink(missing_ok=True)
            path.with_suffix(SOURCE).unlink(missing_ok=True)
            yield path


def made_from(model: Path, home: Path) -> list[Path]:
    """Return where the quantised weights of a model are, or would be, in every form; nothing if
    it is no model (any more)."""
    try:
        checkpoint = inspect_checkpoint(model)
        return [path for engine in ENGINES.values() for path in engine.stored(home, checkpoint)]
    except (ShammahError, OSError):
        return []


def _is_of_use(path: Path, home: Path, now: float) -> bool:
    source = path.with_suffix(SOURCE)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        model = Path(source.read_text())
        if path in made_from(model, home):
            return True
        if not model.exists():
            return False
        if not _is_open(model):
            return True  # another worker, started for that model, may read and judge it
    # Of another version; or of a model that has been loaded, but not swept after, yet.
    return min(_age(path, now), _age(source, now)) <= UNUSED_S


def _is_open(path: Path) -> bool:
    """Whether this process may read there (see `workers.confinement`)."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except PermissionError:
        return False
    return True


def _age(path: Path, now: float) -> float:
    """Seconds since it was written; for ever, if it is not there."""
    try:
        return now - path.stat().st_mtime
    except OSError:
        return float("inf")
