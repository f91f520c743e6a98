"""Answers that come from elsewhere: one thread, one event loop, one task a request."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import replace
from functools import partial
from typing import Protocol

from shammah.bus.messages import Done, Failed, Generate, Provenance, Retrying, Timings, Token, Usage
from workers.service import Outlet

log = logging.getLogger(__name__)


class Backend(Protocol):
    """What answers."""

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> Done | Failed: ...

    async def close(self) -> None: ...


class Answering:
    """Serves `Generate` requests, several at a time, in an event loop on the work thread.

    Other threads only ever post callbacks to the loop. That never blocks, keeps the order, and
    works before the loop runs.

    Args:
        bring_up: runs in the loop until it is cancelled; it publishes states, and calls `settle`
            once it has a backend or knows that there will be none.
        origin: of an answer that was cancelled before anybody began it.
    """

    def __init__(self, bring_up: Callable[[], Coroutine[None, None, None]], origin: Provenance):
        self._bring_up = bring_up
        self._origin = origin
        self._loop = asyncio.new_event_loop()
        self._stop_asked = asyncio.Event()
        self._backend: asyncio.Future[Backend | Failed] = self._loop.create_future()
        self._tasks: dict[str, asyncio.Task[Done | Failed]] = {}
        self.outlet: Outlet

    def run(self, outlet: Outlet) -> None:
        """Bring the backend up and answer until `stop`."""
        self.outlet = outlet
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            # Not asyncio.run: it would wait for an import, or for a name that does not resolve.
            self._loop.close()

    def submit(self, request: Generate) -> None:
        """Answer ``request`` as soon as the backend is there."""
        self._post(self._start, request, time.monotonic())

    def cancel(self, request_id: str) -> None:
        """End a request now, wherever it is; one that has ended is left alone."""
        self._post(self._cancel, request_id)

    def stop(self) -> None:
        """Cancel everything and make `run` return."""
        self._post(self._stop_asked.set)

    def _post(self, callback: Callable[..., object], *arguments: object) -> None:
        # A closed loop means that the worker has stopped; the host ends what is left.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback, *arguments)

    # --- in the loop ----------------------------------------------------------------------

    @property
    def active(self) -> int:
        """Answers under way."""
        return len(self._tasks)

    def settle(self, backend: Backend | Failed) -> None:
        """Have ``backend`` answer, or all requests fail so."""
        self._backend.set_result(backend)

    def cancel_all(self) -> None:
        """End every request."""
        for request_id in list(self._tasks):
            self._cancel(request_id)

    async def _serve(self) -> None:
        loading = self._loop.create_task(self._bring_up())
        await self._stop_asked.wait()
        loading.cancel()
        self.cancel_all()
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        await asyncio.wait([loading])
        backend = self._backend.result() if self._backend.done() else None
        if backend is not None and not isinstance(backend, Failed):
            await backend.close()

    def _start(self, request: Generate, arrived_s: float) -> None:
        task = self._loop.create_task(self._answer(request, arrived_s))
        self._tasks[request.request_id] = task
        task.add_done_callback(partial(self._finish, request.request_id, arrived_s))

    def _cancel(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        # A second cancellation would break off the closing of the connection.
        if task is not None and not task.cancelling():
            task.cancel()

    async def _answer(self, request: Generate, arrived_s: float) -> Done | Failed:
        backend = await asyncio.shield(self._backend)
        if isinstance(backend, Failed):
            return replace(backend, request_id=request.request_id)
        outlet = self.outlet
        return await backend.answer(request, outlet.reply, arrived_s, outlet.advance)

    def _finish(self, request_id: str, arrived_s: float, task: asyncio.Task[Done | Failed]) -> None:
        """The one place where a request ends, however its task ended."""
        del self._tasks[request_id]
        role = self._origin.role
        if task.cancelled():  # while it waited for the backend
            outcome: Done | Failed = self._cancelled(request_id, arrived_s)
        elif error := task.exception():
            log_error(f"request {request_id} failed", error)
            why = f"The {role} worker failed: {type(error).__name__}."
            outcome = Failed("internal", why, "See its log file.", request_id)
        else:
            outcome = task.result()
        ended_so = isinstance(outcome, Done) and outcome.finish_reason == "cancelled"
        if ended_so and not task.cancelling():  # by a library's own doing, then
            why = f"The {role} worker stopped the answer unexpectedly."
            outcome = Failed("internal", why, "Ask again.", request_id)
        ended = outcome.code if isinstance(outcome, Failed) else outcome.finish_reason
        log.info("request %s: %s", request_id, ended)
        self.outlet.reply(outcome)

    def _cancelled(self, request_id: str, arrived_s: float) -> Done:
        waited_s = time.monotonic() - arrived_s
        timings = Timings(queue_s=waited_s, total_s=waited_s)
        return Done(request_id, "cancelled", Usage(), timings, self._origin)


def log_error(what: str, error: BaseException) -> None:
    """Log type and place of an error; its text could repeat what was asked."""
    places = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", what, type(error).__name__, places)
