"""The egress ledger: what was sent to other machines, as ``egress.jsonl`` in the home.

One line of JSON is written and synced before the body of a request goes out, and one when its
outcome is known; the two have one ``id``. Nothing is ever changed or removed, and since each line
carries the hash of the one before (`shammah.storage.chain`), it would be seen. A line holds no
text of a conversation, only its length and SHA-256. Standard library only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ShammahError
from shammah.storage.chain import append_link, read_head, read_links
from shammah.storage.files import open_file

if TYPE_CHECKING:
    from shammah.storage.chain_damage import Report

NAME = "egress.jsonl"
UNKNOWN = "unknown"
"""The outcome of a request whose worker ended before it was known."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One HTTP request body. ``time`` is UTC (ISO 8601), ``bytes`` and ``sha256`` are the body's.

    ``attempt`` counts from 1 within one ``request_id`` (the bus's name of the question);
    ``server`` is the name of one of the person's servers that got it, empty for Claude;
    ``most`` is the highest cost that it can have, in US dollars. What follows is known later:
    ``outcome`` is ``answered``, ``cancelled``, a code of an error, or `UNKNOWN`; ``status`` the
    HTTP status, 0 if there was none; ``cost`` is ``None`` where no price is known. Of the input,
    ``reused_tokens`` were read from the cloud's cache and ``written_tokens`` were written to it.
    """

    id: str
    time: str
    request_id: str
    attempt: int
    scheme: str
    host: str
    path: str
    model: str
    bytes: int
    sha256: str
    most: float | None = None
    server: str = ""
    outcome: str = UNKNOWN
    status: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    reused_tokens: int = 0
    written_tokens: int = 0

    @property
    def day(self) -> str:
        """``2026-11-24``, UTC."""
        return self.time[:10]

    @property
    def spent(self) -> float:
        """US dollars, and the most that it can be while that is not known."""
        known = self.most if self.outcome == UNKNOWN else self.cost
        return known or 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended; see `Sent`."""

    outcome: str
    status: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None
    reused_tokens: int = 0
    written_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Total:
    """Totals of a day (UTC). ``cost`` is in US dollars; ``unpriced`` requests have none."""

    day: str
    requests: int
    bytes: int
    input_tokens: int
    output_tokens: int
    cost: float
    unpriced: int
    reused_tokens: int
    written_tokens: int


class Ledger:
    """The file, for one process. Several processes may write to one file.

    Args:
        home: the directory that it is in.
        clock: seconds since 1970.
    """

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = home / NAME
        self._clock = clock
        self._reader = Reader(self.path)
        self._spent: dict[str, float] = {}
        self._counted: dict[str, Sent] = {}

    def write_sent(self, sent: Sent) -> None:
        """Write what is about to be sent, with the time of now, and wait until it is on disk.

        Raises:
            ShammahError: ``egress_unwritable``; then nothing may be sent.
        """
        document = asdict(replace(sent, time=self._now()))
        kept = {name: document[name] for name in _REQUEST_FIELDS}
        self._append({"type": "request", **kept})

    def write_outcome(self, record_id: str, outcome: Outcome) -> None:
        """Write how a request ended.

        Raises:
            ShammahError: ``egress_unwritable``.
        """
        document = {"type": "outcome", "id": record_id, "ended": self._now(), **asdict(outcome)}
        self._append(document)

    def spent_today(self) -> float:
        """US dollars of this UTC day, by whichever process.

        What is not known yet counts with the most that it can be.

        Raises:
            ShammahError: ``egress_unreadable``.
        """
        for sent in self._reader.read():
            before = self._counted.pop(sent.id, None)
            total = self._spent.get(sent.day, 0.0) - (before.spent if before else 0.0)
            self._spent[sent.day] = total + sent.spent
            if sent.outcome == UNKNOWN:
                self._counted[sent.id] = sent
        return max(0.0, self._spent.get(self._now()[:10], 0.0))

    def _now(self) -> str:
        now = datetime.fromtimestamp(self._clock(), UTC)
        return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def _append(self, document: dict[str, Any]) -> None:
        try:
            append_link(self.path, document)
        except OSError as error:
            raise ShammahError(
                "egress_unwritable",
                f"The egress ledger cannot be written ({error.strerror}: {self.path}), so nothing "
                "was sent.",
                "Free some space, or fix the file's permissions; each request is logged first. If "
                "the file was moved away: run `shammah stop`, since a running worker may make no "
                "new one.",
            ) from error


class Reader:
    """Reads a ledger, again and again: each time what is new.

    Attributes:
        damaged: lines that are none of ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged = 0
        self._offset = 0
        self._open: dict[str, Sent] = {}

    def read(self) -> Iterator[Sent]:
        """Each request once it is written, and again with its outcome.

        Raises:
            ShammahError: ``egress_unreadable``.
        """
        try:
            with open_file(self.path) as file:
                if os.fstat(file.fileno()).st_size < self._offset:
                    self._offset = 0  # somebody has begun a new one
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _unreadable(error, self.path) from error
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be half written
        self._offset += len(whole)
        for line in whole.splitlines():
            sent = self._take(line) if line else None
            if sent is not None:
                yield sent

    def _take(self, line: bytes) -> Sent | None:
        try:
            document = json.loads(line)
            kind = document.pop("type")
            if kind == "request":
                sent = Sent(**_checked(_UNNAMED | document, _REQUEST_FIELDS))
                self._open[sent.id] = sent
                return sent
            outcome = Outcome(**_checked(_NOT_CACHED | document, _OUTCOME_FIELDS))
            return replace(self._open.pop(document["id"]), **asdict(outcome))
        except (ValueError, KeyError, TypeError, AttributeError):
            self.damaged += 1
            return None


_NOT_CACHED = {"reused_tokens": 0, "written_tokens": 0}
_UNNAMED = {"server": ""}
"""Lines of before have no such fields."""

_COUNTS = ("attempt", "bytes", "status", "input_tokens", "output_tokens", *_NOT_CACHED)
_TYPES = {
    **dict.fromkeys(_COUNTS, (int,)),
    **dict.fromkeys(("most", "cost"), (int, float, type(None))),
}


def _checked(document: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """The named fields, each of its type.

    Raises:
        KeyError, TypeError: it is not so.
    """
    for name in names:
        if type(document[name]) not in _TYPES.get(name, (str,)):
            raise TypeError(name)
    return {name: document[name] for name in names}


_OUTCOME_FIELDS = tuple(field.name for field in fields(Outcome))
_REQUEST_FIELDS = tuple(f.name for f in fields(Sent) if f.name not in _OUTCOME_FIELDS)


def read_ledger(home: Path) -> tuple[list[Sent], int]:
    """Every request in the order in which it was sent, and how many lines are damaged.

    Raises:
        ShammahError: ``egress_unreadable``.
    """
    reader = Reader(home / NAME)
    latest = {sent.id: sent for sent in reader.read()}
    return list(latest.values()), reader.damaged


@dataclass(frozen=True, slots=True)
class Verified:
    """A ledger that was verified: its files, each with the number of its lines, and what is in
    them, as if they were one."""

    files: tuple[tuple[Path, int], ...]
    report: Report

    def find(self, line: int) -> tuple[Path, int]:
        """The file of a line, and its number there."""
        for path, lines in self.files[:-1]:
            if line <= lines:
                return path, line
            line -= lines
        return self.files[-1][0], line


def verify_ledger(home: Path, noted: str = "") -> Verified:
    """Verify the chain of the ledger, with the parts beside it that were rotated away from it
    (``egress.jsonl.1``, ``egress.jsonl-20261129``).

    Args:
        home: the directory that they are in.
        noted: the hash of a line that must be in it, or its beginning.

    Raises:
        ShammahError: ``egress_unreadable``.
    """
    from shammah.storage.chain_damage import inspect

    path = home / NAME
    try:
        head = read_head(path)  # first: what is written meanwhile is not in it
        earlier = [(one, _read(one)) for one in home.glob(f"{NAME}[.-]*")]
        files = [*sorted(earlier, key=lambda one: _first(one[1])), (path, _read(path))]
    except OSError as error:
        raise _unreadable(error, path) from error
    data = b"".join(data for _, data in files)
    counted = tuple((one, data.count(b"\n")) for one, data in files)
    return Verified(counted, inspect(data, head, noted))


def _read(path: Path) -> bytes:
    """A file, with an end behind its last line."""
    try:
        with open_file(path) as file:
            data = file.read()
    except FileNotFoundError:
        return b""
    return data + b"\n" if data and not data.endswith(b"\n") else data


def _first(data: bytes) -> int:
    """The number of the first line of a chain; 0: none is."""
    return next((link.n for link in read_links(data)), 0)


def _unreadable(error: OSError, path: Path) -> ShammahError:
    return ShammahError(
        "egress_unreadable",
        f"The egress ledger cannot be read ({error.strerror}: {path}).",
        "Fix the permissions of the file.",
    )


def day_totals(entries: Iterable[Sent]) -> Iterator[Total]:
    """Yield the days in order; ``entries`` are in the order in which they were sent."""
    for day, of_day in groupby(entries, lambda sent: sent.day):
        yield total_of(day, list(of_day))


def total_of(day: str, sent: Sequence[Sent]) -> Total:
    """Add up what was ``sent`` on a day."""
    return Total(
        day=day,
        requests=len(sent),
        bytes=sum(one.bytes for one in sent),
        input_tokens=sum(one.input_tokens for one in sent),
        output_tokens=sum(one.output_tokens for one in sent),
        cost=sum(one.cost or 0.0 for one in sent),
        unpriced=sum(
            one.cost is None and bool(one.input_tokens or one.output_tokens) for one in sent
        ),
        reused_tokens=sum(one.reused_tokens for one in sent),
        written_tokens=sum(one.written_tokens for one in sent),
    )
