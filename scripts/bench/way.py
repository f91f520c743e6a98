"""How long the way of a question is: which modules it enters, and which records are made on it.

A prompt on a terminal, a fake worker, one plain local question. What every thread of the frontend
enters between Enter and the line below the answer counts, if it does so for each of three questions
(a ping or a redraw of the line below comes now and then)::

    python scripts/bench/way.py            # two numbers
    python scripts/bench/way.py --names    # with all names
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

QUESTION = "What are tides and what causes them"
ASKED = 3
CALLS = "SHAMMAH_BENCH_CALLS"


def trace(path: Path) -> int:
    """Run the prompt in this process; every first and last call of a module, and every record that
    is made, go to ``path`` with their times when it ends."""
    calls: list[tuple[float, str, str]] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event != "call":
            return
        code, module = frame.f_code, str(frame.f_globals.get("__name__"))
        if code.co_name in ("initialize", "__init__") and (
            module == "shammah.bus.record" or code.co_filename == "<string>"
        ):
            made = type(frame.f_locals.get("self"))
            if made.__module__.startswith("shammah."):
                calls.append((time.monotonic(), "", f"{made.__module__}.{made.__name__}"))
        elif module.startswith("shammah.") and code.co_name != "<module>":
            calls.append((time.monotonic(), module, code.co_name))

    threading.setprofile(profile)
    from shammah.supervision import lifecycle
    from tests.fakes.frontend import be_patient, echo_command

    lifecycle.worker_command = echo_command
    be_patient()
    sys.setprofile(profile)
    try:
        from shammah.repl.loop import open_repl

        return open_repl([])
    finally:
        sys.setprofile(None)
        path.write_text(json.dumps(calls))


def ask() -> list[dict[str, set[str]]]:
    """What was called from Enter to the end of each answer: module to functions, "" to records."""
    from tests.fakes.sandbox import Sandbox
    from tests.fakes.terminal import CTRL_D, ENTER, Terminal

    sandbox = Sandbox.make()
    calls = Path(tempfile.mkdtemp(prefix="way-")) / "calls.json"
    environ = {**sandbox.variables(), CALLS: str(calls), "SHAMMAH_MODEL": "starter"}
    terminal = Terminal(command=(sys.executable, "-P", __file__), environ=environ)
    terminal.wait_editor()
    spans: list[tuple[float, float]] = []
    for number in range(1 + ASKED):  # the first one has everything loaded
        if number:
            terminal.wait_editor()
        terminal.type(QUESTION)
        terminal.expect(re.escape(QUESTION[-6:]))
        time.sleep(2.0)
        begun = time.monotonic()
        terminal.type(ENTER)
        terminal.wait_answer()
        spans.append((begun, time.monotonic()))
    terminal.type(CTRL_D)
    terminal.end()
    sandbox.leaks()
    sandbox.remove()
    called = json.loads(calls.read_text())
    ways: list[dict[str, set[str]]] = []
    for begun, ended in spans[1:]:
        ways.append({})
        for at, module, function in called:
            if begun <= at <= ended:
                ways[-1].setdefault(module, set()).add(function)
    return ways


def main() -> int:
    if path := os.environ.get(CALLS):
        return trace(Path(path))
    names = "--names" in sys.argv[1:]
    ways = ask()
    every = set.intersection(*(set(way) for way in ways))
    entered = {module: set.intersection(*(way[module] for way in ways)) for module in every}
    records = sorted(entered.pop("", set()))
    print(f"{len(entered)} modules, {len(records)} records")
    if names:
        for module, functions in sorted(entered.items()):
            print(f"  {module}: {', '.join(sorted(functions))}")
        print(*(f"  {name}" for name in records), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
