"""``shammah``, which presses Ctrl-C itself, where Python drops what is raised: in the end of an
object. It does so after ``at NAME`` was asked, when the function of that name is called next."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from prompt_toolkit.application import Application

from shammah.history.recorder import Recorder
from shammah.repl import loop
from shammah.repl.input import lines
from shammah.terminal.screen import Screen

MOMENTS: dict[str, Any] = {
    "keep": Recorder,
    "end_answer": Screen,
    "wait_line": lines,
    "_pre_run": Application,
    "_redraw": Application,
    "close": asyncio.Runner,
    "echo_off": loop,
}
"""Names of functions, and where they are."""

_due: list[str] = []


class _Doomed:
    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def _plant(place: Any, name: str) -> None:
    function = getattr(place, name)

    def press_first(*arguments: Any, **options: Any) -> Any:
        if name in _due:
            _due.remove(name)
            _Doomed()
        return function(*arguments, **options)

    setattr(place, name, press_first)


def _listen() -> None:
    act = loop.Repl.act

    def listen(repl: loop.Repl, line: str) -> None:
        _due.extend([line.removeprefix("at ")] if line.startswith("at ") else [])
        act(repl, line)

    loop.Repl.act = listen  # type: ignore[method-assign]


def main() -> int:
    """Run it with the arguments of ``shammah``."""
    loop.TWICE_S = 0.0  # each is the first
    _listen()
    for name, place in MOMENTS.items():
        _plant(place, name)
    from shammah.__main__ import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
