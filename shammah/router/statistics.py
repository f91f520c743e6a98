"""How answers turned out. Pure.

An `Outcome` is one answer: its arm, how fast, and how good (`Label`); no text is in it.
`summarize` makes the `Snapshot` that decisions are made from.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from operator import attrgetter

from shammah.bus.record import record
from shammah.router.classic import ClassicState
from shammah.router.route import Arm, Reason, Target

TIMINGS = 200
"""How many of an arm's last answers the speed is averaged over."""


class Label(StrEnum):
    """How good an answer was, by the strongest sign."""

    TEXT_GOOD = "text_good"
    """Nothing in the text is plainly wrong."""
    TEXT_BAD = "text_bad"
    """The text is empty, refuses, or goes round in circles."""
    BROKEN = "broken"
    """It ended with an error."""
    CANCEL = "cancel"
    """The person ended it."""
    REDO = "redo"
    """The person asked for another answer."""
    EDIT = "edit"
    """The person corrected it."""
    BAD = "bad"
    GOOD = "good"
    SAME = "same"
    """It was compared with another answer to the same question, and was as good."""
    WORSE = "worse"
    BETTER = "better"

    @property
    def weight(self) -> float:
        """How much it counts, in answers: what people do outweighs how a text looks."""
        return _WEIGHTS[self]

    @property
    def is_good(self) -> bool:
        return self in (Label.TEXT_GOOD, Label.GOOD, Label.SAME, Label.BETTER)


_WEIGHTS = {
    Label.TEXT_GOOD: 0.25,
    Label.TEXT_BAD: 0.4,
    Label.BROKEN: 0.4,
    Label.CANCEL: 0.5,
    Label.REDO: 1.0,
    Label.EDIT: 1.0,
    Label.BAD: 1.0,
    Label.GOOD: 1.0,
    Label.SAME: 0.5,
    Label.WORSE: 1.0,
    Label.BETTER: 1.0,
}


@record
class Outcome:
    """One answer. ``turn`` names it for later labels, ``at`` is in seconds since 1970. ``passed``:
    the original's verdict on the text (`passes`), ``None`` if there was none. ``ttft_s`` (seconds),
    ``tokens_per_second`` and ``cost`` (US dollars) are 0 if unknown."""

    turn: str
    at: float
    arm: Arm
    reason: Reason
    finish: str
    label: Label
    passed: bool | None = None
    ttft_s: float = 0.0
    tokens_per_second: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@record
class Tally:
    """An arm's record: weighted ``successes`` of ``trials``, and mean speed and cost."""

    answers: int = 0
    trials: float = 0.0
    successes: float = 0.0
    ttft_s: float = 0.0
    tokens_per_second: float = 0.0
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The past, for a decision. ``explored`` of the ``answers`` went to the local model against the
    numbers; ``backends``: by `Arm.backend`."""

    arms: Mapping[Arm, Tally] = field(default_factory=dict)
    answers: int = 0
    explored: int = 0
    classic: ClassicState = field(default_factory=ClassicState)
    backends: Mapping[Arm, Tally] = field(default_factory=dict)

    def tally(self, arm: Arm) -> Tally:
        return self.arms.get(arm, Tally())

    def pace(self, arm: Arm) -> Tally:
        """The tally for speed and cost: the arm's own, or, before that has any, its backend's."""
        own = self.tally(arm)
        measured = own.ttft_s or own.tokens_per_second
        return own if measured else self.backends.get(arm.backend, own)


def summarize(outcomes: Iterable[Outcome], classic: ClassicState) -> Snapshot:
    """The snapshot of ``outcomes``, the oldest first."""
    outcomes = list(outcomes)
    of_arm: dict[Arm, list[Outcome]] = {}
    of_backend: dict[Arm, list[Outcome]] = {}
    for outcome in outcomes:
        of_arm.setdefault(outcome.arm, []).append(outcome)
    for arm, some in of_arm.items():
        of_backend.setdefault(arm.backend, []).extend(some)
    return Snapshot(
        {arm: _tally(some) for arm, some in of_arm.items()},
        len(outcomes),
        sum(one.reason is Reason.EXPLORATION for one in outcomes),
        classic,
        {one: _tally(sorted(some, key=attrgetter("at"))) for one, some in of_backend.items()},
    )


def _tally(outcomes: list[Outcome]) -> Tally:
    late = outcomes[-TIMINGS:]
    return Tally(
        len(outcomes),
        sum(one.label.weight for one in outcomes),
        successes=sum(one.label.weight for one in outcomes if one.label.is_good),
        ttft_s=_mean([one.ttft_s for one in late if one.ttft_s]),
        tokens_per_second=_mean([one.tokens_per_second for one in late if one.tokens_per_second]),
        cost=_mean([one.cost for one in late]),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def learn_classic(state: ClassicState, outcome: Outcome) -> ClassicState:
    """What the original would have learnt from an answer; without a verdict, nothing."""
    if outcome.arm.target is Target.CLOUD:
        return state.learn_forwarded()
    if outcome.passed is None:
        return state
    return state.learn_local(outcome.arm.category, outcome.passed)


def wilson(successes: float, trials: float, z: float) -> tuple[float, float]:
    """The score interval of a share, ``z`` standard errors wide on each side.

    E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (1927). Trials need not be whole.
    """
    if trials <= 0:
        return 0.0, 1.0
    share, square = successes / trials, z * z / trials
    middle = share + square / 2
    half = z * math.sqrt(max(share * (1 - share), 0.0) / trials + square / (4 * trials))
    return max(0.0, (middle - half) / (1 + square)), min(1.0, (middle + half) / (1 + square))


# --- what the text of an answer says about how good it is; no text is kept ------------------------
#
# `judge` sees only what is plainly wrong; what the person does outweighs it. `passes` is the
# original's heuristic (its ``ThresholdValidator``), which the classic policy counts by.

_REFUSAL = (
    r"\W*(?:i'?m sorry|sorry|i apologi[sz]e)?[,.]?\s*(?:but )?(?:as an ai[^.]*, )?"
    r"i(?: can'?t| cannot|'m unable to| am unable to|'m not able to| am not able to"
    r"| do not know how to| don'?t know how to) "
    r"(?:help|assist|answer|provide|do|fulfil|comply|create|write|generate|discuss|access|see)"
)
_LOOP_WORDS, _LOOP_SHARE = 60, 0.4


def judge(answer: str, finish_reason: str) -> Label:
    """Empty, refused or repeating itself is bad; everything else passes for good, and a call."""
    if finish_reason == "tool_call":
        return Label.TEXT_GOOD
    if (
        not answer.strip()
        or finish_reason in ("refusal", "repetition")
        or re.match(_REFUSAL, answer, re.IGNORECASE)
    ):
        return Label.TEXT_BAD
    return Label.TEXT_BAD if loops(answer) else Label.TEXT_GOOD


def loops(answer: str) -> bool:
    """Whether it repeats itself."""
    words = answer.split()
    if len(words) < _LOOP_WORDS:
        return False
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(threes)) < _LOOP_SHARE * len(threes)


def passes(question: str, answer: str) -> bool:
    """The original's verdict: a score of at least 0.7 (SEMANTICS 1.8).

    Its numbers, but for two defects: an answer that ends with a closing fence is complete, and
    the first ten answers are judged like any other. The weights that it learnt after 50 answers
    are left out: they were learnt from its own verdicts.
    """
    return score(question, answer) >= 0.7


def score(question: str, answer: str) -> float:
    """0 to 1: 0.5, and something more or less for each sign."""
    text = answer.strip()
    words = text.lower().split()
    found = 0.5
    found -= 0.5 * (not text)
    found -= 0.3 * (len(text) < 20)
    found -= 0.1 * (len(text) > 5000)
    threes = list(zip(words, words[1:], words[2:], strict=False))
    found -= 0.4 * (len(threes) - len(set(threes)) >= 2 and max(Counter(threes).values()) >= 3)
    found -= 0.3 * (not text.endswith((".", "!", "?", ")", '"', "'", "```")))
    found += 0.1 * ("```" in text)
    sentences = [one for one in re.split(r"[.!?]+", text) if one.strip()]
    found += 0.2 * ("\n\n" in text or len(sentences) >= 2)
    asked = {word for word in re.findall(r"\w+", question.lower()) if len(word) > 3}
    met = sum(word in text.lower() for word in asked)
    found += 0.3 * (bool(asked) and met >= 0.3 * len(asked))
    return min(1.0, max(0.0, found))


# --- two answers to one question, and which was better -------------------------------------------


class Verdict(StrEnum):
    """What a person says of a pair."""

    FIRST = "1"
    SECOND = "2"
    SAME = "same"
    SKIP = "skip"


QUESTION = "Which was better? [1], [2], [s]ame; Enter skips: "


def parse_verdict(line: str | None) -> Verdict:
    """What was typed; anything unclear is `Verdict.SKIP`."""
    match (line or "").strip().lower():
        case "1" | "first":
            return Verdict.FIRST
        case "2" | "second":
            return Verdict.SECOND
        case "s" | "same":
            return Verdict.SAME
    return Verdict.SKIP


def labels(verdict: Verdict, before: Label | None) -> tuple[Label | None, Label | None]:
    """The labels of the first answer and of the second; ``None``: no new one.

    ``before``: the first one's label. Whoever asks for another answer and does not say which was
    better was not content with the first, unless they had said so plainly.
    """
    match verdict:
        case Verdict.FIRST:
            return Label.BETTER, Label.WORSE
        case Verdict.SECOND:
            return Label.WORSE, Label.BETTER
        case Verdict.SAME:
            return Label.SAME, Label.SAME
    judged = before is not None and before not in (Label.CANCEL, Label.REDO)
    return (None if judged else Label.REDO), None
