"""The runner: a loaded model that computes logits over slots of remembered keys and values.

What is computed when, and for whom, is the scheduler's business; which token follows from the
logits is the sampler's. So a runner is only arithmetic, and every engine is one runner behind
the same scheduling, prefix reuse and sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shammah.bus.record import record
from shammah.errors import ShammahError
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint

Logits = NDArray[np.float32]


@record
class Candidates:
    """The tokens with the highest logits of a row: as many as a span wants, or all there are.

    Attributes:
        tokens, logits: of each candidate, in any order.
        bound: every other token has a lower logit.
        whole: all logits, (vocabulary,), while the next pass has not begun.
    """

    tokens: NDArray[np.int64]
    logits: Logits
    bound: float
    whole: Callable[[], Logits]


Rows = Logits | Sequence[Candidates]
"""What a pass gives of a span: the logits after its last tokens, (wanted, vocabulary), or the
candidates of each."""


@record
class Span:
    """Successive tokens of one slot: a chunk of a prompt, or the last token of an answer and
    guesses of the next ones.

    Attributes:
        slot: what they are computed after.
        start: the position of the first.
        tokens: at least one.
        adapter: the key of the one that they are computed with; empty: none.
        wanted: of how many of the last tokens the logits are wanted.
        top: so many candidates are enough; 0: all logits are needed.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    adapter: str = ""
    wanted: int = 1
    top: int = 0


@record
class RunnerLimits:
    """What suits a runner on its device.

    Attributes:
        batch: rows of logits that one pass computes: the sequences that get their next token.
        chunk: prompt tokens of a pass: enough to keep the device busy, few enough that a cancel,
            which waits for it, is not felt.
        shared_chunk: the same while other sequences wait for their next token.
        lazy: memory that is reserved and not yet used is nobody's.
        reuses: a slot can be cut back to any of its beginnings, and copied.
        exact: a token gets the same bits in any company, so that guesses change no answer.
    """

    batch: int
    chunk: int
    shared_chunk: int
    lazy: bool = True
    reuses: bool = True
    exact: bool = False


def check_logits(logits: Logits, check_weights: Callable[[], None], form: str) -> None:
    """Refuse a model whose first logits are not numbers; ``form``: that of its weights.

    ``check_weights`` refuses weights that are not, and is only then called: reading all of them
    takes longer than to compute a token.

    Raises:
        ShammahError: ``model_corrupt`` or ``model_unsupported``.
    """
    if np.isfinite(logits).all():
        return
    check_weights()
    if not np.isfinite(logits.max()):  # minus infinity: a token that is never to be chosen
        raise ShammahError(
            "model_unsupported",
            f"The model produces NaN or infinite values in {form}.",
            "Set inference.dtype to float32.",
        )


@record
class KVAccess:
    """How the keys and values in a slot become bytes, and come back.

    Attributes:
        form: all that their bits depend on besides the model, the adapter and the tokens: the
            format of the weights, the code and what it computes on, the layout.
        bytes_per_token: of those bytes, about.
        dump: of a slot, the first position and how many: nothing of what else the slot holds.
        load: the same, and the bytes; a slot may be too short for the last positions.
    """

    form: str
    bytes_per_token: int
    dump: Callable[[int, int, int], bytes]
    load: Callable[[int, int, int, bytes], None]


class Runner(Protocol):
    """One thread calls it. A slot holds the keys and values of one sequence's tokens."""

    @property
    def engine(self) -> str:
        """Its name."""

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of `load`, in order."""

    @property
    def limits(self) -> RunnerLimits:
        """Known after `load`."""

    def prepare(self) -> None:
        """Import what `load` needs. Ahead of it, so that this can overlap a download."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        """Bring the weights into memory.

        Raises:
            ShammahError: see `workers.inference.engine.Engine`.
        """

    def kv_bytes_per_token(self) -> int:
        """Memory of one token's keys and values in all layers."""

    def free_bytes(self) -> int:
        """Memory that is free where the keys and values lie."""

    def reserve(self, slots: int, capacity: int) -> None:
        """Have ``slots`` slots of ``capacity`` tokens each, empty."""

    def release(self, slot: int) -> None:
        """Nothing in the slot is needed any more: its memory may go back."""

    def copy(self, source: int, target: int, length: int) -> None:
        """Have the first ``length`` tokens of ``source`` in ``target``, too."""

    def kv_access(self) -> KVAccess | None:
        """To what was reserved last; ``None``: keys and values cannot be taken out."""

    def add_adapter(self, adapter: Adapter) -> int:
        """Have an adapter that rows can be computed with; the bytes that it takes.

        Raises:
            ShammahError: see `workers.inference.engine.Engine`.
        """

    def drop_adapter(self, key: str) -> None:
        """The adapter is needed no more."""

    def forward(self, spans: Sequence[Span]) -> Sequence[Rows]:
        """Compute all spans in one pass, so that the weights are read once for all of them.

        What a slot holds from where its span starts is replaced. No slot is in two spans.

        Returns:
            For each span what its last ``wanted`` tokens are followed by: `Candidates`, if it
            has ``top`` and the runner can save something by them, else the logits, which the
            next call may not change.

        Raises:
            Exception: any; nothing is then known of what the spans' slots hold from where the
                spans start.
        """
