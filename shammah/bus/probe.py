"""One question to a worker about itself, without attaching: no thread, no lease, no events.

What a status line in a shell prompt costs is mostly this, so it is no more than a socket.
"""

from __future__ import annotations

import os
import time
from typing import TypeVar

import zmq

from shammah.bus import codec
from shammah.bus.connection import RECONNECT_MAX_MS, RECONNECT_MS
from shammah.bus.endpoints import SOCKET_MAX_BYTES, Endpoints, lock_holder
from shammah.bus.messages import Event, Failed, GetStatus, Replay, Replayed
from shammah.errors import ShammahError

ANSWER_S = 5.0
"""How long one worker may take to tell its status; a loading one holds the interpreter."""

LOOK_S = 0.1
"""How often it is looked whether the worker is still there: one that ends reads nothing more."""

GONE = "worker_gone"
"""The code of its end."""

Answer = TypeVar("Answer", Event, Replayed)


def ask_status(endpoints: Endpoints, role: str) -> Event:
    """How the worker is now.

    Raises:
        ShammahError: ``worker_silent``, ``worker_gone`` or what the worker answered with Failed.
    """
    return _enquire(endpoints, role, GetStatus(_new_id()), Event)


def ask_events(endpoints: Endpoints, role: str) -> Replayed:
    """All events that the worker has kept.

    Raises:
        ShammahError: ``worker_silent``, ``worker_gone`` or what the worker answered with Failed.
    """
    return _enquire(endpoints, role, Replay(_new_id()), Replayed)


def _new_id() -> str:
    return os.urandom(8).hex()


def _enquire(
    endpoints: Endpoints, role: str, request: GetStatus | Replay, answer: type[Answer]
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
                asking.send(codec.encode(request))  # the one before may have had it unread
    finally:
        asking.close(linger=0)
        context.term()
    raise ShammahError(
        "worker_silent",
        f"The {role} worker did not answer within {ANSWER_S:g} s.",
        f"`shammah stop {role}` ends it.",
    )
