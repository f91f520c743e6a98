"""``shammah egress --verify``: whether the ledger is as it was written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from shammah.errors import ExitCode, UsageError
from shammah.privacy.ledger import NAME, Verified, verify_ledger
from shammah.storage.chain_damage import Damage, Report
from shammah.terminal.output import echo, print_json

MOST_SHOWN = 20
"""Of a ledger of which every line was changed."""


def show_verified(home: Path, noted: str | None, *, as_json: bool) -> int:
    """Verify the ledger in ``home`` and print what is found.

    Args:
        noted: the hash of a line that must be in it, or its first 16 digits or more.

    Raises:
        ShammahError: ``usage``, ``egress_unreadable``.
    """
    if noted is not None and not re.fullmatch("[0-9a-fA-F]{16,64}", noted):
        raise UsageError(
            f"{noted!r:.80} is not the hash of a line.",
            "Give what `shammah egress --verify` printed: 64 hexadecimal digits, or the first 16.",
        )
    verified = verify_ledger(home, (noted or "").lower())
    if as_json:
        print_json(_as_document(verified))
    else:
        for line in describe_verified(verified):
            echo(line)
    return ExitCode.FAILED if verified.report.damage else ExitCode.OK


def _as_document(verified: Verified) -> dict[str, object]:
    damage = []
    for one in verified.report.damage:
        path, line = verified.find(one.line)
        damage.append({"kind": one.kind, "file": path.name, "line": line, "count": one.count})
    whole = not damage
    return {"type": "verified", "whole": whole, **asdict(verified.report), "damage": damage}


def describe_verified(verified: Verified) -> Iterator[str]:
    """Yield sentences: what was done to the ledger, what else is noticed, and its head."""
    report = verified.report
    if not report.lines and not report.damage:
        yield "Nothing was sent to the cloud."
        return
    if not report.links and not report.damage:
        yield (
            f"No line carries a hash yet: {_lines(report.lines)} of an earlier version. The next "
            "request begins the chain."
        )
        return
    if report.damage:
        yield "The ledger is not as it was written:"
        for damage in report.damage[:MOST_SHOWN]:
            yield f"  {_describe(damage, verified)}"
        if len(report.damage) > MOST_SHOWN:
            yield f"  and {len(report.damage) - MOST_SHOWN:,} more"
        if 1 < report.proven <= report.lines:
            place = _lower(_place(report.proven, verified))
            yield f"What stands from {place} on is proven by the head; what stands before is not."
    else:
        yield f"The ledger is whole: {_lines(report.lines)}."
    yield from _describe_notes(report, verified)
    if report.last:
        yield f"Head: line {report.last.n:,} of the chain, {report.last.sha256}"


def _describe(damage: Damage, verified: Verified) -> str:
    there = len(damage.lines) or 1
    place = _place(damage.line, verified, there)
    was = "was" if damage.count == 1 else "were"
    match damage.kind:
        case "changed":
            return f"{place} was changed." if was == "was" else f"{place}: one or more changed."
        case "inserted":
            return f"{place} {was} put in."
        case "moved":
            return f"{place} {was} moved."
        case "removed" if not damage.count:
            return f"What stood before {_lower(_place(1, verified))} was removed."
        case "removed":
            at_end = damage.line == verified.report.lines
            where = "at the end" if at_end else f"behind {_lower(place)}"
            return f"{_lines(damage.count)} {was} removed {where}."
        case "not_here":
            return (
                f"The first {_lines(damage.count)} of the chain {was} removed, or rotated away: "
                f"then put the file back beside {NAME}, or give --head the hash it ended with."
            )
        case "no_head":
            return "Its head is missing or damaged, so lines may have been removed at the end."
        case "not_found":
            return "No line has the hash that was given: that line was changed or removed."


def _describe_notes(report: Report, verified: Verified) -> Iterator[str]:
    if report.torn:
        yield f"Torn by a crash, and not altered since: {_places(report.torn, verified)}."
    if report.unchained:
        yield f"Of an earlier version, without a hash: {_places(report.unchained, verified)}."
    if report.behind:
        yield (
            f"The head is {_lines(report.behind)} behind: a process was ended while it wrote. The "
            "next request mends that."
        )


def _places(numbers: tuple[int, ...], verified: Verified) -> str:
    shown = ", ".join(_lower(_place(number, verified)) for number in numbers[:3])
    return shown if len(numbers) <= 3 else f"{shown} and {len(numbers) - 3:,} more"


def _place(line: int, verified: Verified, count: int = 1) -> str:
    path, number = verified.find(line)
    of_file = f" of {path.name}" if len(verified.files) > 1 else ""
    span = f"Lines {number:,} to {number + count - 1:,}" if count > 1 else f"Line {number:,}"
    return span + of_file


def _lower(place: str) -> str:
    return place[0].lower() + place[1:]


def _lines(count: int) -> str:
    return "1 line" if count == 1 else f"{count:,} lines"
