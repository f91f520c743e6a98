"""In which ways a model can be computed, the best one first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.models.footprint import SHORT_CONTEXT
from shammah.settings.model import InferenceSettings
from workers.inference.engine import LoadSettings
from workers.inference.engines.mlx.spec import make_spec
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.offers import (
    Alternative,
    Offer,
    choose_engine,
    find_alternatives,
    find_offers,
)

LONG = 32_768
MODEL = Checkpoint(Path("/m"), "Qwen2ForCausalLM", "qwen2", LONG, (), 2 * GIB, GIB, "")
PLAIN = Machine(16 * GIB)
WITH_GPU = Machine(16 * GIB, gpu_memory=24 * GIB)
MAC = Machine(16 * GIB, mps=True)

WHOLE, SHORT, INT4 = "", "short", "int4"


def _offers(
    machine: Machine = PLAIN,
    obstacle: str = "",
    model: Checkpoint = MODEL,
    mlx: str | None = None,
    vllm: bool = False,
    **asked: Any,
) -> list[Offer]:
    """``mlx``: why that engine cannot compute where there is Apple silicon; ``None``: it is not
    installed. ``vllm``: whether that is."""
    engines = dict(ENGINES)
    engines["vllm"] = replace(engines["vllm"], requires=() if vllm else ("no_such_package",))
    mine = make_spec(on_apple_silicon=machine.mps)
    if mlx is None:
        engines["mlx"] = replace(mine, requires=("no_such_package",))
    else:
        engines["mlx"] = replace(mine, requires=(), obstacle=lambda checkpoint: mlx)
    engines["native"] = replace(engines["native"], obstacle=lambda checkpoint: obstacle)
    return find_offers(InferenceSettings(**asked), model, machine, engines)


def _chosen(*arguments: Any, **options: Any) -> str:
    return _offers(*arguments, **options)[0].engine.name


def _steps(found: list[Offer]) -> list[str]:
    """Where and with how much less."""
    steps = {"": WHOLE, "4-bit weights": INT4}
    return [f"{one.settings.device} {steps.get(one.change, SHORT)}".strip() for one in found]


def test_a_processor_alone_computes_natively_what_can_be() -> None:
    assert _chosen() == "native"
    assert _chosen(quantization="int8") == "native"
    assert _chosen(quantization="int4") == "native"
    assert _chosen(device="cpu") == "native"
    assert _chosen(obstacle="is a FalconForCausalLM") == "transformers"


def test_the_engine_that_reads_gguf_files_is_named_where_it_is_not_installed() -> None:
    engines = {name: replace(one, requires=("no_such_package",)) for name, one in ENGINES.items()}
    with pytest.raises(ShammahError) as caught:
        find_offers(InferenceSettings(), replace(MODEL, format="gguf"), PLAIN, engines)
    assert caught.value.code == "model_unsupported"
    assert "llamacpp (it is not installed" in caught.value.message
    assert caught.value.hint == "Install one: `pip install 'shammah[llamacpp]'`."


def test_a_gpu_with_room_is_used() -> None:
    assert _chosen(WITH_GPU) == "transformers"
    assert _chosen(MAC) == "transformers"
    assert _chosen(Machine(16 * GIB, gpu_memory=2 * GIB)) == "native"


@pytest.mark.parametrize(
    ("gpu_gib", "asked", "expected"),
    [
        (18, {}, ["cuda", "cpu", "cpu short", "cpu int4", "cuda int4"]),
        (17, {}, ["cpu", "cpu short", "cpu int4", "cuda int4"]),
        (8, {}, ["auto", "auto short", "auto int4"]),
        (17, {"quantization": "none"}, ["auto", "auto short"]),
        (17, {"quantization": "int8"}, ["auto", "auto short"]),
        (18, {"quantization": "int8"}, ["auto", "auto short"]),
        (9, {"quantization": "int4"}, ["cuda", "cpu", "cpu short"]),
        (8, {"quantization": "int4"}, ["auto", "auto short"]),
    ],
)
def test_a_gpu_comes_first_where_it_holds_16_bits_and_last_where_it_holds_4(
    gpu_gib: int, asked: dict[str, str], expected: list[str]
) -> None:
    large = replace(MODEL, parameters=8 * GIB)  # 18 GiB in 16 bits, 8.4 in 4, with 2 for the rest
    found = _offers(Machine(64 * GIB, gpu_memory=gpu_gib * GIB), model=large, **asked)
    assert _steps(found) == expected


@pytest.mark.parametrize(
    "asked",
    [{"engine": "transformers"}, {"quantization": "none"}, {"dtype": "float32"}, {"device": "mps"}],
)
def test_what_is_set_is_done(asked: dict[str, str]) -> None:
    assert _chosen(**asked) == "transformers"


def test_apple_silicon_takes_mlx_where_it_can() -> None:
    (first, *_) = _offers(MAC, mlx="")
    assert (first.engine.name, first.settings.device) == ("mlx", "mps")
    assert first.why == "this machine has a GPU for it"
    assert _chosen(MAC, mlx="is a FalconForCausalLM") == "transformers"
    assert _chosen(MAC, mlx="", dtype="float32") == "transformers"
    assert _chosen(MAC, mlx="", engine="transformers") == "transformers"
    assert _chosen(MAC, mlx="", quantization="none") == "mlx"
    found = _offers(MAC, mlx="", engine="mlx")
    assert {(one.engine.name, one.settings.device) for one in found} == {("mlx", "mps")}


@pytest.mark.parametrize("mlx", ["needs the mlx extra", "is a FalconForCausalLM"])
def test_apple_silicon_computes_on_the_cpu_what_nothing_else_there_can(mlx: str) -> None:
    for asked in ({"quantization": "int8"}, {"engine": "native"}):
        found = _offers(MAC, mlx=mlx, **asked)
        assert {one.engine.name for one in found} == {"native"}
        assert not any(one.on_gpu for one in found)


def test_elsewhere_mlx_is_taken_only_by_name() -> None:
    for asked in ({}, {"quantization": "none"}, {"quantization": "int8"}, {"device": "cpu"}):
        found = _offers(mlx="", obstacle="" if asked else "is a Falcon", **asked)
        assert "mlx" not in {one.engine.name for one in found}
    assert _chosen(mlx="", engine="mlx") == "mlx"
    assert _chosen(WITH_GPU, mlx="", engine="mlx") == "mlx"


def test_mlx_that_is_not_installed_is_refused_with_how_to() -> None:
    for machine in (PLAIN, MAC):
        with pytest.raises(ShammahError) as refused:
            _offers(machine, engine="mlx")
        assert refused.value.message == (
            "The mlx engine cannot compute this model: it is not installed "
            "(`pip install 'shammah[mlx]'`)."
        )


def test_what_is_next_best_and_what_would_be_better_is_known() -> None:
    (first, *_) = _offers()
    engines = {
        "mlx": replace(make_spec(on_apple_silicon=True), requires=("no_such_package",)),
        "native": replace(ENGINES["native"], obstacle=lambda checkpoint: ""),
        "llamacpp": ENGINES["llamacpp"],
        "transformers": ENGINES["transformers"],
    }
    native = replace(first, engine=engines["native"])
    computed = Alternative("transformers", engines["transformers"].why)
    assert find_alternatives(native, MODEL, engines) == (computed, None)  # no Mac: no mlx
    on_mac = replace(native, engine=engines["transformers"])
    on_mac = replace(on_mac, settings=replace(on_mac.settings, device="mps"))
    mlx = Alternative("mlx", engines["mlx"].why, engines["mlx"].install)
    assert find_alternatives(on_mac, MODEL, engines) == (None, mlx)


@pytest.mark.parametrize(
    ("context", "asked", "expected"),
    [
        (LONG, {}, [WHOLE, SHORT, INT4]),
        (4096, {}, [WHOLE, INT4]),
        (4096, {"quantization": "none"}, [WHOLE]),
    ],
)
def test_a_gpu_that_shares_the_memory_comes_first_with_fewer_bits(
    context: int, asked: dict[str, str], expected: list[str]
) -> None:
    """What is too little for it in 8 bits is too little for the processor, too."""
    found = _offers(MAC, mlx="", model=replace(MODEL, context_length=context), **asked)
    own = [one for one in found if one.engine.name == "mlx"]
    assert _steps(own) == [f"mps {step}".strip() for step in expected]
    assert own == found[: len(own)]
    assert {one.settings.device for one in found[len(own) :]} == {"cpu"}


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
    with pytest.raises(ShammahError, match=r"The native engine .* it is a Falcon") as refused:
        _chosen(engine="native", obstacle="is a Falcon")
    assert refused.value.code == "model_unsupported"


def test_4_bits_that_the_native_engine_cannot_compute_go_to_transformers() -> None:
    assert _chosen(quantization="int4", obstacle="is a Falcon") == "transformers"
    assert _chosen(quantization="int4", engine="transformers") == "transformers"
    assert _chosen(WITH_GPU, quantization="int4") == "transformers"


@pytest.mark.parametrize("quantization", ["int4", "int8"])
def test_a_gguf_file_stays_as_it_is_and_nothing_else_is_offered(quantization: str) -> None:
    with pytest.raises(ShammahError, match=f"inference.quantization is {quantization}") as refused:
        _offers(model=replace(MODEL, format="gguf"), quantization=quantization)
    assert refused.value.hint == "Set that to auto."


def test_8_bits_that_no_engine_computes_are_refused_with_what_to_do() -> None:
    with pytest.raises(ShammahError) as refused:
        _offers(quantization="int8", obstacle="is a Falcon")
    assert refused.value.code == "settings_conflict"
    assert "native (it is a Falcon)" in refused.value.message
    assert "transformers (inference.quantization is int8)" in refused.value.message
    assert "shammah[int4]" in refused.value.hint
    assert "GGUF" in refused.value.hint
    with pytest.raises(ShammahError, match="The transformers engine cannot be used because"):
        _offers(quantization="int8", engine="transformers")


def test_an_engine_for_a_gpu_alone_is_offered_there_alone() -> None:
    assert {one.settings.device for one in _offers(MAC, mlx="", engine="mlx")} == {"mps"}
    with pytest.raises(ShammahError, match=r"it is not installed \(`pip install vllm`\)"):
        _offers(WITH_GPU, engine="vllm")
    assert _chosen(WITH_GPU) == "transformers"


def test_vllm_computes_on_a_gpu_where_it_is_installed() -> None:
    found = _offers(WITH_GPU, vllm=True)
    named = [(one.engine.name, one.settings.device, one.change) for one in found]
    assert named[:3] == [
        ("vllm", "cuda", ""),
        ("transformers", "cuda", "the transformers engine"),  # should vLLM not take the model
        ("native", "cpu", ""),
    ]
    assert named[-1] == ("transformers", "cuda", "4-bit weights")
    assert {name for name, *_ in named} == {"vllm", "transformers", "native"}
    assert found[0].why == "this machine has a GPU for it"
    assert _chosen(WITH_GPU, vllm=True, device="cuda") == "vllm"
    assert _chosen(WITH_GPU, vllm=True, quantization="int4") == "transformers"
    awq = replace(MODEL, format="awq")
    assert _chosen(WITH_GPU, vllm=True, model=awq) == "vllm"
    only = _offers(WITH_GPU, vllm=True, engine="vllm")
    assert {one.engine.name for one in only} == {"vllm"}


@pytest.mark.parametrize("machine", [PLAIN, MAC, Machine(16 * GIB, gpu_memory=2 * GIB)])
@pytest.mark.parametrize("asked", [{}, {"device": "cpu"}, {"quantization": "none"}])
def test_vllm_is_never_taken_without_a_gpu_for_the_model(
    machine: Machine, asked: dict[str, str]
) -> None:
    found = [
        [(one.engine.name, one.settings, one.why) for one in _offers(machine, vllm=vllm, **asked)]
        for vllm in (True, False)
    ]
    assert found[0] == found[1]
    assert "vllm" not in {name for name, *_ in found[0]}


@pytest.mark.parametrize(
    ("device", "why", "hint"),
    [
        ("auto", "it needs cuda, and this machine has none", "Set inference.engine to auto."),
        ("cpu", "inference.device is cpu", "Set that to auto, or set inference.engine to auto."),
    ],
)
def test_only_a_device_that_was_set_is_called_a_setting(device: str, why: str, hint: str) -> None:
    with pytest.raises(ShammahError) as refused:
        _offers(engine="vllm", device=device)
    assert refused.value.code == "settings_conflict"
    assert f"The vllm engine cannot be used because {why}" in refused.value.message
    assert refused.value.hint == hint


def test_an_engine_for_another_device_is_no_setting_that_is_wrong() -> None:
    engines = {name: replace(one, obstacle=lambda _: "is odd") for name, one in ENGINES.items()}
    engines["mlx"] = make_spec(on_apple_silicon=True)
    with pytest.raises(ShammahError) as refused:
        choose_engine(InferenceSettings(), MODEL, "cpu", engines)
    assert refused.value.code == "model_unsupported"
    assert "mlx" not in refused.value.message


@pytest.mark.parametrize(
    ("machine", "asked", "why"),
    [
        (PLAIN, {}, "the fastest on a CPU"),
        (PLAIN, {"engine": "native"}, "as set"),
        (PLAIN, {"engine": "transformers"}, "as set"),
        (PLAIN, {"dtype": "float16"}, "inference.dtype is float16"),
        (PLAIN, {"device": "cuda"}, "inference.device is cuda"),
        (WITH_GPU, {}, "this machine has a GPU for it"),
        (
            MAC,
            {},
            "this machine has a GPU for it",
        ),
        (MAC, {"engine": "transformers"}, "this machine has a GPU for it"),
        (MAC, {"dtype": "float32"}, "this machine has a GPU for it"),
    ],
)
def test_the_reason_is_given(machine: Machine, asked: dict[str, str], why: str) -> None:
    assert _offers(machine, **asked)[0].why == why


def test_an_obstacle_is_a_reason() -> None:
    (first, *_) = _offers(obstacle="is a Falcon")
    assert first.why == "the native engine cannot compute this model: it is a Falcon"


# --- steps down ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "context", "asked", "expected"),
    [
        ("native", LONG, {}, [WHOLE, SHORT, INT4]),
        ("native", 4096, {}, [WHOLE, INT4]),
        ("transformers", LONG, {}, [WHOLE, SHORT, INT4]),
        ("transformers", 4096, {}, [WHOLE, SHORT, INT4]),
        ("transformers", 4096, {"dtype": "float32"}, [WHOLE, INT4]),
        ("transformers", LONG, {"dtype": "float32"}, [WHOLE, SHORT, INT4]),
        ("native", LONG, {"context_length": 20_000}, [WHOLE, INT4]),
        ("native", LONG, {"quantization": "int8"}, [WHOLE, SHORT]),
        ("transformers", LONG, {"quantization": "none", "dtype": "bfloat16"}, [WHOLE, SHORT]),
        ("native", 4096, {"quantization": "int4"}, [WHOLE]),
    ],
)
def test_only_what_changes_something_and_was_left_open(
    engine: str, context: int, asked: dict[str, object], expected: list[str]
) -> None:
    found = _offers(model=replace(MODEL, context_length=context), engine=engine, **asked)
    assert _steps(found) == [f"auto {step}".strip() for step in expected]
    assert [one.level for one in found] == list(range(len(found)))
    assert {one.engine.name for one in found} == {engine}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["cuda", "cpu", "cpu short", "cpu int4", "cuda int4"]),
        ({"quantization": "int4"}, ["cuda", "cpu", "cpu short"]),
        (
            {"dtype": "float32"},
            ["cuda", "cpu", "cpu short", "cpu int4", "cuda int4"],
        ),
        ({"dtype": "float32", "quantization": "none", "context_length": 99}, ["cuda", "cpu"]),
    ],
)
def test_the_processor_comes_before_fewer_bits_on_a_gpu(
    asked: dict[str, str], expected: list[str]
) -> None:
    found = _offers(WITH_GPU, **asked)
    assert _steps(found) == expected
    native = "transformers" if "dtype" in asked else "native"
    for one in found:
        on_gpu = one.settings.device == "cuda"
        assert one.engine.name == ("transformers" if on_gpu else native)
        assert one.on_gpu == on_gpu


@pytest.mark.parametrize(
    ("machine", "asked", "gpu"),
    [
        (WITH_GPU, {}, "cuda"),
        (MAC, {}, "mps"),
        (WITH_GPU, {"dtype": "float32"}, "cuda"),
        (WITH_GPU, {"engine": "native"}, ""),
        (Machine(16 * GIB, gpu_memory=2 * GIB), {}, ""),
        (WITH_GPU, {"device": "cuda"}, ""),
        (PLAIN, {}, ""),
    ],
)
def test_the_processor_may_take_the_place_of_a_gpu_that_was_chosen(
    machine: Machine, asked: dict[str, str], gpu: str
) -> None:
    found = _offers(machine, **asked)
    assert {one.settings.device for one in found if one.on_gpu} == ({gpu} if gpu else set())
    devices = {one.settings.device for one in found}
    assert ("cpu" in devices) == bool(gpu)


def test_what_each_step_asks_for() -> None:
    found = [one.settings for one in _offers(engine="transformers")]
    whole = LoadSettings()
    short = LoadSettings(context_length=SHORT_CONTEXT, lean=True)
    assert found[:2] == [whole, short]
    assert [one.quantization for one in found] == ["auto", "auto", "int4"]
    assert found[2].lean


def test_what_is_set_stays_set() -> None:
    asked = {"dtype": "float16", "context_length": 9000, "kv_memory": 0.5}
    *_, last = [one.settings for one in _offers(**asked)]
    assert last.lean
    assert (last.dtype, last.context_length, last.kv_memory) == ("float16", 9000, 0.5)


FOUR_BITS = replace(MODEL, format="awq")


@pytest.mark.parametrize("machine", [PLAIN, WITH_GPU, MAC])
def test_weights_published_in_4_bits_are_computed_natively_and_stay_so(machine: Machine) -> None:
    for quantization in ("auto", "int4"):
        found = _offers(machine, model=FOUR_BITS, quantization=quantization)
        assert _steps(found) == ["auto", "auto short"]
        assert {one.engine.name for one in found} == {"native"}


@pytest.mark.parametrize("engine", ["auto", "native"])
@pytest.mark.parametrize("quantization", ["none", "int8"])
def test_weights_published_in_4_bits_become_nothing_else(engine: str, quantization: str) -> None:
    with pytest.raises(ShammahError) as refused:
        _offers(model=FOUR_BITS, engine=engine, quantization=quantization)
    assert refused.value.code == "settings_conflict"
    why = f"inference.quantization is {quantization}, but the weights were published in 4 bits"
    assert why in refused.value.message
    assert refused.value.hint.startswith("Set that to auto")


@pytest.mark.parametrize(
    ("engine", "why", "hint"),
    [
        ("transformers", "it is stored as 4-bit AWQ weights, which", "Set inference.engine"),
        ("auto", "computes this model: native (it is a Falcon).", "--model"),
    ],
)
def test_weights_published_in_4_bits_are_refused_where_nothing_computes_them(
    engine: str, why: str, hint: str
) -> None:
    with pytest.raises(ShammahError) as refused:
        _offers(model=FOUR_BITS, engine=engine, obstacle="is a Falcon")
    assert refused.value.code == "model_unsupported"
    assert why in refused.value.message
    assert hint in refused.value.hint
