"""The engine: what turns token ids into token ids. Text, processes and sockets are elsewhere.

One thread calls it. Sequences are submitted, `step` does a bounded piece of work for one or
several of them (a chunk of a prompt, or a token each), and says what came of it. Which
sequences share a step, and whether a prompt's beginning is computed or remembered, is the
engine's own business.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shammah.bus.record import record
from shammah.errors import ShammahError
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.scheduling.sampling import SamplingPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from workers.inference.packages.adapter_file import Adapter
    from workers.text.model_text import ModelText


@record
class LoadSettings:
    """Where and how to compute: the values of `shammah.settings.model.InferenceSettings`.

    ``quantization``: ``auto``, ``none``, ``int8`` or ``int4``. ``lean``: with as little memory
    as the engine can do with. ``home``: where it may keep what it needs once for a machine or a
    model (compiled code, quantised weights).
    """

    device: str = "auto"
    dtype: str = "auto"
    quantization: str = "auto"
    context_length: int = 0
    kv_memory: float = 0.0
    kv_disk: float = 2.0
    lean: bool = False
    home: Path | None = None


@record
class Placement:
    """Where and in which number format an engine would hold a model.

    Attributes:
        device: ``cuda``, ``mps`` or ``cpu``.
        dtype: of all that is not quantised.
        quantization: ``int8``, ``int4`` or empty.
        why: the reason, for people.
        needed: bytes of the weights.
        free: bytes that they may take.
    """

    device: str
    dtype: str
    quantization: str
    why: str
    needed: int
    free: int

    def facts(self, engine: str, context_length: int = 0, note: str = "") -> EngineFacts:
        """What loading decided, if it is this."""
        form = EngineFacts(engine, self.device, self.dtype, self.quantization, context_length)
        return replace(form, why=self.why, note=note)


@record
class EngineFacts:
    """What loading decided. ``quantization`` is empty when the weights are as published;
    ``context_length`` is what a conversation may have, in tokens (0: what the model can);
    ``why``: the reason for these choices, for people; ``note``: what they should know."""

    engine: str
    device: str
    dtype: str
    quantization: str = ""
    context_length: int = 0
    why: str = ""
    note: str = ""


class Constraint(Protocol):
    """Says which tokens may come. Of one sequence: each token that is chosen is taken."""

    def allowed(self) -> NDArray[np.bool_]:
        """Of the vocabulary; at least one. What is beyond may not come."""

    def take(self, token: int) -> None:
        """The next one.

        Raises:
            ShammahError: it can say no more.
        """


@record
class SequenceRequest:
    """One prompt to continue.

    ``prompt`` is not empty; the caller has made sure that prompt and ``max_new_tokens`` fit
    into the context. A token of ``stop_ids`` ends the sequence and is no part of it.
    ``client``: the client that asks; clients get equal shares. ``adapter``: the key of the one that
    is added to the model, which the engine holds; empty for none. ``conversation``: the name under
    which its keys and values may be kept on disk; empty: they may not.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: SamplingPlan
    max_new_tokens: int
    stop_ids: frozenset[int]
    client: str = ""
    adapter: str = ""
    conversation: str = ""
    constraint: Constraint | None = None


FinishReason = Literal["stop", "length", "repetition"]


@record
class StepResult:
    """What a step did for one sequence.

    Attributes:
        prefilled: prompt tokens computed in this step.
        reused: prompt tokens that needed no computing; reported once, in the first result.
        restored: those of them that were read from the disk; the same.
        generated: tokens chosen in this step, a stop token included.
        token_ids: the same without the stop token.
        finish_reason: set in a sequence's last result, unless it failed.
        failure: why the sequence ended without finishing; the others go on.
    """

    request_id: str
    prefilled: int = 0
    generated: int = 0
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    failure: ShammahError | None = None
    reused: int = 0
    restored: int = 0


class LoadObserver(Protocol):
    """Receives the progress of a load."""

    def stage(self, name: str) -> None:
        """A new stage has begun."""

    def advance(self) -> None:
        """Something within the stage was done."""


class Engine(Protocol):
    """Loaded once, then driven by one thread."""

    @property
    def name(self) -> str:
        """The same as in its facts."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of `load`, in order."""

    @property
    def active(self) -> int:
        """Sequences submitted and not ended; with 0 there is nothing to step."""

    @property
    def waiting(self) -> int:
        """Those among them that have not begun because there is no room."""

    def prepare(self) -> None:
        """Import what `load` needs. Ahead of it, so that this can overlap a download."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        """Bring the model into memory.

        Raises:
            ShammahError: ``model_unsupported``, ``model_config_invalid``, ``model_corrupt``,
                ``device_unavailable`` or ``out_of_memory``.
        """

    def holds(self, adapter: str) -> bool:
        """Whether sequences can be submitted with the adapter of this key."""

    def add_adapter(self, adapter: Adapter) -> None:
        """Add an adapter to the model, whose weights stay as they are. Others that no
        sequence needs may have to go.

        Raises:
            ShammahError: ``adapter_unsupported`` or ``adapter_wrong_base``; nothing has changed.
        """

    def submit(self, request: SequenceRequest) -> None:
        """Add a sequence."""

    def step(self) -> list[StepResult]:
        """Do one bounded piece of work."""

    def cancel(self, request_id: str) -> None:
        """Drop a sequence now: no later step works for it or names it."""

    def keep(self, enough: Callable[[], bool], *, last: bool) -> None:
        """Write to the disk what there is of conversations that may be kept there.

        Args:
            enough: whether to stop now.
            last: whether the engine ends, so that a part is better than nothing.
        """


def _read_text(checkpoint: Checkpoint) -> ModelText:
    from workers.text.model_text import ModelText  # it brings jinja2

    return ModelText.load(checkpoint.directory)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """An engine: one row of the table of engines.

    Attributes:
        name: as in the setting ``inference.engine``.
        why: the reason to take it, for people.
        make: returns an engine that has loaded nothing yet.
        formats: of the checkpoints that it reads.
        devices: what it computes on.
        any_dtype: whether ``inference.dtype`` may be set.
        quantizations: what it can make of the weights, the most exact first.
        automatic: which of them ``auto`` is, where memory allows; empty: the first.
        only_by_name: whether it is taken only if ``inference.engine`` names it.
        refuses_late: whether only its load tells which models it cannot compute, so that another
            engine must follow it.
        requires: the packages that it computes with, by the names that they are imported by.
        install: the command that installs those.
        obstacle: why it cannot compute a model here, as the end of "it ...", or any model if
            that is ``None``; empty: it can.
        place: how it would hold a model with these settings. Raises `ShammahError`:
            ``out_of_memory``, ``device_unavailable`` or ``quantization_unavailable``.
        read_text: the tokenizer and the template of a checkpoint. Raises `ShammahError`:
            ``model_corrupt``.
        stored: where a model's quantised weights are, or would be, below the home.
        sweep: removes what else it has stored in the home and is of no use at this time (in
            seconds since 1970); returns what was removed.
        reports: what ``doctor`` shows of it, by the name of the part; takes the home.
    """

    name: str
    why: str
    make: Callable[[], Engine]
    place: Callable[[Checkpoint, LoadSettings], Placement]
    formats: tuple[str, ...] = ("safetensors",)
    devices: tuple[str, ...] = ("cuda", "mps", "cpu")
    any_dtype: bool = True
    quantizations: tuple[str, ...] = ("none",)
    automatic: str = ""
    only_by_name: bool = False
    refuses_late: bool = False
    requires: tuple[str, ...] = ()
    install: str = ""
    obstacle: Callable[[Checkpoint | None], str] = lambda checkpoint: ""
    read_text: Callable[[Checkpoint], ModelText] = _read_text
    stored: Callable[[Path, Checkpoint], list[Path]] = lambda home, checkpoint: []
    sweep: Callable[[Path, float], Iterable[Path]] = lambda home, now: ()
    reports: Mapping[str, Callable[[Path], dict[str, Any]]] = field(default_factory=dict)

    @property
    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.requires)
