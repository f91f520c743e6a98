"""Which models the native runner computes, and which it refuses with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.errors import ShammahError
from tests.real.models import CONFIG, write_checkpoint
from workers.inference.engines.native.architecture import read_architecture, supports
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def checkpoint(directory: Path, **changes: Any) -> Checkpoint:
    write_checkpoint(directory)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}
    (directory / "config.json").write_text(json.dumps(config))
    return inspect_checkpoint(directory)


def test_what_is_read(tmp_path: Path) -> None:
    found = read_architecture(checkpoint(tmp_path, rope_theta=1e6, rms_norm_eps=1e-5))
    assert (found.layers, found.hidden, found.heads, found.kv_heads) == (3, 32, 4, 2)
    assert (found.head_size, found.intermediate, found.vocabulary) == (8, 64, 384)
    assert (found.eps, found.tied, found.has_bias, found.has_head_norms) == (
        1e-5,
        True,
        True,
        False,
    )
    assert found.frequencies == pytest.approx((1.0, 1e6**-0.25, 1e6**-0.5, 1e6**-0.75))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"architectures": ["LlamaForCausalLM"]}, ""),
        ({"architectures": ["Qwen3ForCausalLM"]}, ""),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, ""),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 640}, ""),
        (
            {"architectures": ["MistralForCausalLM"], "sliding_window": 512},
            "sliding window attention (512 tokens)",
        ),
        ({"architectures": ["Phi3ForCausalLM"]}, "is a Phi3ForCausalLM"),
        ({"use_sliding_window": True}, "sliding window"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding window"),
        ({"layer_types": ["full_attention"] * 3}, ""),
        ({"hidden_act": "gelu"}, "activation gelu"),
        ({"architectures": ["LlamaForCausalLM"], "attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"head_dim": 7}, "an odd size (7)"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "(yarn)"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "(dynamic)"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ""),
        ({"rope_parameters": LLAMA3}, ""),
        ({"partial_rotary_factor": 0.5}, "only part of each head"),
    ],
)
def test_what_cannot_be_computed_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = checkpoint(tmp_path, **changes)
    assert reason in supports(found)
    assert bool(reason) == bool(supports(found))
    if reason:
        with pytest.raises(ShammahError) as caught:
            read_architecture(found)
        assert caught.value.code == "model_unsupported"
        assert reason in caught.value.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("intermediate_size", ...),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_theta", 10**400),
        ("head_dim", 2**31),
    ],
)
def test_a_configuration_without_sense_is_refused(name: str, value: object, tmp_path: Path) -> None:
    found = checkpoint(tmp_path, **{name: value})
    assert supports(found) == ""
    with pytest.raises(ShammahError) as caught:
        read_architecture(found)
    assert caught.value.code == "model_config_invalid"
    assert name in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
READ = (
    *("hidden_act", "attention_bias", "use_sliding_window", "layer_types", "sliding_window"),
    *("rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "rms_norm_eps"),
    *("num_key_value_heads", "head_dim", "intermediate_size", "tie_word_embeddings"),
    *("max_position_embeddings", "architectures", "model_type"),
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from(READ), JSON, min_size=1, max_size=3))
def test_whatever_a_configuration_says_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, changes: dict[str, Any]
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any"
    if not directory.exists():
        write_checkpoint(directory)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    refusal = None
    try:
        found = inspect_checkpoint(directory)
        supports(found)
        read_architecture(found)
    except ShammahError as error:
        refusal = error
    if refusal is not None:
        assert refusal.code in ("model_config_invalid", "model_unsupported")
        assert len(refusal.message) < 500


def test_llama3_slows_the_slow_turns_alone(tmp_path: Path) -> None:
    plain = np.array(read_architecture(checkpoint(tmp_path / "a", head_dim=64)).frequencies)
    scaled = np.array(
        read_architecture(
            checkpoint(tmp_path / "b", head_dim=64, rope_parameters=LLAMA3)
        ).frequencies
    )
    turns = 64 * plain / (2 * np.pi)
    assert np.allclose(scaled[turns > 4], plain[turns > 4])
    assert np.allclose(scaled[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()


def test_rotations_are_of_the_positions_asked(tmp_path: Path) -> None:
    found = read_architecture(checkpoint(tmp_path))
    cosines, sines = found.rotations(np.array([0, 5]))
    assert cosines.shape == sines.shape == (2, 4)
    assert cosines[0] == pytest.approx(1)
    assert cosines[1] == pytest.approx(np.cos(5 * np.array(found.frequencies)))
    assert sines[1] == pytest.approx(np.sin(5 * np.array(found.frequencies)))
