"""A worker process that answers every question with its last word-for-word echo.

It is hosted exactly as the real ones are (`workers.host`), so the bus, leases, supervision
and the REPL can be tested and timed without a model. Faults are switched on by arguments::

    python -P tests/standins/echo.py inference --model starter --delay-ms 50
"""

from __future__ import annotations

import argparse
import os
import queue
import signal
import sys
import time

from shammah.bus.endpoints import RoleLock, open_endpoints
from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    Loading,
    Provenance,
    Ready,
    Timings,
    Token,
    Usage,
)
from shammah.config import identity, load_settings
from shammah.errors import ExitCode
from workers.host import Host, Outlet


class EchoService:
    """Echoes the last message word by word.

    ``crash_after``: SIGKILL itself after so many tokens. ``hang``: answer nothing, but answer
    pings. ``stages``: loading stages before Ready, each as long as ``delay_s``.
    """

    def __init__(
        self, role: str, model: str, delay_s: float, crash_after: int, hang: bool, stages: int
    ) -> None:
        self._role = role
        self._model = model
        self._delay_s = delay_s
        self._crash_after = crash_after
        self._hang = hang
        self._stages = stages
        self._inbox: queue.SimpleQueue[Generate | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self.steps = 0

    def run(self, outlet: Outlet) -> None:
        for stage in range(self._stages):
            outlet.publish(Loading(self._model, f"stage {stage}", stage, self._stages))
            time.sleep(self._delay_s)
        outlet.publish(Ready(self._model, engine="echo", context_length=4096))
        while (request := self._inbox.get()) is not None:
            if not self._hang:
                self._answer(request, outlet)

    def _answer(self, request: Generate, outlet: Outlet) -> None:
        began = time.monotonic()
        words = request.messages[-1].content.split(" ")
        reason = "stop"
        index = 0
        for index, word in enumerate(words, 1):
            if request.request_id in self._cancelled:
                reason = "cancelled"
                break
            outlet.reply(Token(request.request_id, index, word if index == 1 else f" {word}"))
            self.steps += 1
            if self._crash_after and index >= self._crash_after:
                time.sleep(0.2)  # let the tokens reach the frontend
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(self._delay_s)
        if words == ["fail"]:
            outlet.reply(Failed("planted", "A planted failure.", "", request.request_id))
            return
        elapsed = time.monotonic() - began
        outlet.reply(
            Done(
                request.request_id,
                reason,
                Usage(len(request.messages), index),
                Timings(total_s=elapsed),
                Provenance(self._role, self._model, engine="echo"),
            )
        )

    def submit(self, request: Generate) -> None:
        self._inbox.put(request)

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)

    def stop(self) -> None:
        self._inbox.put(None)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--model")
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--crash-after", type=int, default=0)
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--stages", type=int, default=0)
    parser.add_argument("--keep-alive", type=float, default=300)
    parser.add_argument("--stand-in", action="store_true")
    options = parser.parse_args()
    settings = load_settings(os.environ, options.model)
    endpoints = open_endpoints(os.environ)
    lock = RoleLock(endpoints.lock(options.role))
    if not lock.acquire():
        return ExitCode.ALREADY_RUNNING
    wanted = identity(settings, options.role, stand_in=options.stand_in)
    service = EchoService(
        options.role,
        wanted.model,
        options.delay_ms / 1000,
        options.crash_after,
        options.hang,
        options.stages,
    )
    host = Host(service, wanted, endpoints, options.keep_alive)
    host.run()
    return ExitCode.OK


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
