"""The transformers engine computes what ``generate`` computes, in steps."""

from __future__ import annotations

import json
import shutil
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel
from tests.fakes.observer import Observer
from tests.real.models import (
    CONFIG,
    CONTEXT_LENGTH,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    VOCABULARY,
    make_llama,
    make_qwen2,
    make_qwen3,
    make_windowed,
    starter,
)
from workers.inference.engine import EngineFacts, LoadSettings, SequenceRequest, StepResult
from workers.inference.engines.transformers import placement
from workers.inference.engines.transformers.runner import LIMITS, TransformersRunner
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.runner import Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan
from workers.train.base_model import Arithmetic, load_base

CHUNK = LIMITS["cpu"].chunk
SHORT = (1, 40, 50, 60, 70)
LONG = tuple(3 + n * 7 % 300 for n in range(CHUNK + 60))
UNSEEN = tuple(7 + n * 11 % 290 for n in range(CHUNK + 60))
CPU = LoadSettings("cpu", "float32")


def _load(directory: Path, settings: LoadSettings = CPU) -> BatchedEngine:
    engine = BatchedEngine(TransformersRunner())
    engine.load(inspect_checkpoint(directory), settings, Observer())
    return engine


def _request(
    name: str, prompt: tuple[int, ...] = SHORT, count: int = 20, **options: Any
) -> SequenceRequest:
    plan = options.pop("plan", SamplingPlan())
    return SequenceRequest(name, prompt, plan, count, options.pop("stop", frozenset()))


def _run(engine: BatchedEngine, *requests: SequenceRequest) -> dict[str, list[int]]:
    for request in requests:
        engine.submit(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            tokens[result.request_id] += result.token_ids
    return tokens


def _generate(directory: Path, prompt: tuple[int, ...], count: int, **options: Any) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    options = {"do_sample": False, "temperature": None, "top_p": None, **options}
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, eos_token_id=None, **options
    )
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {
        "qwen2 tied": make_qwen2(base / "tied"),
        "qwen2 untied": make_qwen2(base / "untied", tied=False),
        "qwen2 in shards": make_qwen2(base / "sharded", max_shard_size="40KB"),
        "llama": make_llama(base / "llama"),
        "qwen3": make_qwen3(base / "qwen3"),
        "a window": make_windowed(base / "window"),
    }


@pytest.fixture(scope="module")
def engine(made: dict[str, Path]) -> BatchedEngine:
    return _load(made["qwen2 tied"])


# --- the same as generate -----------------------------------------------------------------


EVERY_KIND = ["qwen2 tied", "qwen2 untied", "qwen2 in shards", "llama", "qwen3", "a window"]


@pytest.mark.parametrize("kind", EVERY_KIND)
@pytest.mark.parametrize("prompt", [SHORT, LONG], ids=["one chunk", "two chunks"])
def test_greedy_is_what_generate_gives(
    made: dict[str, Path], kind: str, prompt: tuple[int, ...]
) -> None:
    found = _run(_load(made[kind]), _request("a", prompt))["a"]
    assert found == _generate(made[kind], prompt, 20)
    assert len(set(found)) > 5  # a model that repeats itself would prove nothing


def test_the_starter_gives_what_generate_gives() -> None:
    prompt = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
    found = _run(_load(starter()), _request("a", prompt, 12))["a"]
    assert found == _generate(starter(), prompt, 12)


def test_shards_are_four_and_change_nothing(made: dict[str, Path]) -> None:
    sharded = inspect_checkpoint(made["qwen2 in shards"])
    assert len(sharded.weights) == 4
    assert sharded.parameters == inspect_checkpoint(made["qwen2 tied"]).parameters
    single = _run(_load(made["qwen2 tied"]), _request("a", LONG))
    assert _run(_load(made["qwen2 in shards"]), _request("a", LONG)) == single


def test_repetition_penalty_is_what_generate_gives(
    made: dict[str, Path], engine: BatchedEngine
) -> None:
    plan = SamplingPlan(repetition_penalty=1.5)
    found = _run(engine, _request("a", LONG, plan=plan))["a"]
    assert found == _generate(made["qwen2 tied"], LONG, 20, repetition_penalty=1.5)
    assert found != _run(engine, _request("a", LONG))["a"]


def test_a_seed_repeats_an_answer(engine: BatchedEngine) -> None:
    answers = [
        _run(engine, _request("a", plan=SamplingPlan(0.8, 0.9, 30, 1.1, seed)))["a"]
        for seed in (7, 7, 8)
    ]
    assert answers[0] == answers[1] != answers[2]


def test_without_a_seed_answers_differ(engine: BatchedEngine) -> None:
    plan = SamplingPlan(2.0)
    found = _run(engine, *(_request(str(n), plan=plan) for n in range(4)))
    assert len({tuple(tokens) for tokens in found.values()}) == 4


# --- several at once ----------------------------------------------------------------------


def test_sequences_in_turn_give_what_each_gives_alone(engine: BatchedEngine) -> None:
    requests = (
        _request("greedy", SHORT, 30),
        _request("long", LONG, 10),
        _request("seeded", SHORT, 20, plan=SamplingPlan(1.0, seed=3)),
    )
    together = _run(engine, *requests)
    for request in requests:
        assert _run(engine, request)[request.request_id] == together[request.request_id]


@pytest.mark.parametrize("kind", ["qwen2 untied", "llama", "qwen3", "a window"])
def test_eight_at_once_give_what_each_gives_alone(made: dict[str, Path], kind: str) -> None:
    engine = _load(made[kind])
    requests = [
        _request(str(n), tuple(1 + (n * 37 + k * 13) % 380 for k in range(3 + 41 * n)), 6 + 3 * n)
        for n in range(8)
    ]
    together = _run(engine, *requests)
    for request in requests:
        alone = _run(_load(made[kind]), request)[request.request_id]
        assert together[request.request_id] == alone


def test_decoding_sequences_share_one_pass(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    compute = TransformersRunner.compute

    def count(
        runner: TransformersRunner, tokens: list[Sequence[int]], *others: Any, **named: Any
    ) -> Any:
        parts = [part.tokens for part in named.get("parts", ())] or [tokens]
        rows.extend(len(part) for part in parts if len(part[0]) == 1)
        return compute(runner, tokens, *others, **named)

    with monkeypatch.context() as patched:
        patched.setattr(TransformersRunner, "compute", count)
        engine = _load(made["llama"])
    rows.clear()  # of the warm-up
    _run(engine, *(_request(str(n), (n + 1, n + 2), 12) for n in range(4)))
    assert max(rows) == 4
    assert sum(rows) == 4 * 11


def test_the_ninth_waits_for_a_place(engine: BatchedEngine) -> None:
    for n in range(9):
        engine.submit(_request(str(n), (n + 1,), 40))
    for _ in range(9):
        engine.step()
    assert (engine.active, engine.waiting) == (9, 1)
    engine.cancel("3")
    engine.step()
    assert (engine.active, engine.waiting) == (8, 0)
    for n in range(9):
        engine.cancel(str(n))
    assert engine.active == 0


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_next_turn_computes_only_what_is_new(made: dict[str, Path], kind: str) -> None:
    engine = _load(made[kind])
    first = _run(engine, _request("a", UNSEEN, 10))["a"]
    second = (*UNSEEN, *first, 9, 8, 7)
    engine.submit(_request("b", second, 10))
    results = []
    while engine.active:
        results += engine.step()
    fresh = _run(_load(made[kind]), _request("b", second, 10))["b"]
    assert [token for result in results for token in result.token_ids] == fresh
    reused = 0 if kind == "a window" else len(UNSEEN) + 9  # the last token was never computed
    assert sum(result.reused for result in results) == reused
    assert sum(result.prefilled for result in results) == len(second) - reused


def test_an_edited_question_reuses_what_comes_before_it_and_spoils_nothing(
    made: dict[str, Path],
) -> None:
    engine = _load(made["qwen2 tied"])
    first = _run(engine, _request("a", UNSEEN, 10))["a"]
    edited = (*UNSEEN[:200], 5, 6, 7)
    engine.submit(_request("b", edited, 10))
    results = []
    while engine.active:
        results += engine.step()
    assert results[0].reused == 200
    fresh = _run(_load(made["qwen2 tied"]), _request("b", edited, 10))["b"]
    assert [token for result in results for token in result.token_ids] == fresh
    engine.submit(_request("a", UNSEEN, 10))
    again = engine.step()
    assert again[0].reused == len(UNSEEN) - 1
    while engine.active:
        again += engine.step()
    assert [token for result in again for token in result.token_ids] == first


def test_a_context_that_memory_cannot_hold_is_refused(made: dict[str, Path]) -> None:
    engine = BatchedEngine(TransformersRunner())
    checkpoint = inspect_checkpoint(made["qwen2 tied"])
    token = 2 * LAYERS * KV_HEADS * (HIDDEN // HEADS) * 4
    enough = LoadSettings("cpu", "float32", kv_memory=(CONTEXT_LENGTH + 0.5) * token / GIB)
    assert engine.load(checkpoint, enough, Observer()).context_length == CONTEXT_LENGTH
    asked = LoadSettings("cpu", "float32", context_length=100)
    assert engine.load(checkpoint, asked, Observer()).context_length == 100
    with pytest.raises(ShammahError) as caught:
        engine.load(checkpoint, LoadSettings(kv_memory=token * 100 / GIB), Observer())
    assert caught.value.code == "out_of_memory"


def test_one_chunk_or_token_is_computed_in_a_step(engine: BatchedEngine) -> None:
    engine.submit(_request("a", UNSEEN, 2))
    steps = [result for _ in range(3) for result in engine.step()]
    assert [(step.prefilled, step.generated) for step in steps] == [(CHUNK, 0), (60, 1), (0, 1)]
    assert [step.finish_reason for step in steps] == [None, None, "length"]
    assert engine.active == 0


def test_a_stop_token_ends_and_is_left_out(engine: BatchedEngine) -> None:
    tokens = _run(engine, _request("a"))["a"]
    stop = tokens[3]
    first = tokens.index(stop)
    engine.submit(_request("a", stop=frozenset({stop})))
    results = [engine.step()[0] for _ in range(first + 1)]
    assert [token for result in results for token in result.token_ids] == tokens[:first]
    assert results[-1] == StepResult("a", 0, 1, (), "stop")
    assert engine.active == 0


@pytest.mark.parametrize("steps", [0, 1, 3], ids=["waiting", "in prefill", "in decode"])
def test_a_cancelled_sequence_gets_no_further_step(engine: BatchedEngine, steps: int) -> None:
    alone = _run(engine, _request("b"))["b"]
    engine.submit(_request("a", LONG))
    for _ in range(steps):
        engine.step()
    engine.cancel("a")
    assert engine.active == 0
    assert _run(engine, _request("b"))["b"] == alone


def test_memory_that_runs_out_ends_one_sequence(
    engine: BatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = _run(engine, _request("b"))["b"]
    forward = TransformersRunner.forward

    def fail_for_long(runner: TransformersRunner, spans: list[Span]) -> Any:
        if max(len(span.tokens) for span in spans) == CHUNK:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(runner, spans)

    monkeypatch.setattr(TransformersRunner, "forward", fail_for_long)
    engine.submit(_request("a", UNSEEN[::-1]))
    engine.submit(_request("b"))
    results = [result for _ in range(21) for result in engine.step()]
    [failed] = [result for result in results if result.failure is not None]
    assert failed.failure is not None
    assert (failed.request_id, failed.failure.code) == ("a", "out_of_memory")
    assert [token for r in results if r.request_id == "b" for token in r.token_ids] == alone


def test_a_real_allocation_that_cannot_be_is_out_of_memory() -> None:
    from workers.inference.memory import is_out_of_memory

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


# --- loading ------------------------------------------------------------------------------


def test_load_tells_its_stages_and_facts(made: dict[str, Path]) -> None:
    observer = Observer()
    engine = BatchedEngine(TransformersRunner())
    facts = engine.load(inspect_checkpoint(made["llama"]), CPU, observer)
    assert facts == EngineFacts("transformers", "cpu", "float32", "", CONTEXT_LENGTH, "as set")
    assert tuple(observer.stages) == engine.stages
    assert observer.advanced > 20  # a tensor each


def test_load_and_answer_use_no_network(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a network connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert _run(_load(made["qwen2 in shards"]), _request("a"))["a"]


def test_bfloat16_is_used_when_asked_for(made: dict[str, Path]) -> None:
    engine = BatchedEngine(TransformersRunner())
    settings = LoadSettings("cpu", "bfloat16")
    facts = engine.load(inspect_checkpoint(made["qwen2 tied"]), settings, Observer())
    assert facts.dtype == "bfloat16"
    assert len(_run(engine, _request("a"))["a"]) == 20


def _configure(**changes: Any) -> Callable[[Path], None]:
    def defect(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return defect


@pytest.mark.parametrize(
    ("defect", "code", "part"),
    [
        (_configure(num_hidden_layers=4, layer_types=None), "model_config_invalid", "lack 12"),
        (_configure(num_hidden_layers=2, layer_types=None), "model_config_invalid", "hold 12"),
        (_configure(intermediate_size=48), "model_config_invalid", "[32, 48]"),
        (_configure(hidden_act="no such"), "model_config_invalid", "no such"),
        (_configure(model_type="no-such"), "model_unsupported", "no-such"),
        (_configure(rms_norm_eps="small"), "model_config_invalid", "rms_norm_eps"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(
    made: dict[str, Path],
    tmp_path: Path,
    defect: Callable[[Path], None],
    code: str,
    part: str,
) -> None:
    shutil.copytree(made["qwen2 tied"], tmp_path / "copy")
    defect(tmp_path / "copy")
    with pytest.raises(ShammahError) as caught:
        _load(tmp_path / "copy")
    assert caught.value.code == code
    assert part in caught.value.message


@pytest.mark.parametrize("pad", [VOCABULARY, 100_000, -1, "<pad>"])
def test_a_token_that_is_never_used_need_not_be_there(
    made: dict[str, Path], tmp_path: Path, pad: object
) -> None:
    """Neither for answers nor for training; the end of an answer is not given up for it."""
    shutil.copytree(made["llama"], tmp_path / "copy")
    _configure(pad_token_id=pad)(tmp_path / "copy")
    request = _request("a")
    assert _run(_load(tmp_path / "copy"), request) == _run(_load(made["llama"]), request)
    located = LocatedModel("tiny", tmp_path / "copy", "tiny")
    assert load_base(located, Arithmetic("cpu", "float32")).config.eos_token_id == 0


def test_code_in_a_model_directory_is_never_run(made: dict[str, Path], tmp_path: Path) -> None:
    directory = tmp_path / "copy"
    shutil.copytree(made["qwen2 tied"], directory)
    (directory / "evil.py").write_text("raise SystemExit('it ran')")
    names = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    _configure(auto_map=names)(directory)
    assert _run(_load(directory), _request("a"))["a"]
    _configure(auto_map=names, model_type="evil")(directory)
    with pytest.raises(ShammahError) as caught:
        _load(directory)
    assert caught.value.code == "model_unsupported"


# --- where and how ------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ShammahError) as caught:
        placement.choose_device("cuda", GIB)
    assert caught.value.code == "device_unavailable"


def test_auto_takes_a_device_that_is_there() -> None:
    assert placement.choose_device("auto", GIB) in ("cuda", "mps", "cpu")
    assert placement.choose_device("cpu", GIB) == "cpu"


LARGE = Checkpoint(Path("/none"), "X", "x", 640, (), 4 * GIB, 2 * GIB, "")


def _chosen(free: float, *, device: str = "cpu", **options: Any) -> tuple[str, str]:
    """The number format and the quantization for 2 x 2**30 weights in ``free`` GiB."""
    form = placement.choose_form(LoadSettings(**options), device, LARGE, int(free * GIB))
    assert form.why
    return form.dtype, form.quantization


@pytest.fixture
def quantizable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Half of the weights can be."""
    sides = [2**15, 2**15]
    header = json.dumps(
        {
            "model.embed_tokens.weight": {"dtype": "U8", "shape": sides, "data_offsets": [0, GIB]},
            "model.layers.0.weight": {
                "dtype": "U8",
                "shape": sides,
                "data_offsets": [GIB, 2 * GIB],
            },
        }
    ).encode()
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(file.tell() + 2 * GIB)  # a hole, which takes no room
    monkeypatch.setitem(globals(), "LARGE", replace(LARGE, weights=(path,)))


def test_a_cpu_computes_the_most_exact_format_that_fits() -> None:
    assert _chosen(8.5) == ("float32", "")
    assert _chosen(8.4) == ("bfloat16", "")
    assert _chosen(8.5, lean=True) == ("bfloat16", "")
    assert _chosen(4.5) == ("bfloat16", "")
    with pytest.raises(ShammahError, match=r"needs 4\.5 GiB in bfloat16 on cpu") as caught:
        _chosen(4.4)
    assert caught.value.code == "out_of_memory"


def test_a_wanted_dtype_is_not_exchanged() -> None:
    assert _chosen(8.0, dtype="float16") == ("float16", "")
    with pytest.raises(ShammahError, match="float32 on cpu"):
        _chosen(4.5, dtype="float32")


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_gpu_computes_16_bits(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: True)
    assert _chosen(4.5, device=device) == ("bfloat16", "")
    with pytest.raises(ShammahError, match=rf"4\.5 GiB in bfloat16 on {device}"):
        _chosen(4.4, device=device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    assert _chosen(4.5, device=device) == ("float16", "")


@pytest.mark.usefixtures("quantizable")
def test_4_bits_are_done_where_they_are_asked_for() -> None:
    # 0.5625 GiB of what is quantised, 4 or 2 of the rest, and half of one.
    assert _chosen(9.0, quantization="int4") == ("float32", "int4")
    assert _chosen(3.5, quantization="int4", dtype="bfloat16") == ("bfloat16", "int4")
    assert _chosen(3.5, quantization="int4", lean=True) == ("bfloat16", "int4")
    with pytest.raises(ShammahError, match=r"3\.1 GiB in 4-bit weights on cpu") as caught:
        _chosen(3.0, quantization="int4", lean=True)
    assert caught.value.code == "out_of_memory"


def test_the_vocabulary_of_the_test_models_is_covered() -> None:
    assert max(LONG) < VOCABULARY == CONFIG["vocab_size"]


def test_a_released_slot_gives_its_memory_back() -> None:
    from transformers import DynamicCache

    from workers.inference.engines.transformers.kv_slots import KVSlots

    sample = DynamicCache()
    sample.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)
    kv = KVSlots(lambda *_: pytest.fail("computes nothing"), sample)
    kv.reserve(2, 4096)
    for slot in kv.layers:
        for keys, values in slot:
            keys.fill_(1.0)
            values.fill_(1.0)
    kv.release(0)
    # The system gives fresh pages, which are zero, for those that it has taken.
    assert all(not tensor.any() for pair in kv.layers[0] for tensor in pair)
    assert all(tensor.all() for pair in kv.layers[1] for tensor in pair)
