"""Loads a model that is on this disk; with less, when memory is too little for all of it."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shammah.bus.messages import Ready
from shammah.config import InferenceSettings
from shammah.errors import ShammahError
from shammah.models import LocatedModel
from workers.inference.attempts import Attempts
from workers.inference.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.engine import Engine, EngineFacts, LoadSettings, MakeEngine
from workers.inference.sampling import GenerationDefaults, read_defaults

if TYPE_CHECKING:
    from workers.inference.chat import ChatFormat

log = logging.getLogger(__name__)

READ_TOKENIZER = "read tokenizer"

OUT_OF_MEMORY = "out_of_memory"

WHOLE, LEAN, SMALLER = 0, 1, 2
"""How far a load has stepped down: as asked for; with 16 bit and a short context; another
model, which is smaller."""

LEAN_CONTEXT = 4096
"""Tokens."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that answers, with what is known about it."""

    engine: Engine
    chat: ChatFormat
    defaults: GenerationDefaults
    ready: Ready

    @property
    def stop_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self.defaults.stop_ids | self.chat.end_of_turn


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
    """

    def __init__(
        self,
        asked: InferenceSettings,
        make_engine: MakeEngine,
        attempts: Attempts | None,
        smaller: Callable[[LocatedModel], LocatedModel | None],
        watcher: LoadWatcher,
        home: Path | None = None,
    ) -> None:
        self._asked = asked
        self._make_engine = make_engine
        self._attempts = attempts
        self._smaller = smaller
        self._watcher = watcher
        self._home = home

    def load(self, located: LocatedModel) -> LoadedModel:
        """The model, or what of it memory allows; `Ready` says what that was.

        Raises:
            ShammahError: as `Engine.load`; ``out_of_memory`` only when there is nothing left
                to step down to.
        """
        level = self._attempts.begin(located.name) if self._attempts else WHOLE
        note = "" if level == WHOLE else "The system has stopped it for want of memory."
        while True:
            try:
                return self._attempt(located, level, note)
            except ShammahError as error:
                if error.code != OUT_OF_MEMORY or level >= SMALLER:
                    raise
                log.warning("%s at level %d: %s", located.name, level, error)
                note = error.message
            # The traceback of the failed load held on to what it had read.
            gc.collect()
            level += 1
            if self._attempts is not None:
                self._attempts.step(located.name, level)

    def _attempt(self, located: LocatedModel, level: int, note: str) -> LoadedModel:
        if level < SMALLER:
            loaded = self._load(located, level)
            less = "" if level == WHOLE else f"{note} {located.name} runs with less of it now."
            return _noted(loaded, less)
        smaller = self._smaller(located)
        if smaller is None:
            raise ShammahError(
                OUT_OF_MEMORY, note, "Close other programs, or name a smaller model with --model."
            )
        return _noted(self._load(smaller, WHOLE), f"{located.name}: {note}")

    def _load(self, located: LocatedModel, level: int) -> LoadedModel:
        checkpoint = inspect_checkpoint(located.directory)
        engine = self._make_engine(checkpoint)
        self._watcher.located(located.name, 2 + len(engine.stages))
        defaults = read_defaults(located.directory)
        self._watcher.stage(READ_TOKENIZER)
        # Not before the sockets answer: it brings jinja2.
        from workers.inference.chat import ChatFormat

        chat = ChatFormat.load(located.directory)
        asked = replace(load_settings(self._asked, level), home=self._home)
        facts = engine.load(checkpoint, asked, self._watcher)
        return LoadedModel(engine, chat, defaults, _ready(located, checkpoint, facts))


def load_settings(asked: InferenceSettings, level: int) -> LoadSettings:
    """What to ask the engine for at a level."""
    settings = LoadSettings(asked.device, asked.dtype, asked.context_length, asked.kv_memory)
    if level == WHOLE:
        return settings
    context = min(asked.context_length or LEAN_CONTEXT, LEAN_CONTEXT)
    return replace(settings, context_length=context, lean=True)


def _noted(loaded: LoadedModel, note: str) -> LoadedModel:
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
        why=facts.why,
        stand_in=located.stand_in,
    )
