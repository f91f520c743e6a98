"""The inference worker's logic as the host runs it: requests in, tokens out.

What loads and answers is imported on the work thread, so that the sockets answer meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    NotAvailable,
    Prefill,
    Provenance,
    Timings,
    Usage,
)
from shammah.models.catalogue import is_offline
from shammah.settings.model import Settings
from workers.inference.inbox import Ahead, Arrival, Inbox
from workers.service import Outlet

if TYPE_CHECKING:
    from workers.inference.engine import EngineSpec
    from workers.inference.startup.acquisition import ModelSource
    from workers.inference.startup.attempts import Attempts
    from workers.inference.startup.bootstrap import Bootstrap
    from workers.inference.startup.loading import LoadedModel
    from workers.inference.startup.transition import GeneratorState

log = logging.getLogger(__name__)


class InferenceService:
    """See `workers.service.Service`.

    Requests may come before the model is there: they wait for it. An answer that fails ends
    alone; the worker and the other answers go on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str] | None = None,
        engines: Mapping[str, EngineSpec] | None = None,
        attempts: Attempts | None = None,
        make_source: Callable[[Settings, Mapping[str, str]], ModelSource | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        # Copied: the environment tells libraries not to use the network, and a
        # download worker that is started from here must not hear that.
        self._environ = dict(os.environ if environ is None else environ)
        self._engines = engines
        self._make_source = make_source or model_source
        self._attempts = attempts
        self._clock = clock
        self._inbox = Inbox()
        self._outlet: Outlet | None = None
        self._bootstrap: Bootstrap | None = None

    # --- called by the host, on its thread ------------------------------------------------

    def submit(self, request: Generate | Prefill, client: str = "") -> None:
        now = self._clock()
        if isinstance(request, Prefill):
            self._inbox.put(Ahead(request, now, client))
        else:
            self._inbox.put(Arrival(request, now, client))

    def cancel(self, request_id: str) -> None:
        outlet = self._outlet
        if outlet is not None and self._inbox.withdraw(request_id):
            # It still waited, for the model perhaps, and need not wait for its end.
            provenance = Provenance("inference", self._settings.model)
            outlet.reply(Done(request_id, "cancelled", Usage(), Timings(), provenance))
        else:
            self._inbox.cancel(request_id)

    def stop(self) -> None:
        self._inbox.close(self._clock())
        if self._bootstrap is not None:
            self._bootstrap.stop()

    # --- the work thread ------------------------------------------------------------------

    def run(self, outlet: Outlet) -> None:
        try:
            self._run(outlet)
        finally:
            if self._attempts is not None:
                self._attempts.end()

    def _run(self, outlet: Outlet) -> None:
        from shammah.models.machine import look
        from shammah.storage.files import remove_abandoned
        from workers.inference.engines.table import ENGINES
        from workers.inference.startup.bootstrap import Bootstrap

        self._outlet = outlet
        bootstrap = self._bootstrap = Bootstrap(
            self._settings,
            environ=self._environ,
            machine=look(self._environ),
            engines=ENGINES if self._engines is None else self._engines,
            attempts=self._attempts,
            source=self._make_source(self._settings, self._environ),
            publish=outlet.publish,
            advance=outlet.advance,
            replacement_due=self._inbox.hold,
        )
        if self._inbox.is_closed():  # before there was a bootstrap to stop
            return
        for draft in remove_abandoned(self._settings.home / "quantized", time.time()):
            log.info("removed an unfinished merge: %s", draft)
        model = bootstrap.run()
        while model is not None:
            self._serve(model, outlet)
            model = None  # its memory is needed
            if self._inbox.is_closed():
                return
            self._inbox.release()
            model = bootstrap.replace()
        self._refuse(outlet, bootstrap.state)

    def _serve(self, model: LoadedModel, outlet: Outlet) -> None:
        from workers.inference.serving import Serving
        from workers.inference.startup.leftovers import Sweeper

        engine = model.engine
        sweeper = Sweeper(self._settings.home, model.directory, lambda: engine.active == 0)
        serving = Serving(
            model,
            self._settings.home,
            settings=self._settings.inference,
            inbox=self._inbox,
            outlet=outlet,
            clock=self._clock,
        )
        try:
            serving.run()
        finally:
            sweeper.stop()

    def _refuse(self, outlet: Outlet, state: GeneratorState) -> None:
        """End what waited for a model that will not come."""
        delivery = self._inbox.take(wait=False)
        names = [one.request.request_id for one in delivery.arrivals]
        for request_id in (*names, *(one.request.request_id for one in delivery.ahead)):
            match state:
                case Failed(code, message, hint):
                    outlet.reply(Failed(code, message, hint, request_id))
                case NotAvailable(reason, hint):
                    outlet.reply(Failed("not_available", reason, hint, request_id))


def model_source(settings: Settings, environ: Mapping[str, str]) -> ModelSource | None:
    """The download worker; ``None`` when the user wants no network."""
    if is_offline(environ):
        return None
    from workers.inference.startup.acquisition import DownloadWorker

    return DownloadWorker(settings, environ)
