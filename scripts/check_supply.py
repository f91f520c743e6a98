"""Compare what pip would install with the recorded hashes: check_supply.py REPORT LOCK...

REPORT is what `pip install --dry-run --report REPORT` wrote; each LOCK is of scripts/supply. It is
for the packages that pip itself cannot check, torch and what it brings: indexes have builds of
torch for each accelerator, so a version with a local label ("2.13.0+cpu") is only named. Exits 1
if a file has the version that is recorded, but none of its hashes.

Only the standard library: it runs before anything else may be trusted.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any


def recorded_hashes(text: str) -> dict[tuple[str, str], set[str]]:
    """SHA-256 digests by name and version."""
    entries = re.findall(r"^(\S+?)==(\S+)(.*(?:\n    .*)*)$", text, re.M)
    return {
        (name, version): set(re.findall(r"sha256:(\w+)", rest)) for name, version, rest in entries
    }


def compare(
    report: Mapping[str, Any], recorded: Mapping[tuple[str, str], set[str]]
) -> tuple[list[str], list[str]]:
    """What differs from the record, and what the record does not have."""
    differing, unknown = [], []
    for one in report["install"]:
        archive = one["download_info"].get("archive_info")
        if archive is None:
            continue  # the checkout itself
        name = re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower()
        version = one["metadata"]["version"]
        hashes = recorded.get((name, version))
        if hashes is None:
            unknown.append(f"{name} {version}")
        elif archive.get("hashes", {}).get("sha256") not in hashes:
            differing.append(f"{name} {version}")
    return differing, unknown


def main(report: str, locks: Iterable[str]) -> int:
    recorded: dict[tuple[str, str], set[str]] = {}
    for lock in locks:
        with open(lock, encoding="utf-8") as file:
            recorded |= recorded_hashes(file.read())
    with open(report, encoding="utf-8") as file:
        differing, unknown = compare(json.load(file), recorded)
    if unknown:
        print(f"      not checked, no hash is recorded: {', '.join(unknown)}")
    if differing:
        print(f"ERROR: another file than the recorded one: {', '.join(differing)}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
