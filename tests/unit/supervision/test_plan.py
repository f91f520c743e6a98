"""What a model costs, to the byte; the numbers are worked out by hand beside each."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.transfers import FetchPlan, PlannedFile
from shammah.models.catalogue import (
    CATALOGUE,
    GIB,
    QWEN2_5,
    Machine,
    ModelShape,
    model_id_of,
    select_model,
)
from shammah.models.footprint import LIBRARIES_BYTES, activation_bytes, kv_bytes
from shammah.models.hub_config import read_config, read_shape, stored_width
from shammah.settings.model import InferenceSettings
from shammah.supervision.plan import ModelPlan, Place, make_plan, need_of

MIB = 1024**2
HALF, ONE_AND_A_HALF, THREE, SEVEN, FOURTEEN = QWEN2_5
FOUR_BITS = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def place(gib: float, gpu_gib: float = 0, permissive: bool = False, **inference: Any) -> Place:
    """Where transformers computes, unless ``engine`` says otherwise."""
    machine = Machine(int(gib * GIB), int(gpu_gib * GIB))
    asked = InferenceSettings(**{"engine": "transformers", **inference})
    return Place(machine, asked, permissive)


def config_of(shape: ModelShape, **changes: Any) -> dict[str, Any]:
    """A configuration as the authors of Qwen2.5 publish it, or of Qwen3 if the heads want that."""
    if shape.head_dim * shape.heads != shape.hidden:
        changes = {"model_type": "qwen3", "head_dim": shape.head_dim, **changes}
    return {
        "model_type": "qwen2",
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context_length,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": "bfloat16",
        **changes,
    }


def found(
    model: str = "acme/half",
    *,
    config: dict[str, Any] | str | None = None,
    weights: int = HALF.download_bytes,
    held: int = 0,
    disk_free: int = 100 * 10**9,
    rate: float = 0.0,
) -> FetchPlan:
    """What the download worker tells of a model as large as Qwen2.5-0.5B."""
    text = config if isinstance(config, str) else json.dumps(config or config_of(HALF.shape))
    files = (
        PlannedFile("config.json", 1000, 0),
        PlannedFile("model-00001-of-00002.safetensors", weights // 2, held),
        PlannedFile("model-00002-of-00002.safetensors", weights - weights // 2, 0),
    )
    total = weights + 1000
    return FetchPlan(
        *("r", model, "c" * 40, "apache-2.0", total, total - held, disk_free, 256 * MIB),
        files=files,
        config=text,
        rate=rate,
    )


class TestTheFormulas:
    @pytest.mark.parametrize(
        ("model", "width", "expected"),
        [
            # 2 x layers x kv heads x head size x 32,768 tokens x width
            (HALF, 4, 2 * 24 * 2 * 64 * 32_768 * 4),
            (HALF, 2, 402_653_184),
            (THREE, 2, 1_207_959_552),  # 36,864 B a token
            (SEVEN, 2, 1_879_048_192),  # 57,344 B a token
            (FOURTEEN, 2, 6_442_450_944),  # 196,608 B a token: 6 GiB
        ],
    )
    def test_keys_and_values(self, model: Any, width: int, expected: int) -> None:
        assert kv_bytes(model.shape, 32_768, width) == expected

    def test_one_step(self) -> None:
        # stream 256 x (8 x 896 + 3 x 4864) x 4 = 22,282,240
        # scores 14 x 256 x 32,768 x 4         = 469,762,048
        # logits 151,936 x 4                   =     607,744
        assert activation_bytes(HALF.shape, 32_768, 4) == 492_652_032
        # in 16 bits the stream alone is half as large: 11,141,120
        assert activation_bytes(HALF.shape, 32_768, 2) == 481_510_912
        assert activation_bytes(HALF.shape, 0, 4) == 22_282_240 + 607_744

    def test_a_whole_model_in_8_bit(self) -> None:
        need = need_of(HALF.shape, HALF.parameters, place(16, engine="auto"))
        assert (need.device, need.dtype) == ("cpu", "int8")
        assert need.weights == 528_615_061  # 494,032,768 x 1.07
        assert need.kv_cache == 402_653_184  # as with 16 bits, see above
        assert need.activations == 492_652_032  # as with 32
        # 14.8 billion weights: 14.7 GiB, so that 24 GiB hold it with a whole conversation.
        large = need_of(FOURTEEN.shape, FOURTEEN.parameters, place(32, engine="auto"))
        assert large.context_fits == 32_768

    @pytest.mark.parametrize(
        ("asked", "architecture", "expected"),
        [
            ({}, "Qwen2ForCausalLM", "int8"),
            ({"engine": "native"}, "Qwen3ForCausalLM", "int8"),
            ({}, "FalconForCausalLM", "float32"),
            ({"quantization": "none"}, "Qwen2ForCausalLM", "float32"),
            ({"engine": "transformers"}, "Qwen2ForCausalLM", "float32"),
            ({"dtype": "bfloat16"}, "Qwen2ForCausalLM", "bfloat16"),
            ({"device": "cuda"}, "Qwen2ForCausalLM", "bfloat16"),
            ({"quantization": "int8"}, "Qwen2ForCausalLM", "int8"),
            ({"quantization": "int4"}, "Qwen2ForCausalLM", "int8"),
            ({"quantization": "int4", "device": "cuda"}, "Qwen2ForCausalLM", "int4"),
        ],
    )
    def test_8_bit_is_reckoned_with_where_the_worker_computes_it(
        self, asked: dict[str, str], architecture: str, expected: str
    ) -> None:
        where = place(16, **{"engine": "auto", **asked})
        assert need_of(HALF.shape, HALF.parameters, where, architecture).dtype == expected

    def test_a_whole_model_in_memory(self) -> None:
        need = need_of(HALF.shape, HALF.parameters, place(16))
        assert (need.device, need.dtype, need.usable) == ("cpu", "float32", 16 * GIB)
        assert need.weights == 4 * 494_032_768
        assert need.loaded == 1_976_131_072 + 512 * MIB
        assert need.full == 1_976_131_072 + 536_870_912 + 805_306_368 + 492_652_032
        # 2,048 tokens: keys and values 50,331,648; a step 22,889,984 + 29,360,128, which is
        # a little more.
        assert need.least == 2_513_001_984 + 50_331_648 + 52_250_112
        assert (need.context_length, need.context_fits) == (32_768, 32_768)

    def test_the_longest_conversation_that_fits(self) -> None:
        # float32 takes 1,976,131,072 + 512 MiB + 512 MiB headroom, less than 3 GiB.
        need = need_of(HALF.shape, HALF.parameters, place(3))
        assert need.dtype == "float32"
        # 3 GiB - weights - libraries = 708,223,488; half of it for 24,576 B a token.
        assert need.context_fits == 354_111_744 // 24_576 == 14_408

    def test_activations_can_limit_it_too(self) -> None:
        # With 90 % for keys and values: 708,223,488 - 22,889,984 for 24,576 + 14,336 B a token.
        need = need_of(HALF.shape, HALF.parameters, place(3, kv_memory=0.6))
        assert need.context_fits == 685_333_504 // 38_912 == 17_612

    @pytest.mark.parametrize(("setting", "expected"), [(4096, 4096), (0, 32_768), (10**6, 32_768)])
    def test_the_setting_for_the_context_holds(self, setting: int, expected: int) -> None:
        need = need_of(HALF.shape, HALF.parameters, place(16, context_length=setting))
        assert need.context_length == need.context_fits == expected
        assert need.kv_cache == expected * 24_576


class TestWhereAndHow:
    @pytest.mark.parametrize(
        ("gib", "dtype"),
        [
            # 4 x 3,085,938,688 + 1 GiB = 12.496 GiB
            (12.49, "bfloat16"),
            (12.5, "float32"),
        ],
    )
    def test_a_cpu_computes_float32_if_that_fits(self, gib: float, dtype: str) -> None:
        assert need_of(THREE.shape, THREE.parameters, place(gib)).dtype == dtype

    def test_with_too_little_room_for_conversations_it_steps_down(self) -> None:
        # 14B as float32 would leave 1.48 GiB of 57: room for 2,017 tokens.
        need = need_of(FOURTEEN.shape, FOURTEEN.parameters, place(57))
        assert (need.dtype, need.context_fits, need.context_length) == ("bfloat16", 4096, 32_768)
        as_asked = need_of(FOURTEEN.shape, FOURTEEN.parameters, place(57, dtype="float32"))
        assert (as_asked.dtype, as_asked.context_fits) == ("float32", 2017)

    def test_the_settings_win(self) -> None:
        need = need_of(HALF.shape, HALF.parameters, place(16, 24, dtype="float16", device="cpu"))
        assert (need.device, need.dtype, need.weights) == ("cpu", "float16", HALF.download_bytes)

    @pytest.mark.parametrize(
        ("gpu_gib", "quantization", "device", "dtype"),
        [
            # 2 x 3,085,938,688 B + 2 GiB = 7.748 GiB; 0.8 times that number + 2 GiB = 4.299
            (7.75, "auto", "cuda", "bfloat16"),
            (7.74, "auto", "cpu", "float32"),
            (7.75, "int8", "cpu", "int8"),
            (4.30, "int4", "cuda", "int4"),
            (4.29, "int4", "cpu", "int8"),
            (7.75, "none", "cuda", "bfloat16"),
            (7.74, "none", "cpu", "float32"),
        ],
    )
    def test_a_gpu_is_used_if_the_model_has_room_there(
        self, gpu_gib: float, quantization: str, device: str, dtype: str
    ) -> None:
        need = need_of(THREE.shape, THREE.parameters, place(16, gpu_gib, quantization=quantization))
        assert (need.device, need.dtype) == (device, dtype)
        assert need.usable == int((gpu_gib if device == "cuda" else 16) * GIB)

    def test_a_mac_computes_16_bits_in_its_main_memory(self) -> None:
        need = need_of(HALF.shape, HALF.parameters, Place(Machine(16 * GIB, mps=True)))
        assert (need.device, need.dtype, need.usable) == ("mps", "bfloat16", 16 * GIB)

    def test_of_a_gpu_that_nobody_can_measure_nothing_is_claimed(self) -> None:
        made = make_plan(found(), place(16, device="cuda"))
        assert made.memory is not None
        assert made.memory.usable == 0
        assert made.verdict == "fits"


class TestTheVerdict:
    def test_fits(self) -> None:
        made = make_plan(found(), place(16))
        assert (made.verdict, made.refusals, made.parameters) == ("fits", (), HALF.parameters)

    def test_fits_with_a_shorter_context(self) -> None:
        made = make_plan(found(), place(3))
        assert made.verdict == "fits_shorter"
        assert made.memory is not None
        assert made.memory.context_fits == 14_408

    def test_too_little_memory(self) -> None:
        fetch = found("acme/fourteen", config=config_of(FOURTEEN.shape), weights=29_540_067_328)
        made = make_plan(fetch, place(16))
        (refusal,) = made.refusals
        assert made.verdict == refusal.code == "memory_too_small"
        # 27.51 + 0.5 GiB, and 0.375 GiB of keys and values, which are half of the rest
        assert "needs 28.8 GiB of memory as bfloat16" in refusal.message
        assert "2,048 tokens" in refusal.message
        assert "has only 16.0 GiB" in refusal.message
        # Of the smaller ones, 7B fits: 14.19 + 0.5 GiB.
        assert "Qwen2.5-7B-Instruct fits: `shammah models pull 7B` (15.2 GB)" in refusal.hint
        assert "--force" in refusal.hint

    def test_what_is_suggested_may_be_used_commercially_if_that_was_asked_for(self) -> None:
        fetch = found("acme/seven", config=config_of(SEVEN.shape), weights=SEVEN.download_bytes)
        (refusal,) = make_plan(fetch, place(12)).refusals
        assert "pull 3B" in refusal.hint
        (refusal,) = make_plan(fetch, place(12, permissive=True)).refusals
        assert "pull qwen3-4b" in refusal.hint

    def test_nothing_smaller_fits(self) -> None:
        (refusal,) = make_plan(found(), place(1)).refusals
        assert refusal.code == "memory_too_small"
        assert "fits" not in refusal.hint
        assert "--model starter" in refusal.hint

    def test_a_setting_that_leaves_no_room_is_named(self) -> None:
        # 2,048 tokens of 12,288 B (16 bits) are 0.0234 GiB.
        (refusal,) = make_plan(found(), place(64, kv_memory=0.0234)).refusals
        assert "inference.kv_memory" in refusal.message
        assert make_plan(found(), place(64, kv_memory=0.0235)).verdict == "fits_shorter"

    def test_a_gpu_that_is_too_small_is_named(self) -> None:
        fetch = found("acme/seven", config=config_of(SEVEN.shape), weights=SEVEN.download_bytes)
        (refusal,) = make_plan(fetch, place(64, 8, device="cuda")).refusals
        assert "the GPU has only 8.0 GiB" in refusal.message

    @pytest.mark.parametrize(
        ("spare", "verdict"), [(0, "fits"), (-1, "disk_too_small"), (-(10**9), "disk_too_small")]
    )
    def test_too_little_disk(self, spare: int, verdict: str) -> None:
        missing = found().missing
        made = make_plan(found(disk_free=missing + 256 * MIB + spare), place(16))
        assert made.verdict == verdict
        assert made.disk_left == 256 * MIB + spare

    def test_the_numbers_of_a_disk_that_is_too_small(self) -> None:
        fetch = found("acme/half", disk_free=500 * 10**6)
        (refusal,) = make_plan(fetch, place(16)).refusals
        assert "the download takes 988.1 MB, 500.0 MB are free" in refusal.message
        assert "268.4 MB must stay free" in refusal.message
        assert "HF_HOME" in refusal.hint

    def test_on_a_small_disk_a_smaller_model_is_suggested(self) -> None:
        seven = found("acme/seven", config=config_of(SEVEN.shape), weights=SEVEN.download_bytes)
        (refusal,) = make_plan(replace(seven, disk_free=5 * 10**9), place(64)).refusals
        assert "`shammah models pull 1.5B` (3.1 GB)" in refusal.hint

    def test_what_is_here_needs_no_room(self) -> None:
        fetch = replace(found(), missing=0, disk_free=0)
        assert make_plan(fetch, place(16)).verdict == "fits"

    def test_memory_is_graver_than_disk(self) -> None:
        made = make_plan(found(disk_free=0), place(1))
        assert [refusal.code for refusal in made.refusals] == ["memory_too_small", "disk_too_small"]
        assert made.verdict == "memory_too_small"

    @pytest.mark.parametrize("permissive", [False, True])
    @pytest.mark.parametrize("gpu_gib", [0, 4, 8, 24])
    def test_the_automatic_choice_fits_wherever_it_is_made(
        self, gpu_gib: int, permissive: bool
    ) -> None:
        for gib in range(3, 65):
            chosen = select_model(gib * GIB, permissive=permissive, gpu_memory=gpu_gib * GIB)
            assert chosen is not None
            need = need_of(chosen.shape, chosen.parameters, place(gib, gpu_gib))
            assert need.context_fits >= need.least_context, (gib, chosen.size)


class TestTheTime:
    def test_is_what_is_missing_at_the_last_rate(self) -> None:
        fetch = found(held=88_066_536, rate=1e7)  # 988,065,536 + 1,000 - held = 9e8
        assert make_plan(fetch, place(16)).eta_s == 90.0

    def test_is_unknown_without_one(self) -> None:
        assert make_plan(found(), place(16)).eta_s is None

    def test_is_none_for_what_is_here(self) -> None:
        assert make_plan(replace(found(), missing=0), place(16)).eta_s == 0.0


class TestTheConfiguration:
    def test_of_every_model_in_the_catalogue_gives_its_shape(self) -> None:
        for model in CATALOGUE:
            assert read_shape(config_of(model.shape)) == model.shape

    def test_what_is_left_out_is_as_transformers_has_it(self) -> None:
        config = config_of(HALF.shape)
        for name in ("num_key_value_heads", "intermediate_size", "tie_word_embeddings"):
            del config[name]
        shape = read_shape(config)
        assert (shape.kv_heads, shape.head_dim, shape.intermediate) == (14, 64, 4 * 896)
        assert shape.tied

    def test_a_head_size_of_its_own(self) -> None:
        assert read_shape(config_of(HALF.shape, head_dim=128)).head_dim == 128

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"model_type": "mistral", "sliding_window": 0}, "gives 0 as sliding_window"),
            ({"use_sliding_window": True, "sliding_window": "4k"}, "gives '4k' as sliding_window"),
            ({"layer_types": ["sliding_attention"], "sliding_window": None}, "does not say"),
        ],
    )
    def test_a_window_that_cannot_be_one_is_refused(
        self, changes: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ValueError, match=says):
            read_shape(config_of(HALF.shape, **changes))
        unused = {"model_type": "qwen2", "use_sliding_window": False, "sliding_window": 0}
        assert read_shape(config_of(HALF.shape, **unused)) == HALF.shape

    def test_older_names(self) -> None:
        config = {
            "n_layer": 12,
            "n_embd": 768,
            "n_head": 12,
            "n_positions": 1024,
            "vocab_size": 50_257,
            "n_inner": None,
        }
        assert read_shape(config) == ModelShape(12, 768, 3072, 12, 12, 64, 50_257, 1024, True)

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"num_hidden_layers": 0}, "gives 0 as num_hidden_layers"),
            ({"hidden_size": "many"}, "gives 'many' as hidden_size"),
            ({"vocab_size": True}, "gives True as vocab_size"),
            ({"num_attention_heads": -1}, "gives -1"),
            (
                {"max_position_embeddings": None, "model_type": "unheard-of"},
                "does not say max_position_embeddings",
            ),
            ({"head_dim": 2**40}, "head_dim"),
            ({"torch_dtype": "int3"}, "gives 'int3' as dtype"),
            ({"torch_dtype": ["bfloat16"]}, "as dtype"),
            ({"quantization_config": {"bits": 4}}, "says that the weights are quantised; only AWQ"),
            (
                {"quantization_config": FOUR_BITS | {"bits": 8}},
                "gives 8 as the bits of AWQ weights",
            ),
            (
                {"quantization_config": FOUR_BITS, "architectures": ["MixtralForCausalLM"]},
                "describes a MixtralForCausalLM in 4 bits",
            ),
        ],
    )
    def test_what_cannot_be_used_is_said(self, changes: dict[str, Any], says: str) -> None:
        made = make_plan(found(config=config_of(HALF.shape, **changes)), place(16))
        assert made.memory is None
        assert says in made.memory_unknown
        assert made.verdict == "fits"

    def test_layers_in_4_bits_are_counted_and_keep_them(self) -> None:
        # Qwen2.5-7B-Instruct-AWQ: 2 x 152,064 x 3584 = 1,089,994,752 numbers of 16 bits, and
        # 6,525,288,448 of 4, of which 128 share a scale of 16 bits and a zero point of 4.
        changes = {"quantization_config": FOUR_BITS, "architectures": ["Qwen2ForCausalLM"]}
        size = 2 * 1_089_994_752 + 6_525_288_448 // 2 + 50_978_816 * 5 // 2
        config = config_of(SEVEN.shape, **changes)
        made = make_plan(found(config=config, weights=size), place(16, engine="auto"))
        assert made.parameters == 1_089_994_752 + 6_525_288_448
        assert made.memory is not None
        assert (made.memory.device, made.memory.dtype) == ("cpu", "int4")
        assert made.memory.weights == int(1.04 * 1_089_994_752 + 0.57 * 6_525_288_448)
        eight = make_plan(found(config=config_of(SEVEN.shape)), place(16, engine="auto")).memory
        assert eight is not None
        assert made.memory.kv_cache == eight.kv_cache

    @pytest.mark.parametrize("text", ["", "[]", "nonsense", "{", "[" * 100_000, "3"])
    def test_what_is_no_configuration_is_said(self, text: str) -> None:
        made = make_plan(replace(found(), config=text), place(16))
        assert (made.memory, made.parameters) == (None, 0)
        assert "config.json" in made.memory_unknown

    def test_the_catalogue_stands_in_for_a_configuration_that_cannot_be_had(self) -> None:
        made = make_plan(replace(found(model_id_of("7B")), config=""), place(64))
        assert made.memory is not None
        assert (made.parameters, made.memory_unknown) == (SEVEN.parameters, "")

    @pytest.mark.parametrize(
        ("config", "width"),
        [
            ({}, 4),
            ({"torch_dtype": "bfloat16"}, 2),
            ({"dtype": "float16"}, 2),
            ({"dtype": "float32", "torch_dtype": "bfloat16"}, 4),
        ],
    )
    def test_the_width_of_what_is_stored(self, config: dict[str, Any], width: int) -> None:
        assert stored_width(config) == width

    @given(st.text(max_size=40) | st.recursive(st.none() | st.integers(), st.lists).map(json.dumps))
    def test_any_text_is_a_plan(self, text: str) -> None:
        assert isinstance(make_plan(replace(found(), config=text), place(16)), ModelPlan)

    @given(
        st.dictionaries(
            st.sampled_from(sorted(config_of(HALF.shape))),
            st.integers(1, 2**32 - 1) | st.floats() | st.none() | st.booleans(),
        ),
        st.floats(0, 10**6),
    )
    def test_any_numbers_are_a_plan(self, changes: dict[str, Any], gib: float) -> None:
        text = json.dumps(config_of(HALF.shape) | changes)
        made = make_plan(replace(found(), config=text), place(gib))
        memory = made.memory
        if memory is not None:
            assert 0 <= memory.context_fits <= memory.context_length
            too_small = memory.context_fits < memory.least_context
            assert (made.verdict == "memory_too_small") is (too_small and memory.usable > 0)

    def test_a_very_large_number_in_it(self) -> None:
        assert read_config('{"a": 1e999}')
        with pytest.raises(ValueError, match="JSON"):
            read_config('{"a": ' + "9" * 5000 + "}")


def test_the_libraries_are_a_round_number_above_what_was_measured() -> None:
    assert 354 * MIB < LIBRARIES_BYTES == 512 * MIB
