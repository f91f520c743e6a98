"""``shammah models``: what the download worker is asked for, and how its answers are shown."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import ClientInfo, Failed, Reply
from shammah.bus.transfers import (
    Fetch,
    Fetched,
    FetchProgress,
    ListModels,
    ModelList,
    Removed,
    RemoveModel,
    Request,
    SteerFetch,
    Transfer,
    Verified,
    VerifyModel,
)
from shammah.config import Settings
from shammah.errors import ExitCode, ShammahError
from shammah.fetching import FollowedFetch
from shammah.repl.screen import Screen
from shammah.supervision import ensure, worker_spec
from shammah.wording import describe_bytes

ROLE = "download"

PLAIN_STEP = 10
"""In a pipe, a line for every so many percent."""


def connect_download(settings: Settings) -> Peer:
    """A connection to the download worker, which is started if need be.

    Raises:
        ShammahError: see `ensure`.
    """
    spec = worker_spec(settings, ROLE, os.environ)
    return ensure(spec, open_endpoints(os.environ), ClientInfo("models", os.getpid()))


@contextmanager
def download_worker(settings: Settings) -> Iterator[Peer]:
    """A connection to the download worker, started if need be."""
    peer = connect_download(settings)
    try:
        yield peer
    finally:
        peer.close()


def pull(settings: Settings, fetch: Fetch, *, as_json: bool) -> int:
    """Download a model and show how far it is. Ctrl-C leaves; the download goes on."""
    screen = Screen(os.environ, sys.stderr)
    shown = _Shown(screen)
    try:
        for reply in FollowedFetch(lambda: connect_download(settings), fetch):
            match reply:
                case FetchProgress(transfer=transfer):
                    shown.progress(transfer)
                case Fetched():
                    screen.end_live()
                    print(_json(reply) if as_json else reply.directory)
                case Failed():
                    screen.end_live()
                    raise ShammahError(reply.code, reply.message, reply.hint)
    except KeyboardInterrupt:
        screen.hint(
            "The download goes on in the background: `shammah status` shows it, "
            f"`shammah models pull --cancel {fetch.model}` ends it."
        )
        return ExitCode.INTERRUPTED
    return ExitCode.OK


class _Shown:
    """A download as a live line, or in a pipe as a line now and then."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._tenth = -1

    def progress(self, transfer: Transfer) -> None:
        amount = describe_bytes(transfer.done, transfer.total, transfer.rate, transfer.eta_s)
        text = f"{transfer.model} {transfer.phase}: {amount}"
        if self._screen.terminal:
            self._screen.live(text)
            return
        tenth = 100 * transfer.done // transfer.total // PLAIN_STEP if transfer.total else 0
        if tenth > self._tenth:
            self._tenth = tenth
            self._screen.line(text)


def steer(settings: Settings, model: str, action: str) -> int:
    """Pause, resume or cancel a download."""
    with download_worker(settings) as peer:
        _end(peer, SteerFetch(new_request_id(), model, action))
    done = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}[action]
    print(f"{model}: {done}; what has arrived is kept.")
    return ExitCode.OK


def list_models(settings: Settings, *, as_json: bool) -> int:
    """Show what is in the cache."""
    with download_worker(settings) as peer:
        reply = _end(peer, ListModels(new_request_id()))
    assert isinstance(reply, ModelList)
    if as_json:
        print(_json(reply))
        return ExitCode.OK
    for model in reply.models:
        state = "verified" if model.verified else "not verified"
        revisions = " ".join(revision[:8] for revision in model.revisions) or "unfinished"
        print(f"{model.model:44} {model.size / 1e9:7.2f} GB  {state:12}  {revisions}")
    print(f"{len(reply.models)} models, {reply.total_size / 1e9:.2f} GB")
    return ExitCode.OK


def remove_model(settings: Settings, model: str, revision: str) -> int:
    """Delete a model from the cache."""
    with download_worker(settings) as peer:
        reply = _end(peer, RemoveModel(new_request_id(), model, revision))
    assert isinstance(reply, Removed)
    print(f"{model}: {reply.freed / 1e9:.2f} GB are free again.")
    return ExitCode.OK


def verify_model(settings: Settings, verify: VerifyModel, *, as_json: bool) -> int:
    """Check a model's files, and fetch the bad ones anew if asked to."""
    screen = Screen(os.environ, sys.stderr)
    screen.live(f"checking {verify.model} ...")
    with download_worker(settings) as peer:
        reply = _end(peer, verify)
    screen.end_live()
    assert isinstance(reply, Verified)
    if as_json:
        print(_json(reply))
    else:
        for file in reply.bad:
            print(f"{file.path}: {file.reason}" + (", repaired" if reply.repaired else ""))
        print(f"{verify.model}: " + ("whole" if reply.repaired or not reply.bad else "damaged"))
    return ExitCode.OK if reply.repaired or not reply.bad else ExitCode.FAILED


def _end(peer: Peer, request: Request) -> Reply:
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
