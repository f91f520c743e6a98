"""``shammah`` as it is, but the workers that it starts are echoes.

``STAND_IN`` holds the options of `tests/fakes/echo.py` for all of them, ``STAND_IN_ROLE``
(``STAND_IN_CLOUD`` and so on) those of one role::

    STAND_IN="--delay-ms 50" python -P tests/fakes/frontend.py ask --model starter hello
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from shammah.__main__ import main
from shammah.history import recorder
from shammah.router import service
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec

LIMIT_S = 60.0

ECHO = str(Path(__file__).with_name("echo.py"))


def echo_command(spec: WorkerSpec) -> list[str]:
    faults = os.environ.get(f"STAND_IN_{spec.role.upper()}", os.environ.get("STAND_IN", ""))
    return [sys.executable, "-P", ECHO, spec.role, *spec.arguments, *shlex.split(faults)]


def be_patient() -> None:
    """Give workers and disks of a busy machine the time that they need: what the tests look at
    is what becomes of it."""
    lifecycle.STOP_S = LIMIT_S
    service.CLOSE_S = recorder.KEEP_S = recorder.CLOSE_S = LIMIT_S


if __name__ == "__main__":
    lifecycle.worker_command = echo_command
    be_patient()
    sys.exit(main())
