"""What was done to a chain (`chain`) since it was written. Pure.

Numbers say what is missing and what is out of place, hashes what was changed. That something was
done is certain; what it was is the simplest explanation: a line that was removed and another put in
with its number is a changed one.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from shammah.storage.chain import Head, Link, read_link, sha256

Kind = Literal["changed", "removed", "inserted", "moved", "not_here", "no_head", "not_found"]
"""``not_here``: the first lines are in another file, or were removed; ``no_head``: whether lines
were cut off at the end can't be seen; ``not_found``: no line has the hash that was asked for."""

_FEW = 64
"""Of so many loose lines it is tried which one was put in."""


@dataclass(frozen=True, slots=True)
class Damage:
    """``count`` lines from ``line`` (from 1) on; of what is missing, behind ``line``, and 0 where
    the number is not known. Of several ``changed`` lines one may have been removed or put in."""

    kind: Kind
    line: int = 0
    count: int = 1

    @property
    def lines(self) -> range:
        """Those that are there."""
        there = self.kind in ("changed", "inserted", "moved")
        return range(self.line, self.line + self.count if there else self.line)


@dataclass(frozen=True, slots=True)
class Report:
    """What is in a file, by the numbers of its lines.

    Attributes:
        lines: how many there are.
        links: how many of them are of the chain.
        first: the number in the chain of its first line; 0: there is none.
        last: the end of the chain.
        unchained: of an earlier version. Those behind the last link nothing vouches for yet.
        torn: what a crash left.
        damage: in the order of the file; empty: nothing was done to it.
        proven: the first of the lines that lead unharmed to the head; 0: there is none.
        behind: by how many lines the head is.
    """

    lines: int
    links: int
    first: int
    last: Head | None
    unchained: tuple[int, ...]
    torn: tuple[int, ...]
    damage: tuple[Damage, ...]
    proven: int
    behind: int


@dataclass(slots=True)
class _Loose:
    """A line without the fields of the chain."""

    line: int
    text: bytes


@dataclass(slots=True)
class _Line:
    """A line of the chain, and the loose ones behind it, whose bytes are hashed with it."""

    link: Link
    line: int
    head: Head
    loose: list[_Loose] = field(default_factory=list)

    @property
    def sealed(self) -> str:
        """What the next line says of this one."""
        return _hash([self.link.text, *_texts(self.loose)]) if self.loose else self.head.sha256

    def is_before(self, other: _Line) -> bool:
        hashes = (self.head.sha256, self.sealed)
        return other.link.n == self.link.n + 1 and other.link.previous in hashes


def inspect(data: bytes, head: Head | None, noted: str = "") -> Report:
    """Compare a file with itself and with the head.

    Args:
        data: all of it.
        head: as it was before the file was read.
        noted: the hash of some line as somebody has noted it, or its beginning.
    """
    chain = _Chain(data, head, noted)
    chain.check_beginning()
    chain.check_joints()
    chain.check_end()
    chain.check_noted()
    sequence = chain.sequence
    last = sequence[-1].head if sequence else None
    blamed = {line for one in chain.damage for line in one.lines}
    loose = [one for one in chain.loose if one.line not in blamed]
    torn = {one.line for one in loose if not _is_document(one.text)}
    return Report(
        lines=chain.lines,
        links=len(chain.links),
        first=sequence[0].link.n if sequence else 0,
        last=last,
        unchained=tuple(one.line for one in loose if one.line not in torn),
        torn=tuple(sorted(torn)),
        damage=tuple(_joined(chain.damage)),
        proven=chain.proven(),
        behind=max(0, last.n - head.n) if head and last else 0,
    )


class _Chain:
    """The lines of a file, brought back into their order: ``sequence``. ``foreign`` are those that
    have no place in it, by the line of it that they stand behind."""

    def __init__(self, data: bytes, head: Head | None, noted: str) -> None:
        self.head = head
        self._noted = noted
        self.damage: list[Damage] = []
        self.links: list[_Line] = []
        self.loose: list[_Loose] = []
        self.before: list[_Loose] = []
        self.lines = 0
        self._read(data)
        self.sequence, moved = _in_order(self.links, head)
        self.damage += [Damage("moved", line.line) for line in moved]
        self._foreign: dict[int, list[int]] = defaultdict(list)
        self._find_foreign()
        self._broken: set[int] = set()

    def _read(self, data: bytes) -> None:
        texts = data.split(b"\n")
        if not texts[-1]:
            texts.pop()
        self.lines = len(texts)
        behind = self.before
        for number, text in enumerate(texts, 1):
            whole = text + b"\n"
            if link := read_link(whole):
                self.links.append(_Line(link, number, link.head))
                behind = self.links[-1].loose
            else:
                behind.append(_Loose(number, whole))
                self.loose.append(behind[-1])

    def _find_foreign(self) -> None:
        """What is loose behind a foreign line stood behind the one before it."""
        anchor, behind = 0, self.before
        ours = {line.line for line in self.sequence}
        for line in self.links:
            if line.line in ours:
                anchor, behind = line.line, line.loose
            else:
                self._foreign[anchor].append(line.line)
                behind += line.loose

    def check_beginning(self) -> None:
        """Of the first line: that what it says was before it was so."""
        if not self.sequence:
            return
        first = self.sequence[0].link
        if first.n > 1:
            missing = self._fill(first.n - 1, 0, self.before[::-1])
            self._miss_beginning(missing, first.previous)
            return
        self._blame("inserted", self._foreign[0])
        if self._follows(b"", self.before, first.previous):
            return
        if self.before:
            self.damage.append(Damage("changed", 1, len(self.before)))
        elif len(self.sequence) > 1 and self.sequence[0].is_before(self.sequence[1]):
            self.damage.append(Damage("removed", 0, 0))
        else:
            self._broken.add(-1)

    def check_joints(self) -> None:
        """Of each line but the first: that it follows the one before."""
        for index, (line, following) in enumerate(pairwise(self.sequence)):
            gap = following.link.n - line.link.n - 1
            if gap:
                if missing := self._fill(gap, line.line, line.loose):
                    self.damage.append(Damage("removed", line.line, missing))
                continue
            self._blame("inserted", self._foreign[line.line])
            if self._follows(line.link.text, line.loose, following.link.previous):
                continue
            if line.head == self.head:  # this one is as it was
                self._blame("inserted", [following.line])
            else:
                self._broken.add(index)

    def check_end(self) -> None:
        """Of the last line: that it is the one of the head. Then blame lines for broken joints."""
        last = self.sequence[-1] if self.sequence else None
        n, line, loose = (last.link.n, last.line, last.loose) if last else (0, 0, self.before)
        if self.head is not None and self.head.n > n:
            missing = self._fill(self.head.n - n, line, loose)
            if last is None:
                self._miss_beginning(missing, self.head.sha256)
            elif missing:
                self.damage.append(Damage("removed", line, missing))
        else:
            self._blame("inserted", self._foreign[line])
            if last and self.head is None:
                self.damage.append(Damage("no_head", self.lines, 0))
            for index, one in enumerate(self.sequence):
                if self.head and one.link.n == self.head.n and one.head != self.head:
                    self._broken.add(index)
        for index in self._broken:
            # A line that was changed in what it says of the one before breaks the joint there, too.
            if index + 1 in self._broken:
                self._blame("changed", [self.sequence[index + 1].line])
            elif index - 1 not in self._broken:
                found = self.sequence[max(0, index)]
                self.damage.append(Damage("changed", found.line, 1 + len(found.loose)))

    def check_noted(self) -> None:
        """Of the hash that somebody has noted: that it is of a line, or of the one before all."""
        known = [line.head.sha256 for line in self.sequence]
        known += [line.link.previous for line in self.sequence[:1]]
        if not self.sequence and self.head:
            known.append(self.head.sha256)
        if not any(one.startswith(self._noted) for one in known) and self._noted:
            self.damage.append(Damage("not_found", 0, 0))

    def proven(self) -> int:
        """As in `Report`."""
        if self.head not in [line.head for line in self.sequence]:
            return 0
        return 1 + max((one.lines.stop - bool(one.lines) for one in self.damage), default=0)

    def _miss_beginning(self, missing: int, previous: str) -> None:
        """It may be in a file elsewhere, which ended with the hash ``previous``."""
        if missing and not (self._noted and previous.startswith(self._noted)):
            self.damage.append(Damage("not_here", 0, missing))

    def _blame(self, kind: Kind, lines: Iterable[int]) -> None:
        self.damage += [Damage(kind, line) for line in lines]

    def _fill(self, missing: int, behind: int, loose: Sequence[_Loose]) -> int:
        """Take what has no place here for what is missing; how much is missing all the same."""
        foreign = self._foreign[behind]
        self._blame("inserted", foreign[missing:])
        changed = [*foreign, *(one.line for one in loose)][:missing]
        self._blame("changed", changed)
        return missing - len(changed)

    def _follows(self, text: bytes, loose: Sequence[_Loose], previous: str) -> bool:
        """Whether ``previous`` is of ``text`` and the loose lines behind it, or would be without
        those that were put in."""
        texts = _texts(loose)
        if _hash([text, *texts]) == previous:
            return True
        if loose and sha256(text) == previous:
            self._blame("inserted", [one.line for one in loose])
            return True
        for index, one in enumerate(loose[:_FEW]):
            if _hash([text, *texts[:index], *texts[index + 1 :]]) == previous:
                self._blame("inserted", [one.line])
                return True
        return False


def _in_order(lines: Sequence[_Line], head: Head | None) -> tuple[list[_Line], list[_Line]]:
    """The lines that belong together, by their numbers, and those of them that were moved."""
    of_number: dict[int, list[_Line]] = defaultdict(list)
    for line in lines:
        of_number[line.link.n].append(line)

    def ties(line: _Line) -> int:
        """How many neighbours it fits."""
        n = line.link.n
        follows = any(one.is_before(line) for one in of_number.get(n - 1, []))
        is_followed = any(line.is_before(one) for one in of_number.get(n + 1, []))
        return follows + (is_followed or line.head == head)

    chosen = {
        line.line
        for same in of_number.values()
        for most in [max(map(ties, same)) if len(same) > 1 else 0]
        for line in same
        if len(same) == 1 or ties(line) == most
    }
    spine = _longest_rise([line for line in lines if line.line in chosen])
    numbers = {line.link.n for line in spine}
    strays = {n: same[0] for n, same in of_number.items() if n not in numbers}
    moved = [line for line in strays.values() if ties(line)]
    return sorted([*spine, *moved], key=lambda line: line.link.n), moved


def _longest_rise(lines: Sequence[_Line]) -> list[_Line]:
    """The most lines whose numbers rise, in the order in which they stand; of equals the first."""
    ends: list[int] = []
    tops: list[int] = []
    before: list[int] = []
    for index, line in enumerate(lines):
        length = bisect_left(ends, line.link.n)
        before.append(tops[length - 1] if length else -1)
        if ends[length : length + 1] != [line.link.n]:
            ends[length : length + 1] = [line.link.n]
            tops[length : length + 1] = [index]
    found: list[_Line] = []
    index = tops[-1] if tops else -1
    while index >= 0:
        found.append(lines[index])
        index = before[index]
    return found[::-1]


def _joined(damage: Iterable[Damage]) -> Iterator[Damage]:
    """In the order of the file, neighbours of a kind together (but for ``changed``)."""
    joined: list[Damage] = []
    for one in sorted(set(damage), key=lambda one: (one.line, one.kind)):
        last = joined[-1] if joined else None
        if (
            last
            and one.kind == last.kind in ("inserted", "moved")
            and (one.line == last.line + last.count)
        ):
            joined[-1] = Damage(one.kind, last.line, last.count + one.count)
        else:
            joined.append(one)
    return iter(joined)


def _texts(loose: Iterable[_Loose]) -> list[bytes]:
    return [one.text for one in loose]


def _hash(texts: Iterable[bytes]) -> str:
    return sha256(b"".join(texts))


def _is_document(text: bytes) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
