#!/usr/bin/env python3
"""How soon a key is echoed, and how soon the prompt is back after Ctrl-C, while all is busy.

Busy means, all at once: the download worker fetches the model that this machine would choose
from a stand-in hub on loopback; meanwhile the starter answers another frontend, decoding on
every core; and that frontend asks the inference worker for its status a thousand times a second,
of which each is an event for everybody. How much of each there was is told with the figures.

The references, in turns with Shammah under the same load in the same run, are ``cat`` (the
kernel's own echo), Python's prompt, and the bare prompt of prompt_toolkit. Figures to quote: the
99th percentile of a key's echo, and its ratio to prompt_toolkit's; Ctrl-C's, and its ratio to
Python's.

    .venv/bin/python scripts/bench/responsiveness.py
    .venv/bin/python scripts/bench/responsiveness.py --keys 500 --json
    .venv/bin/python scripts/bench/responsiveness.py --idle       without the load
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pty
import re
import select
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import psutil
import zmq

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.endpoints import Endpoints, open_endpoints
from shammah.bus.messages import ChatMessage, ClientInfo, GetStatus, Ready
from shammah.bus.probe import ask_status
from shammah.models.catalogue import select_model, starter_directory, total_memory

ROOT = Path(__file__).resolve().parents[2]
PYTHON = str(Path(sys.prefix, "bin", "python"))
SHAMMAH = [str(Path(sys.prefix, "bin", "shammah"))]
BARE_EDITOR = "from prompt_toolkit import PromptSession as P; P('> ').prompt()"
PASTE_ON = rb"\x1b\[\?2004h\x1b\[\?(25l|1l)"
"""What prompt_toolkit writes when it begins to read; the first half alone is the first prompt's."""

LIMIT_S = 60.0
PAUSE_S = 0.02
"""Between two keys: 50 a second is faster than anybody types."""
KEYS = b"#~^|"
"""Nothing that stands in the line below or in an escape sequence."""
ROUNDS = 2

EVENTS_S = 1000
BYTES_S = 512 * 1024
"""Of each connection; the worker has several."""
MODEL_BYTES = 2 * 1024**3
ANSWER = rb"[a-z,]+ [a-z]+ [a-z]+ [a-z]+ "
STORY = "Write a very long story about a lighthouse keeper and the sea."


class Terminal:
    """A program on a pty."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
            os.execv(command[0], command)
        self.output = b""

    def read_on(self, limit_s: float) -> bool:
        """Take in what comes within ``limit_s``; whether anything did."""
        if not select.select([self.fd], [], [], limit_s)[0]:
            return False
        chunk = os.read(self.fd, 65536)
        self.output += chunk
        if b"\x1b[6n" in chunk:
            os.write(self.fd, b"\x1b[1;3R")  # as a real terminal answers
        return True

    def wait_for(self, pattern: bytes) -> None:
        """Until ``pattern`` has come; forgets everything so far."""
        while not re.search(pattern, self.output):
            if not self.read_on(LIMIT_S):
                raise TimeoutError(f"{pattern!r} did not come; so far: {self.output[-500:]!r}")
        self.output = b""

    def time_key(self, key: bytes) -> float:
        """Seconds from a key until it is on the screen."""
        while self.read_on(0.0):
            pass
        self.output = b""
        began = time.perf_counter()
        os.write(self.fd, key)
        self.wait_for(re.escape(key))
        return time.perf_counter() - began

    def close(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def time_keys(command: list[str], ready: bytes, keys: int) -> list[float]:
    """Each key's seconds; a line of them is taken back when it is long."""
    terminal = Terminal(command)
    terminal.wait_for(ready)
    time.sleep(2.0)  # what loads behind the prompt is measured by startup.py
    times = []
    for number in range(keys):
        place = number % len(KEYS)
        times.append(terminal.time_key(KEYS[place : place + 1]))
        if number % 40 == 39:
            os.write(terminal.fd, b"\x15")  # Ctrl-U
        time.sleep(PAUSE_S)
    terminal.close()
    return times


def time_cancels(command: list[str], question: bytes, begun: bytes, ready: bytes) -> float:
    """Seconds from Ctrl-C in what ``question`` has begun until the prompt reads again."""
    terminal = Terminal(command)
    terminal.wait_for(ready)
    os.write(terminal.fd, question)
    terminal.wait_for(begun)
    time.sleep(0.5)
    while terminal.read_on(0.0):
        pass
    terminal.output = b""
    began = time.perf_counter()
    os.write(terminal.fd, b"\x03")
    terminal.wait_for(ready)
    taken = time.perf_counter() - began
    terminal.close()
    return taken


# --- the load -----------------------------------------------------------------------------


def decode(endpoints: Endpoints) -> None:
    """Have the local model write, for ever."""
    peer = Peer(endpoints, "inference", ClientInfo("bench", os.getpid()))
    peer.wait_welcome(LIMIT_S)
    while True:
        for _ in peer.generate((ChatMessage("user", STORY),), max_new_tokens=256):
            pass


def flood(endpoints: Endpoints) -> None:
    """Cause `EVENTS_S` events a second, for ever."""
    asking = zmq.Context().socket(zmq.DEALER)
    asking.connect(endpoints.requests("inference"))
    frame, due = codec.encode(GetStatus(new_request_id())), time.perf_counter()
    while True:
        asking.send(frame)
        while asking.poll(0):
            asking.recv()
        due += 1 / EVENTS_S
        time.sleep(max(0.0, due - time.perf_counter()))


@dataclass(frozen=True)
class Load:
    """How far everything is: at a time, in seconds."""

    at_s: float
    events: int
    tokens: int
    fetched: int

    @classmethod
    def look(cls, endpoints: Endpoints) -> Load:
        event = ask_status(endpoints, "inference")
        state = event.status.state
        fetched = state.successor.done if isinstance(state, Ready) and state.successor else 0
        return cls(event.monotonic_s, event.seq, event.status.tokens, fetched)

    def since(self, before: Load) -> dict[str, float]:
        """What there was of each in a second."""
        seconds = self.at_s - before.at_s
        return {
            "events": (self.events - before.events) / seconds,
            "tokens": (self.tokens - before.tokens) / seconds,
            "fetched_mb": (self.fetched - before.fetched) / seconds / 1e6,
        }


@contextmanager
def world(scratch: Path) -> Iterator[Endpoints]:
    """A home of our own, and a hub with the model that is chosen here, which is slow."""
    content = scratch / "content"
    content.mkdir()
    for path in starter_directory().glob("*.json"):
        if "manifest" not in path.name:
            shutil.copy(path, content)
    with (content / "model.safetensors").open("wb") as weights:
        weights.truncate(MODEL_BYTES)  # it is never whole, so it is never loaded
    for name, folder in (("SHAMMAH_HOME", "home"), ("XDG_RUNTIME_DIR", "run"), ("HF_HOME", "hf")):
        (scratch / folder).mkdir(mode=0o700)
        os.environ[name] = str(scratch / folder)
    for name in ("ANTHROPIC_API_KEY", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        os.environ.pop(name, None)
    os.environ["TERM"] = "xterm-256color"
    chosen = select_model(total_memory(psutil.virtual_memory().total))
    assert chosen is not None
    hub = [PYTHON, "-P", str(ROOT / "tests" / "fakes" / "hub.py"), str(content)]
    hub += ["--rate", str(BYTES_S), "--model-id", chosen.model_id]
    with subprocess.Popen(hub, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stdin is not None
        os.environ["HF_ENDPOINT"] = served.stdout.readline().strip()
        try:
            ask = [*SHAMMAH, "ask", "--no-history", "Hello?"]
            subprocess.run(ask, check=True, capture_output=True, timeout=LIMIT_S)
            yield open_endpoints(os.environ)
        finally:
            subprocess.run([*SHAMMAH, "stop"], check=False, capture_output=True)
            served.stdin.close()


@contextmanager
def busy(endpoints: Endpoints) -> Iterator[None]:
    """Somebody else uses the local model, and looks at it all the time."""
    others = [
        multiprocessing.Process(target=work, args=(endpoints,), daemon=True)
        for work in (decode, flood)
    ]
    for process in others:
        process.start()
    try:
        time.sleep(2.0)
        yield
    finally:
        for process in others:
            process.kill()
            process.join()


# --- figures ------------------------------------------------------------------------------


def measure(keys: int, cancels: int) -> dict[str, dict[str, float]]:
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name, command, ready in (
            ("key: cat", ["/bin/cat"], b""),
            ("key: python", [PYTHON, "-q"], b">>> "),
            ("key: prompt_toolkit", [PYTHON, "-c", BARE_EDITOR], PASTE_ON),
            ("key: shammah", SHAMMAH, PASTE_ON),
        ):
            times.setdefault(name, []).extend(time_keys(command, ready, keys // ROUNDS))
    endless = b"while True: pass\n\n"
    for _ in range(cancels):
        for name, *how in (
            ("Ctrl-C to prompt: python", [PYTHON, "-q"], endless, rb"\.\.\. \r\n", b">>> "),
            ("Ctrl-C to prompt: shammah", SHAMMAH, STORY.encode() + b"\r", ANSWER, PASTE_ON),
        ):
            times.setdefault(name, []).append(time_cancels(*how))
    figures = {name: summarize(taken) for name, taken in times.items()}
    for name, figure in figures.items():
        reference = "Ctrl-C to prompt: python" if "Ctrl-C" in name else "key: prompt_toolkit"
        figure["p99_to_reference"] = figure["p99_ms"] / figures[reference]["p99_ms"]
    return figures


def summarize(times: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return {"p50_ms": 1000 * cuts[49], "p99_ms": 1000 * cuts[98], "max_ms": 1000 * max(times)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=300)
    parser.add_argument("--cancels", type=int, default=10)
    parser.add_argument("--idle", action="store_true", help="nobody else does anything")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="sh-bench-") as scratch,
        world(Path(scratch)) as endpoints,
        nullcontext() if options.idle else busy(endpoints),
    ):
        before = Load.look(endpoints)
        figures = measure(options.keys, options.cancels)
        meanwhile = Load.look(endpoints).since(before)
    if options.json:
        print(json.dumps({"meanwhile": meanwhile, **figures}, indent=2))
        return
    print(
        f"meanwhile, a second: {meanwhile['events']:.0f} events, {meanwhile['tokens']:.1f} tokens, "
        f"{meanwhile['fetched_mb']:.1f} MB fetched"
    )
    for name, figure in figures.items():
        print(
            f"{name:28} p50 {figure['p50_ms']:7.1f} ms  p99 {figure['p99_ms']:7.1f} ms  "
            f"max {figure['max_ms']:7.1f} ms  p99 to the reference's "
            f"{figure['p99_to_reference']:5.2f}"
        )


if __name__ == "__main__":
    main()
