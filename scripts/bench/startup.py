#!/usr/bin/env python3
"""How long from exec to the prompt, and to the answer to a question typed ahead.

Each run is paired with ``python -c pass`` of the same environment, taken just before on the
same kind of terminal; the figure to quote is the median of the ratios. A stand-in worker that
echoes answers, so that what is timed is Shammah and not a model. Python's own prompt is
measured beside it.

    .venv/bin/python scripts/bench/startup.py            20 pairs
    .venv/bin/python scripts/bench/startup.py -n 50 --json
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(Path(sys.prefix, "bin", "python"))
SHAMMAH = [str(Path(sys.prefix, "bin", "shammah")), "--model", "starter"]
CURSOR_QUERY = b"\x1b[6n"
EDITOR_LOADED = b"\x1b[?7h"
"""The editor turns line wrapping back on when it has drawn the line for the first time."""

QUESTION = b"typed ahead"
LIMIT_S = 30.0


@dataclass
class Terminal:
    """A program on a pty, and what it has written so far."""

    pid: int
    fd: int
    started: float
    output: bytes = b""

    def wait_for(self, text: bytes, times: int = 1) -> float:
        """Seconds from exec until ``text`` has been written ``times`` times."""
        while self.output.count(text) < times:
            if not select.select([self.fd], [], [], LIMIT_S)[0]:
                raise TimeoutError(f"{text!r} did not come; so far: {self.output!r}")
            chunk = os.read(self.fd, 65536)
            self.output += chunk
            if CURSOR_QUERY in chunk:
                os.write(self.fd, b"\x1b[1;3R")  # as a real terminal answers
        return time.perf_counter() - self.started

    def wait_exit(self) -> float:
        """Seconds from exec to the end of the process."""
        os.waitpid(self.pid, 0)
        elapsed = time.perf_counter() - self.started
        os.close(self.fd)
        return elapsed

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait_exit()


def start(command: list[str]) -> Terminal:
    started = time.perf_counter()
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(command[0], command)
    return Terminal(pid, fd, started)


def resident_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def time_bare() -> float:
    return start([PYTHON, "-c", "pass"]).wait_exit()


def time_python_prompt() -> float:
    terminal = start([PYTHON, "-q"])
    elapsed = terminal.wait_for(b">>> ")
    terminal.kill()
    return elapsed


def time_prompt() -> tuple[float, float]:
    """Seconds to the prompt, and resident MiB at that moment."""
    terminal = start(SHAMMAH)
    elapsed = terminal.wait_for(b"> ")
    os.kill(terminal.pid, signal.SIGSTOP)  # as it stands at the prompt, not 50 ms later
    memory = resident_mib(terminal.pid)
    terminal.kill()
    return elapsed, memory


def time_editor() -> tuple[float, float]:
    """Seconds until the editor has taken over, and resident MiB after it has."""
    terminal = start(SHAMMAH)
    elapsed = terminal.wait_for(EDITOR_LOADED)
    memory = resident_mib(terminal.pid)
    terminal.kill()
    return elapsed, memory


def time_typed_ahead() -> float:
    """Seconds to the last word of the answer to a question typed before anything runs."""
    terminal = start(SHAMMAH)
    os.write(terminal.fd, QUESTION + b"\n")
    elapsed = terminal.wait_for(QUESTION, times=2)  # the terminal's echo, then the answer
    terminal.kill()
    return elapsed


@contextmanager
def echo_worker() -> Iterator[None]:
    """A home and runtime directory of our own, with the stand-in as inference worker."""
    with tempfile.TemporaryDirectory(prefix="sh-bench-") as scratch:
        for name, folder in (("SHAMMAH_HOME", "home"), ("XDG_RUNTIME_DIR", "run")):
            Path(scratch, folder).mkdir(mode=0o700)
            os.environ[name] = str(Path(scratch, folder))
        os.environ.pop("ANTHROPIC_API_KEY", None)
        os.environ["TERM"] = "xterm-256color"
        command = [PYTHON, "-P", "-m", "tests.standins.echo", "inference", "--model", "starter"]
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        worker = subprocess.Popen([*command, "--keep-alive", "-1"], env=environ)
        try:
            answer = [SHAMMAH[0], "ask", "--model", "starter", "ready?"]
            subprocess.run(answer, check=True, capture_output=True, timeout=LIMIT_S)
            yield
        finally:
            worker.terminate()
            worker.wait()


def measure(pairs: int) -> dict[str, dict[str, float]]:
    """Each figure's median and minimum in milliseconds (or MiB), and its ratio to bare."""
    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {"memory at the prompt": [], "memory with the editor": []}
    for _ in range(pairs):
        prompt, at_prompt = time_prompt()
        bare = time_bare()
        editor, with_editor = time_editor()
        memory["memory at the prompt"].append(at_prompt)
        memory["memory with the editor"].append(with_editor)
        for name, elapsed in (
            ("python -c pass", bare),
            ("shammah: prompt", prompt),
            ("python: prompt", time_python_prompt()),
            ("shammah: answer to a line typed ahead", time_typed_ahead()),
            ("shammah: editor", editor),
        ):
            times.setdefault(name, []).append(elapsed)
            ratios.setdefault(name, []).append(elapsed / bare)
    figures = {
        name: {
            "median_ms": 1000 * statistics.median(values),
            "min_ms": 1000 * min(values),
            "ratio": statistics.median(ratios[name]),
            "ratio_of_minima": min(values) / min(times["python -c pass"]),
        }
        for name, values in times.items()
    }
    return figures | {name: {"median_mib": statistics.median(v)} for name, v in memory.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--pairs", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with echo_worker():
        time_prompt(), time_bare()  # once, to warm the page cache
        figures = measure(options.pairs)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.pairs} pairs; ratio = median of the pairs' ratios to `python -c pass`")
    print(f"{'':40} {'median':>10} {'min':>10} {'ratio':>7} {'of minima':>9}")
    for name, figure in figures.items():
        if "ratio" in figure:
            print(
                f"{name:40} {figure['median_ms']:7.1f} ms {figure['min_ms']:7.1f} ms "
                f"{figure['ratio']:7.2f} {figure['ratio_of_minima']:9.2f}"
            )
        else:
            print(f"{name:40} {figure['median_mib']:6.1f} MiB")


if __name__ == "__main__":
    main()
