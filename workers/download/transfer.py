"""Fetches the missing files of one snapshot: several at once, several segments of each.

Worker threads, one for each connection. Whoever takes a file first owns it: holds its lock,
opens its part, and at the end verifies it and moves it into the cache. The others help with its
segments. Segments are dealt in order, so that the hash can follow close behind.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from workers.download import failures
from workers.download.blobs import BlobStore
from workers.download.control import Control
from workers.download.failures import TemporaryError
from workers.download.limits import Limits
from workers.download.part import Part, Segment
from workers.download.progress import Meter
from workers.download.retry import Patience
from workers.download.slots import Slots
from workers.download.source import Answer, Source
from workers.download.wire import Wire
from workers.listing import RemoteFile

TICK_S = 1.0
"""How often progress is told while nothing arrives."""


class _InterruptedError(Exception):
    """Somebody wants a pause or the end: see `Transfer._check`."""


@dataclass(slots=True)
class Task:
    """A file whose part is open.

    ``helpers`` threads work on it besides its owner. ``sequential``: the server ignores which
    bytes it is asked for, so only the owner reads, from the first byte on.
    """

    file: RemoteFile
    part: Part
    source: Source
    helpers: int = 0
    sequential: bool = False


@dataclass(frozen=True, slots=True)
class Environment:
    """What all downloads of a process share.

    ``random`` is evenly between 0 and 1, ``wall`` gives seconds since 1970.
    """

    limits: Limits
    slots: Slots
    random: Callable[[], float]
    wall: Callable[[], float] = time.time


@dataclass(slots=True)
class _Work:
    """What is left to do. Guarded by ``changed``."""

    files: deque[RemoteFile]
    changed: threading.Condition = field(default_factory=threading.Condition)
    tasks: list[Task] = field(default_factory=list)
    owners: int = 0
    failure: BaseException | None = None


class Transfer:
    """One run. `run` ends when every file is in the cache, or with the first failure.

    Args:
        store: which files are wanted, and where they go.
        addresses: each path's address at the Hub.
        headers: for requests to the Hub, with the token if there is one.
        environment: shared with other downloads.
        control: what the user wants.
        priority: over other downloads; higher is more urgent.
        meter: told of every byte.
    """

    def __init__(
        self,
        store: BlobStore,
        addresses: Mapping[str, str],
        headers: Mapping[str, str],
        environment: Environment,
        control: Control,
        priority: int,
        meter: Meter,
    ) -> None:
        self._store = store
        self._addresses = addresses
        self._headers = headers
        self._environment = environment
        self._limits = environment.limits
        self._control = control
        self._priority = priority
        self._meter = meter
        # Small ones first: the configuration is wanted before the weights.
        self._work = _Work(deque(sorted(store.listing.files, key=lambda file: file.size)))
        self._wire = Wire(environment.limits, self._let_go)

    def run(self) -> None:
        """Fetch everything.

        Raises:
            ShammahError: see `failures`. Partial downloads are kept.
        """
        count = self._limits.connections
        threads = [threading.Thread(target=self._help, name=f"fetch-{i}") for i in range(count)]
        self._control.listen(self._on_control)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(TICK_S)
                    if not self._control.paused:
                        self._meter.tick()
        except BaseException as error:
            self._fail(error)
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            self._control.forget(self._on_control)
            self._wire.close()
        if self._work.failure is not None:
            raise self._work.failure

    # --- dealing out ----------------------------------------------------------------------

    def _help(self) -> None:
        try:
            while (step := self._next_step()) is not None:
                step()
        except BaseException as error:
            self._fail(error)

    def _next_step(self) -> Callable[[], None] | None:
        """What this thread should do; ``None``: nothing is left, or all is lost."""
        work = self._work
        with work.changed:
            while work.failure is None:
                for task in work.tasks:
                    segment = _claim(task)
                    if segment is not None:
                        task.helpers += 1
                        return partial(self._assist, task, segment)
                if work.files:
                    file = work.files.popleft()
                    work.owners += 1
                    return partial(self._own, file)
                if not work.owners:
                    return None
                work.changed.wait()
        return None

    def _assist(self, task: Task, segment: Segment) -> None:
        try:
            self._fetch(task, segment)
        finally:
            with self._work.changed:
                segment.claimed = False
                task.helpers -= 1
                self._work.changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, OSError):
            cache, missing = self._store.repository.cache, self._meter.missing()
            described = failures.describe_disk(error, cache, missing)
            described.__cause__ = error
            error = described
        with self._work.changed:
            self._work.failure = self._work.failure or error
            self._work.changed.notify_all()
        self._interrupt()

    def _on_control(self) -> None:
        if self._control.interrupted:
            self._interrupt()
        else:
            self._meter.resumed()

    def _interrupt(self) -> None:
        self._wire.cut()
        self._control.wake()
        self._environment.slots.wake()

    def _failed(self) -> bool:
        return self._work.failure is not None

    def _check(self) -> None:
        """Between two chunks: wait while paused, end if cancelled or failed."""
        model_id = self._store.listing.model_id
        self._control.check(model_id, self._failed)
        if self._failed():
            raise failures.cancelled(model_id)  # the first failure is the one told

    def _let_go(self) -> bool:
        """Whether to leave the connection alone now."""
        return self._control.interrupted or self._failed()

    def _check_wait(self) -> None:
        if self._let_go():
            raise _InterruptedError

    # --- one file -------------------------------------------------------------------------

    def _own(self, file: RemoteFile) -> None:
        try:
            with self._store.repository.lock(file.etag, self._check):
                found = self._store.has(file)
                if found:
                    self._meter.add(file.path, file.size)
                if not self._store.adopt(file, self._check):
                    self._meter.lost(file.path)
                    if found:
                        self._meter.notice(
                            f"{file.path} was damaged on the disk (its hash was wrong): it is in "
                            "quarantine now. Downloading it again."
                        )
                    self._fetch_file(file)
            self._meter.verified(file.path)
        finally:
            with self._work.changed:
                self._work.owners -= 1
                self._work.changed.notify_all()

    def _fetch_file(self, file: RemoteFile) -> None:
        with self._store.part(file, self._limits.segment_bytes) as part:
            self._meter.add(file.path, part.held)
            wrong = 0
            while True:
                self._complete(Task(file, part, self._source(file)))
                found = part.hexdigest(self._check)
                if found == file.etag:
                    break
                # Bytes of an earlier run may have been lost in a power failure; that is
                # nobody's fault, and not counted.
                inherited = part.inherited
                wrong += not inherited
                part.restart()
                self._meter.lost(file.path)
                if wrong > 1:
                    part.delete()
                    raise failures.hash_mismatch(file.path, file.etag, found)
                told = "was damaged in an earlier download" if inherited else "arrived damaged"
                self._meter.notice(
                    f"{file.path} {told} (its hash was wrong). Downloading it again."
                )
            self._store.accept(file, part)

    def _source(self, file: RemoteFile) -> Source:
        return Source(
            self._wire.client,
            self._addresses[file.path],
            file=file,
            listing=self._store.listing,
            headers=self._headers,
            wall=self._environment.wall,
        )

    def _complete(self, task: Task) -> None:
        """Get every segment, with the help of other threads."""
        with self._published(task):
            while not task.part.complete:
                segment = self._next_own_segment(task)
                if segment is not None:
                    try:
                        self._fetch(task, segment, owner=True)
                    finally:
                        segment.claimed = False

    def _next_own_segment(self, task: Task) -> Segment | None:
        """``None``: the others had the last ones; they have ended now."""
        with self._work.changed:
            while not self._failed():
                if task.sequential:
                    return next((s for s in task.part.segments if not s.complete), None)
                segment = _claim(task)
                if segment is not None or not task.helpers:
                    return segment
                self._work.changed.wait()
        self._check()
        return None

    @contextmanager
    def _published(self, task: Task) -> Iterator[None]:
        """Let others help. At the end nobody uses the part any more."""
        with self._work.changed:
            self._work.tasks.append(task)
            self._work.changed.notify_all()
        try:
            yield
        except BaseException as error:
            self._fail(error)  # so that the others let go of it
            raise
        finally:
            with self._work.changed:
                self._work.tasks.remove(task)
                self._work.changed.wait_for(lambda: not task.helpers)

    # --- one segment ----------------------------------------------------------------------

    def _fetch(self, task: Task, segment: Segment, *, owner: bool = False) -> None:
        """Until the segment is there, or it is for the owner to go on with it."""
        random = self._environment.random
        patience = Patience(self._limits.attempts, self._limits, random)
        while not segment.complete and (owner or not task.sequential):
            self._check()
            try:
                with self._environment.slots.taken(self._priority, self._check_wait):
                    self._attempt(task, segment, patience, owner=owner)
            except _InterruptedError:
                continue
            except TemporaryError as error:
                if not self._let_go():  # otherwise it was this side that cut the connection
                    self._wait(error, patience)
        task.part.hash_complete(self._check)

    def _wait(self, error: TemporaryError, patience: Patience) -> None:
        wait_s = patience.failed(error)
        self._meter.waiting(patience.describe(error, wait_s), wait_s)
        self._control.wait(wait_s, self._failed)

    def _attempt(self, task: Task, segment: Segment, patience: Patience, *, owner: bool) -> None:
        """One request.

        Raises:
            TemporaryError: it brought less than was asked for.
        """
        end = task.file.size if task.sequential else segment.end
        with task.source.open(segment.position, end) as answer:
            if answer.whole:
                self._make_sequential(task)
                end = task.file.size
            if owner or not task.sequential:
                self._read(task, answer, end, patience)

    def _read(self, task: Task, answer: Answer, end: int, patience: Patience) -> None:
        offset, path = answer.offset, task.file.path
        for piece in answer.pieces:
            added = task.part.write(offset, piece)
            offset += len(piece)
            self._meter.add(path, added, len(piece))
            if added:
                patience.progressed()
            if self._let_go():
                raise _InterruptedError
            if not answer.whole and self._environment.slots.outranked(self._priority):
                return
        if offset < end:
            raise TemporaryError(failures.ended_early(self._addresses[path], path))

    def _make_sequential(self, task: Task) -> None:
        with self._work.changed:
            task.sequential = True
            self._work.changed.notify_all()


def _claim(task: Task) -> Segment | None:
    if task.sequential:
        return None
    for segment in task.part.segments:
        if not segment.claimed and not segment.complete:
            segment.claimed = True
            return segment
    return None
