"""How often, in which order and how fast. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from shammah.errors import ExitCode, ShammahError

T = TypeVar("T")

WARM_UP_SHARE = 0.1
"""Of all steps: Adam's second moments are noise at first."""

FLOOR = 0.1
"""What the learning rate decays to, as a share of its height."""

MOST_EPOCHS = 100
LEAST_STEPS = 60
"""A few corrections are seen often enough to be learnt, many are not seen too often."""


PATIENCE = 3
"""Epochs without a better held-out loss after which more would only learn by heart."""

LEARNT = 0.1
"""Nats a token at which an answer is known: nine tokens in ten would come by themselves. What is
trained beyond changes everything else: eight phrasings of one fact were at 0.02 after six steps,
with the loss on general answers 19% lower than before; at 0.00 after forty, with it 267% higher."""


UNKNOWN = 0.1
"""Share of the examples that may still be answered otherwise when a training ends: none of fewer
than ten. Their mean loss alone hides one that is not learnt."""

USUAL_EPOCHS = 30
"""At most, unless somebody asks for more: `LEAST_STEPS` for eight examples."""

CLOSE = 0.03
"""Nats a token that general answers may be away from the base model's when a training ends."""


@dataclass(frozen=True, slots=True)
class TrainingPlan:
    """How one training goes.

    ``epochs`` of 0: as many as the number of examples asks for. ``batch`` is the examples of
    one step; ``micro_tokens`` how many tokens of it are computed at once (gradients add up to
    the same); ``checkpoint_steps`` after how many steps it is written down. With the examples of
    each step come ``kept_batch`` general questions and ``near_batch`` that are like the examples'.
    How far their answers have gone from the base model's (in nats) counts ``kept_weight`` times
    as much as the loss.

    Raises:
        ShammahError: ``training_plan_invalid``.
    """

    epochs: int = 0
    learning_rate: float = 1e-3
    batch: int = 4
    micro_tokens: int = 512
    max_tokens: int = 2048
    seed: int = 0
    checkpoint_steps: int = 20
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    kept_batch: int = 6
    near_batch: int = 1
    kept_weight: float = 3.0

    def __post_init__(self) -> None:
        if not 0 <= self.epochs <= MOST_EPOCHS:
            raise _invalid(f"epochs must be at most {MOST_EPOCHS}, not {self.epochs}")
        if not (math.isfinite(self.learning_rate) and 0 < self.learning_rate <= 0.1):
            raise _invalid(
                f"the learning rate must be above 0 and at most 0.1, not {self.learning_rate}"
            )
        for name in ("batch", "micro_tokens", "max_tokens", "checkpoint_steps"):
            if getattr(self, name) < 1:
                raise _invalid(f"{name} must be at least 1")
        if not 0 <= self.seed < 2**31:
            raise _invalid("the seed must be from 0 to 2147483647")

    def steps_of_epoch(self, examples: int) -> int:
        return math.ceil(examples / self.batch)

    def epochs_for(self, examples: int) -> int:
        """How often ``examples`` are seen."""
        if self.epochs:
            return self.epochs
        return max(3, min(USUAL_EPOCHS, math.ceil(LEAST_STEPS / self.steps_of_epoch(examples))))

    def steps_for(self, examples: int) -> int:
        return self.epochs_for(examples) * self.steps_of_epoch(examples)

    def batches(self, examples: int, epoch: int) -> list[list[int]]:
        """Which examples each step of an epoch sees: another order each time, the same for the
        same ``seed``."""
        order = list(range(examples))
        random.Random(f"{self.seed} {epoch}").shuffle(order)
        return [order[at : at + self.batch] for at in range(0, examples, self.batch)]

    def sample(self, pool: Sequence[T], count: int, step: int) -> list[T]:
        """Which of a pool a step sees: others each time, the same for the same ``seed``."""
        return random.Random(f"{self.seed} {count} {step}").sample(pool, min(count, len(pool)))


def learning_rate_at(step: int, steps: int, height: float) -> float:
    """The learning rate of ``step`` (from 0): up in a line, down in half a cosine to `FLOOR`.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, without restarts.
    """
    warm = max(1, round(WARM_UP_SHARE * steps))
    if step < warm:
        return height * (step + 1) / warm
    done = (step - warm) / max(1, steps - warm)
    return height * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def fill_micro_batches(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Places in ``lengths``, in groups of at most ``most`` tokens; a longer one stays alone."""
    groups: list[list[int]] = []
    room = 0
    for place, length in enumerate(lengths):
        if not groups or length > room:
            groups.append([])
            room = most
        groups[-1].append(place)
        room -= length
    return groups


def _invalid(why: str) -> ShammahError:
    return ShammahError(
        "training_plan_invalid",
        f"This cannot be trained: {why}.",
        "`shammah train --help` shows the usual values.",
        exit_code=ExitCode.USAGE,
    )


def learns_by_heart(held_out: Sequence[float]) -> bool:
    """Whether the losses on held-out examples, the first before any step and the others after
    each epoch, have stopped to fall."""
    best = min(range(len(held_out)), key=held_out.__getitem__, default=0)
    return len(held_out) - 1 - best >= PATIENCE


def is_learnt(own: Sequence[float], held_out: Sequence[float], divergence: float = 0.0) -> bool:
    """Whether there is nothing left to learn: by the losses of an epoch's steps, and those on
    held-out examples. The latter alone may have been known before. And whether general answers
    have come back from where the first steps took them, by their ``divergence``."""
    if not own or not held_out or divergence > CLOSE:
        return False
    return held_out[-1] <= LEARNT and sum(own) / len(own) <= LEARNT
