"""A model's files mean the same for both engines and for training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    MistralForCausalLM,
    Qwen2ForCausalLM,
)

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel, Machine
from shammah.models.footprint import NATIVE_FAMILY
from shammah.models.hub_config import read_architecture, read_config, read_shape
from shammah.settings.model import InferenceSettings, Settings
from tests.fakes.engines import only
from tests.fakes.spans import prefill
from tests.real.adapters import save_tensors
from tests.real.models import (
    CONFIG,
    HIDDEN,
    KEPT_KERNELS,
    make_qwen2,
    make_tokenizer,
    make_windowed,
)
from workers.inference.engine import LoadSettings, SequenceRequest
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Runner
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.startup import examination
from workers.inference.startup.loading import Loader
from workers.train.base_model import Arithmetic, load_base, shape_of

TOKENS = [1, 40, 50, 60, 70]
WEIGHTS = "model.safetensors"
NATIVE_CLOSE = 0.4
"""Of logits of about 10, after 8-bit weights."""


class Watcher:
    def located(self, model: str, stages: int) -> None: ...
    def stage(self, name: str) -> None: ...
    def advance(self) -> None: ...


def change(directory: Path, **tensors: torch.Tensor | None) -> None:
    """Put other tensors in the place of those whose names end so; ``None``: none."""
    held = load_file(directory / WEIGHTS)
    for end, tensor in tensors.items():
        name = next((one for one in held if one.endswith(f"{end}.weight")), f"{end}.weight")
        held.pop(name, None)
        if tensor is not None:
            held[name] = tensor
    save_file(held, directory / WEIGHTS, {"format": "pt"})


def configure(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: one for key, one in config.items() if one is not ...}))


def runner_of(engine: str, home: Path) -> Runner:
    return NativeRunner(home, KEPT_KERNELS, 1) if engine == "native" else TransformersRunner()


def logits_of(
    engine: str, directory: Path, home: Path, quantization: str = "auto"
) -> NDArray[np.float32]:
    """After `TOKENS`, by the engine or by ``training``."""
    if engine == "training":
        model = load_base(LocatedModel("tiny", directory, "tiny"), Arithmetic("cpu", "float32"))
        with torch.inference_mode():
            found: NDArray[np.float32] = model(torch.tensor([TOKENS])).logits[0, -1].numpy()
            return found
    runner = runner_of(engine, home)
    settings = LoadSettings("cpu", "auto", quantization, home=home)
    runner.load(inspect_checkpoint(directory), settings, Watcher())
    runner.reserve(1, 64)
    found = prefill(runner, 0, 0, TOKENS)
    if isinstance(runner, NativeRunner):
        runner.close()
    return found


EVERYBODY = ["native", "transformers", "training"]


# --- the output layer ---------------------------------------------------------------------


@pytest.mark.parametrize("tells", [True, False, ...])
def test_an_output_layer_of_its_own_is_used_whatever_the_configuration_says(
    tells: object, tmp_path: Path
) -> None:
    directory = make_qwen2(tmp_path / "model", tied=False)
    expected = AutoModelForCausalLM.from_pretrained(directory)(torch.tensor([TOKENS])).logits[0, -1]
    configure(directory, tie_word_embeddings=tells)
    checkpoint = inspect_checkpoint(directory)
    assert (checkpoint.tied, bool(checkpoint.notices)) == (False, tells is True)
    for engine in EVERYBODY:
        found = logits_of(engine, directory, tmp_path)
        assert abs(found - expected.detach().numpy()).max() < NATIVE_CLOSE, engine


def test_the_same_numbers_twice_are_one_layer(tmp_path: Path) -> None:
    directory = make_qwen2(tmp_path / "model")
    expected = logits_of("transformers", directory, tmp_path)
    change(directory, lm_head=load_file(directory / WEIGHTS)["model.embed_tokens.weight"].clone())
    assert inspect_checkpoint(directory).tied
    for engine in EVERYBODY:
        assert abs(logits_of(engine, directory, tmp_path) - expected).max() < NATIVE_CLOSE, engine


@pytest.mark.parametrize("engine", EVERYBODY)
def test_an_output_layer_that_is_missing_is_not_made_up(engine: str, tmp_path: Path) -> None:
    directory = make_qwen2(tmp_path / "model")
    configure(directory, tie_word_embeddings=False)
    with pytest.raises(ShammahError, match=r"lack.* lm_head\.weight|\(lm_head\.weight") as caught:
        logits_of(engine, directory, tmp_path)
    assert caught.value.code == "model_config_invalid"


def test_a_notice_reaches_who_asks(tmp_path: Path) -> None:
    directory = make_qwen2(tmp_path / "model", tied=False)
    configure(directory, tie_word_embeddings=True)
    runner = NativeRunner(tmp_path, KEPT_KERNELS, 1)
    loader = Loader(
        InferenceSettings(),
        machine=Machine(16 * GIB),
        engines=only(lambda: BatchedEngine(runner)),
        watcher=Watcher(),
        home=tmp_path,
    )
    ready = loader.load(LocatedModel("tiny", directory, "tiny")).ready
    runner.close()
    assert "an output layer of their own (lm_head.weight), which is used." in ready.note


# --- adapters -----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", EVERYBODY)
def test_an_adapter_beside_the_weights_is_not_loaded(engine: str, tmp_path: Path) -> None:
    directory = make_qwen2(tmp_path / "model")
    alone = logits_of(engine, directory, tmp_path)
    (directory / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]})
    )
    module = "base_model.model.model.layers.0.self_attn.q_proj"
    save_tensors(
        directory / "adapter_model.safetensors",
        {
            f"{module}.lora_A.weight": np.ones((2, HIDDEN), np.float32),
            f"{module}.lora_B.weight": np.ones((HIDDEN, 2), np.float32),
        },
    )
    adapted = Qwen2ForCausalLM.from_pretrained(directory)  # which does load it
    with torch.inference_mode():
        theirs = adapted(torch.tensor([TOKENS])).logits[0, -1].numpy()
    assert abs(theirs - alone).max() > 10 * NATIVE_CLOSE
    assert np.array_equal(logits_of(engine, directory, tmp_path), alone)
    assert "is not used" in inspect_checkpoint(directory).notices[0]


# --- numbers that are none ----------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
@pytest.mark.parametrize(
    ("engine", "quantization"),
    [
        *(("native", "int8"), ("native", "int4"), ("transformers", "none")),
        ("training", ""),
    ],
)
@pytest.mark.parametrize(
    "name", ["1.self_attn.v_proj", "2.mlp.down_proj", "model.norm", "embed_tokens"]
)
def test_a_weight_that_is_no_number_is_named(
    engine: str, quantization: str, name: str, value: float, tmp_path: Path
) -> None:
    directory = make_qwen2(tmp_path / "model")
    held = load_file(directory / WEIGHTS)
    tensor = next(held[key] for key in held if key.endswith(f"{name}.weight"))
    tensor.view(-1)[-1] = value
    change(directory, **{name: tensor})
    with pytest.raises(ShammahError, match=f"{name}") as caught:
        logits_of(engine, directory, tmp_path, quantization)
    assert caught.value.code == "model_corrupt"
    assert "NaN or infinite" in caught.value.message


def test_logits_that_are_no_numbers_end_their_own_answer(tmp_path: Path) -> None:
    """An embedding that nobody else uses."""
    directory = make_qwen2(tmp_path / "model", tied=False)
    table = load_file(directory / WEIGHTS)["model.embed_tokens.weight"]
    table[77, 0] = float("nan")
    change(directory, embed_tokens=table)
    engine = BatchedEngine(TransformersRunner())
    engine.load(inspect_checkpoint(directory), LoadSettings("cpu", "float32"), Watcher())
    for name, tokens in (("ours", TOKENS), ("theirs", [*TOKENS, 77])):
        for temperature in (0.0, 0.7):
            plan = SamplingPlan(temperature, top_k=5)
            engine.submit(
                SequenceRequest(f"{name} {temperature}", tuple(tokens), plan, 3, frozenset())
            )
    ends: dict[str, str] = {}
    while engine.active:
        for result in engine.step():
            if result.failure is not None:
                ends[result.request_id] = result.failure.message
            elif result.finish_reason is not None:
                ends[result.request_id] = result.finish_reason
    assert {ends["ours 0.0"], ends["ours 0.7"]} == {"length"}
    assert {ends["theirs 0.0"], ends["theirs 0.7"]} == {
        "The local model produced NaN or infinite values."
    }


# --- the configuration --------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["qwen2", "llama", "mistral", "qwen3"])
def test_what_is_left_out_is_what_transformers_has(model_type: str) -> None:
    made = CONFIG_MAPPING[model_type](
        **{key: CONFIG[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers")},
        num_attention_heads=32,
    )
    text = json.dumps(
        {"model_type": model_type, "vocab_size": 384, "hidden_size": 32}
        | {"num_hidden_layers": 3, "num_attention_heads": 32}
    )
    config = read_config(text)
    shape = read_shape(config)
    assert read_architecture(config) in NATIVE_FAMILY
    assert shape.context_length == made.max_position_embeddings
    assert shape.kv_heads == made.num_key_value_heads
    assert shape.head_dim == (getattr(made, "head_dim", None) or 1)
    assert shape.tied == made.tie_word_embeddings


@pytest.mark.parametrize("engine", EVERYBODY)
def test_a_configuration_without_architecture_and_context_is_enough(
    engine: str, tmp_path: Path
) -> None:
    directory = make_qwen2(tmp_path / "model")
    expected = logits_of(engine, directory, tmp_path)
    configure(directory, architectures=..., max_position_embeddings=...)
    assert np.array_equal(logits_of(engine, directory, tmp_path), expected)
    assert shape_of(directory).context_length == 32_768


def test_other_model_types_are_looked_up(tmp_path: Path) -> None:
    GPT2LMHeadModel(GPT2Config(vocab_size=384, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
        tmp_path
    )
    make_tokenizer(tmp_path)
    configure(tmp_path, architectures=None, n_positions=..., n_ctx=...)
    found = inspect_checkpoint(tmp_path)
    assert (found.architecture, found.context_length) == ("GPT2LMHeadModel", 1024)
    assert shape_of(tmp_path).context_length == 1024
    assert np.isfinite(logits_of("transformers", tmp_path, tmp_path)).all()


# --- a batch of which one fails -----------------------------------------------------------


def answers(
    directory: Path, model_class: Any, monkeypatch: pytest.MonkeyPatch, breaks_at: int = -1
) -> tuple[dict[str, list[int]], list[str]]:
    """The tokens of three prompts, and the names of those that failed, with the model breaking
    once, at the end of the pass of this number."""
    engine = BatchedEngine(TransformersRunner())
    engine.load(inspect_checkpoint(directory), LoadSettings("cpu", "float32"), Watcher())
    for row in range(3):
        prompt = tuple(token + row for token in TOKENS)
        engine.submit(SequenceRequest(str(row), prompt, SamplingPlan(), 30, frozenset()))
    whole, passes = model_class.forward, itertools.count()

    def forward(self: Any, *arguments: Any, **options: Any) -> Any:
        result = whole(self, *arguments, **options)
        if next(passes) == breaks_at:
            raise RuntimeError("a pass broke")
        return result

    found: dict[str, list[int]] = {str(row): [] for row in range(3)}
    failed = []
    with monkeypatch.context() as patched:
        patched.setattr(model_class, "forward", forward)
        while engine.active:
            for result in engine.step():
                found[result.request_id] += result.token_ids
                if result.failure is not None:
                    failed.append(result.request_id)
    return found, failed


@pytest.mark.parametrize("breaks_at", [12, 13, 14])
def test_a_row_that_fails_leaves_the_others_as_they_would_be(
    breaks_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With caches in which nothing can be written twice."""
    directory = make_windowed(tmp_path / "model")
    expected, _ = answers(directory, MistralForCausalLM, monkeypatch)
    found, [failed] = answers(directory, MistralForCausalLM, monkeypatch, breaks_at)
    for row in expected:
        assert found[row] == expected[row][: len(found[row])]
        assert (len(found[row]) < 30) == (row == failed)


def test_a_row_that_can_be_computed_again_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = make_qwen2(tmp_path / "model")
    expected, _ = answers(directory, Qwen2ForCausalLM, monkeypatch)
    assert answers(directory, Qwen2ForCausalLM, monkeypatch, 8) == (expected, [])


def test_doctor_sees_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    directory = make_qwen2(tmp_path / "model")
    settings = Settings(tmp_path, str(directory))
    assert "error" not in examination.examine(settings, {})["model"]
    words = {f"word{number}": number for number in range(CONFIG["vocab_size"] + 1)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.save(str(directory / "tokenizer.json"))
    error = examination.examine(settings, {})["model"]["error"]
    assert error["code"] == "model_corrupt"
    assert "tokenizer.json has 385 tokens, but they know 384" in error["message"]
