"""What a request and the model's own recommendation make together."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import Sampling
from shammah.errors import ShammahError
from tests.fakes.gguf_files import TINY, gguf_file
from workers.inference.scheduling.sampling import SamplingPlan, plan_sampling, read_defaults

FIELDS = ("temperature", "top_p", "top_k", "repetition_penalty", "min_p", "presence_penalty")
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
        Sampling(min_p=-0.1),
        Sampling(min_p=1.5),
        Sampling(presence_penalty=math.nan),
        Sampling(presence_penalty=-math.inf),
        Sampling(seed=-1),
        Sampling(seed=2**63),
    ],
)
def test_a_bad_value_is_named(asked: Sampling) -> None:
    [(name, value)] = [
        (field, getattr(asked, field))
        for field in (*FIELDS, "seed")
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


DEFAULT = SamplingPlan(temperature=1.0, top_k=50)


@pytest.mark.parametrize(
    ("generation", "plan"),
    [
        ({"top_k": -1}, replace(DEFAULT, top_k=0)),
        ({"top_k": 0}, replace(DEFAULT, top_k=0)),
        ({"top_k": 20.0, "top_p": 1}, replace(DEFAULT, top_k=20)),
        ({"top_k": -7}, DEFAULT),
        ({"top_k": True}, DEFAULT),
        ({"top_k": None}, DEFAULT),
        ({"top_p": 0}, DEFAULT),
        ({"top_p": 7, "temperature": 0.5}, replace(DEFAULT, temperature=0.5)),
        ({"temperature": "hot"}, DEFAULT),
        ({"temperature": math.nan}, DEFAULT),
        ({"temperature": 10**400}, DEFAULT),
        ({"repetition_penalty": 0}, DEFAULT),
        ({"repetition_penalty": [1.1]}, DEFAULT),
        ({"min_p": 2}, DEFAULT),
        ({"min_p": 0, "presence_penalty": 1.5}, replace(DEFAULT, presence_penalty=1.5)),
    ],
)
def test_advice_that_cannot_be_followed_is_left_out(
    tmp_path: Path, generation: dict[str, Any], plan: SamplingPlan
) -> None:
    _write(tmp_path, {"do_sample": True, **generation}, {})
    assert read_defaults(tmp_path).plan == plan


@pytest.mark.parametrize(
    ("generation", "config", "stop_ids"),
    [
        ({"eos_token_id": "2"}, {}, {2}),
        ({"eos_token_id": ["2", 3, None]}, {"eos_token_id": "x"}, {2, 3}),
        ({"eos_token_id": "</s>"}, {"eos_token_id": 5}, {5}),
        ({}, {"eos_token_id": [True]}, set()),
        ({}, {"eos_token_id": -1}, set()),
        ([], {"eos_token_id": 1}, {1}),
    ],
)
def test_what_ends_an_answer_is_taken_where_it_is_a_number(
    tmp_path: Path, generation: Any, config: Any, stop_ids: set[int]
) -> None:
    assert read_defaults(_write(tmp_path, generation, config)).stop_ids == stop_ids


def _gguf(directory: Path, **said: Any) -> Path:
    path = directory / "tiny.gguf"
    keys = {key.replace("__", "."): value for key, value in said.items()}
    path.write_bytes(gguf_file({**TINY, **keys}))
    return path


def test_a_gguf_file_says_what_its_authors_recommend(tmp_path: Path) -> None:
    sampling = {"temp": 0.7, "top_p": 0.8, "top_k": 20, "penalty_repeat": 1.1, "min_p": 0.1}
    said = {f"general__sampling__{key}": value for key, value in sampling.items()}
    defaults = read_defaults(_gguf(tmp_path, **said, tokenizer__ggml__eot_token_id=3))
    assert defaults.plan == replace(RECOMMENDED, min_p=0.1)
    assert defaults.stop_ids == {1, 3}


def test_of_a_gguf_file_that_says_nothing_the_answer_is_greedy(tmp_path: Path) -> None:
    assert read_defaults(_gguf(tmp_path)).plan == SamplingPlan()


@pytest.mark.parametrize(
    "said",
    [
        {"general__sampling__temp": math.nan},
        {"general__sampling__temp": "hot"},
        {"general__sampling__top_k": True},
        {"tokenizer__ggml__eot_token_id": math.nan},
        {"tokenizer__ggml__eot_token_id": "</s>"},
    ],
)
def test_nor_can_a_gguf_file_s_nonsense_be_followed(tmp_path: Path, said: dict[str, Any]) -> None:
    defaults = read_defaults(_gguf(tmp_path, **said))
    assert (defaults.plan, defaults.stop_ids) == (SamplingPlan(), {1})


@pytest.mark.parametrize("content", [b"", b"{", b"null", b"\xff\xfe\x00", b"[" * 100_000])
def test_a_damaged_file_is_left_out(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "generation_config.json").write_bytes(content)
    assert read_defaults(tmp_path).plan.temperature == 0.0
    assert "ignoring generation_config.json" in caplog.text
