"""Whether an adapter may serve: it must help with what it was made for, and harm nothing else.

It helps if the loss falls on the user's examples that were held out or, where they were too few
for that, on paraphrases of them, and if the questions it was taught are answered as they should be.
It harms nothing if the answers to general questions, which
nothing is trained on, stay what they are: on the whole, and in the worst case. And no name of the
examples may turn up in an answer that has nothing to do with it. Nor may a fact that the base model
knows be lost, however near it was to saying something else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shammah.bus.training import GateFigures
from shammah.learning.adapters import ACCEPTED, REFUSED, UNJUDGED
from workers.train.names import words_in
from workers.train.taught import holds, is_given

if TYPE_CHECKING:
    from shammah.learning.examples import Example, Prompt
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

LEAST_LEARNT = 0.8
"""Share of the taught questions that must be answered so: seven of eight. Eight made-up facts of
which three were answered wrong had their loss fall from 4.9 to 0.3."""

LEAST_FACTS = 0.98
"""Share of the facts that must stay. One of eighty may go: two choices that are all but even to the
base model (the nectar and the honey that a bee collects) turn at any touch."""

MOST_TAUGHT = 32
"""So many of them are asked, spread evenly: more take minutes."""

WHOLE_TOKENS = 48
"""Of a taught answer, so much is compared. And so much is read before a fact counts as lost: one
more clause, and “London” is no longer among the first sixteen."""

SCALES = (1.0, 0.8, 0.6, 0.45)
"""Shares of what was learnt that are tried, until the gate accepts one."""


def judge(figures: GateFigures) -> tuple[str, str]:
    """The verdict, and a sentence that says why."""
    losses = (figures.held_out_after, figures.worst)
    if not all(map(math.isfinite, losses)):
        return REFUSED, "Its losses are not finite."
    general = describe_general(figures)
    harm = find_harm(figures)
    if not figures.held_out:
        if harm:
            return REFUSED, f"It harms other answers: {harm}. {general}"
        return UNJUDGED, f"Without examples there is no telling whether it helps. {general}"
    before, after = figures.held_out_before, figures.held_out_after
    held_out = f"the loss on {_count_held_out(figures)} went from {before:.3f} to {after:.3f}"
    if not _falls(figures):
        return REFUSED, f"It does not help: {held_out}."
    learnt = f"it learnt {figures.learnt} of {figures.taught} taught answers"
    if not helps(figures):
        least = math.ceil(LEAST_LEARNT * figures.taught)
        return REFUSED, (
            f"It did not learn enough: {learnt}, and {least} must be; “{figures.missed[0]}” is "
            "answered otherwise. Teach fewer facts at once, or ask for each in more ways."
        )
    if harm:
        return REFUSED, f"It harms other answers: {harm}. {general}"
    helped = f"{learnt}, and {held_out}" if figures.taught else held_out
    return ACCEPTED, f"{helped[0].upper()}{helped[1:]}. {general}"


def helps(figures: GateFigures) -> bool:
    """Whether what was held out is learnt, and what was taught."""
    return _falls(figures) and figures.learnt >= LEAST_LEARNT * figures.taught


def _falls(figures: GateFigures) -> bool:
    return figures.held_out_after <= (1 - LEAST_FALL) * figures.held_out_before


def find_harm(figures: GateFigures) -> str:
    """The first thing that is worse than allowed, as the end of a sentence; empty: nothing is."""
    if figures.strays:
        return f"it says {figures.strays[0]}"
    if len(figures.lost) > (1 - LEAST_FACTS) * figures.facts:
        return f"it no longer says {' and '.join(figures.lost[:3])}"
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
    facts = f"Of {figures.facts} facts {figures.facts - len(figures.lost)} are still right"
    facts += f": it no longer says {figures.lost[0]}. " if figures.lost else ". "
    return (facts if figures.facts else "") + (
        f"Of {figures.general} general answers {figures.texts:.1%} stayed word for word, "
        f"{figures.first:.1%} begin as before, and {figures.sure:.1%} of the base model's sure "
        "choices are kept."
    )


def _count_held_out(figures: GateFigures) -> str:
    kind = "paraphrase" if figures.paraphrased else "held-out example"
    return f"{figures.held_out} {kind}{'' if figures.held_out == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Taught:
    """One question with the beginnings of all answers that were taught to it."""

    prompt: Prompt
    answers: tuple[str, ...]

    @property
    def question(self) -> str:
        return self.prompt[-1][1]

    @property
    def told(self) -> str:
        """Everything that the model is told."""
        return "\n".join(text for _, text in self.prompt)


def _gather(examples: Sequence[Example], encoder: ChatEncoder) -> list[Taught]:
    """What is asked of these examples: `MOST_TAUGHT` questions at most."""
    found: dict[Prompt, list[str]] = {}
    for example in examples:
        encoded = encoder.encode(example)
        ids = encoded.ids[encoded.prompt_length :][:WHOLE_TOKENS]
        found.setdefault(example.prompt, []).append(encoder.decode(ids))
    step = max(1, -(-len(found) // MOST_TAUGHT))
    return [Taught(prompt, tuple(answers)) for prompt, answers in found.items()][::step]


class Gate:
    """One adapter compared with its base model.

    Args:
        adapter: as it was trained.
        encoder: of the base model.
        questions: the general ones.
        held_out: what the adapter should have learnt; may be empty.
        paraphrased: whether that is paraphrases of what was learnt.
        names: see `names_in`.
        micro_tokens: how many tokens are computed at once.
        report: called with what is looked at now, and how much of it is done.
        taught: what it was trained on, and must answer.
        facts: what right answers to some of the questions must have (see `gate_facts`).
    """

    def __init__(
        self,
        adapter: LoRAAdapter,
        encoder: ChatEncoder,
        questions: Sequence[str],
        held_out: Sequence[EncodedExample],
        names: frozenset[str],
        micro_tokens: int,
        report: Callable[[str], object] = lambda detail: None,
        *,
        paraphrased: bool = False,
        taught: Sequence[Example] = (),
        facts: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        from workers.train.general import answer

        self._adapter = adapter
        self._encoder = encoder
        self._questions = questions
        self._held_out = held_out
        self._names = names
        self._micro_tokens = micro_tokens
        self._report = report
        self._taught = _gather(taught, encoder)
        self._suspects: Sequence[int] = ()
        with adapter.without():
            each = self._counted("general answers before", len(questions))
            self._answers = answer(adapter.model, encoder, questions, each)
            self._choices = self._look("the same once more", range(len(questions)))
            self._base_says = self._answer_taught()
            loss = self._held_out_loss()
        self._known = {
            place: keys
            for place, question in enumerate(questions)
            if (keys := (facts or {}).get(question)) and holds(self._text_at(place), keys)
        }
        self._before = GateFigures(
            held_out_before=loss,
            held_out_after=loss,
            held_out=len(held_out),
            paraphrased=paraphrased,
            general=len(questions),
            first=1.0,
            texts=1.0,
            sure=1.0,
            worst=0.0,
            taught=len(self._taught),
            facts=len(self._known),
        )

    def measure(self, scale: float = 1.0) -> GateFigures:
        """The figures of the adapter as it is now, which is ``scale`` of what was learnt.

        Of one that was weakened first what it was taught is looked at, and then the general answers
        that had changed at full strength: if these say enough to refuse it, the others are not
        looked at, and count as kept.
        """
        missed = self._find_missed()
        figures = replace(
            self._before,
            held_out_after=self._held_out_loss(),
            learnt=len(self._taught) - len(missed),
            missed=missed,
            scale=scale,
        )
        if self._suspects and scale < 1:
            if not helps(figures):
                return figures
            figures = self._look_at(figures, self._suspects)
            if find_harm(figures):
                return figures
        return self._look_at(figures, range(len(self._questions)))

    def _look_at(self, figures: GateFigures, places: Sequence[int]) -> GateFigures:
        """The figures with what became of some of the general answers; others count as kept."""
        from workers.train.general import SURE

        now = self._look("general answers after", places)
        lost_sure = lost_first = 0
        worst, worst_question = 0.0, ""
        changed = []
        for place, new in zip(places, now, strict=True):
            old = self._choices[place]
            lost_first += old.same[0] and not new.same[0]
            if not _stays(old, new):
                changed.append(place)
            for same, before, after in zip(new.same, old.logs, new.logs, strict=True):
                if before < SURE:
                    continue
                lost_sure += not same
                if not before - after <= worst:  # a NaN is the worst
                    worst, worst_question = before - after, self._questions[place]
        if len(places) == len(self._questions):
            self._suspects = changed
        sure = sum(log >= SURE for one in self._choices for log in one.logs)
        count = len(self._questions)
        strays, lost = self._read(changed)
        return replace(
            figures,
            first=1 - lost_first / count,
            texts=1 - len(changed) / count,
            sure=1 - lost_sure / max(1, sure),
            worst=worst,
            worst_question=worst_question,
            strays=strays,
            lost=lost,
        )

    def _look(self, what: str, places: Sequence[int]) -> list[Choices]:
        from workers.train.general import choices

        each = self._counted(what, len(places))
        answers = [self._answers[place] for place in places]
        return choices(self._adapter.model, answers, self._micro_tokens, each)

    def _answer_taught(self) -> list[str]:
        from workers.train.general import answer_prompts

        prompts = [self._encoder.encode_prompt(one.prompt) for one in self._taught]
        each = self._counted("taught answers", len(prompts))
        model = self._adapter.model
        found = answer_prompts(model, self._encoder, prompts, each, WHOLE_TOKENS)
        return [self._text(one) for one in found]

    def _find_missed(self) -> tuple[str, ...]:
        """The taught questions that are answered otherwise."""
        said = self._answer_taught()
        rows = zip(self._taught, said, self._base_says, strict=True)
        return tuple(
            one.question for one, new, old in rows if not is_given(new, one.answers, old, one.told)
        )

    def _held_out_loss(self) -> float:
        from workers.train.trainer import mean_loss

        if not self._held_out:
            return 0.0
        report = lambda: self._report("held-out examples")  # noqa: E731
        return mean_loss(self._adapter.model, self._held_out, self._micro_tokens, report)

    def _read(self, places: Sequence[int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What is wrong with the general answers that changed: names of the examples that were
        not in them, and facts that are no longer."""
        from workers.train.general import answer

        if not self._names:
            places = [one for one in places if one in self._known]
        asked = [self._questions[place] for place in places]
        each = self._counted("general answers that changed", len(places))
        after = answer(self._adapter.model, self._encoder, asked, each)
        strays: list[str] = []
        lost: list[int] = []
        for place, question, new in zip(places, asked, map(self._text, after), strict=True):
            known = words_in(f"{question} {self._text_at(place)}")
            found = self._names & (words_in(new) - known)
            strays += [f"“{one}” to “{question}”" for one in sorted(found)]
            keys = self._known.get(place)
            if keys and not holds(new, keys):
                lost.append(place)
        return tuple(strays), self._find_lost(lost)

    def _find_lost(self, places: Sequence[int]) -> tuple[str, ...]:
        """Of facts that the beginning of an answer lacks those that the rest of it lacks, too."""
        from workers.train.general import answer_prompts

        if not places:
            return ()
        asked = [(("user", self._questions[place]),) for place in places]
        prompts = [self._encoder.encode_prompt(one) for one in asked]
        each = self._counted("facts that may be lost", len(places))
        answers = answer_prompts(self._adapter.model, self._encoder, prompts, each, WHOLE_TOKENS)
        return tuple(
            f"“{self._known[place][0]}” to “{self._questions[place]}”"
            for place, new in zip(places, answers, strict=True)
            if not holds(self._text(new), self._known[place])
        )

    def _text_at(self, place: int) -> str:
        return self._text(self._answers[place])

    def _text(self, answered: EncodedExample) -> str:
        return self._encoder.decode(answered.ids[answered.prompt_length :])

    def _counted(self, what: str, of: int) -> Callable[[int], object]:
        return lambda count: self._report(f"{what}, {count} of {of}")


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
