"""``/model NAME``: switch to another local model, and lose nothing if that fails.

What is requested is checked first. While it downloads, the present model continues to answer; if
the new one cannot be loaded, the present one is loaded again.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Downloading, Failed, NotAvailable, Ready, State
from shammah.bus.transfers import Fetch, Fetched, FetchPlan, FetchProgress, PlanFetch
from shammah.chat.session import Session
from shammah.errors import ShammahError
from shammah.models.catalogue import (
    AUTO,
    cached_snapshot,
    check_local,
    check_model_name,
    is_of_hub,
    model_id_of,
)
from shammah.settings.load import load_settings
from shammah.storage.paths import hub_cache
from shammah.supervision.download import FollowedFetch
from shammah.supervision.lifecycle import connect
from shammah.terminal.wording import describe_failure, describe_size, short_name


class ModelSwitch:
    """Switches one prompt's local model.

    Args:
        session: whose model it is, and whose notices report what becomes of it.
        on_progress: called from another thread when the download has progressed.

    Attributes:
        coming: the download of the next model; ``None``: there is none.
    """

    def __init__(self, session: Session, on_progress: Callable[[], None]) -> None:
        self.coming: Downloading | None = None
        self._session = session
        self._on_progress = on_progress
        self._fetch: FollowedFetch | None = None
        self._before = ""

    def begin(self, wanted: str, *, force: bool) -> str:
        """Switch to ``wanted``, or download it first; return what to tell the person.

        Args:
            wanted: as the settings have it.
            force: even if it looks too large, or another terminal uses the present one.

        Raises:
            ShammahError: that is not possible; nothing has changed.
        """
        settings = load_settings(os.environ, wanted)
        model, now = settings.model, self._session.settings.model
        check_model_name(model)
        check_local(model, os.environ)
        if model == now:
            self.leave()
            return f"The local model is already {model}."
        plan = self._plan(model, force=force)
        others = self._session.local.count_others()
        if others and not force and not (plan and plan.missing):
            used = "Another terminal uses" if others == 1 else f"{others} other terminals use"
            raise ShammahError(
                "worker_in_use",
                f"{used} the local model, {self._name()}, and would lose it.",
                f"To switch anyway: /model! {wanted}.",
            )
        self.leave()
        if plan is not None and plan.missing:
            self._download(model, plan, force=force)
            size = describe_size(plan.missing)
            return (
                f"Downloading {plan.model} in the background ({size}). Until it's done, "
                f"{self._name()} answers; /model {now} keeps it."
            )
        return self._switch(model, take_over=bool(others))

    def look(self, state: State | None) -> None:
        """Take note of the local model's ``state``. Any thread."""
        if not self._before:
            return
        match state:
            case Ready():
                self._before = ""
            case Failed():
                self._fail(state)
            case NotAvailable(reason, hint):
                self._fail(Failed("not_available", reason, hint))

    def show(self, state: State | None) -> State | None:
        """Return ``state`` of the local model, with the download of the next one."""
        if self.coming is not None and isinstance(state, Ready) and state.successor is None:
            return replace(state, successor=self.coming)
        return state

    def leave(self) -> None:
        """Stop following the download, which continues."""
        followed, self._fetch, self.coming = self._fetch, None, None
        if followed is not None:
            followed.leave()

    # A notice runs between two questions: a switch would lose what is being answered.

    def _fail(self, failure: Failed) -> None:
        lost, before, self._before = self._session.settings.model, self._before, ""

        def go_back() -> list[str]:
            if self._session.settings.model != lost:
                return []
            self._session.use_model(before)
            return [f"{lost} cannot be used. {describe_failure(failure)} Back to {before}."]

        self._session.notices.put(go_back)

    def _finish(self, wanted: str, followed: FollowedFetch, end: Fetched | Failed) -> list[str]:
        if self._fetch is not followed:
            return []
        self.leave()
        if isinstance(end, Failed):
            why = describe_failure(end)
            return [f"Couldn't download {wanted}: {why} {self._name()} stays."]
        return [f"Downloaded {end.model}. {self._switch(wanted)}"]

    def _switch(self, model: str, *, take_over: bool = False) -> str:
        before = self._before = self._session.settings.model
        self._session.use_model(model, take_over=take_over)
        return (
            f"Switching to {short_name(model)}; your conversation continues. "
            f"To go back: /model {before}."
        )

    def _plan(self, model: str, *, force: bool) -> FetchPlan | None:
        """Return what has to be downloaded; ``None``: the worker finds out."""
        if model == AUTO or not is_of_hub(model):
            return None
        from shammah.models.machine import look
        from shammah.supervision.plan import Place, make_plan

        session, name = self._session, model_id_of(model)
        try:
            found = self._ask(PlanFetch(new_request_id(), name))
        except ShammahError as error:
            if cached_snapshot(hub_cache(os.environ), name) is not None:
                return None  # the worker sees whether it is whole
            stays = f"{error.message} The local model is still {self._name()}."
            raise ShammahError(error.code, stays, error.hint) from error
        inference, permissive = session.settings.inference, session.settings.permissive
        refusals = make_plan(found, Place(look(os.environ), inference, permissive)).refusals
        if refusals and not force:
            first = refusals[0]
            hint = f"{first.hint} To switch anyway: /model! {model}.".strip()
            raise ShammahError(first.code, first.message, hint)
        return found

    def _ask(self, request: PlanFetch) -> FetchPlan:
        with closing(self._connect()) as peer:
            return peer.begin(request).end(FetchPlan)

    def _connect(self) -> Peer:
        session = self._session
        return connect(session.settings, "download", "repl", session.environ, join=True)

    def _download(self, model: str, plan: FetchPlan, *, force: bool) -> None:
        fetch = Fetch(new_request_id(), plan.model, urgent=True, force=force)
        followed = self._fetch = FollowedFetch(self._connect, fetch)
        self.coming = Downloading(plan.model, plan.total - plan.missing, plan.total)
        threading.Thread(
            target=self._follow, args=(model, followed), name="model-switch", daemon=True
        ).start()

    def _follow(self, wanted: str, followed: FollowedFetch) -> None:
        put = self._session.notices.put
        try:
            for reply in followed:
                if self._fetch is not followed:
                    return
                if not isinstance(reply, FetchProgress):
                    put(functools.partial(self._finish, wanted, followed, reply))
                    return
                one = reply.transfer
                self.coming = Downloading(one.model, one.done, one.total, one.rate, one.eta_s)
                self._on_progress()
        except Exception as error:  # the screen waits for the end
            why = f"The download cannot be followed: {type(error).__name__}: {error}"
            failure = Failed("internal", why, "To see whether it continues: `shammah status`.")
            put(functools.partial(self._finish, wanted, followed, failure))

    def _name(self) -> str:
        """Return the present model."""
        state = self._session.local.state
        return short_name(state.model if isinstance(state, Ready) else self._session.settings.model)
