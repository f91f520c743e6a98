"""One download, followed to its end even if the download worker dies on the way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

from shammah.bus.client import Peer, Task, new_request_id
from shammah.bus.messages import Failed
from shammah.bus.transfers import Fetch, Fetched, FetchProgress, Transfer
from shammah.errors import ShammahError
from shammah.supervision.lifecycle import RestartBudget

FetchReply = FetchProgress | Fetched | Failed

LAPSED = frozenset({"lease_lapsed", "not_attached"})
"""This process stood still for longer than its lease: it was stopped (Ctrl-Z), or an import held
the interpreter. The download did not, and is followed again."""


class FollowedFetch:
    """Iterate once: FetchProgress..., then exactly one of Fetched, Failed.

    A worker that has died is restarted and resumes from what is on the disk; one that dropped our
    lease is asked again. The progress never goes backwards.

    Args:
        connect: a new connection to the download worker, started if needed; may raise
            ShammahError.
        fetch: what to ask for; its ``request_id`` is replaced.
        on_restart: called after a worker that died was restarted.
    """

    def __init__(
        self,
        connect: Callable[[], Peer],
        fetch: Fetch,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect = connect
        self._fetch = fetch
        self._budget = RestartBudget()
        self._on_restart = on_restart
        self._lock = threading.Lock()
        self._task: Task | None = None
        self._left = False
        self._furthest = Transfer(fetch.model, fetch.revision)

    def leave(self) -> None:
        """End the iteration with ``Failed("cancelled")``; the download goes on. Any thread."""
        with self._lock:
            self._left = True
            if self._task is not None:
                self._task.cancel()

    def __iter__(self) -> Iterator[FetchReply]:
        died = False
        while True:
            try:
                peer = self._connect()
            except ShammahError as error:
                yield Failed(error.code, error.message, error.hint)
                return
            if died:
                self._on_restart()
            try:
                for reply in self._begin(peer):
                    code = reply.code if isinstance(reply, Failed) else ""
                    died = code == "worker_died"
                    if code in LAPSED or (died and not peer.stopped and self._budget.spend()):
                        break
                    if isinstance(reply, FetchProgress):
                        yield replace(reply, transfer=self._forward(reply.transfer))
                    elif isinstance(reply, Fetched | Failed):
                        yield reply
                else:
                    return
            finally:
                peer.close()

    def _begin(self, peer: Peer) -> Task:
        with self._lock:
            self._task = peer.begin(replace(self._fetch, request_id=new_request_id()))
            if self._left:
                self._task.cancel()
            return self._task

    def _forward(self, transfer: Transfer) -> Transfer:
        """Return ``transfer``, but never less than was reported before."""
        known = self._furthest
        if transfer.total == 0 and known.total:
            transfer = replace(
                known,
                phase=transfer.phase,
                rate=0.0,
                eta_s=None,
                notices=transfer.notices,
                detail=transfer.detail,
            )
        elif transfer.revision == known.revision and transfer.done < known.done:
            transfer = replace(transfer, done=known.done)
        self._furthest = transfer
        return transfer
