"""``shammah status --once`` as prompts and status bars call it. Imports no click, which takes
longer than everything else here, and no bus while no worker runs."""

from __future__ import annotations

import json
from collections.abc import Mapping

from shammah.bus.endpoints import ROLES, lock_holder, open_endpoints
from shammah.errors import ExitCode, ShammahError

QUIET = frozenset({"subscribed", "status"})
"""Events that only say that somebody looked."""


def show_once(arguments: list[str], environ: Mapping[str, str]) -> int:
    """Run ``status --once``, perhaps with ``--json``."""
    try:
        return _show(environ, as_json="--json" in arguments)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except (ShammahError, OSError):
        from shammah.cli.main import run  # fails in the same way, and says so as every command does

        return run(arguments)


def _show(environ: Mapping[str, str], *, as_json: bool) -> int:
    endpoints = open_endpoints(environ)
    if any(lock_holder(endpoints.lock(role)) is not None for role in ROLES):
        from shammah.cli.status_tail import Tail

        return Tail(endpoints, ROLES, as_json=as_json).once()
    for role in ROLES:
        absent = {"role": role, "running": False, "event": None}
        print(json.dumps(absent) if as_json else not_running(role), flush=True)
    return ExitCode.OK


def not_running(role: str) -> str:
    """Return the line of a role without a worker."""
    return f"{role:10} not running"
