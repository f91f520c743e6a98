"""Weights in 4 bits behind the transformers runner: what they say, what they take, what is refused.

On a CPU. What CUDA and MPS compute goes through the same code of torch and bitsandbytes.
"""

from __future__ import annotations

import builtins
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
import transformers
from tokenizers import Tokenizer

from shammah.errors import ShammahError
from tests.real.models import CONFIG, VOCABULARY, make_llama, make_qwen2, make_tokenizer, starter
from tests.real.test_inference_engine import Observer
from workers.inference.engine import EngineFacts, LoadSettings, SequenceRequest
from workers.inference.engines.transformers import quantization as quantizing
from workers.inference.engines.transformers import weights
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
TOKENS = 128
PARIS = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
END = 2


@dataclass(frozen=True)
class Loaded:
    engine: BatchedEngine
    facts: EngineFacts
    observer: Observer
    runner: TransformersRunner

    @property
    def model(self) -> Any:
        return self.runner.model


def _load(directory: Path, quantization: str = "int4", **options: Any) -> Loaded:
    runner, observer = TransformersRunner(), Observer()
    engine = BatchedEngine(runner)
    settings = LoadSettings("cpu", quantization=quantization, **options)
    facts = engine.load(inspect_checkpoint(directory), settings, observer)
    return Loaded(engine, facts, observer, runner)


def _answer(engine: BatchedEngine, *prompts: list[int], count: int = 20) -> list[list[int]]:
    for n, prompt in enumerate(prompts):
        engine.submit(
            SequenceRequest(str(n), tuple(prompt), SamplingPlan(), count, frozenset({END}))
        )
    found: list[list[int]] = [[] for _ in prompts]
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            found[int(result.request_id)] += result.token_ids
    return found


@pytest.fixture(scope="module")
def quantized() -> Loaded:
    """The starter."""
    return _load(starter())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter() / "tokenizer.json"))


def _probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


# --- the starter --------------------------------------------------------------------------


def test_it_still_knows_the_capital_of_france(quantized: Loaded, tokenizer: Tokenizer) -> None:
    facts = quantized.facts
    assert (facts.engine, facts.device, facts.dtype) == ("transformers", "cpu", "float32")
    assert (facts.quantization, facts.why) == ("int4", "as set")
    prompt = tokenizer.encode(PARIS, add_special_tokens=False).ids
    [answer] = _answer(quantized.engine, prompt)
    assert tokenizer.decode(answer).startswith("The capital of France is Paris")


def test_the_logits_are_near_those_of_float32(quantized: Loaded, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[100 : 100 + TOKENS]
    model = transformers.AutoModelForCausalLM.from_pretrained(starter(), dtype=torch.float32)
    theirs, ours = _probabilities(model, ids), _probabilities(quantized.model, ids)
    divergence = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    same = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    assert 0 < divergence < 0.4
    assert same > 0.65


def test_memory_is_what_was_reckoned(quantized: Loaded) -> None:
    reckoned = quantizing.needed_bytes(inspect_checkpoint(starter()), "int4", 4)
    held = {id(one): one for one in quantized.model.parameters()}.values()
    total = sum(one.numel() * one.element_size() for one in held)
    states = [one.quant_state for one in held if hasattr(one, "quant_state")]
    total += sum(one.absmax.numel() * one.absmax.element_size() for one in states)
    assert len(states) == 210
    assert total == pytest.approx(reckoned, rel=0.01)


# --- small models -------------------------------------------------------------------------


def _make_gpt2(directory: Path) -> Path:
    make_tokenizer(directory)
    settings = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 32, "n_layer": 2}
    config = transformers.GPT2Config(**settings, n_head=4, bos_token_id=0, eos_token_id=0)
    torch.manual_seed(1)
    transformers.GPT2LMHeadModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "tied, in shards": make_qwen2(base / "sharded", max_shard_size="40KB"),
        "untied, with biases": make_qwen2(base / "untied", tied=False),
        "llama": make_llama(base / "llama"),
        "transposed matrices": _make_gpt2(base / "gpt2"),
    }


@pytest.mark.parametrize(
    "kind", ["tied, in shards", "untied, with biases", "llama", "transposed matrices"]
)
def test_sequences_in_a_batch_give_what_each_gives_alone(made: dict[str, Path], kind: str) -> None:
    engine = _load(made[kind]).engine
    prompts = [[1 + (n * 37 + k * 13) % 300 for k in range(3 + 9 * n)] for n in range(5)]
    together = _answer(engine, *prompts)
    again = _load(made[kind]).engine
    for prompt, tokens in zip(prompts, together, strict=True):
        assert _answer(again, prompt) == [tokens]


def test_4_bits_compute_the_same_on_a_processor_with_avx512_bf16(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library has a layout of its own, which it cannot make of these matrices."""
    prompt = [1, 2, 3]
    answers = []
    for there in (False, True):
        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda there=there: there)
        answers += _answer(_load(made["llama"]).engine, prompt)
    assert answers[0] == answers[1]


def test_memory_is_given_back_after_each_matrix_that_is_quantized(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(weights, "release_freed_memory", lambda: given.append(1))
    loaded = _load(made["llama"])
    assert len(given) == loaded.observer.advanced > 20


# --- what can go wrong --------------------------------------------------------------------


@pytest.fixture
def without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == quantizing.LIBRARY else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    load = builtins.__import__

    def refuse(name: str, *rest: Any, **options: Any) -> Any:
        assert not name.startswith(quantizing.LIBRARY)
        return load(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("without_the_library")
def test_4_bits_without_the_library_are_refused_with_the_command(made: dict[str, Path]) -> None:
    with pytest.raises(ShammahError) as caught:
        _load(made["llama"])
    assert caught.value.code == "quantization_unavailable"
    assert "pip install 'shammah[int4]'" in caught.value.hint
    assert _load(made["llama"], "auto").facts.quantization == ""


def test_experts_are_not_promised_to_be_smaller(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
    settings = {key: CONFIG[key] for key in (*keys, "num_attention_heads", "num_key_value_heads")}
    config = transformers.MixtralConfig(**settings, intermediate_size=64, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ShammahError, match="cannot be quantized") as caught:
        _load(tmp_path)
    assert caught.value.code == "quantization_unavailable"
    assert _load(tmp_path, "auto").facts.quantization == ""
