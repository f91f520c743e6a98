"""Adapters in the inference worker: reading them, keeping them, and keeping them apart."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from shammah.bus.messages import Ready
from shammah.errors import ShammahError
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore
from tests.real.adapters import write_adapter
from tests.unit.workers.inference.scheduling.test_inference_speculation import (
    REQUESTS,
    ToyRunner,
    _engine,
    _request,
    _run,
    _tokens,
)
from workers.inference.engine import SequenceRequest
from workers.inference.engines.native.architecture import Architecture
from workers.inference.packages.adapter_file import (
    Adapter,
    LowRank,
    find_adapter,
    key_of,
    read_adapter,
)
from workers.inference.scheduling.adapter_cache import AdapterCache
from workers.inference.scheduling.slots import COPY_FROM, Placement, Slots

MODULE = "model.layers.0.self_attn.q_proj"
READY = Ready("starter", "r1")
Change = Callable[[dict[str, Any], dict[str, NDArray[np.float32]]], None]


def _matrices(rank: int = 2, module: str = MODULE) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(3)
    key = f"base_model.model.{module}"
    return {
        f"{key}.lora_A.weight": random.normal(size=(rank, 6)).astype(np.float32),
        f"{key}.lora_B.weight": random.normal(size=(4, rank)).astype(np.float32),
    }


def _entry(home: Path, change: Change = lambda config, tensors: None, **facts: Any) -> AdapterEntry:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none"}
    tensors = _matrices()
    change(config, tensors)
    return write_adapter(home, "tidy", config, tensors, **facts)


def _refusal(entry: AdapterEntry) -> ShammahError:
    with pytest.raises(ShammahError) as caught:
        read_adapter(entry, "key")
    assert "/adapter off" in caught.value.hint
    return caught.value


# --- reading ------------------------------------------------------------------------------


def test_an_adapter_is_read_with_its_scale(tmp_path: Path) -> None:
    adapter = read_adapter(_entry(tmp_path), "key")
    a, b = _matrices().values()
    assert list(adapter.layers) == [MODULE]
    assert np.array_equal(adapter.layers[MODULE].down, a)
    assert np.array_equal(adapter.layers[MODULE].up, b * np.float32(3))
    assert adapter.bytes == 4 * (2 * 6 + 4 * 2)


@pytest.mark.parametrize(
    ("own", "scale"),
    [
        ({"use_rslora": True}, 6 / math.sqrt(2)),
        ({"alpha_pattern": {"k_proj": 2}}, 3.0),
        ({"alpha_pattern": {"q_proj": 2}}, 1.0),
        ({"alpha_pattern": {"model.layers.[0-3].self_attn.q_proj": 8}}, 4.0),
        ({"r": 64, "rank_pattern": {"q_proj": 2}}, 3.0),
    ],
)
def test_the_scale_is_what_peft_makes_of_the_configuration(
    own: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    adapter = read_adapter(_entry(tmp_path, lambda config, _: config.update(own)), "key")
    expected = _matrices()[f"base_model.model.{MODULE}.lora_B.weight"] * np.float32(scale)
    assert np.array_equal(adapter.layers[MODULE].up, expected)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_every_float_format_is_read(kind: str, tmp_path: Path) -> None:
    entry = write_adapter(tmp_path, "tidy", {"lora_alpha": 2}, _matrices(), kind=kind)
    low_rank = read_adapter(entry, "key").layers[MODULE]
    a = _matrices()[f"base_model.model.{MODULE}.lora_A.weight"]
    assert abs(low_rank.down - a).max() <= {"F32": 0, "F16": 1e-3, "BF16": 1.6e-2}[kind]


@pytest.mark.parametrize(
    ("own", "why"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"something_of_next_year": {"x": 1}}, "something_of_next_year"),
    ],
)
def test_what_would_change_the_answer_otherwise_is_refused(
    own: dict[str, Any], why: str, tmp_path: Path
) -> None:
    error = _refusal(_entry(tmp_path, lambda config, _: config.update(own)))
    assert error.code == "adapter_unsupported"
    assert why in error.message


def test_tensors_of_another_method_are_refused(tmp_path: Path) -> None:
    def change(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
        key = f"base_model.model.{MODULE}.lora_magnitude_vector.weight"
        tensors[key] = np.ones((1, 4), np.float32)

    error = _refusal(_entry(tmp_path, change))
    assert (error.code, "magnitude" in error.message) == ("adapter_unsupported", True)


def _cut(entry: AdapterEntry) -> None:
    path = entry.directory / WEIGHTS
    path.write_bytes(path.read_bytes()[:-10])


def _flip(entry: AdapterEntry) -> None:
    path = entry.directory / WEIGHTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        _cut,
        _flip,
        lambda entry: (entry.directory / WEIGHTS).unlink(),
        lambda entry: (entry.directory / CONFIG).write_text("{"),
        lambda entry: (entry.directory / CONFIG).write_text("[]"),
        lambda entry: (entry.directory / CONFIG).write_text('{"lora_alpha": "much"}'),
        lambda entry: (entry.directory / CONFIG).write_text('{"lora_alpha": NaN}'),
        lambda entry: (entry.directory / CONFIG).write_text('{"lora_alpha": 1e300}'),
        lambda entry: (entry.directory / CONFIG).write_text(f'{{"lora_alpha": {10**400}}}'),
        lambda entry: (entry.directory / CONFIG).write_text("{}"),
    ],
)
def test_a_damaged_adapter_is_found(harm: Callable[[AdapterEntry], None], tmp_path: Path) -> None:
    entry = _entry(tmp_path)
    harm(entry)
    assert _refusal(entry).code == "adapter_damaged"


def _without_b(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    del tensors[f"base_model.model.{MODULE}.lora_B.weight"]


def _of_two_ranks(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    tensors[f"base_model.model.{MODULE}.lora_B.weight"] = np.ones((4, 3), np.float32)


def _not_finite(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    tensors[f"base_model.model.{MODULE}.lora_A.weight"][0, 0] = math.nan


def _nothing(config: dict[str, Any], tensors: dict[str, NDArray[np.float32]]) -> None:
    tensors.clear()


@pytest.mark.parametrize("change", [_without_b, _of_two_ranks, _not_finite, _nothing])
def test_matrices_that_are_none_are_found(change: Change, tmp_path: Path) -> None:
    assert _refusal(_entry(tmp_path, change)).code == "adapter_damaged"


def test_only_an_adapter_of_this_model_is_found(tmp_path: Path) -> None:
    entry = _entry(tmp_path, base_model="starter", base_revision="r1")
    assert find_adapter(tmp_path, "tidy", READY) == entry
    assert find_adapter(tmp_path, "tidy", Ready("starter")) == entry  # whose revision nobody knows
    for name, ready, code in (
        ("other", READY, "adapter_not_found"),
        ("../adapters/tidy", READY, "adapter_not_found"),
        ("tidy", Ready("larger", "r1"), "adapter_wrong_base"),
        ("tidy", Ready("starter", "r2"), "adapter_wrong_base"),
    ):
        with pytest.raises(ShammahError) as caught:
            find_adapter(tmp_path, name, ready)
        assert caught.value.code == code


def test_other_numbers_have_another_key(tmp_path: Path) -> None:
    first = key_of(_entry(tmp_path))
    assert key_of(AdapterStore(tmp_path).get("tidy")) == first
    AdapterStore(tmp_path).remove("tidy")
    again = _entry(tmp_path, lambda config, tensors: config.update(lora_alpha=8))
    assert key_of(again) != first


# --- keeping ------------------------------------------------------------------------------


def _kept(budget: int) -> tuple[AdapterCache, list[str]]:
    dropped: list[str] = []
    return AdapterCache(budget, dropped.append), dropped


def test_what_was_unused_for_longest_makes_room() -> None:
    shelf, dropped = _kept(30)
    for key in "abc":
        shelf.add(key, 10, ())
    shelf.use("a")
    shelf.add("d", 10, ())
    assert dropped == ["b"]
    assert [shelf.holds(key) for key in "abcd"] == [True, False, True, True]


def test_what_is_needed_stays_whatever_it_takes() -> None:
    shelf, dropped = _kept(10)
    shelf.add("a", 50, ())
    shelf.add("b", 50, {"a"})
    assert dropped == []
    shelf.add("c", 1, {"b"})
    assert dropped == ["a"]


# --- keeping apart ------------------------------------------------------------------------


def test_a_beginning_is_reused_only_with_the_adapter_it_was_computed_with() -> None:
    prompt = list(range(4 * COPY_FROM))
    slots = Slots(3, 1000, reuses=True)
    for owner, adapter in (("a", ""), ("b", "tidy"), ("c", "terse")):
        place = slots.place(owner, prompt, 80, adapter=adapter)
        assert place is not None
        assert place.reused == 0
        assert place.copy_from is None
        slots.extend(place.slot, prompt)
        slots.free(place.slot)
    for slot, adapter in enumerate(("", "tidy", "terse")):
        assert slots.place("again", [*prompt, 1], 80, adapter=adapter) == Placement(
            slot, len(prompt)
        )
        slots.free(slot)


def _adapter(key: str) -> Adapter:
    return Adapter(key, key, {MODULE: LowRank(np.ones((1, 6), np.float32), np.ones((4, 1)))})


KEYS = ("", "tidy", "terse")


@given(REQUESTS, st.lists(st.sampled_from(KEYS), min_size=10, max_size=10), st.booleans())
@settings(max_examples=30)
def test_a_mixed_batch_gives_each_what_it_gets_alone(
    requests: list[SequenceRequest], keys: list[str], speculates: bool
) -> None:
    """`ToyRunner` also refuses what was computed with another adapter than it is used with."""
    named = [
        replace(one, request_id=str(number), adapter=keys[number])
        for number, one in enumerate(requests)
    ]
    together = _engine(ToyRunner(), speculates=speculates)
    for key in KEYS[1:]:
        together.add_adapter(_adapter(key))
    found = _run(together, *named)
    for one in named:
        alone = _engine(ToyRunner(), speculates=False)
        for key in KEYS[1:]:
            alone.add_adapter(_adapter(key))
        expected = _run(alone, one)[one.request_id]
        assert _tokens(found[one.request_id]) == _tokens(expected)


def test_an_adapter_that_a_waiting_sequence_needs_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.inference.scheduling.batched_engine.BUDGET_BYTES", 1)
    runner = ToyRunner()
    engine = _engine(runner)
    for key in ("tidy", "terse"):
        engine.add_adapter(_adapter(key))
        engine.submit(replace(_request(key), adapter=key))
    assert set(runner.held) == {"tidy", "terse"}
    while engine.active:
        assert all(result.failure is None for result in engine.step())
    engine.add_adapter(_adapter("third"))
    assert set(runner.held) == {"third"}


# --- what the native engine can hold --------------------------------------------------------

SHAPE = Architecture(
    layers=2,
    hidden=6,
    heads=1,
    kv_heads=1,
    head_size=4,
    intermediate=8,
    vocabulary=9,
    positions=16,
    eps=1e-6,
    tied=True,
    has_bias=False,
    has_head_norms=False,
    frequencies=(0.0, 0.0),
)


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("model.layers.1.self_attn.q_proj", ""),
        ("lm_head", "adapter_unsupported"),
        ("model.layers.0.self_attn.q_norm", "adapter_unsupported"),
        ("model.layers.2.self_attn.q_proj", "adapter_wrong_base"),
        ("model.layers.0.mlp.down_proj", "adapter_wrong_base"),
    ],
)
def test_the_native_engine_takes_what_fits_its_model(module: str, code: str) -> None:
    from workers.inference.engines.native.held_adapters import HeldAdapters

    held = HeldAdapters(SHAPE)
    adapter = Adapter("k", "tidy", {module: _adapter("").layers[MODULE]})
    if not code:
        assert held.add(adapter) > 0
        assert held.of_rows(["", "k"]).used
    else:
        with pytest.raises(ShammahError) as caught:
            held.add(adapter)
        assert caught.value.code == code
        assert module in caught.value.message
    assert not held.of_rows(["", ""]).used


def test_the_facts_beside_the_weights_are_those_of_the_store(tmp_path: Path) -> None:
    entry = _entry(tmp_path, base_model="starter")
    assert json.loads((entry.directory / "shammah.json").read_bytes())["digest"] == entry.digest
