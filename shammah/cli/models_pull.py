"""``shammah models pull``: several downloads followed at once, each to its end."""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Failed
from shammah.bus.transfers import Fetch, Fetched, FetchProgress, Steered, SteerFetch, Transfer
from shammah.errors import ExitCode, ShammahError
from shammah.settings.model import Settings
from shammah.supervision.download import FetchReply, FollowedFetch
from shammah.supervision.lifecycle import connect
from shammah.supervision.model_list import download_worker
from shammah.terminal.output import describe_error, echo, print_json
from shammah.terminal.progress import DownloadView, ProgressScreen
from shammah.terminal.wording import describe_background

LEAVE_S = 1.0
"""How long the end waits for the connections to be closed in good order."""


def pull(settings: Settings, fetches: list[Fetch], *, as_json: bool) -> int:
    """Download models and show how far they are. Ctrl-C leaves; the downloads go on."""

    def resume(model: str) -> None:
        with download_worker(settings) as peer:
            peer.begin(SteerFetch(new_request_id(), model, "resume")).end(Steered)

    screen = DownloadView(ProgressScreen(os.environ, sys.stderr, quiet=as_json))
    return Pull(
        lambda: connect(settings, "download", "models", os.environ),
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
            peer.begin(SteerFetch(new_request_id(), model, action)).end(Steered)
            echo(f"{model}: {done}; partial downloads are kept.")
    return ExitCode.OK


class Pull:
    """Follows downloads that go on whatever becomes of this process.

    Args:
        connect: a fresh connection to the download worker.
        resume: lets a paused download go on.
        fetches: one for each model.
        screen: where they are shown.
        as_json: print one object for each model instead of its directory.
    """

    def __init__(
        self,
        connect: Callable[[], Peer],
        resume: Callable[[str], None],
        fetches: Iterable[Fetch],
        screen: DownloadView,
        *,
        as_json: bool,
    ) -> None:
        self._resume = resume
        self._screen = screen
        self._as_json = as_json
        self._heard: queue.SimpleQueue[tuple[str, FetchReply | None]] = queue.SimpleQueue()
        self._latest: dict[str, Transfer] = {}
        self._ended: dict[str, Fetched | Failed] = {}
        self._followed: dict[str, FollowedFetch] = {}
        for fetch in fetches:
            died = functools.partial(self._heard.put, (fetch.model, None))
            self._followed[fetch.model] = FollowedFetch(connect, fetch, on_restart=died)
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
        except Exception as error:  # whoever waits must hear of the end in any case
            why = f"The download cannot be followed: {type(error).__name__}: {error}"
            hint = "It may go on: `shammah status` shows it."
            self._heard.put((model, Failed("internal", why, hint)))

    def _on_heard(self, model: str, reply: FetchReply | None) -> None:
        match reply:
            case None:
                self._screen.say(
                    f"The download worker died and was started anew: {model} goes on from what "
                    "is here."
                )
            case FetchProgress(transfer=transfer):
                if model not in self._latest and transfer.phase == "paused":
                    self._fail_over(model)
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

    def _fail_over(self, model: str) -> None:
        try:
            self._resume(model)
        except ShammahError as error:
            self._screen.say(f"The download of {model} is paused: {error}")
        else:
            self._screen.say(f"The download of {model} was paused; it goes on now.")

    def _leave(self) -> None:
        self._screen.end()
        for model, followed in self._followed.items():
            if model in self._ended:
                pass
            elif transfer := self._latest.get(model):
                self._screen.say(describe_background(transfer))
            else:
                self._screen.say(f"The download of {model} may not have begun yet.")
            followed.leave()
        self._join()

    def _join(self) -> None:
        """Wait until the leases are given back, or another pull may be refused because of us."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(LEAVE_S)

    def _result(self) -> int:
        """Print what has become of each, in the order in which they were named."""
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
