"""``shammah doctor --prove``: each running worker tries what its role does not need."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shammah.bus.endpoints import ROLES, Endpoints, lock_holder
from shammah.bus.messages import Prove, Proved, new_request_id
from shammah.bus.probe import GONE, ask_proof
from shammah.errors import ShammahError

NOBODY = "No worker is running, so there is nothing to prove."
ASK = "Start one, for instance with `shammah ask hello`, and try again."


def prove(endpoints: Endpoints) -> dict[str, Proved | ShammahError]:
    """Ask each running worker for the proof: by role.

    The file that they are not to open is made for it, and lies in the home of this user; so does
    the port that they are not to connect to, on which this process listens meanwhile.
    """
    found: dict[str, Proved | ShammahError] = {}
    with (
        tempfile.NamedTemporaryFile(prefix=".shammah-proof-", dir=Path.home()) as file,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        port = listener.getsockname()[1]
        for role in ROLES:
            if lock_holder(endpoints.lock(role)) is None:
                continue
            try:
                request = Prove(new_request_id(), file.name, port, os.getpid())
                found[role] = ask_proof(endpoints, role, request)
            except ShammahError as error:
                if error.code != GONE:
                    found[role] = error
    return found


def is_proven(found: dict[str, Proved | ShammahError]) -> bool:
    """Whether all workers were refused all that they were to be."""
    answers = list(found.values())
    return bool(answers) and all(
        isinstance(answer, Proved) and all(one.refused or not one.due for one in answer.trials)
        for answer in answers
    )


def as_document(found: dict[str, Proved | ShammahError]) -> dict[str, Any]:
    """For programs."""
    workers: dict[str, Any] = {}
    for role, answer in found.items():
        if isinstance(answer, ShammahError):
            workers[role] = {"error": {"code": answer.code, "message": answer.message}}
        else:
            workers[role] = asdict(answer)
            del workers[role]["request_id"]
    return {"proven": is_proven(found), "workers": workers}


def describe(found: dict[str, Proved | ShammahError]) -> Iterator[tuple[str, bool]]:
    """Yield a table with a column for each role, and what was allowed that should not be; each line
    with whether it reports a problem."""
    if not found:
        yield f"{NOBODY} {ASK}", True
        return
    proofs = {role: one for role, one in found.items() if isinstance(one, Proved)}
    trials = [one.what for one in next(iter(proofs.values())).trials] if proofs else []
    width = max(map(len, trials), default=0)
    if proofs:
        yield f"{'':{width}}  " + "".join(f"{role:11}" for role in proofs).rstrip(), False
    for number, what in enumerate(trials):
        row = [one.trials[number] for one in proofs.values() if number < len(one.trials)]
        wrong = any(one.due and not one.refused for one in row)
        cells = "".join(f"{_cell(one):11}" for one in row).rstrip()
        yield f"{what:{width}}  {cells}", wrong
    for role, answer in found.items():
        if isinstance(answer, ShammahError):
            yield f"{role}: {answer.message} {answer.hint}".rstrip(), True
            continue
        yield from ((f"{role}: {why}", True) for why in answer.missing)
    if is_proven(found):
        yield "proven: the kernel refused all that no role needs; (allowed) is needed", False


def _cell(trial: Any) -> str:
    if trial.refused or trial.due:
        return str(trial.answered)
    return f"({trial.answered})"
