"""Loads a model that is on this disk; with less, when memory is too little for all of it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shammah.bus.messages import Ready
from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel
from shammah.settings.model import InferenceSettings
from shammah.supervision.oom_record import CLOSE_OTHERS, OUT_OF_MEMORY, killed
from workers.inference.engine import Engine, EngineFacts, MakeEngine
from workers.inference.memory import free_main_memory, gpu_failed, is_out_of_memory
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.scheduling.sampling import GenerationDefaults, read_defaults
from workers.inference.startup.attempts import Attempts
from workers.inference.startup.ladder import (
    INT4,
    INT8,
    ON_CPU,
    SHORT,
    WHOLE,
    Rung,
    below,
    describe_result,
    describe_step,
    levels,
    settings_at,
)

if TYPE_CHECKING:
    from workers.inference.startup.choice import OnCPU
    from workers.inference.text.chat import ChatFormat

log = logging.getLogger(__name__)

READ_TOKENIZER = "read tokenizer"

_REFUSALS = ("settings_conflict", "quantization_unavailable", "model_unsupported")
_UNUSABLE: dict[int, tuple[str, ...]] = {WHOLE: (), SHORT: (), INT8: _REFUSALS, INT4: _REFUSALS}
"""What a level may be refused with beside the memory: then the next one is tried."""

_NO_GPU = "device_unavailable"
"""The same for what was to be computed on a GPU."""


@dataclass(frozen=True, slots=True)
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


class LoadWatcher(Protocol):
    """Is told how far a load is."""

    def located(self, model: str, stages: int) -> None:
        """A load of so many stages begins."""

    def stage(self, name: str) -> None:
        """A new stage has begun."""

    def advance(self) -> None:
        """Something within the stage was done."""


class Loader:
    """Loads models, one at a time.

    Args:
        asked: how to compute.
        make_engine: a fresh engine for a model.
        attempts: what became of the last one; ``None``: nobody counts.
        smaller: the next smaller model that is here, if one may take a model's place.
        watcher: is told how far it is.
        home: see `LoadSettings`.
        on_cpu: what takes the place of a GPU that cannot be used; ``None``: nothing.
    """

    def __init__(
        self,
        asked: InferenceSettings,
        make_engine: MakeEngine,
        attempts: Attempts | None,
        smaller: Callable[[LocatedModel], LocatedModel | None],
        watcher: LoadWatcher,
        home: Path | None = None,
        on_cpu: OnCPU | None = None,
    ) -> None:
        self._asked = asked
        self._make_engine = make_engine
        self._attempts = attempts
        self._smaller = smaller
        self._watcher = watcher
        self._home = home
        self._on_cpu = on_cpu
        self._made: dict[str, Engine] = {}

    def load(self, located: LocatedModel) -> LoadedModel:
        """The model, or what of it memory allows; `Ready` says what that was.

        Raises:
            ShammahError: as `Engine.load`; ``out_of_memory`` only when there is nothing left
                to step down to, or the kernel has ended too many attempts.
        """
        rungs, reason = self._rungs(located), ""
        if self._attempts is not None:
            past = self._attempts.begin(located.name, self._asked)
            if past.given_up:
                raise _given_up(located, past.deaths)
            if past.deaths:
                rungs, reason = below(rungs, past.model, past.level), killed(past.model)
        rung = next(rungs, None)
        if rung is None:
            raise _given_up(located, past.deaths)
        while rung is not None:
            following = next(rungs, None)
            if self._attempts is not None:
                step = describe_step(rung, following)
                self._attempts.note(rung.located.name, rung.level, step)
            try:
                return _noted(self._load(rung), located.name, rung.level, reason)
            except ShammahError as error:
                unusable = (_NO_GPU,) if rung.on_gpu else ()
                if error.code not in (OUT_OF_MEMORY, *_UNUSABLE[rung.level % ON_CPU], *unusable):
                    raise
                log.warning("%s at level %d: %s", rung.located.name, rung.level, error)
                reason = error.message if error.code in (OUT_OF_MEMORY, _NO_GPU) else reason
            # The traceback of the failed load held on to what it had read.
            gc.collect()
            rung = following
        raise ShammahError(OUT_OF_MEMORY, reason, CLOSE_OTHERS)

    def _rungs(self, wanted: LocatedModel) -> Iterator[Rung]:
        """The whole ladder: of the model, and of each smaller one that may take its place."""
        yield from self._rungs_of(wanted)
        smaller = self._smaller(wanted)
        while smaller is not None:
            try:
                yield from self._rungs_of(smaller)
            except ShammahError as error:
                log.warning("%s cannot take its place: %s", smaller.name, error)
            smaller = self._smaller(smaller)

    def _rungs_of(self, located: LocatedModel) -> Iterator[Rung]:
        checkpoint = inspect_checkpoint(located.directory)
        engine = self._made[located.name] = self._make_engine(checkpoint)
        gpu = self._on_cpu.gpu(checkpoint) if self._on_cpu is not None else ""
        on_cpu = self._on_cpu.name(checkpoint) if self._on_cpu is not None and gpu else ""
        for level in levels(self._asked, engine.name, checkpoint.context_length, on_cpu):
            yield Rung(located, level, gpu)

    def _load(self, rung: Rung) -> LoadedModel:
        located = rung.located
        checkpoint = inspect_checkpoint(located.directory)
        make, made = self._make_engine, self._made.pop(located.name, None)
        if self._on_cpu is not None and rung.level >= ON_CPU:
            make, made = self._on_cpu.make, None
        engine = made or make(checkpoint)
        self._watcher.located(located.name, 2 + len(engine.stages))
        defaults = read_defaults(located.directory)
        self._watcher.stage(READ_TOKENIZER)
        # Not before the sockets answer: it brings jinja2.
        from workers.inference.text.chat import ChatFormat

        chat = ChatFormat.load(located.directory)
        asked = replace(settings_at(self._asked, rung.level, rung.gpu), home=self._home)
        try:
            facts = engine.load(checkpoint, asked, self._watcher)
        except Exception as error:
            if is_out_of_memory(error):
                why = f"Memory ran out while {located.name} was loading."
                raise ShammahError(OUT_OF_MEMORY, why, CLOSE_OTHERS) from error
            if rung.on_gpu and not isinstance(error, ShammahError):
                raise gpu_failed(error) from error
            raise
        self._made.clear()
        ready = _ready(located, checkpoint, facts)
        return LoadedModel(engine, chat, defaults, ready, located.directory)


def _given_up(located: LocatedModel, deaths: int) -> ShammahError:
    weights = inspect_checkpoint(located.directory).weight_bytes
    times = "once" if deaths == 1 else f"{deaths} times"
    return ShammahError(
        OUT_OF_MEMORY,
        f"The system killed {located.name} {times} because memory ran out. Its weights have "
        f"{weights / GIB:.1f} GiB on the disk, and {free_main_memory() / GIB:.1f} GiB of memory "
        "are free.",
        "Close other programs and type /load, or choose a smaller model with --model.",
    )


def _noted(loaded: LoadedModel, wanted: str, level: int, reason: str) -> LoadedModel:
    if not reason:
        return loaded
    told = (reason, describe_result(wanted, level, loaded.ready), loaded.ready.note)
    note = " ".join(part for part in told if part)
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
