"""The vllm engine, with a fake of vLLM's calls: its arguments by name, its outputs by field.

As of vLLM 0.15: `EngineArgs`, `LLMEngine.from_engine_args`, `add_request`, `step`, `abort_request`,
`SamplingParams`, `RequestOutput`.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB
from workers.inference.engine import LoadSettings, SequenceRequest, StepResult
from workers.inference.engines.vllm.engine import VllmEngine
from workers.inference.engines.vllm.spec import VLLM
from workers.inference.packages.adapter_file import Adapter
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.scheduling.sampling import SamplingPlan

MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", 32_768, (), 2 * GIB, GIB, "")
END = 9


class RequestOutputKind(enum.Enum):
    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(kw_only=True)
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE


@dataclass(kw_only=True)
class EngineArgs:
    model: str
    skip_tokenizer_init: bool = False
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_memory_bytes: int | None = None
    generation_config: str = "auto"


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


@dataclass
class LLMEngine:
    """Answers with the tokens after the prompt's last one; ``END`` is one of them."""

    arguments: EngineArgs
    requests: dict[str, tuple[list[int], SamplingParams]] = field(default_factory=dict)
    given: dict[str, int] = field(default_factory=dict)
    breaks: bool = False
    late: list[RequestOutput] = field(default_factory=list)

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        if "too long" in engine_args.model:
            raise ValueError("The KV cache needs 9 GiB\nand more lines")
        if "unknown" in engine_args.model:
            raise ValueError("Model architectures ['X'] are not supported")
        return cls(engine_args)

    def add_request(self, request_id: str, prompt: Any, params: SamplingParams) -> None:
        if len(prompt["prompt_token_ids"]) > 100:
            raise ValueError("The decoder prompt is longer than the maximum model length")
        self.requests[request_id] = (prompt["prompt_token_ids"], params)
        self.given[request_id] = 0

    def step(self) -> list[RequestOutput]:
        if self.breaks:
            raise RuntimeError("EngineCore encountered an issue")
        outputs, self.late = self.late, []
        for name, (prompt, params) in list(self.requests.items()):
            self.given[name] += 1
            token = prompt[-1] + self.given[name]
            finish = None
            if token in (params.stop_token_ids or ()):
                finish = "stop"
            elif self.given[name] == params.max_tokens:
                finish = "length"
            completion = CompletionOutput(0, "", [token], finish)
            outputs.append(RequestOutput(name, [completion], finish is not None, 2))
            if finish is not None:
                del self.requests[name]
        return outputs

    def abort_request(self, request_ids: list[str]) -> None:
        for name in request_ids:
            completion = CompletionOutput(0, "", [], "abort")
            self.late.append(RequestOutput(name, [completion], finished=True))
            del self.requests[name]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[LLMEngine]:
    """A GPU, and vLLM; the engines that it has made."""
    engines: list[LLMEngine] = []

    class Kept(LLMEngine):
        @classmethod
        def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
            engines.append(super().from_engine_args(engine_args))
            return engines[-1]

    vllm: Any = ModuleType("vllm")
    vllm.__spec__ = ModuleSpec("vllm", None)
    vllm.EngineArgs, vllm.LLMEngine, vllm.SamplingParams = EngineArgs, Kept, SamplingParams
    vllm.sampling_params = ModuleType("vllm.sampling_params")
    vllm.sampling_params.RequestOutputKind = RequestOutputKind
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (20 * GIB, 24 * GIB))
    for name in ("VLLM_NO_USAGE_STATS", "VLLM_ENABLE_V1_MULTIPROCESSING", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what the engine sets is undone
    return engines


class Stages:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def stage(self, name: str) -> None:
        self.seen.append(name)

    def advance(self) -> None: ...


def load(directory: str = "/m", **settings: Any) -> VllmEngine:
    engine, observer = VllmEngine(), Stages()
    model = Checkpoint(Path(directory), "Qwen2ForCausalLM", "qwen2", 32_768, (), GIB, GIB, "")
    facts = engine.load(model, LoadSettings("cuda", **settings), observer)
    assert tuple(observer.seen) == engine.stages
    assert (facts.engine, facts.device, facts.dtype) == ("vllm", "cuda", "bfloat16")
    return engine


def request(name: str, last: int, count: int = 3, **plan: Any) -> SequenceRequest:
    return SequenceRequest(name, (1, 2, last), SamplingPlan(**plan), count, frozenset({END}))


def test_an_answer_ends_at_its_length_or_at_a_stop_token(made: list[LLMEngine]) -> None:
    engine = load()
    engine.submit(request("a", 20))
    engine.submit(request("b", END - 2))
    assert (engine.active, engine.waiting) == (2, 2)
    assert engine.step() == [
        StepResult("a", 1, 1, (21,), reused=2),
        StepResult("b", 1, 1, (END - 1,), reused=2),
    ]
    assert engine.waiting == 0
    assert engine.step() == [StepResult("a", 0, 1, (22,)), StepResult("b", 0, 1, (), "stop")]
    assert engine.step() == [StepResult("a", 0, 1, (23,), "length")]
    assert engine.active == 0
    assert engine.step() == []


def test_what_is_asked_for_is_passed_on(
    made: list[LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    engine = load(context_length=4096, kv_memory=2.0)
    arguments = made[0].arguments
    assert (arguments.model, arguments.max_model_len) == ("/m", 4096)
    assert arguments.kv_cache_memory_bytes == 2 * GIB
    assert arguments.gpu_memory_utilization == pytest.approx(0.9 * 20 / 24)
    assert arguments.skip_tokenizer_init
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    plan = {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.1, "seed": 5}
    plan |= {"min_p": 0.05, "presence_penalty": 1.5}
    engine.submit(request("a", 3, **plan))
    engine.submit(request("b", 3))
    _, asked = made[0].requests["a"]
    assert {name: getattr(asked, name) for name in plan} == plan
    assert (asked.max_tokens, asked.stop_token_ids, asked.ignore_eos) == (3, [END], True)
    assert asked.output_kind is RequestOutputKind.DELTA
    assert (made[0].requests["b"][1].temperature, made[0].requests["b"][1].top_k) == (0.0, -1)


def test_a_cancelled_sequence_is_named_no_more(made: list[LLMEngine]) -> None:
    engine = load()
    for name in "ab":
        engine.submit(request(name, 20))
    engine.step()
    engine.cancel("a")
    assert [result.request_id for result in engine.step()] == ["b"]
    assert engine.active == 1
    assert list(made[0].requests) == ["b"]


def test_what_fails_is_told_to_whom_it_concerns(made: list[LLMEngine]) -> None:
    engine = load()
    engine.submit(SequenceRequest("a", (1,) * 101, SamplingPlan(), 3, frozenset()))
    engine.submit(request("b", 20))
    failed, other = engine.step()
    assert failed.failure is not None
    assert (failed.request_id, failed.failure.code) == ("a", "generation_failed")
    assert other.token_ids == (21,)
    engine.submit(request("c", 20))
    made[0].breaks = True
    results = engine.step()
    assert {one.request_id for one in results if one.failure is not None} == {"b", "c"}
    assert engine.active == 0


@pytest.mark.parametrize(
    ("directory", "code"), [("/too long", "out_of_memory"), ("/unknown", "model_unsupported")]
)
def test_a_load_that_fails_says_what_the_next_offer_must_know(
    made: list[LLMEngine], directory: str, code: str
) -> None:
    with pytest.raises(ShammahError) as caught:
        load(directory)
    assert caught.value.code == code
    assert "\n" not in caught.value.message


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(
    made: list[LLMEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2 * GIB, 24 * GIB))
    with pytest.raises(ShammahError, match="bfloat16 on cuda") as caught:
        load()
    assert caught.value.code == "out_of_memory"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ShammahError, match="no usable cuda device"):
        load()
    assert made == []


def test_adapters_are_refused(made: list[LLMEngine]) -> None:
    engine = load()
    assert not engine.holds("mine")
    with pytest.raises(ShammahError) as caught:
        engine.add_adapter(Adapter("key", "mine", {}))
    assert caught.value.code == "adapter_unsupported"


def test_it_is_there_where_vllm_is(made: list[LLMEngine], monkeypatch: pytest.MonkeyPatch) -> None:
    assert VLLM.is_installed
    monkeypatch.delitem(sys.modules, "vllm")
    assert not VLLM.is_installed
    assert VLLM.install == "pip install vllm"
