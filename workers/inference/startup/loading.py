"""Loads a model that is on this disk; with less, when memory is too little for all of it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from shammah.bus.messages import Ready
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel, Machine
from shammah.settings.model import InferenceSettings
from shammah.supervision.oom_record import CLOSE_OTHERS, OUT_OF_MEMORY, killed
from workers.inference.engine import Engine, EngineFacts, EngineSpec, LoadObserver
from workers.inference.engines.table import ENGINES
from workers.inference.memory import free_main_memory, gpu_failed, is_out_of_memory
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.scheduling.sampling import GenerationDefaults, read_defaults
from workers.inference.startup.attempts import Attempts, Past
from workers.inference.startup.offers import Offer, describe_result, describe_step, find_offers

if TYPE_CHECKING:
    from workers.inference.text.chat import ChatFormat

log = logging.getLogger(__name__)

READ_TOKENIZER = "read tokenizer"

_REFUSALS = ("settings_conflict", "quantization_unavailable", "model_unsupported")
"""With which fewer bits may be refused; the next offer is tried then, as where memory is short."""

_NO_GPU = "device_unavailable"
"""The same for a GPU that was chosen."""


@record
class LoadedModel:
    """A model that answers, with what is known about it."""

    engine: Engine
    chat: ChatFormat
    defaults: GenerationDefaults
    ready: Ready
    directory: Path

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.defaults.stop_ids | self.chat.stop_ids


class LoadWatcher(LoadObserver, Protocol):
    """Receives the progress of a load."""

    def located(self, model: str, stages: int) -> None:
        """A load of so many stages begins."""


class _Rung(NamedTuple):
    """A model, and one way to compute it."""

    located: LocatedModel
    checkpoint: Checkpoint
    offer: Offer


class Loader:
    """Loads models, one at a time.

    Args:
        asked: how to compute.
        machine: what it has for a model.
        engines: the preferred one first.
        attempts: what became of the last one; ``None``: nobody counts.
        smaller: the next smaller model that is here, if one may take a model's place.
        watcher: receives the progress.
        home: see `LoadSettings`.
    """

    def __init__(
        self,
        asked: InferenceSettings,
        *,
        machine: Machine,
        engines: Mapping[str, EngineSpec] = ENGINES,
        attempts: Attempts | None = None,
        smaller: Callable[[LocatedModel], LocatedModel | None] = lambda located: None,
        watcher: LoadWatcher,
        home: Path | None = None,
    ) -> None:
        self._asked = asked
        self._machine = machine
        self._engines = engines
        self._attempts = attempts
        self._smaller = smaller
        self._watcher = watcher
        self._home = home

    def load(self, located: LocatedModel) -> LoadedModel:
        """Load the model, or what of it memory allows; `Ready` says what that was.

        Raises:
            ShammahError: as `Engine.load`; ``out_of_memory`` only when there is nothing left
                to step down to, or the kernel has ended too many attempts.
        """
        rungs, reason, hint = self._rungs(located), "", CLOSE_OTHERS
        if self._attempts is not None:
            past = self._attempts.begin(located.name, self._asked)
            if past.given_up:
                raise _given_up(located, past.deaths)
            if past.deaths:
                rungs, reason = _below(rungs, past), killed(past.model)
        rung = next(rungs, None)
        if rung is None:
            raise _given_up(located, past.deaths)
        while rung is not None:
            following = next(rungs, None)
            offer = rung.offer
            if self._attempts is not None:
                step = _describe_step(rung, following)
                self._attempts.note(rung.located.name, offer.level, step)
            try:
                loaded = self._load(rung)
                return _with_note(loaded, reason, describe_result(located, offer, loaded.ready))
            except ShammahError as error:
                if error.code not in _expected(offer, following):
                    raise
                log.warning("%s at level %d: %s", rung.located.name, offer.level, error)
                if error.code in (OUT_OF_MEMORY, _NO_GPU):
                    reason, hint = error.message, error.hint
            # The traceback of the failed load held on to what it had read.
            gc.collect()
            rung = following
        raise ShammahError(OUT_OF_MEMORY, reason, hint)

    def _rungs(self, wanted: LocatedModel) -> Iterator[_Rung]:
        """Yield the whole ladder: of the model, and of each smaller one that may take its place."""
        located: LocatedModel | None = wanted
        while located is not None:
            try:
                checkpoint = inspect_checkpoint(located.directory)
                offers = find_offers(
                    self._asked, checkpoint, self._machine, self._engines, self._home
                )
            except ShammahError as error:
                if located is wanted:
                    raise
                log.warning("%s cannot take its place: %s", located.name, error)
                offers = []
            for offer in offers:
                yield _Rung(located, checkpoint, offer)
            located = self._smaller(located)

    def _load(self, rung: _Rung) -> LoadedModel:
        located, checkpoint, offer = rung
        engine = offer.engine.make()
        self._watcher.located(located.name, 2 + len(engine.stages))
        defaults = read_defaults(located.directory)
        self._watcher.stage(READ_TOKENIZER)
        # The weights are read outside of the interpreter, the tokenizer is read within.
        with ThreadPoolExecutor(1) as beside:
            text = beside.submit(offer.engine.read_text, checkpoint)
            try:
                facts = engine.load(checkpoint, offer.settings, self._watcher)
            except Exception as error:
                if is_out_of_memory(error):
                    why = f"Memory ran out while {located.name} was loading."
                    raise ShammahError(OUT_OF_MEMORY, why, CLOSE_OTHERS) from error
                if offer.on_gpu and not isinstance(error, ShammahError):
                    raise gpu_failed(error) from error
                raise
        from workers.inference.text.chat import ChatFormat  # it brings jinja2

        chat = ChatFormat(text.result())
        ready = _ready(located, checkpoint, facts)
        return LoadedModel(engine, chat, defaults, ready, located.directory)


def _expected(offer: Offer, following: _Rung | None) -> tuple[str, ...]:
    """Return the codes of failures of ``offer`` after which the next one is tried."""
    gpu = (_NO_GPU,) if offer.on_gpu else ()
    late = offer.engine.refuses_late and following and following.offer.engine is not offer.engine
    return (OUT_OF_MEMORY, *gpu, *(_REFUSALS if offer.has_fewer_bits or late else ()))


def _below(rungs: Iterator[_Rung], past: Past) -> Iterator[_Rung]:
    """Return the rungs after the one that the kernel has ended; all, if it is none of them."""
    passed: list[_Rung] = []
    for rung in rungs:
        passed.append(rung)
        if (rung.located.name, rung.offer.level) == (past.model, past.level):
            return rungs
    return iter(passed)


def _describe_step(before: _Rung, after: _Rung | None) -> str:
    """Return what is done after ``before`` has failed, as a sentence; empty: nothing is left."""
    if after is None:
        return ""
    if after.located.name != before.located.name:
        return f"Loading {after.located.name} instead."
    return describe_step(before.offer, after.offer)


def _given_up(located: LocatedModel, deaths: int) -> ShammahError:
    weights = inspect_checkpoint(located.directory).weight_bytes
    times = "once" if deaths == 1 else f"{deaths} times"
    return ShammahError(
        OUT_OF_MEMORY,
        f"The system killed {located.name} {times} because memory ran out. Its weights take "
        f"{weights / GIB:.1f} GiB on disk, and {free_main_memory() / GIB:.1f} GiB of memory is "
        "free.",
        "Close other programs and type /load, or choose a smaller model with --model.",
    )


def _with_note(loaded: LoadedModel, reason: str, result: str) -> LoadedModel:
    """Add the ``reason`` for the ``result`` of a step down, if there was one."""
    if not reason:
        return loaded
    parts = (reason, result, loaded.ready.note)
    note = " ".join(part for part in parts if part)
    return replace(loaded, ready=replace(loaded.ready, note=note))


def _ready(located: LocatedModel, checkpoint: Checkpoint, facts: EngineFacts) -> Ready:
    return Ready(
        model=located.name,
        revision=checkpoint.revision,
        device=facts.device,
        dtype=facts.dtype,
        quantization=facts.quantization,
        context_length=facts.context_length or checkpoint.context_length,
        engine=facts.engine,
        note=" ".join(one for one in (*checkpoint.notices, facts.note) if one),
        why=facts.why,
        fallback=located.fallback,
    )
