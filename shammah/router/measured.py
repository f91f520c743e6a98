"""The measured policy: local where the local model has shown that it is good enough. Pure.

Good enough: of what is known, the lower bound on the share of good answers is at least
`GOOD_ENOUGH`, or at least what is expected of the cloud. A backend that nothing is known of
has a prior, as if it had answered some questions already; a new model, quantisation or adapter
begins with it anew. So from an empty state everything is local, and a category goes to the
cloud after about three bad answers in a row.
"""

from __future__ import annotations

from shammah.bus.messages import Ready
from shammah.bus.record import record
from shammah.router.first_guess import guess_quality
from shammah.router.route import Alternative, Arm, Reason, Target, View
from shammah.router.statistics import Snapshot, wilson

Z = 1.0
"""The bound is one standard error below what was seen: true five times of six."""
GOOD_ENOUGH = 0.6
"""The least that the original's threshold could fall to."""
PATIENCE_S = 20.0
"""A first token that is expected later than this, and not from the cloud, is too late."""
DOUBTFUL, KNOWN_BAD = 3.0, 0.1
"""How much more an arm is explored that may well be good enough, by its upper bound, and how
much less one that is not."""


@record
class Prior:
    successes: float
    trials: float


PRIORS = {Target.LOCAL: Prior(9.0, 10.0), Target.CLOUD: Prior(19.0, 20.0)}


def forecast(
    arm: Arm, snapshot: Snapshot, obstacle: Reason | None, ahead: int, *, sums: bool = False
) -> Alternative:
    """What is to be expected of an arm; ``ahead`` questions come before this one; ``sums``: it is
    to calculate."""
    tally, prior = snapshot.tally(arm), PRIORS[arm.target]
    trials = prior.trials + tally.trials
    trust, _ = wilson(prior.successes + tally.successes, trials, Z)
    successes = prior.trials * guess_quality(arm, sums=sums) + tally.successes
    low, _ = wilson(successes, trials, Z)
    pace = snapshot.pace(arm)
    return Alternative(
        arm,
        successes / trials,
        bound=low,
        evidence=tally.trials,
        ttft_s=pace.ttft_s * (1 + ahead),
        tokens_per_second=pace.tokens_per_second,
        cost=pace.cost,
        obstacle=obstacle,
        trust=trust,
    )


def objection(local: Alternative, cloud: Alternative) -> Reason | None:
    """Why the local model should not answer; ``None``: it should."""
    if local.ttft_s > PATIENCE_S and cloud.ttft_s < local.ttft_s:
        return Reason.BUSY
    if local.trust < min(GOOD_ENOUGH, cloud.quality):
        return Reason.LOW_CONFIDENCE
    return None


def curiosity(local: Alternative, snapshot: Snapshot) -> float:
    """How many times the usual exploration an arm that is not good enough deserves."""
    tally, prior = snapshot.tally(local.arm), PRIORS[Target.LOCAL]
    successes, trials = prior.successes + tally.successes, prior.trials + tally.trials
    _, high = wilson(successes, trials, Z)
    return DOUBTFUL if high >= GOOD_ENOUGH else KNOWN_BAD


def name_model(view: View) -> tuple[str, str]:
    """The local model and its quantisation, as far as they are known."""
    if isinstance(view.local, Ready):
        return view.local.model, view.local.quantization
    return "", ""
