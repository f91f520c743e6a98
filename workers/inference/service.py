"""The inference worker's logic as the host runs it: requests in, tokens out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from shammah.bus.messages import (
    Done,
    Failed,
    Generate,
    NotAvailable,
    Provenance,
    Timings,
    Usage,
)
from shammah.config import Settings
from workers.inference.bootstrap import Bootstrap, GeneratorState
from workers.inference.engine import MakeEngine
from workers.inference.inbox import Arrival, Inbox
from workers.inference.serving import ROLE, Serving
from workers.inference.transformers_engine import TransformersEngine
from workers.service import Outlet


class InferenceService:
    """See `workers.service.Service`.

    Requests may come before the model is there: they wait for it. An answer that fails ends
    alone; the worker and the other answers go on.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        stand_in: bool,
        make_engine: MakeEngine = TransformersEngine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._stand_in = stand_in
        self._make_engine = make_engine
        self._clock = clock
        self._inbox = Inbox()
        self._outlet: Outlet | None = None

    # --- called by the host, on its thread ------------------------------------------------

    def submit(self, request: Generate) -> None:
        self._inbox.put(Arrival(request, self._clock()))

    def cancel(self, request_id: str) -> None:
        outlet = self._outlet
        if outlet is not None and self._inbox.withdraw(request_id):
            # It still waited, for the model perhaps, and need not wait for its end.
            provenance = Provenance(ROLE, self._settings.model)
            outlet.reply(Done(request_id, "cancelled", Usage(), Timings(), provenance))
        else:
            self._inbox.cancel(request_id)

    def stop(self) -> None:
        self._inbox.close()

    # --- the work thread ------------------------------------------------------------------

    def run(self, outlet: Outlet) -> None:
        self._outlet = outlet
        bootstrap = Bootstrap(
            self._settings,
            stand_in=self._stand_in,
            environ=os.environ,
            make_engine=self._make_engine,
            publish=outlet.publish,
            advance=outlet.advance,
        )
        model = bootstrap.run()
        if model is None:
            self._refuse(outlet, bootstrap.state)
            return
        longest = self._settings.inference.max_new_tokens
        Serving(model, longest, self._inbox, outlet, self._clock).run()

    def _refuse(self, outlet: Outlet, state: GeneratorState) -> None:
        """End what waited for a model that will not come."""
        for arrival in self._inbox.take(wait=False).arrivals:
            request_id = arrival.request.request_id
            match state:
                case Failed(code, message, hint):
                    outlet.reply(Failed(code, message, hint, request_id))
                case NotAvailable(reason, hint):
                    outlet.reply(Failed("not_available", reason, hint, request_id))
