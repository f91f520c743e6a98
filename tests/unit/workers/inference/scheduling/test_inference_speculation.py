"""Guesses change how many passes an answer takes, and nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.models.catalogue import GIB
from workers.inference.engine import (
    EngineFacts,
    LoadObserver,
    LoadSettings,
    SequenceRequest,
    StepResult,
)
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.runner import Logits, RunnerLimits, Span
from workers.inference.scheduling import speculation
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.prompt_lookup import PromptLookup
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.scheduling.speculation import PassCosts, share_rows

VOCABULARY, CONTEXT, ROWS = 6, 300, 8

Cost = Callable[[int], float]


def _cheap(rows: int) -> float:
    return 1 + 0.1 * (rows - 1)


def _dear(rows: int) -> float:
    return float(rows)


@dataclass
class ToyRunner:
    """Its logits hang on every token up to a position, mostly on the last two, and the adapter
    (with which all of them must have been computed: ``made`` says).

    ``seed``: of which tokens follow which. ``cost``: seconds of a pass of so many rows. ``text``:
    every answer goes on as it does at that place, whatever came before.
    """

    seed: int = 0
    cost: Cost = _cheap
    exact: bool = True
    batch: int = ROWS
    text: Sequence[int] = ()
    now: float = 0.0
    passes: list[list[int]] = field(default_factory=list)
    slots: list[list[int]] = field(default_factory=list)
    made: list[list[str]] = field(default_factory=list)
    held: dict[str, Adapter] = field(default_factory=dict)
    engine: str = "toy"
    stages: tuple[str, ...] = ()

    @property
    def limits(self) -> RunnerLimits:
        return RunnerLimits(self.batch, 16, 8, exact=self.exact)

    def prepare(self) -> None:
        """Nothing to import."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        return EngineFacts("toy", "cpu", "float32")

    def kv_bytes_per_token(self) -> int:
        return 1

    def free_bytes(self) -> int:
        return GIB

    def reserve(self, slots: int, capacity: int) -> None:
        self.slots = [[-1] * capacity for _ in range(slots)]
        self.made = [[""] * capacity for _ in range(slots)]

    def release(self, slot: int) -> None:
        self.slots[slot] = [-1] * len(self.slots[slot])

    def copy(self, source: int, target: int, length: int) -> None:
        self.slots[target][:length] = self.slots[source][:length]
        self.made[target][:length] = self.made[source][:length]

    def kv_access(self) -> None:
        return None

    def add_adapter(self, adapter: Adapter) -> int:
        self.held[adapter.key] = adapter
        return adapter.bytes

    def drop_adapter(self, key: str) -> None:
        del self.held[key]

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        assert len({span.slot for span in spans}) == len(spans)
        assert sum(span.wanted for span in spans) <= self.batch
        answers = [span for span in spans if span.wanted == len(span.tokens)]
        rows = [span.slot for span in answers for _ in span.tokens]
        if rows:
            self.now += self.cost(len(rows))
            self.passes.append(rows)
        for span in spans:
            end = span.start + len(span.tokens)
            assert end <= len(self.slots[span.slot])
            self.slots[span.slot][span.start : end] = span.tokens
            self.made[span.slot][span.start : end] = [span.adapter] * len(span.tokens)
        return [self._rows(span) for span in spans]

    def _rows(self, span: Span) -> Logits:
        end = span.start + len(span.tokens)
        ends = range(end - span.wanted + 1, end + 1)
        rows = [self._logits(span.slot, at, span.adapter) for at in ends]
        return np.array(rows, np.float32)

    def _logits(self, slot: int, end: int, adapter: str) -> Logits:
        if self.text:
            return np.eye(CONTEXT, dtype=np.float32)[self.text[end]]
        history = self.slots[slot][:end]
        if VOCABULARY in history:
            return np.full(VOCABULARY, np.nan, np.float32)
        assert -1 not in history
        assert set(self.made[slot][:end]) == {adapter}
        assert not adapter or adapter in self.held
        habit = random.Random(f"{self.seed}{adapter} {history[-2:]}")
        whim = random.Random(f"{self.seed}{adapter} {history}")
        wanted = [4 * habit.random() + 1.5 * whim.random() for _ in range(VOCABULARY)]
        return np.array(wanted, np.float32)


def _engine(runner: ToyRunner, *, speculates: bool = True) -> BatchedEngine:
    engine = BatchedEngine(runner, speculates=speculates, clock=lambda: runner.now)
    engine.load(Checkpoint(Path(), "", "", CONTEXT, (), 0, 0, ""), LoadSettings(), Unwatched())
    return engine


def _follow(runner: ToyRunner, text: Sequence[int]) -> None:
    """Have every answer go on as ``text`` does at its place."""
    runner.text = text


class Unwatched:
    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def _request(
    name: str,
    prompt: Sequence[int] = (1, 2, 3),
    count: int = 40,
    plan: SamplingPlan = SamplingPlan(),  # noqa: B008 - frozen
    stop: frozenset[int] = frozenset(),
) -> SequenceRequest:
    return SequenceRequest(name, tuple(prompt), plan, count, stop)


def _run(engine: BatchedEngine, *requests: SequenceRequest) -> dict[str, list[StepResult]]:
    found: dict[str, list[StepResult]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            found[result.request_id].append(result)
    return found


def _tokens(results: list[StepResult]) -> list[int]:
    return [token for result in results for token in result.token_ids]


def _summary(results: list[StepResult]) -> tuple[list[int], int, object]:
    return _tokens(results), sum(r.generated for r in results), results[-1].finish_reason


PLANS = st.builds(
    SamplingPlan,
    temperature=st.sampled_from((0.0, 0.3, 1.0)),
    top_p=st.sampled_from((1.0, 0.8)),
    top_k=st.sampled_from((0, 3)),
    repetition_penalty=st.sampled_from((1.0, 1.3)),
    min_p=st.sampled_from((0.0, 0.3)),
    presence_penalty=st.sampled_from((0.0, 1.0)),
    seed=st.integers(0, 9),
)
REQUESTS = st.lists(
    st.builds(
        SequenceRequest,
        request_id=st.just(""),
        prompt=st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=50).map(tuple),
        sampling=PLANS,
        max_new_tokens=st.integers(1, 60),
        stop_ids=st.sampled_from((frozenset[int](), frozenset({5}), frozenset({0, 3}))),
    ),
    min_size=1,
    max_size=10,
)
COSTS = st.sampled_from((_cheap, _dear, lambda rows: 1.0 + 0.3 * (rows > 4)))


class KnownLookup(PromptLookup):
    alive: ClassVar[WeakSet[PromptLookup]] = WeakSet()

    def __init__(self, tokens: Iterable[int]) -> None:
        super().__init__(tokens)
        self.alive.add(self)


@given(REQUESTS, st.integers(0, 5), COSTS)
@settings(max_examples=40)
def test_answers_are_the_same_with_guesses_and_without(
    requests: list[SequenceRequest], seed: int, cost: Cost
) -> None:
    named = [replace(one, request_id=str(number)) for number, one in enumerate(requests)]
    guessing = _engine(ToyRunner(seed, cost))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speculation, "PromptLookup", KnownLookup)
        with_ = _run(guessing, *named)
    without = _run(_engine(ToyRunner(seed, cost), speculates=False), *named)
    assert {n: _summary(r) for n, r in with_.items()} == {
        n: _summary(r) for n, r in without.items()
    }
    assert not KnownLookup.alive  # of what has ended nothing is kept


def test_a_prompt_and_the_answers_meanwhile_share_their_passes() -> None:
    """The weights are read once for both; no pass has more rows of logits than there may be."""
    runner = ToyRunner()
    engine = _engine(runner)
    engine.submit(_request("a", (1, 2, 3), 60, SamplingPlan()))
    engine.step()
    passes = []
    forward = runner.forward

    def count(spans: Sequence[Span]) -> list[Logits]:
        passes.append(sorted(len(span.tokens) > span.wanted for span in spans))
        return forward(spans)

    runner.forward = count  # type: ignore[method-assign]
    engine.submit(_request("b", tuple(n % VOCABULARY for n in range(40)), 5, SamplingPlan()))
    steps = [engine.step() for _ in range(5)]  # of 8 tokens of the prompt
    assert passes == [[False, True]] * 5
    assert [{result.request_id for result in results} for results in steps] == [{"a", "b"}] * 5


@given(st.lists(PLANS, min_size=2, max_size=4), st.integers(0, 5), st.data())
@settings(max_examples=30)
def test_a_cancel_in_the_middle_spoils_nothing_that_comes_after(
    plans: list[SamplingPlan], seed: int, data: st.DataObject
) -> None:
    """Each answer is continued in the slot of the one before, which held wrong guesses, too."""
    engine = _engine(ToyRunner(seed))
    prompt: tuple[int, ...] = (1, 2, 3)
    for plan in plans:
        request = _request("a", prompt, 30, plan)
        expected = _tokens(_run(_engine(ToyRunner(seed), speculates=False), request)["a"])
        engine.submit(request)
        said: list[int] = []
        for _ in range(data.draw(st.integers(1, 30))):
            said += _tokens(engine.step())
        engine.cancel("a")
        assert said == expected[: len(said)]
        prompt = (*prompt, *said, 4)


def test_a_text_that_repeats_itself_takes_a_fraction_of_the_passes() -> None:
    runner = ToyRunner(cost=lambda rows: 1 + 0.05 * rows)
    _follow(runner, list(range(7)) * 50)
    tokens = _tokens(_run(_engine(runner), _request("a", count=200))["a"])
    assert tokens == [(3 + n) % 7 for n in range(200)]
    # One for the prompt's, two periods until it is sure, then eight tokens a pass.
    assert 200 / 8 < len(runner.passes) < 200 / 5


def test_a_text_that_never_repeats_itself_costs_no_row_more() -> None:
    runner = ToyRunner()
    _follow(runner, range(CONTEXT))
    _run(_engine(runner), _request("a", (0, 1, 2), count=200))
    assert runner.passes == [[0]] * 199


def test_where_a_row_costs_as_much_as_a_pass_guessing_ends_soon() -> None:
    """Of the guesses every sixth is wrong, so that each pass with some would be dearer."""
    runner = ToyRunner(cost=_dear)
    _follow(
        runner, [1, 2, 3] * 9 + [token for n in range(90) for token in (1, 2, 3 + n * n % 7 % 2)]
    )
    _run(_engine(runner), _request("a", [1, 2, 3] * 9, count=250))
    assert runner.now < 1.1 * 249


def test_a_stop_token_that_was_guessed_ends_the_answer_there() -> None:
    runner = ToyRunner()
    _follow(runner, list(range(9)) * 5)
    request = _request("a", tuple(range(9)) * 3, 40, stop=frozenset({6}))
    assert _summary(_run(_engine(runner), request)["a"]) == ([0, 1, 2, 3, 4, 5], 7, "stop")
    assert runner.passes == [[0] * ROWS]


def test_nothing_is_guessed_beyond_what_the_answer_may_have() -> None:
    runner = ToyRunner()
    _follow(runner, list(range(9)) * 5)
    request = _request("a", tuple(range(9)) * 3, 4)
    assert _summary(_run(_engine(runner), request)["a"]) == ([0, 1, 2, 3], 4, "length")
    assert runner.passes == [[0] * 3]


def test_a_runner_that_promises_no_bits_is_never_given_guesses() -> None:
    runner = ToyRunner(exact=False)
    _run(_engine(runner), *(_request(name, (1, 2) * 9, 60) for name in "ab"))
    assert all(len(slots) == len(set(slots)) for slots in runner.passes)
    assert len(runner.passes) > 59


def test_guesses_fill_only_rows_that_nobody_needs() -> None:
    runner = ToyRunner(batch=3)
    found = _run(_engine(runner), *(_request(name, (1, 2) * 9, 60) for name in "abc"))
    three = [slots for slots in runner.passes if len(set(slots)) == 3]
    assert all(len(slots) == 3 for slots in three)
    assert all(len(slots) <= 3 for slots in runner.passes)
    assert {len(_tokens(results)) for results in found.values()} == {60}


def test_several_share_the_rows_and_all_gain() -> None:
    runner = ToyRunner()
    _follow(runner, list(range(7)) * 50)
    _run(_engine(runner), *(_request(name, count=200) for name in "abc"))
    assert max(map(len, runner.passes)) == ROWS
    assert len(runner.passes) < 120


def test_an_answer_of_one_token_takes_no_pass() -> None:
    runner = ToyRunner()
    assert len(_tokens(_run(_engine(runner), _request("a", (1, 2) * 9, 1))["a"])) == 1
    assert runner.passes == []


# --- what a pass costs --------------------------------------------------------------------


def test_a_cost_is_hoped_to_be_low_until_it_is_known() -> None:
    costs = PassCosts()
    costs.learn(1, 10.0)
    assert 1 < costs.of(2) < costs.of(8) < 2
    costs.learn(8, 25.0)
    assert costs.of(8) == 2.5
    assert costs.of(4) < 1.5


def test_one_slow_pass_counts_little_and_a_fast_one_at_once() -> None:
    costs = PassCosts()
    for seconds in (10.0, 100.0, 10.0):
        costs.learn(1, seconds)
    costs.learn(4, 15.0)
    costs.learn(4, 150.0)
    assert costs.of(4) == pytest.approx(1.5 + 0.1 * 13.5)
    costs.learn(4, 14.0)
    assert costs.of(4) == 1.4


def test_more_rows_never_cost_less() -> None:
    costs = PassCosts()
    costs.learn(1, 10.0)
    costs.learn(4, 30.0)
    assert costs.of(8) >= costs.of(5) >= costs.of(4) == 3.0
    costs.learn(8, 20.0)
    assert costs.of(8) >= costs.of(4) >= costs.of(2)


def test_an_old_cost_is_forgotten() -> None:
    costs = PassCosts()
    costs.learn(1, 10.0)
    costs.learn(8, 80.0)
    assert costs.of(8) == 8.0
    for _ in range(300):
        costs.learn(1, 10.0)
    assert costs.of(8) < 2


CHANCES = st.lists(st.floats(0.01, 1.0), max_size=4).map(
    lambda c: list(itertools.accumulate(c, min))
)


@given(
    st.lists(CHANCES, min_size=1, max_size=3),
    st.integers(4, 6),
    st.lists(st.floats(0, 1), min_size=7, max_size=7),
)
def test_the_rows_are_shared_in_the_best_way(
    chances: list[list[float]], rows: int, steps: list[float]
) -> None:
    def cost(count: int) -> float:
        return 1 + sum(steps[:count])

    def rate(counts: Sequence[int]) -> float:
        expected = len(chances) + sum(sum(c[:n]) for c, n in zip(chances, counts, strict=True))
        return expected / cost(len(chances) + sum(counts))

    found = share_rows(chances, rows, cost)
    every = itertools.product(*(range(len(some) + 1) for some in chances))
    best = max(rate(counts) for counts in every if len(chances) + sum(counts) <= rows)
    plain = rate([0] * len(chances))
    assert sum(found) + len(chances) <= rows
    if sum(found):
        assert rate(found) == pytest.approx(best)
        assert rate(found) > plain
    else:
        assert best < 1.06 * plain


def test_a_sequence_whose_token_cannot_be_chosen_fails_alone() -> None:
    """Its prompt has a token that the model does not have."""
    engine = _engine(ToyRunner())
    engine.submit(_request("bad", (1, VOCABULARY)))
    for number in range(3):
        engine.submit(_request(f"good {number}"))
    results: dict[str, list[StepResult]] = {}
    while engine.active:
        for result in engine.step():
            results.setdefault(result.request_id, []).append(result)
    assert results.pop("bad")[-1].failure is not None
    alone = _tokens(_run(_engine(ToyRunner()), _request("a"))["a"])
    assert [_tokens(each) for each in results.values()] == [alone] * 3


def test_a_slot_that_cannot_be_prepared_fails_one_sequence() -> None:
    runner = ToyRunner()
    engine = _engine(runner)
    text = tuple(n % VOCABULARY for n in range(200))
    _run(engine, _request("first", text, 5))

    def full(source: int, target: int, length: int) -> None:
        raise MemoryError

    runner.copy = full  # type: ignore[method-assign]
    engine.submit(_request("other"))
    engine.submit(_request("branch", (*text[:150], 0, 0, 0)))
    failed, done = set(), set()
    while engine.active:
        for result in engine.step():
            if result.failure is not None:
                failed.add(result.request_id)
            elif result.finish_reason is not None:
                done.add(result.request_id)
    assert (failed, done) == ({"branch"}, {"other"})
