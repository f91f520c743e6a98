"""``shammah status`` on a terminal: all workers at a glance, redrawn when something happens.

However many events arrive, it redraws at most every `FRAMES_S`: a person sees the latest state, and
a flood costs no more than a trickle.
"""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TextIO

import psutil

from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints, lock_holder
from shammah.bus.messages import Event
from shammah.cli.status_board import Board, Resources
from shammah.cli.status_tail import events_before
from shammah.errors import ExitCode
from shammah.terminal.progress import draw
from shammah.terminal.wording import describe_size

if TYPE_CHECKING:
    from rich.console import Group

FRAMES_S = 0.1
"""Seconds between two drawings, at least."""

LOOK_S = 1.0
"""Seconds between two looks at the clock, memory and processors."""

Heard = tuple[str, Event | None]
"""A role and its event; an empty role only wakes the loop."""


class LiveStatus:
    """The view. `run` it until Ctrl-C.

    Args:
        endpoints: where the workers' sockets are.
        roles: which.
        stream: the terminal.
        environ: NO_COLOR is respected.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        roles: tuple[str, ...],
        stream: TextIO,
        environ: Mapping[str, str],
    ) -> None:
        from shammah.terminal.console import BoundedConsole

        self._endpoints = endpoints
        self._board = Board(roles)
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._colors = not environ.get("NO_COLOR")
        self._console = BoundedConsole(file=stream, no_color=not self._colors, highlight=False)
        self._machine = _Machine(endpoints, roles)
        self._peers: dict[str, Peer] = {}
        self._runs: set[str] = set()

    def run(self) -> int:
        """Draw until Ctrl-C, and return the exit status."""
        from rich.live import Live

        before = signal.signal(signal.SIGWINCH, lambda number, frame: self._heard.put(("", None)))
        try:
            for role in self._board.roles:
                self._peers[role] = Peer(self._endpoints, role, None, self._listener(role))
            with Live(
                console=self._console,
                screen=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live:
                while True:
                    live.update(self._draw(), refresh=True)
                    time.sleep(FRAMES_S)  # whatever happens meanwhile is in the next drawing
                    self._listen()
        except KeyboardInterrupt:
            return ExitCode.OK
        finally:
            signal.signal(signal.SIGWINCH, before)
            for peer in self._peers.values():
                peer.close()

    def _listen(self) -> None:
        """Wait for an event or the next look, then take all events there are."""
        with contextlib.suppress(queue.Empty):
            self._take(*self._heard.get(timeout=LOOK_S))
        for _ in range(self._heard.qsize()):
            self._take(*self._heard.get())

    def _take(self, role: str, event: Event | None) -> None:
        if event is not None and event.run_id not in self._runs:
            self._runs.add(event.run_id)
            threading.Thread(
                target=self._replay, args=(role, event), name="work-replay", daemon=True
            ).start()
        elif role:
            self._board.take(role, event, time.time())

    def _replay(self, role: str, first: Event) -> None:
        """Queue what the worker reported before we attached, then ``first``. It may be slow."""
        for event in [*events_before(self._endpoints, role, first), first]:
            self._heard.put((role, event))

    def _listener(self, role: str) -> Callable[[Event | None], None]:
        return lambda event: self._heard.put((role, event))

    def _draw(self) -> Group:
        self._machine.look(time.monotonic())
        width, height = self._console.size
        rows = self._board.rows(height, time.time(), self._machine.used, self._machine.memory)
        return draw(rows, width, colors=self._colors)


class _Machine:
    """Memory and processors, read once per `LOOK_S`."""

    def __init__(self, endpoints: Endpoints, roles: tuple[str, ...]) -> None:
        self.used: dict[str, Resources] = {}
        self.memory = ""
        self._endpoints = endpoints
        self._roles = roles
        self._processes: dict[int, psutil.Process] = {}
        self._looked = -LOOK_S

    def look(self, now: float) -> None:
        """Read them again, if it is time to."""
        if now - self._looked < LOOK_S:
            return
        self._looked = now
        memory = psutil.virtual_memory()
        free, total = describe_size(memory.available), describe_size(memory.total)
        self.memory = f"{free} of {total} free"
        self.used = {}
        for role in self._roles:
            pid = lock_holder(self._endpoints.lock(role))
            if pid:
                with contextlib.suppress(psutil.Error):
                    process = self._processes.setdefault(pid, psutil.Process(pid))
                    resident = process.memory_info().rss
                    self.used[role] = Resources(resident, process.cpu_percent())
