"""Weights in 8 and 4 bits behind the transformers runner: what they say, cost, and where they are.

On a CPU. What CUDA and MPS compute goes through the same code of torch and bitsandbytes.
"""

from __future__ import annotations

import builtins
import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers.pytorch_utils import Conv1D

from shammah.errors import ShammahError
from tests.fakes.spans import prefill
from tests.real.models import CONFIG, VOCABULARY, make_llama, make_qwen2, make_tokenizer, starter
from tests.real.test_inference_engine import Observer
from workers.inference.engine import EngineFacts, LoadSettings, SequenceRequest
from workers.inference.engines.transformers import quantization as quantizing
from workers.inference.engines.transformers import weights
from workers.inference.engines.transformers.int8_linear import Int8Linear, quantize
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
BOTH = ("int8", "int4")


@dataclass(frozen=True)
class Loaded:
    engine: BatchedEngine
    facts: EngineFacts
    observer: Observer
    runner: TransformersRunner

    @property
    def model(self) -> Any:
        return self.runner.model


def _load(directory: Path, quantization: str, home: Path, **options: Any) -> Loaded:
    runner, observer = TransformersRunner(), Observer()
    engine = BatchedEngine(runner)
    settings = LoadSettings("cpu", quantization=quantization, home=home, **options)
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
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {quantization: tmp_path_factory.mktemp(quantization) for quantization in BOTH}


@pytest.fixture(scope="module")
def first(homes: dict[str, Path]) -> dict[str, Loaded]:
    """The starter, quantised."""
    return {one: _load(starter(), one, homes[one]) for one in BOTH}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter() / "tokenizer.json"))


@pytest.fixture(scope="module")
def exact(tokenizer: Tokenizer) -> tuple[list[int], torch.Tensor]:
    """Tokens of a text, and what float32 makes of them: log probabilities."""
    ids = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[100 : 100 + TOKENS]
    model = transformers.AutoModelForCausalLM.from_pretrained(starter(), dtype=torch.float32)
    return ids, _probabilities(model, ids)


def _probabilities(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


# --- the starter --------------------------------------------------------------------------


@pytest.mark.parametrize("quantization", BOTH)
def test_it_still_knows_the_capital_of_france(
    first: dict[str, Loaded], tokenizer: Tokenizer, quantization: str
) -> None:
    facts = first[quantization].facts
    assert (facts.engine, facts.device, facts.dtype) == ("transformers", "cpu", "float32")
    assert (facts.quantization, facts.why) == (quantization, "as set")
    prompt = tokenizer.encode(PARIS, add_special_tokens=False).ids
    [answer] = _answer(first[quantization].engine, prompt)
    assert tokenizer.decode(answer).startswith("The capital of France is Paris")


@pytest.mark.parametrize(
    ("quantization", "divergence", "top1", "perplexity"),
    [("int8", 0.0025, 0.97, 0.01), ("int4", 0.4, 0.65, 0.35)],
)
def test_the_logits_are_near_those_of_float32(
    first: dict[str, Loaded],
    exact: tuple[list[int], torch.Tensor],
    quantization: str,
    divergence: float,
    top1: float,
    perplexity: float,
) -> None:
    ids, theirs = exact
    ours = _probabilities(first[quantization].model, ids)
    found = float((theirs.exp() * (theirs - ours)).sum(-1).mean())
    same = float((ours.argmax(-1) == theirs.argmax(-1)).double().mean())
    follows = torch.arange(TOKENS - 1), torch.tensor(ids[1:])
    change = float((theirs[follows].mean() - ours[follows].mean()).exp()) - 1
    print(found, same, change)
    assert 0 < found < divergence
    assert same > top1
    assert abs(change) < perplexity


@pytest.mark.parametrize("quantization", BOTH)
def test_memory_is_what_was_reckoned(first: dict[str, Loaded], quantization: str) -> None:
    reckoned = quantizing.needed_bytes(inspect_checkpoint(starter()), quantization, 4)
    held = {id(one): one for one in first[quantization].model.parameters()}.values()
    total = sum(one.numel() * one.element_size() for one in held)
    if quantization == "int4":
        states = [one.quant_state for one in held if hasattr(one, "quant_state")]
        total += sum(one.absmax.numel() * one.absmax.element_size() for one in states)
        assert len(states) == 210
    assert total == pytest.approx(reckoned, rel=0.01)


@pytest.mark.parametrize("quantization", BOTH)
def test_the_second_load_reads_nothing_of_the_original_weights(
    first: dict[str, Loaded],
    homes: dict[str, Path],
    exact: tuple[list[int], torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    quantization: str,
) -> None:
    opened: list[str] = []
    original = transformers.modeling_utils.safe_open

    def noted(path: Any, *rest: Any, **options: Any) -> Any:
        opened.append(str(path))
        return original(path, *rest, **options)

    monkeypatch.setattr(transformers.modeling_utils, "safe_open", noted)
    again = _load(starter(), quantization, homes[quantization])
    [kept] = (homes[quantization] / "quantized").iterdir()
    assert opened
    assert {str(Path(path).parent) for path in opened} == {str(kept)}
    assert again.facts == first[quantization].facts
    ids, _ = exact
    both = [_probabilities(one.model, ids[:20]) for one in (first[quantization], again)]
    assert torch.equal(*both)


def test_both_are_smaller_on_the_disk(homes: dict[str, Path]) -> None:
    published = 4 * inspect_checkpoint(starter()).parameters
    sizes = {}
    for quantization, home in homes.items():
        [kept] = (home / "quantized").iterdir()
        assert kept.name.endswith(quantization)
        assert kept.stat().st_mode & 0o777 == 0o700
        sizes[quantization] = sum(path.stat().st_size for path in kept.iterdir())
    assert sizes["int4"] < sizes["int8"] < 0.43 * published  # the embeddings are 0.21 of it


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


KINDS = ["tied, in shards", "untied, with biases", "llama", "transposed matrices"]


@pytest.mark.parametrize("kind", KINDS)
def test_8_bits_compute_what_the_rounded_weights_say(
    made: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    ours = _load(made[kind], "int8", tmp_path).model
    model = transformers.AutoModelForCausalLM.from_pretrained(made[kind], dtype=torch.float32)
    rounded = 0
    for name, module in ours.named_modules():
        if isinstance(module, Int8Linear):
            plain = model.get_submodule(name)
            group = module.in_features // module.scale.shape[1]
            widened = module.weight * module.scale.float().repeat_interleave(group, dim=1)
            with torch.no_grad():
                plain.weight.copy_(widened.T if isinstance(plain, Conv1D) else widened)
            rounded += 1
    assert rounded >= 8
    with torch.inference_mode():
        ids = torch.arange(1, 9)[None]
        assert torch.allclose(ours(ids).logits, model(ids).logits, atol=1e-4)


@pytest.mark.parametrize("quantization", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_in_a_batch_give_what_each_gives_alone(
    made: dict[str, Path], tmp_path: Path, kind: str, quantization: str
) -> None:
    engine = _load(made[kind], quantization, tmp_path).engine
    prompts = [[1 + (n * 37 + k * 13) % 300 for k in range(3 + 9 * n)] for n in range(5)]
    together = _answer(engine, *prompts)
    again = _load(made[kind], quantization, tmp_path).engine  # from what was kept
    for prompt, tokens in zip(prompts, together, strict=True):
        assert _answer(again, prompt) == [tokens]


def test_4_bits_compute_the_same_on_a_processor_with_avx512_bf16(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the library has a layout of its own, which it cannot make of these matrices."""
    prompt = [1, 2, 3]
    answers = []
    for there in (False, True):
        monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda there=there: there)
        answers += _answer(_load(made["llama"], "int4", tmp_path / str(there)).engine, prompt)
    assert answers[0] == answers[1]


def test_8_bits_round_to_the_nearest_and_keep_zeros() -> None:
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(1))
    weight[2] = 0.0
    numbers, scale = quantize(weight)
    assert (numbers.dtype, scale.dtype, scale.shape) == (torch.int8, torch.bfloat16, (6, 3))
    steps = scale.float().repeat_interleave(32, dim=1)
    error = (numbers.float() * steps - weight).abs()
    # Half a step; the largest of a group may be cut when its scale was rounded downwards.
    assert bool((error <= 0.51 * steps + 127 * steps / 256).all())
    assert bool((error <= 0.51 * steps)[numbers.abs() < 127].all())
    assert not numbers[2].any()
    odd, _ = quantize(torch.ones(2, 33))
    assert bool((odd == 127).all())


# --- what can go wrong --------------------------------------------------------------------


def _damage(kept: Path) -> None:
    path = kept / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def _garble(kept: Path) -> None:
    path = kept / "model.safetensors"
    path.write_bytes(b"\xff" * path.stat().st_size)


def _unfinish(kept: Path) -> None:
    (kept / "config.json").unlink()


@pytest.mark.parametrize("defect", [_damage, _garble, _unfinish])
def test_what_is_damaged_is_made_again(
    made: dict[str, Path], tmp_path: Path, defect: Callable[[Path], None]
) -> None:
    [answer] = _answer(_load(made["llama"], "int8", tmp_path).engine, [1, 2, 3])
    [kept] = (tmp_path / "quantized").iterdir()
    size = (kept / "model.safetensors").stat().st_size
    defect(kept)
    assert _answer(_load(made["llama"], "int8", tmp_path).engine, [1, 2, 3]) == [answer]
    assert (kept / "config.json").exists()
    assert (kept / "model.safetensors").stat().st_size == size
    assert list((tmp_path / "quantized").iterdir()) == [kept]


def test_memory_is_given_back_after_each_matrix_that_is_quantized(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    monkeypatch.setattr(weights, "release_freed_memory", lambda: given.append(1))
    first = _load(made["llama"], "int8", tmp_path)
    assert len(given) == first.observer.advanced > 20
    _load(made["llama"], "int8", tmp_path)
    assert len(given) == first.observer.advanced


def test_another_model_gets_another_directory(made: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(made["llama"], tmp_path / "copy")
    _load(copy, "int8", tmp_path)
    _load(copy, "int8", tmp_path, dtype="bfloat16")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
    _load(copy, "int8", tmp_path)
    assert len(list((tmp_path / "quantized").iterdir())) == 3


def test_a_disk_that_takes_nothing_only_makes_the_next_load_slower(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*rest: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)
    loaded = _load(made["llama"], "int8", tmp_path)
    assert loaded.facts.quantization == "int8"
    assert list((tmp_path / "quantized").iterdir()) == []


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
def test_4_bits_without_the_library_are_refused_with_the_command(
    made: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ShammahError) as caught:
        _load(made["llama"], "int4", tmp_path)
    assert caught.value.code == "quantization_unavailable"
    assert "pip install bitsandbytes" in caught.value.hint
    assert _load(made["llama"], "int8", tmp_path).facts.quantization == "int8"


def test_experts_are_not_promised_to_be_smaller(tmp_path: Path) -> None:
    make_tokenizer(tmp_path)
    keys = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings")
    settings = {key: CONFIG[key] for key in (*keys, "num_attention_heads", "num_key_value_heads")}
    config = transformers.MixtralConfig(**settings, intermediate_size=64, num_local_experts=4)
    transformers.MixtralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ShammahError, match="cannot be quantized") as caught:
        _load(tmp_path, "int8", tmp_path)
    assert caught.value.code == "quantization_unavailable"
    assert _load(tmp_path, "auto", tmp_path).facts.quantization == ""


def test_logits_are_numbers(first: dict[str, Loaded]) -> None:
    runner = first["int8"].runner
    assert np.isfinite(prefill(runner, 0, 0, [1, 2, 3])).all()
