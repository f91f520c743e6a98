"""A worker as it is, but the cloud's waits between attempts are short, and it looks at the budget
more often.

``READ_TIMEOUT_S`` in the environment: and so is its patience with a silent server.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from shammah.supervision.lifecycle import WorkerSpec
from workers.cloud import service
from workers.outgoing import retry

IMPATIENT = str(Path(__file__))


def command_of(real: Callable[[WorkerSpec], list[str]]) -> Callable[[WorkerSpec], list[str]]:
    """Instead of ``real``, which is `supervision.worker_command`."""

    def command(spec: WorkerSpec) -> list[str]:
        words = real(spec)
        at = words.index("-m")
        return [*words[:at], IMPATIENT, *words[at + 2 :]]

    return command


if __name__ == "__main__":
    from workers.__main__ import main

    retry.FIRST_WAIT_S = 0.01
    service.BUDGET_POLL_S = 0.05
    if limit := os.environ.get("READ_TIMEOUT_S"):
        from workers.cloud import claude

        claude.READ_TIMEOUT_S = float(limit)
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
