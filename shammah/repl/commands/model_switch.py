"""``/model NAME``: another local model, and nothing lost if it cannot be had.

What is asked for is looked at first. While it has to be downloaded the model before it goes on
answering, and one that cannot be loaded gives way to it again.
"""

from __future__ import annotations

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
    STARTER,
    cached_snapshot,
    check_directory,
    check_model_name,
    model_id_of,
)
from shammah.settings.load import load_settings
from shammah.storage.paths import hub_cache
from shammah.supervision.download import FetchReply, FollowedFetch
from shammah.supervision.lifecycle import connect
from shammah.terminal.wording import describe_failure, describe_size, short_name


class ModelSwitch:
    """One prompt's way from one local model to the next.

    Args:
        session: whose model it is, and whose notices say what becomes of it.
        on_progress: called from other threads when the download has got on.

    Attributes:
        coming: how far the download of the next model is; ``None``: there is none.
    """

    def __init__(self, session: Session, on_progress: Callable[[], None]) -> None:
        self.coming: Downloading | None = None
        self._session = session
        self._on_progress = on_progress
        self._next = ""
        self._fetch: FollowedFetch | None = None
        self._fetched: Fetched | Failed | None = None
        self._before = ""
        self._failure: Failed | None = None

    def begin(self, wanted: str, *, force: bool) -> str:
        """Take ``wanted``, or have it fetched first; what to tell the person.

        Args:
            wanted: as the settings have it.
            force: even if it looks too large, or somebody else uses the one that is loaded.

        Raises:
            ShammahError: it cannot be had; everything is as it was.
        """
        settings = load_settings(os.environ, wanted)
        model, now = settings.model, self._session.settings.model
        check_model_name(model)
        check_directory(model)
        if model == now:
            self._leave()
            return f"The local model is {model} already."
        plan = self._plan(model, force=force)
        others = self._session.local.count_others()
        if others and not force and not (plan and plan.missing):
            used = "Another terminal uses" if others == 1 else f"{others} other terminals use"
            raise ShammahError(
                "worker_in_use",
                f"{used} the local model, {self._name()}: it would have to end there, too.",
                f"/model! {wanted} ends it.",
            )
        self._leave()
        if plan is not None and plan.missing:
            self._download(model, plan, force=force)
            size = describe_size(plan.missing)
            return (
                f"Downloading {plan.model} in the background ({size}). {self._name()} goes on "
                f"answering until it is here; /model {now} keeps it."
            )
        return self._switch(model, take_over=bool(others))

    def look(self, state: State | None) -> None:
        """The local model is in ``state`` now. Any thread."""
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
        """``state`` of the local model, with the download of the next one."""
        if self.coming is not None and isinstance(state, Ready) and state.successor is None:
            return replace(state, successor=self.coming)
        return state

    def _settle(self) -> list[str]:
        """Do what has become possible; what there is to tell. Between two questions: what is
        being answered would be lost."""
        fetched, self._fetched = self._fetched, None
        failure, self._failure = self._failure, None
        if failure is not None:
            lost, before = self._session.settings.model, self._before
            self._before = ""
            self._session.use_model(before)
            return [f"Back to {before}: {lost} cannot be used. {describe_failure(failure)}"]
        if fetched is None:
            return []
        model, self._next, self.coming = self._next, "", None
        if isinstance(fetched, Failed):
            why = describe_failure(fetched)
            return [f"{model} could not be downloaded, so {self._name()} stays. {why}"]
        return [f"{fetched.model} is here. {self._switch(model)}"]

    def close(self) -> None:
        """Follow the download no longer; it goes on."""
        self._leave()

    def _switch(self, model: str, *, take_over: bool = False) -> str:
        before = self._before = self._session.settings.model
        self._session.use_model(model, take_over=take_over)
        return (
            f"Switching to {short_name(model)}; your conversation continues. "
            f"/model {before} goes back."
        )

    def _fail(self, failure: Failed) -> None:
        if self._failure is None:
            self._failure = failure
            self._session.notices.put(self._settle)

    def _plan(self, model: str, *, force: bool) -> FetchPlan | None:
        """What has to be fetched; ``None``: that is the worker's own business."""
        if model in (AUTO, STARTER) or os.path.isabs(model):
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
            hint = f"{first.hint} /model! {model} takes it all the same.".strip()
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
        followed = FollowedFetch(self._connect, fetch)
        self._next, self._fetch = model, followed
        self.coming = Downloading(plan.model, plan.total - plan.missing, plan.total)
        threading.Thread(
            target=self._follow, args=(followed,), name="model-switch", daemon=True
        ).start()

    def _follow(self, followed: FollowedFetch) -> None:
        try:
            for reply in followed:
                if self._fetch is followed:
                    self._heard(reply)
        except Exception as error:  # the screen waits for the end
            why = f"The download cannot be followed: {type(error).__name__}: {error}"
            hint = "It may go on: `shammah status` shows it."
            if self._fetch is followed:
                self._heard(Failed("internal", why, hint))

    def _heard(self, reply: FetchReply) -> None:
        if isinstance(reply, FetchProgress):
            one = reply.transfer
            self.coming = Downloading(one.model, one.done, one.total, one.rate, one.eta_s)
            self._on_progress()
        else:
            self._fetch = None
            self._fetched = reply
            self._session.notices.put(self._settle)

    def _name(self) -> str:
        """The model of now."""
        state = self._session.local.state
        return short_name(state.model if isinstance(state, Ready) else self._session.settings.model)

    def _leave(self) -> None:
        followed, self._fetch = self._fetch, None
        self._next, self.coming, self._fetched = "", None, None
        if followed is not None:
            followed.leave()
