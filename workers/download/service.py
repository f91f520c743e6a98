"""The download worker as a service of `workers.host`: one thread per request.

A download belongs to the worker: a second Fetch of the same model joins the one that runs, and
it goes on when nobody waits for it any more.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shammah.bus import transfers
from shammah.bus.messages import Failed, Initializing, WorkReply
from shammah.bus.transfers import (
    Fetch,
    Fetched,
    FetchPlan,
    FetchProgress,
    ListModels,
    ModelList,
    PlanFetch,
    Removed,
    RemoveModel,
    Steered,
    SteerFetch,
    Transfer,
    Transferring,
    Verified,
    VerifyModel,
)
from shammah.errors import ShammahError
from shammah.storage.paths import hub_cache
from workers.manifest import snapshot_of
from workers.service import Outlet

if TYPE_CHECKING:
    from workers.download.control import Control
    from workers.download.downloads import Downloads

log = logging.getLogger(__name__)

RATES = "download/rates.json"
"""In the home, in a directory that this worker may write: how fast downloads were."""

URGENT = 1
"""The priority of a download that somebody waits for; others have 0."""

CLOSE_S = 0.5
"""What a stop leaves to the downloads: what has arrived is on the disk whatever they do."""


Answer = TypeVar("Answer")


class _Job:
    """One download and who waits for it."""

    def __init__(self, transfer: Transfer, control: Control) -> None:
        self.transfer = transfer
        self.control = control
        self.requests: list[str] = []
        self.telling = threading.Lock()


class DownloadService:
    """See `workers.service.Service`."""

    def __init__(self, environ: Mapping[str, str], home: Path) -> None:
        self._cache = hub_cache(environ)
        self._home = home
        self._inbox: queue.SimpleQueue[transfers.Request | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._threads: list[threading.Thread] = []
        self._outlet: Outlet
        self._downloads: Downloads

    # --- called by the host, on its thread ------------------------------------------------

    def submit(self, request: transfers.Request, client: str = "") -> None:
        self._inbox.put(request)

    def cancel(self, request_id: str) -> None:
        """The client no longer waits; the download continues.

        The last request of a download stays open, since it keeps the worker alive: the client
        has ended it on its own side already.
        """
        with self._lock:
            job = next((j for j in self._jobs.values() if request_id in j.requests), None)
            if job is None or job.requests == [request_id]:
                return
            job.requests.remove(request_id)
        why = "The download continues in the background."
        self._outlet.reply(Failed("cancelled", why, "", request_id))

    def stop(self) -> None:
        self._inbox.put(None)

    # --- the work thread ------------------------------------------------------------------

    def run(self, outlet: Outlet) -> None:
        self._outlet = outlet
        outlet.publish(Initializing())
        # huggingface_hub takes 0.4 s to import; requests wait in the inbox meanwhile.
        from workers.download import cache
        from workers.download.downloads import Downloads
        from workers.download.rates import Rates

        self._downloads = Downloads(self._cache, rates=Rates(self._home / RATES))
        swept = cache.sweep(self._cache, time.time())
        log.info("cache %s, swept %s", self._cache, swept)
        self._publish()
        while (request := self._inbox.get()) is not None:
            self._begin(request)
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.control.cancel()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _begin(self, request: transfers.Request) -> None:
        thread = threading.Thread(target=self._serve, args=(request,), daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            why = f"The download worker could not start this: {error}."
            self._outlet.reply(Failed("busy", why, "Ask again in a moment.", request.request_id))
            return
        self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]

    def _serve(self, request: transfers.Request) -> None:
        """One request to its end, on a thread of its own."""
        serve: dict[type, Callable[..., WorkReply | None]] = {
            Fetch: self._fetch,
            PlanFetch: self._plan,
            SteerFetch: self._steer,
            VerifyModel: self._verify,
            ListModels: self._list,
            RemoveModel: self._remove,
        }
        reply = _guard(lambda: serve[type(request)](request), request.request_id)
        if reply is not None:
            self._outlet.reply(reply)

    # --- requests -------------------------------------------------------------------------

    def _fetch(self, request: Fetch) -> None:
        from workers.download.control import Control

        key = (request.model, request.revision)
        with self._lock:
            job = self._jobs.get(key)
            joined = job is not None
            if job is None:
                transfer = Transfer(request.model, request.revision)
                control = Control(alive=self._outlet.advance)
                job = self._jobs[key] = _Job(transfer, control)
            job.requests.append(request.request_id)
        self._outlet.reply(FetchProgress(request.request_id, job.transfer))
        if joined:
            return
        ended = _guard(lambda: self._run(job, request), request.request_id)
        with self._lock:
            del self._jobs[key]
        self._publish()
        for request_id in job.requests:
            self._outlet.reply(replace(ended, request_id=request_id))

    def _run(self, job: _Job, request: Fetch) -> Fetched:
        directory = self._downloads.fetch(
            request.model,
            request.revision,
            priority=URGENT if request.urgent else 0,
            on_progress=lambda now: self._progressed(job, now),
            control=job.control,
            update=request.update,
            force=request.force,
        )
        return Fetched("", request.model, snapshot_of(directory).name, str(directory))

    def _progressed(self, job: _Job, now: Transfer) -> None:
        with job.telling:
            revision = now.revision or job.transfer.revision
            phase = "paused" if job.control.paused else now.phase
            job.transfer = replace(now, revision=revision, phase=phase)
            self._report(job)

    def _report(self, job: _Job) -> None:
        for request_id in list(job.requests):
            self._outlet.reply(FetchProgress(request_id, job.transfer))
        self._publish()

    def _plan(self, request: PlanFetch) -> FetchPlan:
        plan = self._downloads.plan(
            request.model, request.revision, update=request.update, config=request.config
        )
        return replace(plan, request_id=request.request_id)

    def _steer(self, request: SteerFetch) -> Steered:
        with self._lock:
            jobs = [job for (model, _), job in self._jobs.items() if model == request.model]
        if not jobs:
            raise ShammahError(
                "no_download",
                f"{request.model} is not being downloaded.",
                f"`shammah models pull {request.model}` starts one.",
            )
        for job in jobs:
            match request.action:
                case "pause":
                    job.control.pause()
                case "resume":
                    job.control.resume()
                case "cancel":
                    job.control.cancel()
                case _:
                    why = f"A download can be paused, resumed or cancelled, not {request.action!r}."
                    raise ShammahError("protocol", why)
            self._report_steered(job)
        return Steered(request.request_id)

    def _report_steered(self, job: _Job) -> None:
        # Nothing arrives during a pause that would tell of it.
        with job.telling:
            known = "running" if job.transfer.total else "waiting"
            phase = "paused" if job.control.paused else known
            job.transfer = replace(job.transfer, phase=phase, rate=0.0, eta_s=None, detail="")
            self._report(job)

    def _verify(self, request: VerifyModel) -> Verified:
        from workers.download.control import Control

        control = Control(alive=self._outlet.advance)
        model, revision = request.model, request.revision
        if request.repair:
            bad = self._downloads.repair(model, revision, control=control).bad
        else:
            hashes = request.hashes
            bad = tuple(self._downloads.verify(model, revision, hashes=hashes, control=control))
        return Verified(request.request_id, model, bad, repaired=request.repair)

    def _list(self, request: ListModels) -> ModelList:
        from workers.download import cache

        models, size = cache.list_models(self._cache)
        return ModelList(request.request_id, models, size)

    def _remove(self, request: RemoveModel) -> Removed:
        from workers.download import cache

        with self._lock:
            removed = request.model.partition(":")[0]
            if any(model.partition(":")[0] == removed for model, _ in self._jobs):
                raise ShammahError(
                    "download_running",
                    f"{request.model} is being downloaded.",
                    f"To stop it: `shammah models pull --cancel {request.model}`.",
                )
        freed = cache.remove_model(self._cache, request.model, request.revision or None)
        return Removed(request.request_id, freed)

    def _publish(self) -> None:
        with self._lock:
            now = tuple(job.transfer for job in self._jobs.values())
        self._outlet.publish(Transferring(now))


def _guard(work: Callable[[], Answer], request_id: str) -> Answer | Failed:
    """What ``work`` returns, or its error as a reply."""
    try:
        return work()
    except ShammahError as error:
        return Failed(error.code, error.message, error.hint, request_id)
    except Exception as error:
        log.exception("a request failed")
        why = f"The download worker failed: {type(error).__name__}: {error}"
        return Failed("internal", why, "See its log file.", request_id)
