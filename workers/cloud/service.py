"""The cloud worker as a service of `workers.host`: one thread, one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    Loading,
    NotAvailable,
    Provenance,
    Ready,
    Retrying,
    Timings,
    Token,
    Usage,
)
from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.cloud.budget import Budget
from workers.service import Outlet

log = logging.getLogger(__name__)

ENGINE = "anthropic"

BUDGET_POLL_S = 2.0
"""How often the budget is looked at: others spend it, too, and at midnight there is a new one."""

NEVER = NotAvailable(
    "The cloud is switched off (cloud.use is never).",
    'Set use = "auto" or "ask" under [cloud] in config.toml.',
)
NO_KEY = NotAvailable(
    "No API key is set, so nothing is sent to Claude.",
    "Set ANTHROPIC_API_KEY (or api_key under [cloud] in config.toml) to use it.",
)


class Backend(Protocol):
    """What answers: `workers.cloud.claude.Claude`."""

    async def answer(
        self,
        request: Generate,
        reply: Callable[[Token | Retrying], None],
        arrived_s: float,
        advance: Callable[[], None],
    ) -> Done | Failed: ...

    async def close(self) -> None: ...


def connect(settings: Settings) -> Backend:
    """Import the SDK (1 to 2 s of CPU) and make a client; opens no connection."""
    from workers.cloud.claude import Claude

    return Claude(settings)


class CloudService:
    """Serves `Generate` requests, several at a time, in an event loop on the work thread.

    Other threads only ever post callbacks to the loop. That never blocks, keeps the order, and
    works before the loop runs. The import of the SDK has a thread of its own, so that a cancel
    or a stop need not wait for it.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[Settings], Backend] = connect,
    ) -> None:
        self._all_settings = settings
        self._settings = settings.cloud
        self._budget = Budget(settings.cloud, Ledger(settings.home))
        self._connect = connect
        self._loop = asyncio.new_event_loop()
        self._stop_asked = asyncio.Event()
        self._backend: asyncio.Future[Backend | Failed] = self._loop.create_future()
        self._tasks: dict[str, asyncio.Task[Done | Failed]] = {}
        self._outlet: Outlet

    def run(self, outlet: Outlet) -> None:
        """Import the SDK and answer until `stop`."""
        self._outlet = outlet
        try:
            self._loop.run_until_complete(self._serve())
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            # Not asyncio.run: it would wait for an import, or for a name that does not resolve.
            self._loop.close()

    def submit(self, request: Generate, client: str = "") -> None:
        """Answer ``request`` as soon as the SDK is there."""
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

    async def _serve(self) -> None:
        loading = self._loop.create_task(self._load())
        await self._stop_asked.wait()
        loading.cancel()
        for request_id in list(self._tasks):
            self._cancel(request_id)
        while self._tasks:
            await asyncio.wait(self._tasks.values())
        await asyncio.wait([loading])
        backend = self._backend.result() if self._backend.done() else None
        if backend is not None and not isinstance(backend, Failed):
            await backend.close()

    async def _load(self) -> None:
        absent = NEVER if self._settings.use == "never" else NO_KEY
        if absent is NEVER or not self._settings.api_key.strip():
            self._outlet.publish(absent)
            self._backend.set_result(Failed("not_available", absent.reason, absent.hint))
            return
        try:
            await self._await_budget()
            self._outlet.publish(Loading(self._settings.model, "import anthropic", 0, 1))
            _check_key(self._settings.api_key.strip())
            backend = await self._loop.run_in_executor(None, self._connect, self._all_settings)
        except ShammahError as error:
            self._fail(Failed(error.code, error.message, error.hint))
        except Exception as error:
            # The text of the error stays out: that of a proxy address can hold a password.
            _log_error("the client could not be made", error)
            self._fail(
                Failed(
                    "cloud_client",
                    f"The Claude client could not be started ({type(error).__name__}).",
                    "Check HTTPS_PROXY and SSL_CERT_FILE; for details, see the cloud log file.",
                )
            )
        else:
            self._backend.set_result(backend)
            self._outlet.publish(Ready(model=self._settings.model, engine=ENGINE))
            await self._watch_budget()

    def _budget_refusal(self) -> NotAvailable | None:
        try:
            self._budget.check()
        except ShammahError as error:
            return NotAvailable(error.message, error.hint)
        return None

    async def _await_budget(self) -> None:
        """Import nothing while the day's money is spent."""
        refusal = self._budget_refusal()
        if refusal is None:
            return
        self._outlet.publish(refusal)
        while self._budget_refusal() is not None:
            # The host answers requests of the meantime; none of them may go out later.
            for request_id in list(self._tasks):
                self._cancel(request_id)
            await asyncio.sleep(BUDGET_POLL_S)

    async def _watch_budget(self) -> None:
        """Say so when the day's money is spent, so that nobody asks, and when there is more."""
        spent = False
        while self._budget.limited:
            refusal = self._budget_refusal()
            # Not in mid-answer: a state in which nothing can be answered ends what is in hand.
            if (refusal is not None) != spent and not self._tasks:
                spent = refusal is not None
                ready = Ready(model=self._settings.model, engine=ENGINE)
                self._outlet.publish(refusal or ready)
            await asyncio.sleep(BUDGET_POLL_S)

    def _fail(self, failure: Failed) -> None:
        self._backend.set_result(failure)
        self._outlet.publish(failure)

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
        outlet = self._outlet
        return await backend.answer(request, outlet.reply, arrived_s, outlet.advance)

    def _finish(self, request_id: str, arrived_s: float, task: asyncio.Task[Done | Failed]) -> None:
        """The one place where a request ends, however its task ended."""
        del self._tasks[request_id]
        if task.cancelled():  # while it waited for the SDK
            outcome: Done | Failed = self._cancelled(request_id, arrived_s)
        elif error := task.exception():
            _log_error(f"request {request_id} failed", error)
            why = f"The cloud worker failed: {type(error).__name__}."
            outcome = Failed("internal", why, "See its log file.", request_id)
        else:
            outcome = task.result()
        ended_so = isinstance(outcome, Done) and outcome.finish_reason == "cancelled"
        if ended_so and not task.cancelling():  # by a library's own doing, then
            why = "The cloud worker stopped the answer unexpectedly."
            outcome = Failed("internal", why, "Ask again.", request_id)
        ended = outcome.code if isinstance(outcome, Failed) else outcome.finish_reason
        log.info("request %s: %s", request_id, ended)
        self._outlet.reply(outcome)

    def _cancelled(self, request_id: str, arrived_s: float) -> Done:
        waited_s = time.monotonic() - arrived_s
        return Done(
            request_id,
            "cancelled",
            Usage(),
            Timings(queue_s=waited_s, total_s=waited_s),
            Provenance("cloud", self._settings.model, engine=ENGINE),
        )


def _check_key(key: str) -> None:
    """Refuse a key that no HTTP header can carry: the error of the transport would repeat it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ShammahError(
            "cloud_key_invalid",
            "The API key contains a space or an invalid character.",
            "Copy it again into ANTHROPIC_API_KEY (or api_key under [cloud] in config.toml).",
        )


def _log_error(what: str, error: BaseException) -> None:
    """Type and place of an error; its text could repeat what was asked."""
    places = "".join(traceback.format_tb(error.__traceback__))
    log.error("%s: %s\n%s", what, type(error).__name__, places)
