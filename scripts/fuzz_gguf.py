#!/usr/bin/env python3
"""Read damaged GGUF headers, and report what was not refused properly and how much memory it took.

    .venv/bin/python scripts/fuzz_gguf.py                   100,000 headers
    .venv/bin/python scripts/fuzz_gguf.py 1000000 --seed 7

Each header is made from a small model by the defects in tests/fakes/gguf_files.py. Afterwards come
the largest headers that the bounds allow, each in a process of its own. Exit status: 0 if nothing
but a HeaderError was raised, and no process took 100 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing import get_context
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shammah.errors import ShammahError  # noqa: E402
from tests.fakes.gguf_files import bombs, damaged, parse  # noqa: E402
from workers.inference.packages.gguf import read_header  # noqa: E402

MOST_BYTES = 100_000_000


def main(headers: int, seed: int) -> int:
    """Print the report."""
    outcomes, began = Counter[str](), time.monotonic()
    for number in range(headers):
        try:
            found = parse(damaged(Random(f"{seed} {number}")))
            outcomes["refused" if isinstance(found, str) else "read"] += 1
        except Exception:
            outcomes["crashes"] += 1
            print(f"header {number} of seed {seed}:\n{traceback.format_exc()}", file=sys.stderr)
    taken, peak = time.monotonic() - began, peak_bytes()
    print(f"{headers:,} headers in {taken:.0f} s: {outcomes['read']:,} read, ", end="")
    print(f"{outcomes['refused']:,} refused, {outcomes['crashes']} crashes; {peak / 1e6:.0f} MB")
    with (
        tempfile.TemporaryDirectory() as scratch,
        get_context("spawn").Pool(1, None, (), 1) as pool,
    ):
        path = Path(scratch, "bomb.gguf")
        for name, content in bombs():
            path.write_bytes(content)
            [(outcome, size, taken)] = pool.map(read_alone, [path])
            peak = max(peak, size)
            print(f"{name}: {len(content) / 1e6:.0f} MB: {outcome}, ", end="")
            print(f"{size / 1e6:.0f} MB, {taken:.1f} s")
    return 1 if outcomes["crashes"] or peak >= MOST_BYTES else 0


def read_alone(path: Path) -> tuple[str, int, float]:
    """Read a header: what became of it, the most bytes that this process has had, seconds."""
    began = time.monotonic()
    try:
        read_header(path)
        outcome = "read"
    except ShammahError as error:
        outcome = error.message
    return outcome, peak_bytes(), time.monotonic() - began


def peak_bytes() -> int:
    """The most memory that this process has had (Linux)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Read damaged GGUF headers.")
    parser.add_argument("headers", type=int, nargs="?", default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.exit(main(options.headers, options.seed))
