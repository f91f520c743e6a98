"""A worker as it is, but a local model rests after every step, so that an answer is not over before
a test has done what it wants to in its midst."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shammah.supervision.lifecycle import WorkerSpec

UNHURRIED = str(Path(__file__))
REST_S = 0.1


def command_of(real: Callable[[WorkerSpec], list[str]]) -> Callable[[WorkerSpec], list[str]]:
    """Instead of ``real``, which is `supervision.worker_command`."""

    def command(spec: WorkerSpec) -> list[str]:
        words = real(spec)
        at = words.index("-m")
        return [*words[:at], UNHURRIED, *words[at + 2 :]]

    return command


def run_worker() -> int:
    from workers.__main__ import main
    from workers.inference.engine import StepResult
    from workers.inference.scheduling.batched_engine import BatchedEngine

    step = BatchedEngine.step

    def step_and_rest(engine: BatchedEngine) -> list[StepResult]:
        results = step(engine)
        time.sleep(REST_S)
        return results

    BatchedEngine.step = step_and_rest  # type: ignore[method-assign]
    return main()


if __name__ == "__main__":
    code = run_worker()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
