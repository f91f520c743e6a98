#!/usr/bin/env python3
"""Whether a question ever leaves by a race, with the local model ready and a key set.

A recording Messages API on loopback stands for the cloud; both real workers are warm. Questions
are asked by `shammah ask`: each alone, four at once, beside busy processes, with `--continue`,
and through a pipe; then at a prompt on a terminal, as its first question. None may be recorded.
At last the local worker is cold: then the cloud answers. Prints counts, and exits with 1 if any
question of the first kinds was recorded.

    .venv/bin/python scripts/bench/local_first.py
    .venv/bin/python scripts/bench/local_first.py --asks 40
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SHAMMAH = str(Path(sys.prefix, "bin", "shammah"))
QUESTION = "Say yes."
LIMIT_S = 120
FULL = 1000
SHARES = {"alone": 0.3, "four at once": 0.3, "beside a busy machine": 0.2, "--continue": 0.1}
"""Of the questions; the rest comes through a pipe."""


class Recorder(ThreadingHTTPServer):
    """Keeps the questions that it is asked, and answers each with one word."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()


class _Handler(BaseHTTPRequestHandler):
    server: Recorder

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        usage = {"input_tokens": 5, "output_tokens": 2}
        self._event("message_start", message={"id": "m", "model": "m", "usage": usage})
        self._event("content_block_delta", index=0, delta={"type": "text_delta", "text": "cloud"})
        self._event("message_delta", delta={"stop_reason": "end_turn"}, usage=usage)
        self._event("message_stop")

    def _event(self, kind: str, **fields: object) -> None:
        data = json.dumps({"type": kind, **fields})
        self.wfile.write(f"event: {kind}\ndata: {data}\n\n".encode())


@contextmanager
def world() -> Iterator[tuple[dict[str, str], Recorder]]:
    """A home of its own, whose cloud is the recorder."""
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp", ignore_cleanup_errors=True) as root:
        for name in ("home", "run"):
            Path(root, name).mkdir(mode=0o700)
        recorder = Recorder()
        environ = dict(
            os.environ,
            SHAMMAH_HOME=f"{root}/home",
            XDG_RUNTIME_DIR=f"{root}/run",
            HF_HUB_OFFLINE="1",
            ANTHROPIC_API_KEY="sk-test",
            ANTHROPIC_BASE_URL=f"http://127.0.0.1:{recorder.server_address[1]}",
        )
        Path(root, "home", "config.toml").write_text('model = "starter"\n')
        try:
            yield environ, recorder
        finally:
            subprocess.run([SHAMMAH, "stop"], env=environ, capture_output=True, check=False)
            recorder.shutdown()


def ask(environ: dict[str, str], *options: str, stdin: str = "") -> str:
    """Who answered, and why; or the error."""
    words = () if stdin else (QUESTION,)
    command = [SHAMMAH, "ask", "--json", "--max-tokens", "4", *options, *words]
    ended = subprocess.run(
        command, env=environ, input=stdin, capture_output=True, text=True, timeout=LIMIT_S
    )
    try:
        told = json.loads(ended.stdout)
    except ValueError:
        return f"status {ended.returncode}: {ended.stderr.strip()[-200:]}"
    return f"{told.get('target')} {told.get('reason') or told.get('error')}"


def warm(environ: dict[str, str]) -> None:
    """Until both workers answer."""
    for option in ("--cloud", "--local"):
        print(f"  {option} to warm up: {ask(environ, option)}")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def prompt(environ: dict[str, str], seconds: float = LIMIT_S) -> str:
    """The first question at a prompt on a terminal, typed at once."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(SHAMMAH, [SHAMMAH], environ)
    os.write(terminal, f"{QUESTION}\r".encode())
    seen, until = b"", time.monotonic() + seconds
    while b"tok/s" not in seen and b"cloud: " not in seen and time.monotonic() < until:
        if select.select([terminal], [], [], 1.0)[0]:
            seen += os.read(terminal, 65536)
    os.write(terminal, b"/exit\r\x04")
    try:
        while os.read(terminal, 65536):
            pass
    except OSError:
        pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return "local" if b"local: " in seen else "cloud" if b"cloud: " in seen else "nobody"


def count(name: str, recorder: Recorder, one: Callable[[], str], times: int, at_once: int) -> int:
    before, began = recorder.asked, time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        ends = collections.Counter(pool.map(lambda _: one(), range(times)))
    left, seconds = recorder.asked - before, time.monotonic() - began
    print(f"{name}: {times} asked, {left} recorded, {dict(ends)}, {seconds:.0f} s", flush=True)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--asks", type=int, default=FULL, help="questions in all (1000)")
    parser.add_argument("--prompts", type=int, default=20, help="first questions at a prompt")
    parser.add_argument("--only", choices=SHARES, help="all of them in this way")
    options = parser.parse_args()
    shares = {options.only: 1.0} if options.only else SHARES
    asks = {name: round(shares.get(name, 0.0) * options.asks) for name in SHARES}
    piped = options.asks - sum(asks.values())
    with world() as (environ, recorder):
        warm(environ)

        def one() -> str:
            return ask(environ)

        left = count("alone", recorder, one, asks["alone"], 1)
        left += count("four at once", recorder, one, asks["four at once"], 4)
        with busy(2 * (os.cpu_count() or 1)):
            name = "beside a busy machine"
            left += count(name, recorder, one, asks[name], 2)
        resumed = asks["--continue"]
        left += count("--continue", recorder, lambda: ask(environ, "--continue"), resumed, 1)
        through = lambda: ask(environ, stdin=QUESTION)  # noqa: E731
        left += count("through a pipe", recorder, through, piped, 1)
        left += count("a prompt's first", recorder, lambda: prompt(environ), options.prompts, 1)
        subprocess.run([SHAMMAH, "stop", "inference"], env=environ, capture_output=True, check=True)
        count("local worker cold", recorder, one, 1, 1)
    print(f"recorded though the local model was ready: {left} of {options.asks + options.prompts}")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
