"""Which models the mlx engine computes, which it refuses with a reason, and what they take."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from shammah.errors import ShammahError
from tests.real.models import CONFIG, write_checkpoint
from workers.inference.engine import LoadSettings
from workers.inference.engines.mlx import spec
from workers.inference.engines.mlx.architecture import find_obstacle, model_config
from workers.inference.engines.mlx.spec import MLX, place
from workers.inference.memory import is_out_of_memory
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint

GIB = 2**30


def checkpoint(directory: Path, **changes: Any) -> Checkpoint:
    write_checkpoint(directory)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    return inspect_checkpoint(directory)


def of_type(name: str, architecture: str, **changes: Any) -> dict[str, Any]:
    return {"model_type": name, "architectures": [architecture], **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        (of_type("llama", "LlamaForCausalLM", attention_bias=True), ""),
        (
            of_type("qwen3", "Qwen3ForCausalLM", attention_bias=True),
            "biases that are not supported",
        ),
        (of_type("mistral", "MistralForCausalLM", sliding_window=None), ""),
        (of_type("mistral", "MistralForCausalLM", sliding_window=640), ""),
        (of_type("mistral", "MistralForCausalLM", sliding_window=512), "attention (512 tokens)"),
        (of_type("phi", "PhiForCausalLM"), "is a PhiForCausalLM, for which mlx has not been"),
        ({"hidden_act": "gelu"}, "uses the activation gelu"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"partial_rotary_factor": 0.5}, "only part of each head"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "not supported (dynamic)"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "not supported (longrope)"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ""),
        ({"rope_scaling": None, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, ""),
    ],
)
def test_what_is_computed(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    found = find_obstacle(checkpoint(tmp_path, **changes))
    assert reason in found
    assert bool(found) == bool(reason)


def test_the_configuration_is_told_as_the_classes_read_it(tmp_path: Path) -> None:
    rotary = {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}
    found = model_config(checkpoint(tmp_path, rope_parameters=rotary, rms_norm_eps=None))
    assert found["rope_theta"] == 5e5
    assert found["rope_scaling"] == rotary
    assert found["rms_norm_eps"] == 1e-6
    assert found["tie_word_embeddings"] is True
    llama = of_type("llama", "LlamaForCausalLM", num_key_value_heads=None)
    plain = model_config(checkpoint(tmp_path, **llama))
    assert (plain["rope_theta"], plain["rope_scaling"]) == (10_000.0, None)
    assert plain["num_key_value_heads"] == CONFIG["num_attention_heads"]


@pytest.fixture
def model(tmp_path: Path) -> Checkpoint:
    """Of a billion weights, as far as its size matters."""
    made = checkpoint(tmp_path)
    return Checkpoint(made.directory, made.architecture, "qwen2", 640, made.weights, 0, 10**9, "")


@pytest.mark.parametrize(
    ("quantization", "dtype", "needed"),
    [
        # mlx's groups of 64 weights have a scale and an offset of the number format each.
        ("auto", "float16", 10**9 * (1 + 2 * 2 / 64)),
        ("int8", "float32", 10**9 * (1 + 2 * 4 / 64)),
        ("none", "bfloat16", 2 * 10**9),
        ("none", "float32", 4 * 10**9),
    ],
)
def test_what_the_weights_take(
    quantization: str,
    dtype: str,
    needed: float,
    model: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = LoadSettings(dtype=dtype, quantization=quantization)
    monkeypatch.setattr(spec, "free_memory", lambda: 8 * GIB)
    found = place(model, settings)
    assert (found.needed, found.dtype) == (needed, dtype)
    assert found.quantization == ("int8" if quantization in ("auto", "int8") else "")
    monkeypatch.setattr(spec, "free_memory", lambda: GIB)
    with pytest.raises(ShammahError) as refused:
        place(model, settings)
    assert refused.value.code == "out_of_memory"


def test_4_bits_take_less_than_8(model: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "free_memory", lambda: 8 * GIB)
    found = [place(model, LoadSettings(quantization=name)) for name in ("int8", "int4")]
    assert found[1].needed < 0.75 * found[0].needed


def test_without_the_library_the_obstacle_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not MLX.is_installed
    assert MLX.install == "pip install 'shammah[mlx]'"


@pytest.mark.parametrize(
    "said",
    [
        "[METAL] Command buffer execution failed: Insufficient Memory (00000008:kIOGPUCommand...)",
        "[metal::malloc] Attempting to allocate 9 bytes which is greater than the maximum",
        "[malloc_or_wait] Unable to allocate 9 bytes.",
    ],
)
def test_memory_that_is_used_up_is_recognised(said: str) -> None:
    assert is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(ValueError(said))
