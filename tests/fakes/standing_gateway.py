"""A gateway as it is, whose local model is an echo, and whose cloud worker waits less; it starts
either again however often they die."""

from __future__ import annotations

import os
import sys

from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec
from tests.fakes import frontend, impatient
from workers import __main__ as process
from workers.gateway import desk

_real = impatient.command_of(lifecycle.worker_command)


def _command(spec: WorkerSpec) -> list[str]:
    return _real(spec) if spec.role == "cloud" else frontend.echo_command(spec)


if __name__ == "__main__":
    lifecycle.worker_command = _command
    lifecycle.RESTARTS = 1000
    frontend.be_patient()
    desk.TELL_S = 0.0
    code = process.main()
    sys.stdout.flush()
    os._exit(code)
