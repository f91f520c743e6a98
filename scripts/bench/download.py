#!/usr/bin/env python3
"""Shammah's downloads beside ``hf download``: throughput, processor time, cost of a kill.

Both fetch the same model from the same server on loopback (`tests/fakes/hub.py`, a process
of its own), in turns, each time into an empty cache. The time is from exec until the path of
the snapshot is printed; the figure to quote is the median of the ratios, theirs to ours. Ours
verifies every byte, theirs none.

    .venv/bin/python scripts/bench/download.py               512 MiB, 3 runs of each
    .venv/bin/python scripts/bench/download.py --mib 64 --runs 1 --json
    .venv/bin/python scripts/bench/download.py --directory /dev/shm     without the disk
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(Path(sys.prefix, "bin", "python"))
HF = str(Path(sys.prefix, "bin", "hf"))
MODEL = "acme/tiny"
MIB = 1024**2
GB = 1e9
POLL_S = 0.005

OURS = """
import sys
from pathlib import Path
from workers.download.downloads import Downloads
downloads = Downloads(Path(sys.argv[1]), token=False)
print(downloads.fetch(sys.argv[2]), flush=True)
downloads.close()
"""
PROGRAMS = ("shammah", "hf download")


@dataclass(frozen=True)
class Run:
    """``seconds`` to the printed path, ``cpu`` seconds of the whole process."""

    seconds: float
    cpu: float


class Server:
    """The stand-in hub as a process."""

    def __init__(self, process: subprocess.Popen[str], endpoint: str) -> None:
        self.process = process
        self.endpoint = endpoint
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def sent(self) -> int:
        """Bytes of files that it has sent so far."""
        with self._opener.open(f"{self.endpoint}/_stats", timeout=10) as answer:
            found: int = json.load(answer)["sent"]
        return found


@contextmanager
def served(content: Path, *options: str) -> Iterator[Server]:
    command = [PYTHON, "-P", str(ROOT / "tests" / "fakes" / "hub.py"), str(content), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(process, process.stdout.readline().strip())
        finally:
            process.stdin.close()


def start(program: str, server: Server, cache: Path) -> subprocess.Popen[str]:
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(cache.parent / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    }
    ours = [PYTHON, "-c", OURS, str(cache), MODEL]
    theirs = [HF, "download", MODEL, "--cache-dir", str(cache)]
    return subprocess.Popen(
        ours if program == PROGRAMS[0] else theirs,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def fetch(program: str, server: Server, cache: Path) -> Run:
    """Run it to its end."""
    began_s = time.perf_counter()
    process = start(program, server, cache)
    assert process.stdout is not None
    elapsed_s = 0.0
    for line in process.stdout:
        if "snapshots" in line:
            elapsed_s = time.perf_counter() - began_s
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not elapsed_s:
        raise SystemExit(f"{program} failed (exit status {process.returncode})")
    return Run(elapsed_s, usage.ru_utime + usage.ru_stime)


def kill_at(program: str, server: Server, cache: Path, sent: int) -> None:
    """Run it until the server has sent so many bytes in all."""
    with start(program, server, cache) as process:
        while server.sent() < sent and process.poll() is None:
            time.sleep(POLL_S)
        process.send_signal(signal.SIGKILL)


def compare(content: Path, scratch: Path, runs: int, size: int, *options: str) -> dict[str, float]:
    """Both in turns: the median of each, and of the ratios."""
    found: dict[str, list[Run]] = {program: [] for program in PROGRAMS}
    with served(content, *options) as server:
        for _ in range(runs):
            for program in PROGRAMS:
                cache = scratch / "cache"
                found[program].append(fetch(program, server, cache))
                shutil.rmtree(cache)
    ours, theirs = (found[program] for program in PROGRAMS)
    pairs = list(zip(ours, theirs, strict=True))
    return {
        "shammah_s": statistics.median(run.seconds for run in ours),
        "hf_s": statistics.median(run.seconds for run in theirs),
        "speed_ratio": statistics.median(b.seconds / a.seconds for a, b in pairs),
        "shammah_cpu_s_per_gb": statistics.median(run.cpu for run in ours) / size * GB,
        "hf_cpu_s_per_gb": statistics.median(run.cpu for run in theirs) / size * GB,
    }


def count_after_kills(
    content: Path, scratch: Path, kills: int, size: int, *options: str
) -> dict[str, float]:
    """Bytes sent again for each kill, at the same moments for both."""
    found = {}
    with served(content, *options) as server:
        for program in PROGRAMS:
            rng, cache, before = random.Random(1), scratch / "cache", server.sent()
            for _ in range(kills):
                at = server.sent() + rng.randrange(size // (2 * kills), size // kills)
                kill_at(program, server, cache, at)
            fetch(program, server, cache)
            found[program] = (server.sent() - before - size) / kills
            shutil.rmtree(cache)
    return {
        "kills": kills,
        "shammah_bytes_again_per_kill": found[PROGRAMS[0]],
        "hf_bytes_again_per_kill": found[PROGRAMS[1]],
    }


def make_content(directory: Path, mib: int) -> int:
    """A model of about so many MiB; returns its bytes."""
    (directory / "config.json").write_text("{}")
    rng = random.Random(1)
    with (directory / "model.safetensors").open("wb") as file:
        for _ in range(mib):
            file.write(rng.randbytes(MIB))
    return sum(path.stat().st_size for path in directory.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=512, help="size of the model")
    parser.add_argument("--runs", type=int, default=3, help="of each program in each setting")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=50.0, help="before every answer")
    parser.add_argument("--cap-mib", type=float, default=16.0, help="a second and connection")
    parser.add_argument("--directory", type=Path, help="where model and caches lie")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    far = ("--delay-ms", str(options.delay_ms), "--rate", str(options.cap_mib * MIB))
    # Slower than either reader, and what waits in the server's own kernel is not yet sent.
    slow = ("--rate", str(options.cap_mib / 2 * MIB), "--send-buffer", "16384")
    with tempfile.TemporaryDirectory(prefix="sh-bench-", dir=options.directory) as name:
        scratch = Path(name)
        content = scratch / "content"
        content.mkdir()
        size = make_content(content, options.mib)
        figures = {
            "unlimited": compare(content, scratch, options.runs, size),
            "far": compare(content, scratch, options.runs, size, *far),
            "kills": count_after_kills(content, scratch, options.kills, size, *slow),
        }
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    far_words = f"{options.delay_ms:.0f} ms per request, {options.cap_mib:g} MiB/s per connection"
    for title, key in (("unlimited", "unlimited"), (far_words, "far")):
        found = figures[key]
        print(f"{title} ({options.mib} MiB, {options.runs} runs of each)")
        for program, prefix in zip(PROGRAMS, ("shammah", "hf"), strict=True):
            rate = size / MIB / found[f"{prefix}_s"]
            print(
                f"  {program:12} {found[f'{prefix}_s']:7.2f} s {rate:8.1f} MiB/s "
                f"{found[f'{prefix}_cpu_s_per_gb']:6.2f} CPU s/GB"
            )
        print(f"  {found['speed_ratio']:.2f} times as fast (median of the pairs)")
    found = figures["kills"]
    slow_words = f"{options.cap_mib / 2:g} MiB/s per connection"
    print(f"{found['kills']} kills, bytes sent again for each ({slow_words})")
    for program, prefix in zip(PROGRAMS, ("shammah", "hf"), strict=True):
        print(f"  {program:12} {found[f'{prefix}_bytes_again_per_kill'] / MIB:8.2f} MiB")


if __name__ == "__main__":
    main()
