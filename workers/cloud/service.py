"""The cloud worker as a service of `workers.host`: one thread, one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shammah.bus.messages import Failed, Generate, Loading, NotAvailable, Provenance, Ready
from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger
from shammah.settings.model import Settings
from workers.answering import Answering, Backend, log_error
from workers.cloud.budget import Budget
from workers.openai.wire import ENGINE as SERVER
from workers.service import Outlet

ENGINE = "anthropic"
"""Of Claude; a provider's is that of all servers."""

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


def connect(settings: Settings) -> Backend:
    """Make a client; opens no connection. For Claude the SDK is imported (1 to 2 s of CPU)."""
    if settings.provider is not None:
        from workers.cloud.provider import Provider

        return Provider(settings)
    from workers.cloud.claude import Claude

    return Claude(settings)


class CloudService:
    """The backend of the cloud worker, and whether its day's money is spent.

    The import of the SDK has a thread of its own, so that a cancel or a stop need not wait for it.
    """

    def __init__(
        self,
        settings: Settings,
        connect: Callable[[Settings], Backend] = connect,
    ) -> None:
        self._settings = settings
        server = settings.provider
        self._key = (settings.cloud.api_key if server is None else server.key).strip()
        engine = ENGINE if server is None else SERVER
        self._ready = Ready(model=settings.cloud_model, engine=engine)
        self._budget = Budget(settings, Ledger(settings.home))
        self._connect = connect
        origin = Provenance("cloud", settings.cloud_model, engine=engine)
        self._answering = Answering(self._load, origin)

    def run(self, outlet: Outlet) -> None:
        """Import the SDK and answer until `stop`."""
        self._outlet = outlet
        self._answering.run(outlet)

    def submit(self, request: Generate, client: str = "") -> None:
        """See `Answering.submit`."""
        self._answering.submit(request)

    def cancel(self, request_id: str) -> None:
        """See `Answering.cancel`."""
        self._answering.cancel(request_id)

    def stop(self) -> None:
        """See `Answering.stop`."""
        self._answering.stop()

    # --- in the loop ----------------------------------------------------------------------

    async def _load(self) -> None:
        settings = self._settings
        absent = NEVER if settings.cloud.use == "never" else NO_KEY
        if absent is NEVER or (settings.provider is None and not self._key):
            self._outlet.publish(absent)
            self._answering.settle(Failed("not_available", absent.reason, absent.hint))
            return
        try:
            if settings.provider is None:  # that of another is not known yet
                await self._await_budget()
            stage = "import anthropic" if settings.provider is None else "connect"
            self._outlet.publish(Loading(settings.cloud_model, stage, 0, 1))
            _check_key(self._key, settings)
            backend = await asyncio.to_thread(self._connect, settings)
            if settings.provider is not None:
                await self._look(backend)
        except ShammahError as error:
            self._fail(Failed(error.code, error.message, error.hint))
        except Exception as error:
            # The text of the error stays out: that of a proxy address can hold a password.
            log_error("the client could not be made", error)
            who, kind = settings.cloud_name, type(error).__name__
            self._fail(
                Failed(
                    "cloud_client",
                    f"The client of {who} could not be started ({kind}).",
                    "Check HTTPS_PROXY and SSL_CERT_FILE; for details, see the cloud log file.",
                )
            )
        else:
            self._answering.settle(backend)
            self._outlet.publish(self._ready)
            await self._watch_budget()

    async def _look(self, backend: Backend) -> None:
        from workers.cloud.provider import Provider

        if isinstance(backend, Provider):
            await backend.look()
            self._budget = backend.budget
            await self._await_budget()

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
            self._answering.cancel_all()
            await asyncio.sleep(BUDGET_POLL_S)

    async def _watch_budget(self) -> None:
        """Say so when the day's money is spent, so that nobody asks, and when there is more."""
        spent = False
        while self._budget.limited:
            refusal = self._budget_refusal()
            # Not in mid-answer: a state in which nothing can be answered ends what is in hand.
            if (refusal is not None) != spent and not self._answering.active:
                spent = refusal is not None
                self._outlet.publish(refusal or self._ready)
            await asyncio.sleep(BUDGET_POLL_S)

    def _fail(self, failure: Failed) -> None:
        self._answering.settle(failure)
        self._outlet.publish(failure)


def _check_key(key: str, settings: Settings) -> None:
    """Refuse a key that no HTTP header can carry: the error of the transport would repeat it."""
    if not key.isascii() or not key.isprintable() or " " in key:
        where = "ANTHROPIC_API_KEY (or api_key under [cloud] in config.toml)"
        if settings.provider is not None:
            where = f"key under [servers.{settings.cloud.provider}] in config.toml"
        raise ShammahError(
            "cloud_key_invalid",
            "The API key contains a space or an invalid character.",
            f"Copy it again into {where}.",
        )
