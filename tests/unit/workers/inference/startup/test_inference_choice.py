"""Which engine computes a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import InferenceSettings
from workers.inference.engines.native import architecture
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.choice import choose_engine, native_quantizations, on_cpu

MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", 8192, (), 2 * GIB, GIB, "")
PLAIN = Machine(16 * GIB)
WITH_GPU = Machine(16 * GIB, gpu_memory=24 * GIB)


def _chosen(
    machine: Machine = PLAIN,
    obstacle: str = "",
    model: Checkpoint = MODEL,
    quantizations: frozenset[str] = frozenset({"int8"}),
    **asked: str,
) -> str:
    settings = InferenceSettings(**asked)
    return choose_engine(settings, model, machine, lambda checkpoint: obstacle, quantizations)


def test_a_processor_alone_computes_natively_what_can_be() -> None:
    assert _chosen() == "native"
    assert _chosen(quantization="int8") == "native"
    assert _chosen(device="cpu") == "native"
    assert _chosen(obstacle="is a FalconForCausalLM") == "transformers"


def test_a_gpu_with_room_is_used() -> None:
    assert _chosen(WITH_GPU) == "transformers"
    assert _chosen(Machine(16 * GIB, mps=True)) == "transformers"
    assert _chosen(Machine(16 * GIB, gpu_memory=2 * GIB)) == "native"


@pytest.mark.parametrize(
    "asked",
    [{"engine": "transformers"}, {"quantization": "none"}, {"dtype": "float32"}, {"device": "mps"}],
)
def test_what_is_set_is_done(asked: dict[str, str]) -> None:
    assert _chosen(**asked) == "transformers"


def test_the_processor_is_used_beside_a_gpu_when_that_is_set() -> None:
    assert _chosen(WITH_GPU, device="cpu") == "native"
    assert _chosen(WITH_GPU, engine="native") == "native"


@pytest.mark.parametrize(
    "asked",
    [{"dtype": "float32"}, {"quantization": "none"}, {"device": "cuda"}],
)
def test_settings_that_contradict_each_other_are_refused(asked: dict[str, str]) -> None:
    with pytest.raises(ShammahError, match=next(iter(asked))) as refused:
        _chosen(engine="native", **asked)
    assert refused.value.code == "settings_conflict"


def test_what_cannot_be_computed_natively_is_refused_where_that_is_set() -> None:
    with pytest.raises(ShammahError, match="is a Falcon") as refused:
        _chosen(engine="native", obstacle="is a Falcon")
    assert refused.value.code == "model_unsupported"


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_what_the_native_engine_cannot_quantize_goes_to_transformers(quantization: str) -> None:
    assert _chosen(quantization=quantization, obstacle="is a Falcon") == "transformers"
    assert _chosen(quantization=quantization, engine="transformers") == "transformers"
    assert _chosen(WITH_GPU, quantization=quantization) == "transformers"


def test_4_bits_are_computed_natively_where_that_can_be() -> None:
    both = frozenset({"int8", "int4"})
    assert _chosen(quantization="int4") == "transformers"
    assert _chosen(quantization="int4", quantizations=both) == "native"
    assert _chosen(quantization="int4", engine="native", quantizations=both) == "native"
    with pytest.raises(ShammahError, match="quantization is int4") as refused:
        _chosen(quantization="int4", engine="native")
    assert refused.value.code == "settings_conflict"
    assert "int8" in native_quantizations()


def test_a_gpu_that_holds_8_bits_is_used() -> None:
    large = replace(MODEL, parameters=8 * GIB)  # 10 GiB in 8 bits and 2 more, 18 in 16
    assert _chosen(Machine(64 * GIB, gpu_memory=12 * GIB), model=large) == "transformers"
    assert _chosen(Machine(64 * GIB, gpu_memory=11 * GIB), model=large) == "native"


@pytest.mark.parametrize(
    ("machine", "asked", "gpu"),
    [
        (WITH_GPU, {}, "cuda"),
        (Machine(16 * GIB, mps=True), {}, "mps"),
        (WITH_GPU, {"dtype": "float32"}, "cuda"),
        (WITH_GPU, {"engine": "native"}, ""),
        (Machine(16 * GIB, gpu_memory=2 * GIB), {}, ""),
    ],
)
def test_the_processor_may_take_the_place_of_a_gpu_that_was_chosen(
    machine: Machine, asked: dict[str, str], gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(architecture, "supports", lambda checkpoint: "")
    instead = on_cpu(InferenceSettings(**asked), machine)
    assert instead is not None
    assert instead.gpu(MODEL) == gpu
    assert instead.name(MODEL) == ("transformers" if "dtype" in asked else "native")


def test_nothing_takes_the_place_of_what_was_set() -> None:
    assert on_cpu(InferenceSettings(device="cuda"), WITH_GPU) is None
    assert on_cpu(InferenceSettings(), PLAIN) is None
