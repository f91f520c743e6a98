"""Whether an adapter may serve: it must help with what it was made for, and harm nothing else.

Two figures before and after, both mean losses in nats a token: over the user's examples that
were held back, and over a fixed set of general questions with reference answers
(``data/regression.jsonl``). The first must fall, the second may rise by `BOUND` at most.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from shammah.adapters import ACCEPTED, REFUSED, UNJUDGED
from shammah.examples import Example, parse_example

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.train.adapter import LoRAAdapter
    from workers.train.encoding import EncodedExample

BOUND = 0.05
"""By which share the loss of general answers may rise. Two trainings of the corrections
of `scripts/demo_finetune.py` on the starter changed it by -0.8% and +3.1%; that poisoned adapters
are above is held by `tests/workers/test_training_starter.py`."""

LEAST_FALL = 0.01
"""By which share the held-out loss must fall: less is nothing that anybody would notice."""


@dataclass(frozen=True, slots=True)
class Figures:
    """What an adapter is judged by; losses in nats a token. ``held_out`` examples may be 0, of
    which the losses are 0, too."""

    held_out_before: float
    held_out_after: float
    regression_before: float
    regression_after: float
    held_out: int
    regression: int
    bound: float = BOUND

    @property
    def rise(self) -> float:
        """By which share the loss of general answers has risen."""
        return self.regression_after / self.regression_before - 1

    def as_document(self) -> dict[str, Any]:
        return asdict(self)


def judge(figures: Figures) -> tuple[str, str]:
    """The verdict, and a sentence that says why."""
    losses = (figures.held_out_after, figures.regression_after)
    if not all(math.isfinite(loss) for loss in losses):
        return REFUSED, "Its losses are no numbers."
    general = (
        f"the loss on {figures.regression} general answers changed by {figures.rise:+.1%} (at most "
        f"{figures.bound:+.0%} is allowed)"
    )
    harms = figures.rise > figures.bound
    if not figures.held_out:
        if harms:
            return REFUSED, f"It harms other answers: {general}."
        return UNJUDGED, f"Whether it helps is not known, for want of examples; {general}."
    before, after = figures.held_out_before, figures.held_out_after
    examples = f"{figures.held_out} held-out example" + ("" if figures.held_out == 1 else "s")
    held_out = f"the loss on {examples} went from {before:.3f} to {after:.3f}"
    if after > (1 - LEAST_FALL) * before:
        return REFUSED, f"It does not help: {held_out}."
    if harms:
        return REFUSED, f"It harms other answers: {general}, though {held_out}."
    return ACCEPTED, f"{held_out[0].upper()}{held_out[1:]}, and {general}."


def regression_examples() -> tuple[Example, ...]:
    """The fixed general questions, each with an answer that is right."""
    text = resources.files("workers.train").joinpath("data", "regression.jsonl").read_text("utf-8")
    return tuple(parse_example(line) for line in text.splitlines() if line)


def measure(
    adapter: LoRAAdapter,
    held_out: Sequence[EncodedExample],
    regression: Sequence[EncodedExample],
    micro_tokens: int,
    each: Callable[[], object] = lambda: None,
) -> Figures:
    """The figures of an adapter: with it, and of its base alone."""
    from workers.train.trainer import mean_loss

    def both() -> tuple[float, float]:
        return (
            mean_loss(adapter.model, held_out, micro_tokens, each) if held_out else 0.0,
            mean_loss(adapter.model, regression, micro_tokens, each),
        )

    after = both()
    was_enabled = adapter.is_enabled
    adapter.disable()
    before = both()
    if was_enabled:
        adapter.enable()
    return Figures(before[0], after[0], before[1], after[1], len(held_out), len(regression))
