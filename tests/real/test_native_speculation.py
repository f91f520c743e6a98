"""Guesses and the native runner: the same bits, hence the same answers, in fewer passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tests.fakes.spans import decode, prefill
from tests.real.models import starter
from tests.real.test_native_models import Stages, kept_kernels, load, make_model, some_tokens
from workers.inference.engine import LoadSettings, SequenceRequest, StepResult
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Logits, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan

CODE = '''def common(left, right):
    """The length of the longest common prefix."""
    count = 0
    for one, other in zip(left, right):
        if one != other:
            break
        count += 1
    return count
'''
GREEDY = SamplingPlan()
SEEDED = SamplingPlan(0.5, 0.9, 50, 1.02, seed=5)


@pytest.mark.parametrize("kind", ["qwen2", "llama-all-kv-heads", "qwen3"])
def test_rows_of_one_slot_get_the_bits_that_each_gets_alone(kind: str, tmp_path: Path) -> None:
    runner = load(make_model(tmp_path / "model", kind), tmp_path / "quantized")
    runner.reserve(3, 400)
    tokens = some_tokens(290)
    alone = [decode(runner, [0], [at], [token])[0] for at, token in enumerate(tokens)]
    for begin, count in ((253, 8), (261, 5), (266, 2), (15, 3), (268, 8)):
        prefill(runner, 1, 0, tokens[:begin])
        places = range(begin, begin + count)
        found = decode(runner, [1] * count, list(places), tokens[begin : begin + count])
        assert np.array_equal(found, np.array(alone[begin : begin + count]))
    # Beside another sequence, with two guesses that are wrong, and then written over.
    prefill(runner, 1, 0, tokens[:100])
    mixed = decode(runner, [1, 1, 1, 2], [100, 101, 102, 0], [tokens[100], 7, 7, tokens[0]])
    assert np.array_equal(mixed[[0, 3]], np.array([alone[100], alone[0]]))
    after = decode(runner, [1, 1], [101, 102], tokens[101:103])
    assert np.array_equal(after, np.array(alone[101:103]))
    runner.close()


class Watched:
    """An engine on the starter that counts passes and their rows."""

    def __init__(self, quantized: Path, *, speculates: bool) -> None:
        self.runner = NativeRunner(quantized, kept_kernels())
        # A clock of passes: what a row costs is then nobody's luck.
        self.engine = BatchedEngine(self.runner, speculates=speculates, clock=self._clock)
        self.engine.load(inspect_checkpoint(starter()), LoadSettings(kv_memory=0.5), Stages())
        self.rows: list[int] = []
        self._forward, self.runner.forward = self.runner.forward, self._counted  # type: ignore[method-assign]

    def _clock(self) -> float:
        return sum(1 + 0.2 * (rows - 1) for rows in self.rows)

    def _counted(self, spans: Sequence[Span]) -> list[Logits]:
        if all(len(span.tokens) == span.wanted for span in spans):  # no prompt
            self.rows.append(sum(span.wanted for span in spans))
        return self._forward(spans)

    def answer(self, *requests: SequenceRequest) -> dict[str, tuple[list[int], object]]:
        self.rows.clear()
        found: dict[str, list[StepResult]] = {request.request_id: [] for request in requests}
        for request in requests:
            self.engine.submit(request)
        while self.engine.active:
            for result in self.engine.step():
                assert result.failure is None
                found[result.request_id].append(result)
        return {
            name: ([t for r in results for t in r.token_ids], results[-1].finish_reason)
            for name, results in found.items()
        }


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, Watched]]:
    """With guesses, and without."""
    quantized = tmp_path_factory.mktemp("quantized")
    both = Watched(quantized, speculates=True), Watched(quantized, speculates=False)
    yield both
    for one in both:
        one.runner.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter() / "tokenizer.json"))


def quote(tokenizer: Tokenizer, times: int = 2) -> tuple[int, ...]:
    text = (
        "Repeat this code.\n\n" + CODE + ("\nAgain:\n\n" + CODE) * (times - 1) + "\nAgain:\n\ndef"
    )
    return tuple(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize(
    ("plan", "share"), [(GREEDY, 0.33), (SEEDED, 0.67)], ids=["greedy", "seeded"]
)
def test_a_quotation_is_the_same_in_fewer_passes(
    engines: tuple[Watched, Watched], tokenizer: Tokenizer, plan: SamplingPlan, share: float
) -> None:
    request = SequenceRequest("a", quote(tokenizer), plan, 90, frozenset({2}))
    guessing, plain = (engine.answer(request) for engine in engines)
    assert guessing == plain
    assert len(plain["a"][0]) > 50
    passes = [len(engine.rows) for engine in engines]
    assert set(engines[1].rows) == {1}
    assert passes[0] < share * passes[1]


def test_a_plain_answer_is_the_same_and_takes_no_more_passes(
    engines: tuple[Watched, Watched], tokenizer: Tokenizer
) -> None:
    prompt = tuple(
        tokenizer.encode("The sea was calm, and the old man", add_special_tokens=False).ids
    )
    plan = SamplingPlan(1.0, 0.95, 0, 1.0, seed=3)
    request = SequenceRequest("a", prompt, plan, 60, frozenset({2}))
    guessing, plain = (engine.answer(request) for engine in engines)
    assert guessing == plain
    assert len(engines[0].rows) <= len(engines[1].rows)
    assert sum(engines[0].rows) < 1.5 * len(engines[0].rows)  # few guesses, since few are right


def test_several_at_once_get_what_each_gets_alone(
    engines: tuple[Watched, Watched], tokenizer: Tokenizer
) -> None:
    prompts = (quote(tokenizer), quote(tokenizer, 3), quote(tokenizer)[:60])
    requests = [
        SequenceRequest(name, prompt, plan, 50, frozenset({2}), name)
        for name, prompt, plan in zip("abc", prompts, (GREEDY, SEEDED, SEEDED), strict=True)
    ]
    together = engines[0].answer(*requests)
    assert max(engines[0].rows) == 8
    for request in requests:
        name = request.request_id
        assert engines[1].answer(request)[name] == together[name]


def test_the_next_turn_reuses_what_was_kept_and_nothing_that_was_wrongly_guessed(
    engines: tuple[Watched, Watched], tokenizer: Tokenizer
) -> None:
    first = SequenceRequest("a", quote(tokenizer), replace(SEEDED, seed=6), 40, frozenset())
    said = engines[0].answer(first)["a"][0]
    second = SequenceRequest("b", (*first.prompt, *said, 5, 6), GREEDY, 20, frozenset())
    engines[0].engine.submit(second)
    result = engines[0].engine.step()[0]
    assert result.reused == len(first.prompt) + len(said) - 1
    tokens = list(result.token_ids)
    while engines[0].engine.active:
        tokens += [token for result in engines[0].engine.step() for token in result.token_ids]
    assert engines[1].answer(second)["b"][0] == tokens
