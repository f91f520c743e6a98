"""The measured policy: local where the local model has shown that it is good enough. Pure.

Good enough: the lower bound on the share of good answers is at least `GOOD_ENOUGH`, or at least
what is expected of the cloud. A new backend (model, quantisation or adapter) begins with a prior,
as if it had already answered some questions. So from an empty state everything is local, and a
category goes to the cloud after about three bad answers in a row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from shammah.models.catalogue import STARTER
from shammah.router.route import Alternative, Arm, Category, Reason, Target
from shammah.router.statistics import Snapshot, wilson

Z = 1.0
"""The bound is one standard error below the observed share: true five times of six."""
GOOD_ENOUGH = 0.6
"""The least that the original's threshold could fall to."""
PATIENCE_S = 20.0
"""A local first token expected later than this, and later than the cloud's, is too late."""
DOUBTFUL, KNOWN_BAD = 3.0, 0.1
"""Factors of exploration for an arm whose upper bound is good enough, and for one whose is not."""


PRIORS = {Target.LOCAL: (9.0, 10.0), Target.SERVER: (9.0, 10.0), Target.CLOUD: (19.0, 20.0)}
"""Good answers, of how many, that a backend begins with."""

# --- how good a model's answers probably are while nobody has judged any: by its size -------------
#
# Only what is shown: decisions begin with trust, so that a local model is asked until its answers
# have spoken against it.

SIZES = (0.135, 0.5, 1.5, 3.0, 7.0, 14.0)
"""Billions of parameters of the models that the shares below are for: SmolLM2-135M-Instruct, then
Qwen2.5-Instruct."""

KNOWLEDGE = (0.30, 0.47, 0.61, 0.66, 0.74, 0.80)
"""MMLU of the base models, 5-shot, by Qwen2.5's report (arXiv 2412.15115); the first by SmolLM2's
card, in its own form."""
CODE = (0.03, 0.35, 0.62, 0.74, 0.85, 0.84)
"""HumanEval of the instruct models by the same; the first writes no program that runs."""
SUMS = (0.02, 0.50, 0.73, 0.87, 0.92, 0.95)
"""GSM8K of the instruct models by the same two."""
TALK = (0.60, 0.75, 0.85, 0.90, 0.95, 0.95)
"""Our own guess: greetings and opinions have many good answers."""

CLOUD, UNKNOWN = 0.95, 0.6
"""Of the cloud; of another model whose name has no size."""

_SIZE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)\s?([BbMm])(?![A-Za-z])")


def forecast(
    arm: Arm, snapshot: Snapshot, obstacle: Reason | None, ahead: int, *, sums: bool = False
) -> Alternative:
    """What to expect of an arm that has ``ahead`` questions to answer first."""
    tally, (successes, trials) = snapshot.tally(arm), PRIORS[arm.target]
    guessed = trials * guess_quality(arm, sums=sums) + tally.successes
    trials += tally.trials
    trust, hope = wilson(successes + tally.successes, trials, Z)
    low, _ = wilson(guessed, trials, Z)
    pace = snapshot.pace(arm)
    return Alternative(
        arm,
        guessed / trials,
        bound=low,
        evidence=tally.trials,
        ttft_s=pace.ttft_s * (1 + ahead),
        tokens_per_second=pace.tokens_per_second,
        cost=pace.cost,
        obstacle=obstacle,
        trust=trust,
        hope=hope,
    )


def objection(local: Alternative, cloud: Alternative) -> Reason | None:
    """Why the local model should not answer; ``None``: it should."""
    if local.ttft_s > PATIENCE_S and cloud.ttft_s < local.ttft_s:
        return Reason.BUSY
    if local.trust < min(GOOD_ENOUGH, cloud.quality):
        return Reason.LOW_CONFIDENCE
    return None


def curiosity(local: Alternative) -> float:
    """How many times the usual exploration an arm that is not good enough deserves."""
    return DOUBTFUL if local.hope >= GOOD_ENOUGH else KNOWN_BAD


def guess_quality(arm: Arm, *, sums: bool) -> float:
    """The expected share of good answers, 0 to 1. ``sums``: to arithmetic."""
    if arm.target is Target.CLOUD:
        return CLOUD
    size = size_of(arm.model)
    if size is None:
        return UNKNOWN
    shares: Sequence[float] = KNOWLEDGE
    if sums:
        shares = SUMS
    elif arm.category in (Category.CODE, Category.DEBUGGING):
        shares = CODE
    elif arm.category in (Category.GREETING, Category.OPINION):
        shares = TALK
    return _between(math.log(size), [math.log(one) for one in SIZES], shares)


def size_of(model: str) -> float | None:
    """Billions of parameters, by the name of ``model``; ``None``: it does not say."""
    if model == STARTER:
        return SIZES[0]
    found = _SIZE.search(model.rpartition("/")[2].replace("-", " ").replace("_", " "))
    if found is None or not float(found[1]):
        return None
    return float(found[1]) / (1 if found[2] in "Bb" else 1000)


def _between(at: float, places: Sequence[float], values: Sequence[float]) -> float:
    """The broken line through ``values`` at ``places``, level beyond its ends."""
    if at <= places[0]:
        return values[0]
    for left, right, low, high in zip(places, places[1:], values, values[1:], strict=False):
        if at <= right:
            return low + (high - low) * (at - left) / (right - left)
    return values[-1]
