"""Which engine computes a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.config import InferenceSettings
from shammah.errors import ShammahError
from shammah.models import GIB, Machine
from workers.inference.checkpoint import Checkpoint
from workers.inference.choice import choose_engine

MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", 8192, (), 2 * GIB, GIB, "")
PLAIN = Machine(16 * GIB)
WITH_GPU = Machine(16 * GIB, gpu_memory=24 * GIB)


def _chosen(
    machine: Machine = PLAIN, obstacle: str = "", model: Checkpoint = MODEL, **asked: str
) -> str:
    return choose_engine(InferenceSettings(**asked), model, machine, lambda checkpoint: obstacle)


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
    with pytest.raises(ShammahError, match="is a Falcon") as refused:
        _chosen(quantization="int8", obstacle="is a Falcon")
    assert refused.value.code == "settings_conflict"
