#!/usr/bin/env python3
"""How long from exec to the prompt, and to the answer to a question typed ahead.

Each run is paired with ``python -c pass`` of the same environment, taken just before on the
same kind of terminal; the figure to quote is the median of the ratios. A stand-in worker that
echoes answers, so that what is timed is Shammah and not a model. Python's own prompt is
measured beside it.

With ``--history`` the same start in two homes in turns: an empty one, and one with so many
finished turns, written by the history's own store, and 10 MB beside them.

    .venv/bin/python scripts/bench/startup.py            20 pairs
    .venv/bin/python scripts/bench/startup.py -n 50 --json
    .venv/bin/python scripts/bench/startup.py --history 100000
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import random
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from shammah.bus.messages import Done, Provenance, Timings, Usage
from shammah.chat.conversation import Turn
from shammah.history.record import StoredConversation
from shammah.history.recorder import NAME as HISTORY
from shammah.history.store import Store

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(Path(sys.prefix, "bin", "python"))
SHAMMAH = [str(Path(sys.prefix, "bin", "shammah")), "--model", "starter"]
CURSOR_QUERY = b"\x1b[6n"
EDITOR_LOADED = b"\x1b[?7h"
"""The editor turns line wrapping back on when it has drawn the line for the first time."""

COMMANDS = (("--version",), ("--help",), ("status", "--once"))
"""To take at most 8 times as long as the bare interpreter; the status asks a worker."""

QUESTION = b"typed ahead"
LIMIT_S = 30.0

TURNS_OF_A_CONVERSATION = 8
HOME_FILES = {
    "prompt_history.jsonl": 1_000_000,
    "logs/inference.log": 2_000_000,
    "logs/download.log": 2_000_000,
    "adapters/tidy/adapter_model.safetensors": 5_000_000,
}
"""What a home has beside its history after a year, in bytes: 10 MB."""


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


class World:
    """A home and a runtime directory of our own, in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "home"
        own = {"SHAMMAH_HOME": str(self.home), "XDG_RUNTIME_DIR": str(directory / "run")}
        for folder in own.values():
            Path(folder).mkdir(mode=0o700, parents=True)
        self.environ = {**os.environ, **own, "TERM": "xterm-256color", "HF_HUB_OFFLINE": "1"}
        self.environ.pop("ANTHROPIC_API_KEY", None)
        # People's second start finds its bytecode; without it every run compiles all source.
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    def start(self, command: list[str]) -> Terminal:
        started = time.perf_counter()
        pid, fd = pty.fork()
        if pid == 0:
            os.execve(command[0], command, self.environ)
        return Terminal(pid, fd, started)

    def time_bare(self) -> float:
        return self.start([PYTHON, "-c", "pass"]).wait_exit()

    def time_python_prompt(self) -> float:
        terminal = self.start([PYTHON, "-q"])
        elapsed = terminal.wait_for(b">>> ")
        terminal.kill()
        return elapsed

    def time_prompt(self) -> tuple[float, float]:
        """Seconds to the prompt, and resident MiB at that moment."""
        terminal = self.start(SHAMMAH)
        elapsed = terminal.wait_for(b"> ")
        os.kill(terminal.pid, signal.SIGSTOP)  # as it stands at the prompt, not 50 ms later
        memory = resident_mib(terminal.pid)
        terminal.kill()
        return elapsed, memory

    def time_editor(self) -> tuple[float, float]:
        """Seconds until the editor has taken over, and resident MiB after it has."""
        terminal = self.start(SHAMMAH)
        elapsed = terminal.wait_for(EDITOR_LOADED)
        memory = resident_mib(terminal.pid)
        terminal.kill()
        return elapsed, memory

    def time_command(self, *arguments: str) -> float:
        """Seconds from exec to the end of a command whose output nobody looks at."""
        started = time.perf_counter()
        command = [SHAMMAH[0], *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=self.environ)
        return time.perf_counter() - started

    def time_typed_ahead(self) -> float:
        """Seconds to the last word of the answer to a question typed before anything runs."""
        terminal = self.start(SHAMMAH)
        os.write(terminal.fd, QUESTION + b"\n")
        elapsed = terminal.wait_for(QUESTION, times=2)  # the terminal's echo, then the answer
        terminal.kill()
        return elapsed


def resident_mib(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


@contextmanager
def echo_worker(scratch: Path, name: str) -> Iterator[World]:
    """A world in which the stand-in is the inference worker."""
    world = World(scratch / name)
    command = [PYTHON, "-P", "-m", "tests.fakes.echo", "inference", "--model", "starter"]
    environ = {**world.environ, "PYTHONPATH": str(ROOT)}
    worker = subprocess.Popen([*command, "--keep-alive", "-1"], env=environ)
    try:
        answer = [SHAMMAH[0], "ask", "--no-history", "--model", "starter", "ready?"]
        environ = world.environ
        subprocess.run(answer, check=True, capture_output=True, timeout=LIMIT_S, env=environ)
        yield world
    finally:
        worker.terminate()
        worker.wait()


def fill(home: Path, turns: int) -> None:
    """Years of use: ``turns`` finished turns, `HOME_FILES`, and every setting named."""
    chance = random.Random(0)
    words = (ROOT / "LICENSE").read_text().split()
    store = Store(home / HISTORY)
    begun = time.time() - 60 * turns
    for number in range(turns):
        if number % TURNS_OF_A_CONVERSATION == 0:
            conversation = StoredConversation(0)
        question, answer = (" ".join(chance.choices(words, k=size)) for size in (12, 80))
        timings = Timings(0.0, 0.1, 1.0, 500.0, 100.0)
        by = Provenance("inference", "starter")
        turn = Turn(
            question=question,
            answer=answer,
            end=Done("", "stop", Usage(20, 100), timings, by),
            stored=("local", "model_ready"),
            at=begun + 60 * number,
            key=f"{number:016x}",
        )
        conversation = StoredConversation(store.add(turn, conversation))
    store.close()
    for name, size in HOME_FILES.items():
        line = json.dumps(" ".join(chance.choices(words, k=12))) + "\n"
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(line * (size // len(line)))
    shutil.copy(ROOT / "configs" / "default.toml", home / "config.toml")


def measure(world: World, pairs: int) -> dict[str, dict[str, float]]:
    """Each figure's median and minimum in milliseconds (or MiB), and its ratio to bare."""
    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {"memory at the prompt": [], "memory with the editor": []}
    for _ in range(pairs):
        prompt, at_prompt = world.time_prompt()
        bare = world.time_bare()
        editor, with_editor = world.time_editor()
        memory["memory at the prompt"].append(at_prompt)
        memory["memory with the editor"].append(with_editor)
        for name, elapsed in (
            ("python -c pass", bare),
            ("shammah: prompt", prompt),
            ("python: prompt", world.time_python_prompt()),
            ("shammah: answer to a line typed ahead", world.time_typed_ahead()),
            ("shammah: editor", editor),
            *((f"shammah {' '.join(words)}", world.time_command(*words)) for words in COMMANDS),
        ):
            times.setdefault(name, []).append(elapsed)
            ratios.setdefault(name, []).append(elapsed / bare)
    figures = summarize(times, ratios, min(times["python -c pass"]))
    return figures | {name: {"median_mib": statistics.median(v)} for name, v in memory.items()}


def measure_homes(empty: World, full: World, pairs: int) -> dict[str, dict[str, float]]:
    """The same starts in both homes in turns, each with its ratio to bare and to the other."""
    times: dict[str, list[float]] = {}
    ratios: dict[str, list[float]] = {}
    between: dict[str, list[float]] = {}
    for pair in range(pairs):
        bare = empty.time_bare()
        times.setdefault("python -c pass", []).append(bare)
        ratios.setdefault("python -c pass", []).append(1.0)
        for name, take in (
            ("prompt", lambda world: world.time_prompt()[0]),
            ("editor", lambda world: world.time_editor()[0]),
            ("answer to a line typed ahead", World.time_typed_ahead),
        ):
            first, second = (empty, full) if pair % 2 else (full, empty)
            taken = {world: take(world) for world in (first, second)}
            for home, world in (("empty", empty), ("full", full)):
                times.setdefault(f"{name}, {home} home", []).append(taken[world])
                ratios.setdefault(f"{name}, {home} home", []).append(taken[world] / bare)
            between.setdefault(f"{name}, full home", []).append(taken[full] / taken[empty])
    figures = summarize(times, ratios, min(times["python -c pass"]))
    for name, values in between.items():
        figures[name]["ratio_to_empty"] = statistics.median(values)
    return figures


def summarize(
    times: dict[str, list[float]], ratios: dict[str, list[float]], bare: float
) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median_ms": 1000 * statistics.median(values),
            "min_ms": 1000 * min(values),
            "ratio": statistics.median(ratios[name]),
            "ratio_of_minima": min(values) / bare,
        }
        for name, values in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-n", "--pairs", type=int, default=20)
    parser.add_argument("--history", type=int, metavar="TURNS", help="of the full home")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sh-bench-") as scratch, ExitStack() as stack:
        world = stack.enter_context(echo_worker(Path(scratch), "empty"))
        world.time_prompt(), world.time_bare()  # once, to warm the page cache
        if options.history is None:
            figures = measure(world, options.pairs)
        else:
            full = stack.enter_context(echo_worker(Path(scratch), "full"))
            fill(full.home, options.history)
            full.time_typed_ahead()
            figures = measure_homes(world, full, options.pairs)
    if options.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"{options.pairs} pairs; ratio = median of the pairs' ratios to `python -c pass`")
    print(f"{'':40} {'median':>10} {'min':>10} {'ratio':>7} {'of minima':>9}")
    for name, figure in figures.items():
        if "ratio" not in figure:
            print(f"{name:40} {figure['median_mib']:6.1f} MiB")
            continue
        line = f"{name:40} {figure['median_ms']:7.1f} ms {figure['min_ms']:7.1f} ms "
        line += f"{figure['ratio']:7.2f} {figure['ratio_of_minima']:9.2f}"
        if "ratio_to_empty" in figure:
            line += f"  {figure['ratio_to_empty']:.2f} of the empty one's"
        print(line)


if __name__ == "__main__":
    main()
