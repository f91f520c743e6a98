"""A cancelled answer as its frontend has seen it, for when its worker does not say in time.

Pure apart from the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from shammah.bus.messages import Done, Provenance, Ready, State, Timings, Token, Usage
from shammah.router.route import RouteDecision, Target

CANCEL_S = 0.5
"""So long a cancelled answer waits for its worker's own count. A step may take longer, and the
person wants the prompt back."""


@dataclass(slots=True)
class Seen:
    """One answerer's tokens as they come; times in seconds of ``clock``.

    ``at_first``: how many came with the first text, and so took none of the time after it.
    """

    clock: Callable[[], float] = time.monotonic
    tokens: int = 0
    at_first: int = 0
    asked: float = field(init=False)
    first: float = field(init=False)
    last: float = field(init=False)

    def __post_init__(self) -> None:
        self.asked = self.first = self.last = self.clock()

    def note(self, token: Token) -> None:
        """Take in one more."""
        self.last = self.clock()
        if not self.tokens:
            self.first, self.at_first = self.last, token.index
        self.tokens = token.index

    def end(self, by: Provenance) -> Done:
        """How it ended. Its input is not known here."""
        span, more = self.last - self.first, self.tokens - self.at_first
        timings = Timings(
            ttft_s=self.first - self.asked if self.tokens else 0.0,
            total_s=self.clock() - self.asked,
            decode_tokens_per_second=more / span if span > 0 and more > 0 else 0.0,
        )
        return Done("", "cancelled", Usage(0, self.tokens), timings, by)


def provenance(decision: RouteDecision, state: State | None, cloud_model: str) -> Provenance:
    """Who has answered, as far as ``state`` of the local model tells it."""
    if decision.target is Target.CLOUD:
        return Provenance("cloud", cloud_model, engine="anthropic")
    if not isinstance(state, Ready):
        return Provenance("inference", "", adapter=decision.adapter)
    return Provenance(
        role="inference",
        model=state.model,
        revision=state.revision,
        engine=state.engine,
        device=state.device,
        dtype=state.dtype,
        stand_in=state.stand_in,
        adapter=decision.adapter,
        quantization=state.quantization,
    )
