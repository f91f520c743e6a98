"""Pages of one pool, and steps of fixed shapes: what a GPU computes, here on a CPU.

The same code computes on a GPU. What is recorded as a CUDA graph there is traced here: a trace,
too, does with other numbers what it did with those it was made with, or is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import DynamicCache

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB
from tests.fakes.spans import decode, prefill
from tests.real.models import make_llama, make_qwen2, make_qwen3
from tests.real.test_inference_engine import (
    CPU,
    EVERY_KIND,
    LONG,
    SHORT,
    UNSEEN,
    Observer,
    _generate,
    _request,
    _run,
)
from workers.inference.engine import LoadSettings
from workers.inference.engines.transformers import mixed_attention
from workers.inference.engines.transformers.kv_pages import KVPages, Record
from workers.inference.engines.transformers.page_table import PAGE
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Candidates, Logits, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan

CLOSE = 1e-4
MAKERS: dict[str, Callable[..., Path]] = {
    "qwen2 untied": lambda path: make_qwen2(path, tied=False),
    "llama": make_llama,
    "qwen3": make_qwen3,
}


def load(directory: Path, *, paged: bool = True, settings: LoadSettings = CPU) -> BatchedEngine:
    engine = BatchedEngine(TransformersRunner(paged=paged))
    engine.load(inspect_checkpoint(directory), settings, Observer())
    return engine


def load_runner(directory: Path, *, paged: bool = True) -> TransformersRunner:
    runner = TransformersRunner(paged=paged)
    runner.load(inspect_checkpoint(directory), CPU, Observer())
    return runner


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: make(base / name) for name, make in MAKERS.items()}


# --- the same as generate -----------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["one page", "two pages"])
def test_greedy_is_what_generate_gives(
    made: dict[str, Path], kind: str, prompt: tuple[int, ...]
) -> None:
    assert set(MAKERS) < set(EVERY_KIND)
    found = _run(load(made[kind]), _request("a", prompt))["a"]
    assert found == _generate(made[kind], prompt, 20)


@pytest.mark.parametrize("kind", MAKERS)
def test_many_at_once_give_what_each_gives_alone(made: dict[str, Path], kind: str) -> None:
    engine = load(made[kind])
    requests = [
        _request(str(n), tuple(1 + (n * 37 + k * 13) % 380 for k in range(3 + 41 * n)), 6 + 3 * n)
        for n in range(11)
    ]
    together = _run(engine, *requests)
    for request in requests:
        assert _run(engine, request)[request.request_id] == together[request.request_id]


def test_a_turn_a_branch_and_an_answer_that_crosses_a_page(made: dict[str, Path]) -> None:
    engine = load(made["llama"])
    first = _run(engine, _request("a", UNSEEN[: PAGE - 5], 10))["a"]
    second = (*UNSEEN[: PAGE - 5], *first, 9, 8, 7)
    branch = (*UNSEEN[:200], 5, 6, 7)
    found = _run(engine, _request("b", second, 10), _request("c", branch, 10))
    assert found == {
        "b": _generate(made["llama"], second, 10),
        "c": _generate(made["llama"], branch, 10),
    }


def test_wanted_are_the_last_tokens(made: dict[str, Path]) -> None:
    logits = []
    for paged in (True, False):
        runner = load_runner(made["llama"], paged=paged)
        runner.reserve(2, 600)
        first = runner.forward([Span(0, 0, LONG, wanted=3)])
        second = runner.forward(
            [Span(1, 0, SHORT, wanted=0), Span(0, 100, LONG[100:], wanted=len(LONG) - 100)]
        )
        logits.append([*first, *second])
        assert [len(rows) for rows in logits[-1]] == [3, 0, len(LONG) - 100]
    for ours, theirs in zip(*logits, strict=True):
        assert np.allclose(ours, theirs, atol=CLOSE)
    assert np.allclose(logits[0][0], logits[0][2][-3:], atol=CLOSE)


# --- one pass for all ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("paged", [True, False], ids=["pages", "slots"])
def test_a_chunk_and_single_tokens_are_one_pass(
    made: dict[str, Path], kind: str, paged: bool
) -> None:
    runner, passes = load_runner(made[kind], paged=paged), list[int]()
    runner.reserve(6, 600)
    runner.model.register_forward_pre_hook(lambda *_: passes.append(1))
    spans = [
        Span(0, len(SHORT), (9,)),
        Span(1, len(LONG), (7,)),
        Span(2, 0, UNSEEN[:70]),  # begins
        Span(3, 100, UNSEEN[100:160], wanted=0),  # goes on
        Span(4, 50, UNSEEN[50:], wanted=5),
    ]
    for slot, prompt in enumerate([SHORT, LONG, (), UNSEEN[:100], UNSEEN[:50]]):
        for _ in prompt[:1]:
            prefill(runner, slot, 0, prompt)
    passes.clear()
    together = runner.forward(spans)
    assert len(passes) == 1
    alone = [rows for span in spans for rows in runner.forward([span])]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.shape == theirs.shape
        assert np.allclose(ours, theirs, atol=CLOSE)


def test_a_model_that_does_not_let_it_be_takes_several(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixed_attention, "can_mix", lambda model: False)
    runner, passes = load_runner(made["llama"]), list[int]()
    runner.reserve(2, 600)
    prefill(runner, 0, 0, SHORT)
    runner.model.register_forward_pre_hook(lambda *_: passes.append(1))
    found = runner.forward([Span(0, len(SHORT), (9,)), Span(1, 0, LONG)])
    assert [rows.shape[0] for rows in found] == [1, 1]
    assert len(passes) == 2


# --- the best tokens alone ----------------------------------------------------------------


@pytest.mark.parametrize(
    "plan",
    [
        SamplingPlan(),
        SamplingPlan(0.7, 0.8, 20, 1.05, seed=1),
        SamplingPlan(0.9, min_p=0.05, presence_penalty=1.0, seed=2),
        SamplingPlan(0.7, 0.8, seed=3),
    ],
    ids=["greedy", "top_k", "min_p", "top_p"],
)
def test_answers_from_candidates_are_those_from_all_logits(
    made: dict[str, Path], plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[type] = []
    forward = TransformersRunner.forward

    def watched(runner: TransformersRunner, spans: Sequence[Span]) -> Any:
        found = forward(runner, spans)
        given.extend(type(row) for rows in found for row in rows)
        return found

    monkeypatch.setattr(TransformersRunner, "forward", watched)
    requests = [
        replace(_request(str(n), UNSEEN[n : 30 + 40 * n], 12), sampling=plan) for n in range(5)
    ]
    expected = _run(load(made["qwen3"], paged=False), *requests)
    assert set(given) == {np.ndarray}
    given.clear()
    assert _run(load(made["qwen3"]), *requests) == expected
    assert set(given) == ({np.ndarray} if plan.top_p < 1 and not plan.top_k else {Candidates})


# --- the pool -----------------------------------------------------------------------------


def test_slots_share_what_memory_there_is(made: dict[str, Path]) -> None:
    """640 tokens for all: one long conversation, or several short ones, but not both."""
    token = load_runner(made["llama"]).kv_bytes_per_token()
    settings = LoadSettings("cpu", "float32", kv_memory=640.5 * token / GIB)
    engine = BatchedEngine(TransformersRunner(paged=True))
    facts = engine.load(inspect_checkpoint(made["llama"]), settings, Observer())
    assert facts.context_length == 640
    requests = [_request(str(n), tuple(range(n + 1, n + 60)), 10) for n in range(8)]
    requests += [_request("long", UNSEEN, 200), _request("last", SHORT, 5)]
    found = _run(engine, *requests)
    for request in requests:
        alone = _generate(made["llama"], request.prompt, request.max_new_tokens)
        assert found[request.request_id] == alone


def test_a_pool_that_is_too_small_fails_only_who_asks_for_more(made: dict[str, Path]) -> None:
    runner = load_runner(made["llama"])
    runner.reserve(1, PAGE)
    with pytest.raises(MemoryError):
        runner.forward([Span(0, 0, (1,) * (2 * PAGE + 1))])
    again = runner.forward([Span(0, 0, SHORT)])
    assert np.isfinite(again[0]).all()


def test_numbers_that_are_none_stay_in_their_own_conversation(
    made: dict[str, Path], tmp_path: Path
) -> None:
    """Nor do they reach who gets the same pages next: nothing times NaN is NaN."""
    directory = make_qwen2(tmp_path / "model", tied=False)
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][77, 0] = float("nan")
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    engine = load(directory)
    expected = _run(load(directory, paged=False), _request("b", SHORT, 12))["b"]
    for _ in range(3):
        engine.submit(_request("a", (*SHORT, 77), 5))
        engine.submit(_request("b", SHORT, 12))
        tokens: list[int] = []
        failures: list[ShammahError] = []
        while engine.active:
            for result in engine.step():
                tokens += result.token_ids if result.request_id == "b" else ()
                failures += [result.failure] if result.failure is not None else []
        assert tokens == expected
        assert ["NaN" in failure.message for failure in failures] == [True]


# --- steps that are recorded --------------------------------------------------------------


class Traces:
    """Records as `CudaGraphs` does, without a GPU."""

    def __init__(self) -> None:
        self.made = self.replayed = 0

    def __call__(self, compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.made += 1
        traced = make_fx(compute)()

        def replay() -> torch.Tensor:
            self.replayed += 1
            result: torch.Tensor = traced()
            return result

        return replay


def pages_with(runner: TransformersRunner, record: Record) -> KVPages:
    cache = DynamicCache(config=runner.model.config)
    with torch.no_grad():
        runner.compute(torch.tensor([[1, 2]]), cache)
    return KVPages(runner.compute, cache, lambda: 16 * 600, record)


class Recorded:
    """Computes spans as a runner does."""

    def __init__(self, runner: TransformersRunner, record: Record) -> None:
        self.limits = runner.limits
        self.pages = pages_with(runner, record)
        self.pages.reserve(16, 600)

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        with torch.no_grad():  # a trace is not made in inference mode
            [logits] = self.pages.compute([spans])
            return list(logits.numpy())


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_recorded_computes_other_numbers_as_well(made: dict[str, Path], kind: str) -> None:
    """Of the same shape: other tokens, positions, slots, pages and rows."""
    traces, plain = Traces(), load_runner(made[kind], paged=False)
    plain.reserve(16, 600)
    recorded: Any = Recorded(load_runner(made[kind]), traces)
    for slot in range(7):
        prompt = [1 + (slot * 37 + k * 13) % 380 for k in range(3 + 44 * slot)]
        for runner in (recorded, plain):
            prefill(runner, slot, 0, prompt)
    for step in range(4):
        for slots in ([0], [1], [6, 2, 4], [5, 1, 3], [3, 6, 5]):
            positions = [3 + 44 * slot + step for slot in slots]
            tokens = [7 + slot + 11 * step for slot in slots]
            found = decode(recorded, slots, positions, tokens)
            assert np.allclose(found, decode(plain, slots, positions, tokens), atol=CLOSE)
    assert traces.made == 3  # one row, three rows with one page, three with two
    assert traces.replayed == 4 * 5


def test_what_cannot_be_recorded_is_computed(made: dict[str, Path]) -> None:
    tried = []

    def refuse(compute: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        tried.append(compute)
        raise RuntimeError("operation not permitted when stream is capturing")

    plain = load_runner(made["llama"], paged=False)
    plain.reserve(2, 600)
    recorded: Any = Recorded(load_runner(made["llama"]), refuse)
    for runner in (recorded, plain):
        prefill(runner, 0, 0, SHORT)
    for position in (len(SHORT), len(SHORT) + 1):
        found = decode(recorded, [0], [position], [9])
        assert np.allclose(found, decode(plain, [0], [position], [9]), atol=CLOSE)
    assert len(tried) == 1


def test_a_step_with_an_adapter_is_not_one_without(made: dict[str, Path]) -> None:
    """What was recorded knows of no adapter."""
    traces = Traces()
    recorded = Recorded(load_runner(made["llama"]), traces)
    recorded.forward([Span(0, 0, SHORT)])
    recorded.forward([Span(0, len(SHORT), (9,), adapter="mine")])
    assert traces.made == 0
    recorded.forward([Span(0, len(SHORT), (9,))])
    assert (traces.made, traces.replayed) == (1, 1)
