#!/usr/bin/env python3
"""Compare the pinned versions with the recorded advisories, without a network.

    .venv/bin/python scripts/audit.py

Exits 1 if a pinned version has an advisory that nobody has looked at. scripts/record_supply.py
refreshes the record, scripts/supply/advisories.json, which is in the OSV format; its `accepted`
says why some advisories do not matter here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PINNED = [ROOT / "constraints.txt", ROOT / "scripts" / "servers-requirements.txt"]
RECORD = ROOT / "scripts" / "supply" / "advisories.json"


def pins(text: str) -> dict[str, str]:
    """Versions by normalized name."""
    found = re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.M)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """As OSV evaluates: listed by name, or in one of the ranges."""
    if version in affected.get("versions", ()):
        return True
    wanted = Version(version)
    for span in affected.get("ranges", ()):
        inside = False
        for event in span["events"]:
            [(kind, at)] = event.items()
            if kind == "introduced":
                inside = inside or wanted >= Version(at)
            elif kind == "fixed":
                inside = inside and wanted < Version(at)
            elif kind == "last_affected":
                inside = inside and wanted <= Version(at)
        if inside:
            return True
    return False


def fixes(affected: Mapping[str, Any]) -> list[str]:
    spans = affected.get("ranges", ())
    return [event["fixed"] for span in spans for event in span["events"] if "fixed" in event]


def findings(pinned: Mapping[str, str], record: Mapping[str, Any]) -> Iterator[str]:
    """One text for each advisory that is open, with what to do."""
    accepted = {id for one in record["accepted"] for id in one["ids"]}
    for advisory in record["advisories"]:
        if advisory["id"] in accepted:
            continue
        for affected in advisory["affected"]:
            name = affected["package"]["name"]
            version = pinned.get(name)
            if version is None or not is_affected(version, affected):
                continue
            fixed = [each for each in fixes(affected) if Version(each) > Version(version)]
            since = min(fixed, key=Version, default=None)
            names = ", ".join([advisory["id"], *advisory["aliases"]])
            yield (
                f"{name} {version}: {advisory['summary']} ({names})\n"
                + (f"  fixed in {since}\n" if since else "  no fixed version is recorded\n")
                + (
                    f"  next: pin {name}=={since} or newer (docs/DEVELOPING.md, Updates)"
                    if since
                    else "  next: see whether it reaches us; if not, say why in `accepted` of\n"
                    f"        {RECORD.relative_to(ROOT)}, else do without {name}"
                )
            )


def unasked(pinned: Mapping[str, str], record: Mapping[str, Any]) -> list[str]:
    """Pins that PyPI, which tells of the newest version alone, was not asked about."""
    asked = record["asked"]
    return [f"{name} {version}" for name, version in pinned.items() if asked.get(name) != version]


def main() -> int:
    record = json.loads(RECORD.read_text())
    pinned: dict[str, str] = {}
    for path in PINNED:
        pinned |= pins(path.read_text())
    found = list(findings(pinned, record))
    for one in found:
        print(one)
    accepted = sum(len(one["ids"]) for one in record["accepted"])
    print(
        f"{len(pinned)} packages, advisories of {record['recorded']}: {len(found)} open,"
        f" {accepted} looked at and accepted."
    )
    if older := unasked(pinned, record):
        print(f"Not the newest, so not all may be known, from {record['source']}:")
        print(f"  {', '.join(older)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
