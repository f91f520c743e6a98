"""Ask a worker for its status without attaching: one socket, no thread, no lease, no events.

This is most of what a status line in a shell prompt costs.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import zmq

from shammah.bus import codec
from shammah.bus.connection import RECONNECT_MAX_MS, RECONNECT_MS
from shammah.bus.endpoints import SOCKET_MAX_BYTES, Endpoints, lock_holder
from shammah.bus.messages import (
    Event,
    Failed,
    GetStatus,
    Prove,
    Proved,
    Replay,
    Replayed,
    new_request_id,
)
from shammah.errors import ShammahError

ANSWER_S = 5.0
"""How long a worker may take to report; a loading one holds the interpreter."""

LOOK_S = 0.1
"""How often to check that the worker still runs: an ending one reads nothing more."""

GONE = "worker_gone"
"""The error code when it ended meanwhile."""

Answer = TypeVar("Answer", Event, Replayed, Proved)


def ask_status(endpoints: Endpoints, role: str) -> Event:
    """Return the worker's status.

    Raises:
        ShammahError: ``worker_silent``, ``worker_gone`` or what the worker answered with Failed.
    """
    return _ask(endpoints, role, GetStatus(new_request_id()), Event)


def ask_states(
    endpoints: Endpoints, roles: Iterable[str]
) -> Iterator[tuple[str, Event | ShammahError | None]]:
    """Yield each role with its worker's status, with why it gives none, or with ``None``: it does
    not run."""
    for role in roles:
        found: Event | ShammahError | None = None
        if lock_holder(endpoints.lock(role)) is not None:
            try:
                found = ask_status(endpoints, role)
            except ShammahError as error:
                found = None if error.code == GONE else error
        yield role, found


def describe_worker(role: str, found: Event | ShammahError | None) -> dict[str, object]:
    """A worker of `ask_states` for programs."""
    if isinstance(found, ShammahError):
        why = {"code": found.code, "message": found.message, "hint": found.hint}
        return {"role": role, "running": True, "event": None, "error": why}
    body = codec.to_document(found) if found else None
    return {"role": role, "running": found is not None, "event": body}


def ask_events(endpoints: Endpoints, role: str) -> Replayed:
    """Return all events that the worker has stored.

    Raises:
        ShammahError: ``worker_silent``, ``worker_gone`` or what the worker answered with Failed.
    """
    return _ask(endpoints, role, Replay(new_request_id()), Replayed)


def ask_proof(endpoints: Endpoints, role: str, request: Prove) -> Proved:
    """Return what the kernel answered to the worker.

    Raises:
        ShammahError: ``worker_silent``, ``worker_gone`` or what the worker answered with Failed.
    """
    return _ask(endpoints, role, request, Proved)


def _ask(
    endpoints: Endpoints, role: str, request: GetStatus | Replay | Prove, answer: type[Answer]
) -> Answer:
    context = zmq.Context()
    asking = context.socket(zmq.DEALER)
    try:
        asking.maxmsgsize = SOCKET_MAX_BYTES
        asking.reconnect_ivl, asking.reconnect_ivl_max = RECONNECT_MS, RECONNECT_MAX_MS
        asking.connect(endpoints.requests(role))
        asking.send(codec.encode(request))  # goes out when the connection is there
        holder, deadline = lock_holder(endpoints.lock(role)), time.monotonic() + ANSWER_S
        while (left := deadline - time.monotonic()) > 0:
            if asking.poll(round(1000 * min(left, LOOK_S))):
                reply = codec.decode(asking.recv())
                if isinstance(reply, answer):
                    return reply
                if isinstance(reply, Failed):
                    raise ShammahError(reply.code, reply.message, reply.hint)
                continue
            before, holder = holder, lock_holder(endpoints.lock(role))
            if before and holder is None:
                raise ShammahError(GONE, f"The {role} worker has ended.")
            if before and holder and holder != before:
                asking.send(codec.encode(request))  # the old one may not have read it
    finally:
        asking.close(linger=0)
        context.term()
    raise ShammahError(
        "worker_silent",
        f"The {role} worker did not answer within {ANSWER_S:g} s.",
        f"`shammah stop {role}` ends it.",
    )
