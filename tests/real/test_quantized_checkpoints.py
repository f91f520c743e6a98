"""Checkpoints that were published in 4 bits, computed by the native engine.

They are made here from small random models, by the published layouts, and compared with
transformers in float32 on the weights that their numbers, zero points and scales stand for.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel, Machine
from shammah.settings.model import InferenceSettings
from tests.fakes.published import Arrays, Layer, publish
from tests.fakes.spans import prefill
from tests.real.test_adapter_exactness import add, compute, differs, make_adapter, with_peft
from tests.real.test_gpu_choice import Watcher
from tests.real.test_native_models import (
    OPENED,
    allowed,
    decode_all,
    held_weights,
    load,
    make_model,
    reference_logits,
    round_activations,
    some_tokens,
    takes_bytes,
)
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.startup.leftovers import made_from
from workers.inference.startup.loading import Loader

SHAPE: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 64}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 392}
"""Inputs of 128, 256 and 384, which are whole groups, and channels that are whole words."""

ROUNDED_SCALES = 0.035 if takes_bytes() else 0.015
"""Of the spread of the logits, how far from them scales take one that are up to a 510th of the
largest of their channel beside the published ones (0.004 to 0.009 were found here; 0.019 to 0.026
where that makes activations of 8 bits others)."""

FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "awq": ("awq", {}),
    "gptq": ("gptq", {}),
    "gptq symmetric": ("gptq", {"symmetric": True}),
    "gptq v2": ("gptq", {"checkpoint_format": "gptq_v2"}),
    "gptq in order": ("gptq", {"desc_act": True, "static_groups": True}),
}


class Published:
    """A checkpoint below a directory, with what it was made of, and loaded."""

    def __init__(self, directory: Path, kind: str, form: str, group: int) -> None:
        method, told = FORMS[form]
        self.source = make_model(directory / "whole", kind, **SHAPE)
        self.layers = publish(self.source.directory, directory / "model", method, group, **told)
        self.checkpoint = inspect_checkpoint(directory / "model")
        self.runner = load(self.checkpoint, directory / "quantized", quantization="int4")
        self.runner.reserve(4, 80)

    def model(self, layers: dict[str, Layer]) -> Any:
        """transformers in float32 with the weights of these layers, and all else as it is held."""
        found = transformers.AutoModelForCausalLM.from_pretrained(
            self.source.directory, dtype=torch.float32
        )
        weights = held_weights(self.checkpoint, self.runner)
        weights |= {name: layer.weights for name, layer in layers.items()}
        with torch.no_grad():
            for parameter in found.parameters():
                parameter.copy_(parameter.half().float())  # norms and biases are stored so
            for name, array in weights.items():
                found.get_parameter(name).copy_(torch.from_numpy(array))
        round_activations(found, self.checkpoint, "int4")
        return found


@pytest.fixture(scope="module")
def awq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    made = Published(tmp_path_factory.mktemp("awq"), "qwen2", "awq", 128)
    yield made
    made.runner.close()


@pytest.mark.parametrize("group", [128, 64])
@pytest.mark.parametrize("form", ["awq", "gptq", "gptq symmetric"])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_logits_are_those_of_the_published_weights(
    kind: str, form: str, group: int, tmp_path: Path
) -> None:
    made = Published(tmp_path, kind, form, group)
    assert made.checkpoint.format == form.split()[0]
    assert made.checkpoint.parameters == made.source.parameters
    tokens = some_tokens(70)
    decoded = decode_all(made.runner, 0, tokens)
    assert np.array_equal(prefill(made.runner, 1, 0, tokens), decoded[-1])
    held = reference_logits(made.model({}), tokens)
    assert abs(decoded - held).max() < allowed("int4")
    expected = reference_logits(made.model(made.layers), tokens)
    assert np.sqrt(np.mean((decoded - expected) ** 2)) < ROUNDED_SCALES * expected.std()
    assert abs(expected).max() > 1
    made.runner.close()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2-tied"])
def test_all_that_the_engine_computes_is_read(kind: str, tmp_path: Path) -> None:
    made = Published(tmp_path, kind, "awq", 64)
    tokens = some_tokens(20)
    expected = reference_logits(made.model({}), tokens)
    assert abs(decode_all(made.runner, 0, tokens) - expected).max() < allowed("int4")
    made.runner.close()


@pytest.mark.parametrize("form", FORMS)
def test_what_is_held_is_what_was_published(form: str, tmp_path: Path) -> None:
    """Divided by the scale that is held, every weight is its number less its zero point."""
    made = Published(tmp_path, "qwen3", form, 128)
    assert len(made.layers) == 3 * 7
    for name, weights in held_weights(made.checkpoint, made.runner).items():
        if name not in made.layers:
            continue
        layer = made.layers[name]
        published = layer.weights.reshape((len(weights), -1, 128))
        held = weights.astype(np.float64).reshape(published.shape)
        whole = layer.numbers.reshape(published.shape) - layer.zeros[:, :, None]
        scale = (held * whole).sum(2, keepdims=True) / (whole**2).sum(2, keepdims=True)
        assert np.allclose(held, scale * whole, rtol=1e-5, atol=0)
        largest = layer.scales.astype(np.float64).max(1)[:, None, None]
        assert (abs(scale - layer.scales[:, :, None]) <= largest / 510 * (1 + 1e-5)).all()
    made.runner.close()


def test_every_matrix_of_a_layer_has_4_bits(awq: Published) -> None:
    model = OPENED[awq.runner]
    layers = (model.qk, model.v, model.output, model.gate_up, model.down)
    assert {matrix.bits for matrix in layers} == {4}
    assert len(model.outer_down.weights) == 0
    assert (model.embedding.bits, model.head.bits) == (8, 8)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft reads it
def test_an_adapter_is_added_to_4_bits(awq: Published, tmp_path: Path) -> None:
    tokens = some_tokens(41)
    alone = compute(awq.runner, 0, tokens)
    entry = make_adapter(awq.source, tmp_path, "rank8", r=8)
    add(awq.runner, entry)
    found = compute(awq.runner, 1, tokens, entry.name)
    expected = reference_logits(with_peft(awq.model({}), entry), tokens)[34:]
    assert differs(found, expected) < max(6e-3, allowed("int4") / 2)
    assert differs(found, alone) > 0.1
    assert np.array_equal(compute(awq.runner, 2, tokens), alone)
    awq.runner.drop_adapter(entry.name)


def test_the_second_start_packs_nothing(awq: Published) -> None:
    quantized = awq.checkpoint.directory.parent / "quantized"
    (path,) = quantized.iterdir()
    before = path.stat().st_mtime_ns
    again = load(awq.checkpoint, quantized, quantization="int4")
    again.reserve(1, 80)
    tokens = some_tokens(10)
    assert np.array_equal(prefill(again, 0, 0, tokens), prefill(awq.runner, 3, 0, tokens))
    assert path.stat().st_mtime_ns == before
    again.close()


@pytest.mark.parametrize("machine", [Machine(16 * GIB), Machine(16 * GIB, gpu_memory=24 * GIB)])
def test_a_start_loads_it_as_it_is(machine: Machine, awq: Published, tmp_path: Path) -> None:
    located = LocatedModel("tiny", awq.checkpoint.directory, "tiny")
    loader = Loader(InferenceSettings(), machine=machine, watcher=Watcher(), home=tmp_path)
    ready = loader.load(located).ready
    assert (ready.engine, ready.device, ready.quantization) == ("native", "cpu", "int4")
    assert ready.why == "the weights were published in 4 bits"
    (packed,) = (tmp_path / "quantized").glob("*.safetensors")
    assert packed in made_from(awq.checkpoint.directory, tmp_path)


# --- what others write, and what is not computed --------------------------------------------


def change(
    directory: Path, form: str, alter: Callable[[Arrays, dict[str, Layer]], object]
) -> Checkpoint:
    source = make_model(directory / "whole", "llama", **SHAPE)
    method, told = FORMS[form]
    layers = publish(source.directory, directory / "model", method, 64, **told)
    path = directory / "model" / "model.safetensors"
    tensors = load_file(path)
    alter(tensors, layers)
    save_file(tensors, path, {"format": "pt"})
    return inspect_checkpoint(directory / "model")


def first_logits(checkpoint: Checkpoint, quantized: Path) -> NDArray[np.float32]:
    runner = load(checkpoint, quantized, quantization="int4")
    runner.reserve(1, 16)
    found = prefill(runner, 0, 0, some_tokens(10))
    runner.close()
    return found


def test_biases_of_zeros_and_groups_of_zeros_are_not_missed(tmp_path: Path) -> None:
    """AutoGPTQ writes a bias for each layer, and others an empty list of groups."""

    def alter(tensors: Arrays, layers: dict[str, Layer]) -> None:
        for name, layer in layers.items():
            own = name.removesuffix(".weight")
            tensors[own + ".bias"] = np.zeros(len(layer.numbers), np.float16)
            tensors[own + ".g_idx"] = np.zeros(layer.numbers.shape[1], np.int32)

    plain = change(tmp_path / "plain", "gptq", lambda tensors, layers: None)
    altered = change(tmp_path / "altered", "gptq", alter)
    found = [first_logits(one, tmp_path / "quantized") for one in (plain, altered)]
    assert np.array_equal(*found)


LAYER = "model.layers.1.mlp.down_proj"


def scatter(tensors: Arrays, layers: dict[str, Layer]) -> None:
    tensors[LAYER + ".g_idx"] = tensors[LAYER + ".g_idx"][::-1].copy()


def leave_out(tensors: Arrays, layers: dict[str, Layer]) -> None:
    for part in ("qweight", "qzeros", "scales", "g_idx"):
        del tensors[f"{LAYER}.{part}"]
    tensors[LAYER + ".weight"] = layers[LAYER + ".weight"].weights.astype(np.float16)


def quantize_head(tensors: Arrays, layers: dict[str, Layer]) -> None:
    del tensors["lm_head.weight"]
    words = np.zeros((128 // 8, 392), np.int32)
    parts = {"qweight": words, "qzeros": np.zeros((2, 49), np.int32)}
    parts["scales"] = np.ones((2, 392), np.float16)
    tensors |= {f"lm_head.{part}": array for part, array in parts.items()}


def add_bias(tensors: Arrays, layers: dict[str, Layer]) -> None:
    tensors[LAYER + ".bias"] = np.ones(128, np.float16)


def add_layer(tensors: Arrays, layers: dict[str, Layer]) -> None:
    for part in ("qweight", "qzeros", "scales"):
        tensors[f"model.layers.1.experts.0.{part}"] = tensors[f"{LAYER}.{part}"]


def spoil(tensors: Arrays, layers: dict[str, Layer]) -> None:
    tensors[LAYER + ".scales"][1, 1] = np.nan


@pytest.mark.parametrize(
    ("alter", "code", "why"),
    [
        (scatter, "model_unsupported", f"groups of {LAYER} are scattered over its inputs"),
        (leave_out, "model_unsupported", f"{LAYER}.weight is in 16 bits (modules_to_not_convert)"),
        (quantize_head, "model_unsupported", "lm_head.weight is in 4 bits"),
        (
            add_bias,
            "model_config_invalid",
            f"config.json does not describe ({LAYER}.bias",
        ),
        (add_layer, "model_config_invalid", "does not describe (model.layers.1.experts.0.weight"),
        (spoil, "model_corrupt", f"{LAYER}.scales holds NaN"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    alter: Any, code: str, why: str, tmp_path: Path
) -> None:
    with pytest.raises(ShammahError) as refused:
        first_logits(change(tmp_path, "gptq", alter), tmp_path / "quantized")
    assert (refused.value.code, why in refused.value.message) == (code, True), refused.value
    assert not list((tmp_path / "quantized").glob("*"))


def test_a_configuration_of_other_layers_is_refused(tmp_path: Path) -> None:
    checkpoint = change(tmp_path, "awq", lambda tensors, layers: None)
    path = checkpoint.directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 256}))
    with pytest.raises(ShammahError, match=r"gate_proj.weight as \[384, 128\]") as refused:
        first_logits(inspect_checkpoint(checkpoint.directory), tmp_path / "quantized")
    assert refused.value.code == "model_config_invalid"
