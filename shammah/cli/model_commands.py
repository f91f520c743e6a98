"""``shammah models``: what the download worker is asked for, and how its answers are shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Failed, Reply
from shammah.bus.transfers import (
    Fetch,
    Removed,
    RemoveModel,
    Request,
    SteerFetch,
    Verified,
    VerifyModel,
)
from shammah.cli.pull import Pull
from shammah.errors import ExitCode, ShammahError
from shammah.settings.model import Settings
from shammah.supervision.lifecycle import connect
from shammah.terminal.output import echo
from shammah.terminal.progress import DownloadView, ProgressScreen
from shammah.terminal.screen import Screen
from shammah.terminal.wording import describe_size

ROLE = "download"


@contextmanager
def download_worker(settings: Settings) -> Iterator[Peer]:
    """A connection to the download worker, started if need be."""
    peer = connect(settings, ROLE, "models", os.environ)
    try:
        yield peer
    finally:
        peer.close()


def pull(settings: Settings, fetches: list[Fetch], *, as_json: bool) -> int:
    """Download models and show how far they are. Ctrl-C leaves; the downloads go on."""

    def resume(model: str) -> None:
        with download_worker(settings) as peer:
            end_of(peer, SteerFetch(new_request_id(), model, "resume"))

    screen = DownloadView(ProgressScreen(os.environ, sys.stderr, quiet=as_json))
    return Pull(
        lambda: connect(settings, ROLE, "models", os.environ),
        resume,
        fetches,
        screen,
        as_json=as_json,
    ).run()


def steer(settings: Settings, models: list[str], action: str) -> int:
    """Pause, resume or cancel downloads."""
    done = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}[action]
    with download_worker(settings) as peer:
        for model in models:
            end_of(peer, SteerFetch(new_request_id(), model, action))
            echo(f"{model}: {done}; partial downloads are kept.")
    return ExitCode.OK


def remove_model(settings: Settings, model: str, revision: str) -> int:
    """Delete a model from the cache."""
    with download_worker(settings) as peer:
        reply = end_of(peer, RemoveModel(new_request_id(), model, revision))
    assert isinstance(reply, Removed)
    echo(f"{model}: {describe_size(reply.freed)} are free again.")
    return ExitCode.OK


def verify_model(settings: Settings, verify: VerifyModel, *, as_json: bool) -> int:
    """Check a model's files, and fetch the bad ones anew if asked to."""
    screen = Screen(os.environ, sys.stderr)
    screen.live(f"checking {verify.model} ...")
    with download_worker(settings) as peer:
        reply = end_of(peer, verify)
    screen.end_live()
    assert isinstance(reply, Verified)
    if as_json:
        print(_json(reply))
    else:
        for file in reply.bad:
            echo(f"{file.path}: {file.reason}" + (", repaired" if reply.repaired else ""))
        echo(f"{verify.model}: " + ("whole" if reply.repaired or not reply.bad else "damaged"))
    return ExitCode.OK if reply.repaired or not reply.bad else ExitCode.FAILED


def end_of(peer: Peer, request: Request) -> Reply:
    """The reply that ends ``request``.

    Raises:
        ShammahError: it was Failed.
    """
    *_, reply = peer.begin(request)
    if isinstance(reply, Failed):
        raise ShammahError(reply.code, reply.message, reply.hint)
    return reply


def _json(reply: Reply) -> str:
    return json.dumps(codec.to_document(reply), ensure_ascii=False)
