"""What a request and the model's own recommendation make together."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import Sampling
from shammah.errors import ShammahError
from workers.inference.sampling import SamplingPlan, plan_sampling, read_defaults

RECOMMENDED = SamplingPlan(0.7, 0.8, 20, 1.1)


def _write(directory: Path, generation: Any, config: Any) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(generation))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_the_models_recommendation_fills_the_gaps() -> None:
    assert plan_sampling(Sampling(), RECOMMENDED) == RECOMMENDED
    asked = Sampling(temperature=0.2, top_k=0, seed=7)
    assert plan_sampling(asked, RECOMMENDED) == SamplingPlan(0.2, 0.8, 0, 1.1, 7)


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9])
def test_no_temperature_is_greedy(temperature: float) -> None:
    assert plan_sampling(Sampling(temperature=temperature), RECOMMENDED).temperature == 0.0


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(temperature=-0.1),
        Sampling(temperature=math.nan),
        Sampling(temperature=math.inf),
        Sampling(top_p=0.0),
        Sampling(top_p=1.5),
        Sampling(top_p=math.nan),
        Sampling(top_k=-1),
        Sampling(repetition_penalty=0.0),
        Sampling(repetition_penalty=math.inf),
        Sampling(seed=-1),
        Sampling(seed=2**63),
    ],
)
def test_a_bad_value_is_named(asked: Sampling) -> None:
    [(name, value)] = [
        (field, getattr(asked, field))
        for field in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        if getattr(asked, field) is not None
    ]
    with pytest.raises(ShammahError) as caught:
        plan_sampling(asked, RECOMMENDED)
    assert caught.value.code == "sampling_invalid"
    assert f"{name} is {value}" in caught.value.message


def test_defaults_come_from_both_files(tmp_path: Path) -> None:
    generation = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}
    generation |= {"repetition_penalty": 1.1, "eos_token_id": [5, 6]}
    defaults = read_defaults(_write(tmp_path, generation, {"eos_token_id": 7}))
    assert defaults.plan == RECOMMENDED
    assert defaults.stop_ids == {5, 6, 7}


def test_without_do_sample_the_answer_is_greedy(tmp_path: Path) -> None:
    defaults = read_defaults(_write(tmp_path, {"temperature": 0.7}, {"eos_token_id": None}))
    assert defaults.plan == SamplingPlan(temperature=0.0, top_k=50)
    assert defaults.stop_ids == frozenset()


def test_without_files_the_answer_is_greedy(tmp_path: Path) -> None:
    assert read_defaults(tmp_path).plan.temperature == 0.0


@pytest.mark.parametrize(
    ("generation", "config"),
    [
        ({"do_sample": True, "temperature": "hot"}, {}),
        ({"top_p": 7}, {}),
        ([], {}),
        ({"eos_token_id": "</s>"}, {}),
        ({}, {"eos_token_id": [True]}),
        ({}, {"eos_token_id": -1}),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, generation: Any, config: Any) -> None:
    with pytest.raises(ShammahError) as caught:
        read_defaults(_write(tmp_path, generation, config))
    assert caught.value.code == "model_config_invalid"


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(b"{")
    with pytest.raises(ShammahError, match=r"generation_config\.json cannot be used"):
        read_defaults(tmp_path)
