"""What config.json says about weights in 4 bits."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.models.published_bits import PublishedBits, read_published_bits

AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
SUPPORTED = "; only AWQ (gemm) and GPTQ are supported, in 4 bits and groups of 32, 64 or 128"


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (None, None),
        ({}, None),
        (AWQ | {"zero_point": True}, PublishedBits("awq", 128)),
        (AWQ | {"version": "GEMM", "group_size": 64}, PublishedBits("awq", 64)),
        (AWQ | {"version": None, "format": "gemm"}, PublishedBits("awq", 128)),
        (GPTQ, PublishedBits("gptq", 128, 1)),
        (GPTQ | {"sym": False, "group_size": 32}, PublishedBits("gptq", 32, 1)),
        (GPTQ | {"checkpoint_format": "gptq"}, PublishedBits("gptq", 128, 1)),
        (GPTQ | {"checkpoint_format": "gptq_v2"}, PublishedBits("gptq", 128, 0)),
        (GPTQ | {"format": "gptq_v2"}, PublishedBits("gptq", 128, 0)),
        (GPTQ | {"desc_act": True, "static_groups": True}, PublishedBits("gptq", 128, 1)),
    ],
)
def test_what_is_supported_is_recognised(told: Any, expected: PublishedBits | None) -> None:
    assert read_published_bits({"quantization_config": told}) == expected


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"bits": 4}, "says that the weights are quantised" + SUPPORTED),
        ([1], "says that the weights are quantised" + SUPPORTED),
        ("gptq", "says that the weights are quantised" + SUPPORTED),
        ({"quant_method": "fp8"}, "says that the weights are quantised by 'fp8'" + SUPPORTED),
        ({"quant_method": "bitsandbytes"}, "by 'bitsandbytes'" + SUPPORTED),
        ({"quant_method": "compressed-tensors"}, "by 'compressed-tensors'" + SUPPORTED),
        ({"quant_method": ["awq"]}, "by ['awq']" + SUPPORTED),
        (AWQ | {"bits": 8}, "gives 8 as the bits of AWQ weights" + SUPPORTED),
        (AWQ | {"version": "gemv"}, "gives 'gemv' as the version of AWQ weights"),
        (AWQ | {"version": "marlin"}, "gives 'marlin' as the version of AWQ weights"),
        (AWQ | {"zero_point": False}, "gives False as the zero_point of AWQ weights"),
        (GPTQ | {"bits": 3}, "gives 3 as the bits of GPTQ weights"),
        (GPTQ | {"bits": "4"}, "gives '4' as the bits of GPTQ weights"),
        (GPTQ | {"bits": None}, "gives None as the bits of GPTQ weights"),
        (GPTQ | {"group_size": -1}, "gives -1 as the group_size of GPTQ weights"),
        (GPTQ | {"group_size": True}, "gives True as the group_size of GPTQ weights"),
        (GPTQ | {"group_size": [128]}, "gives [128] as the group_size of GPTQ weights"),
        (GPTQ | {"is_marlin_format": True}, "gives 'marlin' as the format of GPTQ weights"),
        (GPTQ | {"checkpoint_format": "bitblas"}, "gives 'bitblas' as the format"),
        (GPTQ | {"desc_act": True}, "sets desc_act, and weights whose groups are scattered"),
    ],
)
def test_all_else_is_refused_in_one_sentence(told: Any, why: str) -> None:
    with pytest.raises(ValueError, match=r"^(?!\s)[^\n]+$") as refused:
        read_published_bits({"quantization_config": told})
    assert why in str(refused.value)


@given(st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps), st.data())
def test_any_values_are_read_or_refused(text: str, data: st.DataObject) -> None:
    base = data.draw(st.sampled_from([AWQ, GPTQ]))
    name = data.draw(st.sampled_from(["quant_method", "bits", "group_size", "version", "format"]))
    try:
        found = read_published_bits({"quantization_config": base | {name: json.loads(text)}})
    except ValueError:
        return
    assert found in (PublishedBits("awq", 128), PublishedBits("gptq", 128, 1))
