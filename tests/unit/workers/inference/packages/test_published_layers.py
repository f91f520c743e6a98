"""Layers in 4 bits: found by their tensors, and their numbers taken out of the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shammah.errors import ShammahError
from shammah.models.published_bits import PublishedBits
from tests.fakes.published import Arrays, pack_awq, pack_gptq
from tests.real.models import CONFIG, HIDDEN, LAYERS, VOCABULARY, write_checkpoint
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.packages.published_numbers import PublishedWeights

GROUP = 32
BITS = {
    "awq": PublishedBits("awq", GROUP),
    "gptq": PublishedBits("gptq", GROUP, 1),
    "gptq_v2": PublishedBits("gptq", GROUP, 0),
}


def some_numbers(channels: int, inputs: int) -> tuple[NDArray[np.int64], ...]:
    """Numbers and zero points, all of 0 to 15 among them."""
    chance = np.random.default_rng(5)
    zeros = chance.integers(0, 16, (channels, -(-inputs // GROUP)))
    return chance.integers(0, 16, (channels, inputs)), zeros


def pack(form: str, channels: int, inputs: int) -> Arrays:
    numbers, zeros = some_numbers(channels, inputs)
    scales = np.random.default_rng(6).random(zeros.shape).astype(np.float16)
    if form == "awq":
        return pack_awq(numbers, zeros, scales)
    return pack_gptq(numbers, zeros, scales, GROUP, version=2 if form == "gptq_v2" else 1)


@pytest.mark.parametrize("form", BITS)
@pytest.mark.parametrize(("begin", "end"), [(0, 40), (0, 16), (16, 40), (24, 99)])
def test_every_number_and_zero_point_is_recovered(form: str, begin: int, end: int) -> None:
    packed = pack(form, 40, 96)
    scales = packed["scales"].astype(np.float32)
    weights = PublishedWeights(BITS[form], packed["qweight"], packed["qzeros"], scales)
    numbers, zeros, found = weights.channels(begin, end)
    expected = some_numbers(40, 96)
    assert np.array_equal(numbers, expected[0][begin:end])
    assert np.array_equal(zeros, expected[1][begin:end])
    assert np.array_equal(found, scales.T[begin:end])


def test_the_words_are_those_of_the_publishers() -> None:
    numbers = np.arange(8)[:, None].repeat(8, 1)
    zeros = np.arange(8)[:, None]
    scales = np.ones((8, 1), np.float16)
    awq = pack_awq(numbers, zeros, scales)
    assert [hex(word) for word in awq["qweight"][0]] == ["0x75316420"]
    assert [hex(word) for word in awq["qzeros"][0]] == ["0x75316420"]
    gptq = pack_gptq(numbers, zeros + 1, scales, 8)
    assert [hex(word) for word in gptq["qweight"][0][:3]] == ["0x0", "0x11111111", "0x22222222"]
    assert [hex(word) for word in gptq["qzeros"][0]] == ["0x76543210"]


def write(directory: Path, form: str = "awq", **changed: Any) -> Path:
    """A checkpoint of one layer in 4 bits; ``changed``: other tensors (``None``: left out)."""
    write_checkpoint(directory)
    told = {"quant_method": form, "bits": 4, "group_size": GROUP}
    (directory / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": told}))
    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": np.zeros((VOCABULARY, HIDDEN), np.float16),
        **{f"model.layers.{n}.norm.weight": np.zeros(HIDDEN, np.float16) for n in range(LAYERS)},
        **{f"x.{part}": array for part, array in pack(form, 40, 96).items()},
        **{f"x.{part}": array for part, array in changed.items()},
    }
    stored = {name: array for name, array in tensors.items() if array is not None}
    save_file(stored, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("form", ["awq", "gptq"])
def test_a_checkpoint_in_4_bits_is_described(form: str, tmp_path: Path) -> None:
    found = inspect_checkpoint(write(tmp_path, form))
    assert found.format == form
    assert found.parameters == VOCABULARY * HIDDEN + LAYERS * HIDDEN + 40 * 96


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"qzeros": None}, "hold x.qweight, but lack x.qzeros"),
        ({"scales": None}, "hold x.qweight, but lack x.scales"),
        ({"qweight": None}, "are not quantised, though config.json says so"),
        ({"qweight": np.zeros((96, 5), np.int64)}, "hold x.qweight as I64 [96, 5]"),
        ({"qweight": np.zeros(96, np.int32)}, "hold x.qweight as I32 [96]"),
        (
            {"qweight": np.zeros((96, 6), np.int32)},
            "hold x.qzeros as I32 [3, 5] instead of I32 [3, 6]",
        ),
        (
            {"qweight": np.zeros((192, 5), np.int32)},
            "hold x.qzeros as I32 [3, 5] instead of I32 [6, 5]",
        ),
        (
            {"scales": np.zeros((3, 40), np.int16)},
            "hold x.scales as I16 [3, 40] instead of F16 [3, 40]",
        ),
        (
            {"g_idx": np.zeros(95, np.int32)},
            "hold x.g_idx as I32 [95] instead of I32 [96]",
        ),
    ],
)
def test_a_layer_that_is_not_whole_is_refused(
    changed: dict[str, Any], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ShammahError) as refused:
        inspect_checkpoint(write(tmp_path, **changed))
    assert refused.value.code == "model_config_invalid"
    assert why in refused.value.message


def test_layers_in_4_bits_of_which_nothing_is_said_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(ShammahError, match=r"does not say how x\.qweight is quantised") as refused:
        inspect_checkpoint(tmp_path)
    assert refused.value.code == "model_config_invalid"


def test_the_reason_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path)
    config = CONFIG | {"quantization_config": {"quant_method": "aqlm"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ShammahError) as refused:
        inspect_checkpoint(tmp_path)
    assert refused.value.code == "model_unsupported"
    assert refused.value.hint == "Name the model's original (unquantised) repository."
