"""How the local model comes up: find it, have it fetched, load it, replace a fallback model by it.

The states on the way are `transition`'s.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from shammah.bus.messages import Downloading, Failed, Initializing, Loading, NotAvailable, Ready
from shammah.bus.transfers import Transfer
from shammah.errors import ShammahError
from shammah.models.catalogue import (
    AUTO,
    STARTER,
    LocatedModel,
    Machine,
    MissingModel,
    followable_hints,
    is_of_hub,
    largest_below,
    starter_directory,
)
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from shammah.supervision.model_list import find_model
from workers.inference.engine import EngineSpec
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.startup.acquisition import UNREACHABLE, Acquisition, ModelSource
from workers.inference.startup.attempts import Attempts
from workers.inference.startup.loading import LoadedModel, Loader
from workers.inference.startup.offers import prepare_engine
from workers.inference.startup.transition import (
    CHECK_FILES,
    Event,
    GeneratorState,
    Missed,
    StageBegun,
    transition,
)
from workers.manifest import is_complete

log = logging.getLogger(__name__)

REPAIRABLE = ("model_corrupt", "model_incomplete")
"""What downloading the bad files again can repair."""


def retry_pauses() -> Iterator[float]:
    """Seconds between attempts at a Hub that cannot be reached, while a fallback model answers."""
    return itertools.chain((60.0, 120.0, 240.0), itertools.repeat(600.0))


class Bootstrap:
    """Brings the model up and reports every state on the way.

    Args:
        settings: which model, and how to compute it.
        environ: of this process.
        machine: what it has for a model.
        engines: see `Loader`.
        attempts: what became of the last one.
        source: where a missing model comes from; ``None``: from nowhere, this is offline.
        publish: receives each new state.
        advance: called for work within a state.
        replacement_due: called, on another thread, when `replace` should be.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        environ: Mapping[str, str],
        machine: Machine,
        engines: Mapping[str, EngineSpec] = ENGINES,
        attempts: Attempts | None = None,
        source: ModelSource | None,
        publish: Callable[[GeneratorState], None],
        advance: Callable[[], None],
        replacement_due: Callable[[], None] = lambda: None,
    ) -> None:
        self.state: GeneratorState = Initializing()
        self._settings = settings
        self._environ = environ
        self._machine = machine
        self._engines = engines
        self._loader = Loader(
            settings.inference,
            machine=machine,
            engines=engines,
            attempts=attempts,
            smaller=self._smaller,
            watcher=self,
            home=settings.home,
        )
        self._source = source
        self._publish = publish
        self.advance = advance
        self._replacement_due = replacement_due
        self._lock = threading.RLock()
        self._acquisition: Acquisition | None = None
        self._missing: MissingModel | None = None
        self._stopped = False
        self._note = ""
        self._lost = ""
        self._successor: Downloading | None = None

    # --- from the work thread -------------------------------------------------------------

    def run(self) -> LoadedModel | None:
        """The model, or ``None`` when the state is now NotAvailable or Failed."""
        return self._guard(self._run)

    def replace(self) -> LoadedModel | None:
        """Load the successor whose bytes are here; the fallback again if that fails.

        The fallback's own memory must have been freed before."""
        gc.collect()
        return self._guard(self._replace)

    def located(self, model: str, stages: int) -> None:
        """See `LoadWatcher`."""
        self._enter(Loading(model, CHECK_FILES, 0, stages))

    def stage(self, name: str) -> None:
        """See `LoadWatcher`."""
        self._enter(StageBegun(name))

    # --- from any thread ------------------------------------------------------------------

    def stop(self) -> None:
        """End a wait for a download; the download goes on."""
        with self._lock:
            self._stopped = True
            acquisition = self._acquisition
        if acquisition is not None:
            acquisition.leave()

    # --- inside ---------------------------------------------------------------------------

    def _guard(self, work: Callable[[], LoadedModel | None]) -> LoadedModel | None:
        try:
            return work()
        except ShammahError as error:
            log.warning("no model: %s %s", error.code, error)
            self._enter(Failed(error.code, error.message, error.hint))
        except Exception as error:
            log.exception("the bootstrap failed")
            why = f"Couldn't load the local model: {type(error).__name__}: {error}"
            self._enter(Failed("load_failed", why, "See the inference worker's log."))
        return None

    def _run(self) -> LoadedModel | None:
        settings, environ, machine = self._settings, self._environ, self._machine
        found = find_model(settings, environ, machine, is_complete, fallback=True)
        match found:
            case NotAvailable():
                self._enter(found)
                return None
            case MissingModel():
                return self._run_without(found)
        return self._load_or_repair(found)

    def _run_without(self, missing: MissingModel) -> LoadedModel | None:
        """The model is not here: have it fetched, and answer meanwhile if something can."""
        self._missing = missing
        if self._source is None:
            return self._end_without(missing, _offline(missing.model_id))
        if missing.fallback is not None:
            self._acquire(self._source, missing, () if missing.present else retry_pauses())
            return self._load(missing.fallback)
        self._enter(Downloading(missing.model_id))
        acquisition = self._acquire(self._source, missing, ())
        # This takes seconds, while bytes arrive.
        prepare_engine(self._settings.inference, self._machine, self._engines)
        result = acquisition.result()
        if not isinstance(result, Failed):
            return self._load(_fetched(missing, result))
        return None if self._stopped else self._end_without(missing, result)

    def _acquire(
        self, source: ModelSource, missing: MissingModel, pauses: Iterator[float] | tuple[()]
    ) -> Acquisition:
        acquisition = Acquisition(
            source,
            missing.model_id,
            report=self._progressed,
            missed=self._missed,
            done=self._acquired,
            pauses=pauses,
        )
        with self._lock:
            self._acquisition = acquisition
            stopped = self._stopped
        if stopped:
            acquisition.leave()
        acquisition.start()
        return acquisition

    def _end_without(self, missing: MissingModel, failure: Failed) -> LoadedModel | None:
        """Load what another program has left here of the missing model, else the fallback."""
        log.warning("%s: %s", missing.model_id, failure)
        if missing.present is not None and _is_loadable(missing.present):
            return self._load(LocatedModel(missing.model_id, missing.present, missing.model_id))
        if missing.fallback is not None:
            self._note, self._lost = _why_not(missing.model_id, failure), missing.model_id
            return self._load(missing.fallback)
        self._enter(_end(missing.model_id, failure))
        return None

    def _replace(self) -> LoadedModel | None:
        missing, acquisition = self._missing, self._acquisition
        assert missing is not None
        assert missing.fallback is not None
        assert acquisition is not None
        result = acquisition.result()
        self._successor, self._lost = None, ""
        if isinstance(result, Failed):
            return self._end_without(missing, result)
        try:
            return self._load_or_repair(_fetched(missing, result))
        except ShammahError as error:
            log.warning("the successor cannot be loaded: %s %s", error.code, error)
            self._note = f"{missing.model_id}: {error}"
            return self._load(missing.fallback)

    def _smaller(self, located: LocatedModel) -> LocatedModel | None:
        """What may answer where memory is too little for the automatic choice."""
        if self._settings.model != AUTO:
            return None
        cache = hub_cache(self._environ)
        smaller = largest_below(located.name, cache, starter_directory(), is_complete)
        if smaller is None or smaller.name == STARTER:
            return smaller
        return replace(smaller, fallback=located.fallback)

    def _load_or_repair(self, located: LocatedModel) -> LoadedModel:
        try:
            return self._load(located)
        except ShammahError as error:
            of_the_hub = located.name == located.wanted and is_of_hub(located.name)
            if self._source is None or not of_the_hub or error.code not in REPAIRABLE:
                raise
            log.warning("%s is damaged, and is repaired: %s", located.name, error)
            self._repair(self._source, located.name, error)
            self._note = f"A damaged file was downloaded again. {error.message}"
            return self._load(located)

    def _repair(self, source: ModelSource, model_id: str, damage: ShammahError) -> None:
        try:
            source.repair(model_id)
        except ShammahError as failure:
            message = f"{damage.message} Couldn't download it again: {failure.message}"
            raise ShammahError(damage.code, message, failure.hint) from failure

    def _load(self, located: LocatedModel) -> LoadedModel:
        with followable_hints(located):
            loaded = self._loader.load(located)
        return replace(loaded, ready=self._loaded(loaded.ready))

    def _loaded(self, ready: Ready) -> Ready:
        """Enter `Ready`, with what was reported of the successor during the load."""
        with self._lock:
            successor = self._successor if ready.fallback else None
            note = " ".join(part for part in (ready.note, self._note) if part)
            lost = self._lost if ready.fallback else ""
            ready = replace(ready, note=note, successor=successor, missing=lost)
            self._enter(ready)
            return ready

    def _enter(self, event: Event) -> None:
        with self._lock:
            before, self.state = self.state, transition(self.state, event)
            if self.state != before:
                log.info("%s", self.state)
                self._publish(self.state)

    def _progressed(self, transfer: Transfer) -> None:
        with self._lock:
            self._note = self._lost = ""
            self._successor = Downloading(
                transfer.model, transfer.done, transfer.total, transfer.rate, transfer.eta_s
            )
            self._enter(self._successor)

    def _acquired(self, result: Path | Failed) -> None:
        """End the wait; without a fallback model, `_run_without` waits for the result itself."""
        missing = self._missing
        if missing is None:
            return
        lost = result if isinstance(result, Failed) and missing.present is None else None
        if missing.fallback is not None:
            if lost is None:
                self._replacement_due()
            else:
                self._missed(lost)
        elif lost is not None and not self._stopped:
            self._enter(_end(missing.model_id, lost))  # now, not after the imports

    def _missed(self, failure: Failed) -> None:
        """A fallback model's successor does not come, or not yet."""
        with self._lock:
            assert self._missing is not None  # it is what has been asked for
            self._lost = self._missing.model_id
            self._note = _why_not(self._lost, failure)
            self._successor = None
            if isinstance(self.state, Initializing | Downloading):
                return  # `_loaded` reports it with the fallback, which is about to be loaded
            self._enter(Missed(self._lost, self._note))


def _fetched(missing: MissingModel, directory: Path) -> LocatedModel:
    return LocatedModel(missing.model_id, directory, missing.model_id)


def _end(model_id: str, failure: Failed) -> Failed | NotAvailable:
    """Return the end where nothing can take the place of a model that cannot be downloaded."""
    if failure.code != UNREACHABLE:
        return replace(failure, request_id="")
    return NotAvailable(f"{model_id} is not on this machine. {failure.message}", failure.hint)


def _is_loadable(directory: Path) -> bool:
    try:
        inspect_checkpoint(directory)
    except ShammahError as error:
        log.warning("what is here of it is no model: %s", error)
        return False
    return True


def _offline(model_id: str) -> Failed:
    message = "HF_HUB_OFFLINE is set, so nothing is downloaded."
    return Failed(UNREACHABLE, message, "Unset it, or use --model starter.")


def _why_not(model_id: str, failure: Failed) -> str:
    return f"Couldn't download {model_id}. {failure.message} {failure.hint}".rstrip()
