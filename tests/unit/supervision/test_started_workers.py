"""What a frontend keeps of the workers that it has started."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import Identity
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec, spawn

LIMIT_S = 60.0


class Started:
    """Stands in for a running child; who asks first waits for ``go_on``."""

    def __init__(self) -> None:
        self.polled, self.go_on = threading.Event(), threading.Event()

    def poll(self) -> None:
        if not self.polled.is_set():
            self.polled.set()
            self.go_on.wait(LIMIT_S)


def test_two_that_are_started_side_by_side_are_both_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One that is forgotten while it runs is a warning, and a zombie when it ends."""
    slow = Started()
    made: list[Started] = []

    def start(*_: Any, **__: Any) -> Started:
        made.append(Started())
        made[-1].polled.set()
        return made[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(lifecycle, "_children", [slow])
    spec = WorkerSpec(Identity("cloud", "", ""), (), {}, tmp_path / "log")
    first, second = (threading.Thread(target=spawn, args=(spec,)) for _ in range(2))
    first.start()
    assert slow.polled.wait(LIMIT_S)
    second.start()
    second.join(0.2)  # nothing to wait for: it must not get further than the first
    slow.go_on.set()
    first.join(LIMIT_S)
    second.join(LIMIT_S)
    kept: list[object] = list(lifecycle._children)
    assert kept == [slow, *made]
