"""Whether an adapter may serve: it must help with what it was made for, and harm nothing else.

It helps if the loss falls on the user's examples that were held out or, where they were too few
for that, on paraphrases of them. It harms nothing if the answers to general questions, which
nothing is trained on, stay what they are: on the whole, and in the worst case. And no name of the
examples may turn up in an answer that has nothing to do with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from shammah.bus.training import GateFigures
from shammah.learning.adapters import ACCEPTED, REFUSED, UNJUDGED
from workers.train.names import words_in

if TYPE_CHECKING:
    from workers.train.adapter import LoRAAdapter
    from workers.train.encoding import ChatEncoder, EncodedExample
    from workers.train.general import Choices

LEAST_FALL = 0.1
"""By which share the held-out loss must fall: less is nothing that anybody would notice."""

LEAST_SURE = 0.985
LEAST_FIRST = 0.94
LEAST_TEXTS = 0.4
"""Shares of general answers that must be kept: of the choices of which the base model is sure, of
the first tokens, of whole answers. On the starter eight lines about a bakery kept 99.7%, 97.3% and
55%; an adapter that called painters, kings and owners of libraries by the baker's name 97.6%, 87.5%
and 17%."""

MOST_FALL = 2.0
"""Nats by which the log probability of a sure choice may fall: 0.3 of the first of these, 3.1 of
the other."""

SCALES = (1.0, 0.8, 0.6, 0.45)
"""Shares of what was learnt that are tried, until the gate accepts one."""


def judge(figures: GateFigures) -> tuple[str, str]:
    """The verdict, and a sentence that says why."""
    losses = (figures.held_out_after, figures.worst)
    if not all(map(math.isfinite, losses)):
        return REFUSED, "Its losses are not finite numbers."
    general = describe_general(figures)
    harm = find_harm(figures)
    if not figures.held_out:
        if harm:
            return REFUSED, f"It harms other answers: {harm}. {general}"
        return UNJUDGED, f"Without examples nobody can say whether it helps. {general}"
    before, after = figures.held_out_before, figures.held_out_after
    held_out = f"the loss on {_count_held_out(figures)} went from {before:.3f} to {after:.3f}"
    if not helps(figures):
        return REFUSED, f"It does not help: {held_out}."
    if harm:
        return REFUSED, f"It harms other answers: {harm}. {general}"
    return ACCEPTED, f"{held_out[0].upper()}{held_out[1:]}. {general}"


def helps(figures: GateFigures) -> bool:
    """Whether what was held out is learnt."""
    return figures.held_out_after <= (1 - LEAST_FALL) * figures.held_out_before


def find_harm(figures: GateFigures) -> str:
    """The first thing that is worse than allowed, as the end of a sentence; empty: nothing is."""
    if figures.strays:
        return f"it says {figures.strays[0]}"
    for share, least, what in (
        (figures.sure, LEAST_SURE, "of the base model's sure choices"),
        (figures.first, LEAST_FIRST, "of the answers' first words"),
        (figures.texts, LEAST_TEXTS, "of the answers"),
    ):
        if share < least:
            return f"{share:.1%} {what} are kept, and {least:.0%} must be"
    if figures.worst > MOST_FALL:
        return (
            f"a sure choice became e^{figures.worst:.1f} times less likely (at most "
            f"e^{MOST_FALL:g}), in the answer to “{figures.worst_question}”"
        )
    return ""


def describe_general(figures: GateFigures) -> str:
    """What became of the general answers."""
    return (
        f"Of {figures.general} general answers {figures.texts:.1%} stayed word for word, "
        f"{figures.first:.1%} begin as before, and {figures.sure:.1%} of the base model's sure "
        "choices are kept."
    )


def _count_held_out(figures: GateFigures) -> str:
    kind = "paraphrase" if figures.paraphrased else "held-out example"
    return f"{figures.held_out} {kind}{'' if figures.held_out == 1 else 's'}"


class Gate:
    """One adapter beside its base model.

    Args:
        adapter: as it was trained.
        encoder: of the base model.
        questions: the general ones.
        held_out: what the adapter should have learnt; may be empty.
        paraphrased: whether that is paraphrases of what was learnt.
        names: see `names_in`.
        micro_tokens: how many tokens are computed at once.
        tell: what is looked at now, and how much of it is done.
    """

    def __init__(
        self,
        adapter: LoRAAdapter,
        encoder: ChatEncoder,
        questions: Sequence[str],
        held_out: Sequence[EncodedExample],
        names: frozenset[str],
        micro_tokens: int,
        tell: Callable[[str], object] = lambda detail: None,
        *,
        paraphrased: bool = False,
    ) -> None:
        from workers.train.general import answer

        self._adapter = adapter
        self._encoder = encoder
        self._questions = questions
        self._held_out = held_out
        self._names = names
        self._micro_tokens = micro_tokens
        self._tell = tell
        self._paraphrased = paraphrased
        with adapter.without():
            each = self._counted("general answers before", len(questions))
            self._answers = answer(adapter.model, encoder, questions, each)
            self._choices = self._look("the same once more")
            self._loss = self._held_out_loss()

    def measure(self, scale: float = 1.0) -> GateFigures:
        """The figures of the adapter as it is now, which is ``scale`` of what was learnt."""
        from workers.train.general import SURE

        now = self._look("general answers after")
        sure = kept = 0
        worst, worst_question = 0.0, ""
        for question, old, new in zip(self._questions, self._choices, now, strict=True):
            for same, before, after in zip(new.same, old.logs, new.logs, strict=True):
                if before < SURE:
                    continue
                sure += 1
                kept += same
                if not before - after <= worst:  # a NaN is the worst
                    worst, worst_question = before - after, question
        texts = [_stays(old, new) for old, new in zip(self._choices, now, strict=True)]
        first = [
            new.same[0] or not old.same[0] for old, new in zip(self._choices, now, strict=True)
        ]
        changed = [place for place, stays in enumerate(texts) if not stays]
        return GateFigures(
            self._loss,
            self._held_out_loss(),
            len(self._held_out),
            self._paraphrased,
            len(self._questions),
            sum(first) / len(first),
            sum(texts) / len(texts),
            kept / sure if sure else 1.0,
            worst,
            worst_question,
            self._find_strays(changed),
            scale,
        )

    def _look(self, what: str) -> list[Choices]:
        from workers.train.general import choices

        each = self._counted(what, len(self._answers))
        return choices(self._adapter.model, self._answers, self._micro_tokens, each)

    def _held_out_loss(self) -> float:
        from workers.train.trainer import mean_loss

        if not self._held_out:
            return 0.0
        tell = lambda: self._tell("held-out examples")  # noqa: E731
        return mean_loss(self._adapter.model, self._held_out, self._micro_tokens, tell)

    def _find_strays(self, places: Sequence[int]) -> tuple[str, ...]:
        """Names of the examples in general answers that were without."""
        from workers.train.general import answer

        if not self._names:
            return ()
        before = {self._questions[one]: self._text(self._answers[one]) for one in places}
        each = self._counted("general answers that changed", len(before))
        after = answer(self._adapter.model, self._encoder, tuple(before), each)
        found = []
        for (question, old), new in zip(before.items(), after, strict=True):
            known = words_in(f"{question} {old}")
            strays = self._names & (words_in(self._text(new)) - known)
            found += [f"“{one}” to “{question}”" for one in sorted(strays)]
        return tuple(found)

    def _text(self, answered: EncodedExample) -> str:
        return self._encoder.decode(answered.ids[answered.prompt_length :])

    def _counted(self, what: str, of: int) -> Callable[[int], object]:
        return lambda count: self._tell(f"{what}, {count} of {of}")


def weaken(gate: Gate, adapter: LoRAAdapter) -> GateFigures:
    """Take from the adapter's strength until the gate accepts it; the figures of what is left.

    One that the gate accepts at no strength, or that no longer helps, stays as it was.
    """
    learnt = {name: one.detach().clone() for name, one in adapter.parameters().items()}
    first: GateFigures | None = None
    for scale in SCALES:
        adapter.put(learnt, scale)
        figures = gate.measure(scale)
        first = first or figures
        if judge(figures)[0] == ACCEPTED:
            return figures
        if not helps(figures):
            break
    adapter.put(learnt)
    assert first is not None
    return first


def _stays(old: Choices, new: Choices) -> bool:
    """Whether every choice is as it was. Where the base model itself, computed in this way,
    chooses otherwise than when it answered, two choices were even."""
    return all(now or not before for before, now in zip(old.same, new.same, strict=True))


def describe_strength(figures: GateFigures) -> tuple[str, ...]:
    """What a person should know of how it was judged, in sentences."""
    found = []
    if figures.paraphrased:
        found.append(
            "Too few different questions to hold any out: it was judged by paraphrases of those "
            "it learnt."
        )
    if figures.scale < 1:
        found.append(
            f"At full strength it harmed other answers, so it was weakened to {figures.scale:.0%}."
        )
    return tuple(found)
