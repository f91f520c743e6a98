"""The mlx engine against transformers: on small random models of every kind, and on the starter.

mlx computes on the CPU here. On Apple silicon it has other kernels for the same operations, which
no test has run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import load_file

from shammah.errors import ShammahError
from tests.fakes.command import run
from tests.fakes.observer import Observer
from tests.fakes.sandbox import Sandbox
from tests.fakes.spans import decode, prefill
from tests.real.models import KEPT_KERNELS, make_random, starter
from workers.inference.engine import EngineFacts, LoadSettings, SequenceRequest
from workers.inference.engines.mlx.runner import MlxRunner
from workers.inference.engines.mlx.spec import GROUP, MLX, QUANTIZATIONS
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.adapter_file import Adapter, LowRank
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.runner import Runner, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.startup.leftovers import sweep

ROOT = Path(__file__).resolve().parents[2]

VOCABULARY, LAYERS, WIDEST = 384, 3, 128
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": WIDEST,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 0,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SCALED = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MIXTURE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3-moe": ("Qwen3Moe", {**MIXTURE, "decoder_sparse_step": 1, "mlp_only_layers": []}),
    "llama": ("Llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "llama-linear": ("Llama", {"rope_parameters": {**SCALED, "rope_type": "linear"}}),
    "llama-yarn": ("Llama", {"rope_parameters": {**SCALED, "rope_type": "yarn"}}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                **SCALED,
                "rope_type": "llama3",
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "sliding_window": None}),
    "olmo2": ("Olmo2", {}),
    "granite": (
        "Granite",
        {
            "embedding_multiplier": 2.0,
            "logits_scaling": 3.0,
            "residual_multiplier": 0.5,
            "attention_multiplier": 0.2,
        },
    ),
    "smollm3": ("SmolLM3", {}),
}

PARIS = (1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198)
"""In the starter's tokens and its template: what is the capital of France?"""


def rounding(layers: int, terms: int, roundings: int = 7, unit: float = 2.0**-24) -> float:
    """How far two orders of the same sums may be apart, relative to the result.

    A layer has seven products of up to ``terms`` terms; an error of half a ``unit`` at each of them
    grows as the root of their number (random walk); four standard deviations.
    """
    return 4 * math.sqrt(roundings * layers * terms) * unit


CLOSE = rounding(LAYERS, WIDEST)
FAR = 1e-2
"""A wrong number anywhere moves the logits of these random models further than this."""


def make_model(directory: Path, kind: str, **settings: Any) -> Checkpoint:
    family, own = KINDS[kind]
    return make_random(directory, family, {**SMALL, **own, **settings}, 0.15)


def load(
    checkpoint: Checkpoint, home: Path, quantization: str = "none", dtype: str = "auto"
) -> tuple[MlxRunner, EngineFacts, Observer]:
    runner, observer = MlxRunner(), Observer()
    settings = LoadSettings("auto", dtype, quantization, home=home)
    facts = runner.load(checkpoint, settings, observer)
    runner.reserve(8, 1024)
    return runner, facts, observer


def reference(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype)


def logits_of(model: Any, tokens: list[int] | tuple[int, ...]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].float().numpy()
        return logits


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCABULARY, count).tolist()


def differs(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest logit."""
    return float(abs(found - expected).max() / abs(expected).max())


def all_rows(runner: Runner, slot: int, tokens: list[int]) -> NDArray[np.float32]:
    """The logits after every token: of a chunk, of one that goes on, and of single tokens."""
    count = len(tokens)
    rows = runner.forward([Span(slot, 0, tokens[: count // 2], wanted=count // 2)])
    rows += runner.forward(
        [Span(slot, count // 2, tokens[count // 2 : -3], wanted=count - 3 - count // 2)]
    )
    rows += [decode(runner, [slot], [at], [tokens[at]]) for at in range(count - 3, count)]
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> tuple[MlxRunner, Any]:
    directory = tmp_path_factory.mktemp("qwen2")
    checkpoint = make_model(directory / "model", "qwen2")
    return load(checkpoint, directory)[0], reference(checkpoint)


# --- the same numbers as transformers -----------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", kind)
    assert not MLX.obstacle(checkpoint)
    tokens = some_tokens(90)
    exact = logits_of(reference(checkpoint), tokens)
    runner, facts, _ = load(checkpoint, tmp_path)
    assert (facts.engine, facts.dtype, facts.quantization) == ("mlx", "float32", "")
    assert differs(all_rows(runner, 0, tokens), exact) < CLOSE
    # What these models have in common would be found wrong, too.
    assert differs(all_rows(runner, 1, [*tokens[:4], 5, *tokens[5:]])[5:], exact[5:]) > FAR


def test_16_bits_cost_what_16_bits_cost(tmp_path: Path) -> None:
    """bfloat16 has 8 bits: 12 results of a layer are rounded to them, in mlx as in transformers."""
    checkpoint = make_model(tmp_path / "model", "qwen3")
    tokens = some_tokens(60)
    exact = logits_of(reference(checkpoint), tokens)
    runner, facts, _ = load(checkpoint, tmp_path, dtype="bfloat16")
    assert facts.dtype == "bfloat16"
    found = differs(all_rows(runner, 0, tokens), exact)
    assert found < rounding(LAYERS, 1, roundings=12, unit=2.0**-9)
    theirs = differs(logits_of(reference(checkpoint, torch.bfloat16), tokens), exact)
    assert theirs / 4 < found < 4 * theirs


def test_the_starter_is_computed_as_by_transformers(tmp_path: Path) -> None:
    checkpoint = inspect_checkpoint(starter())
    exact = logits_of(reference(checkpoint), PARIS)
    runner, _, _ = load(checkpoint, tmp_path)
    (found,) = runner.forward([Span(0, 0, PARIS, wanted=len(PARIS))])
    assert differs(found, exact) < rounding(30, 1536)


# --- fewer bits ---------------------------------------------------------------------------


def unpack(kept: dict[str, NDArray[Any]], name: str) -> NDArray[np.float32]:
    """A quantised matrix, by mlx's description of its format: words of 32 bits hold numbers from
    the lowest bits up, and ``w = scale q + bias`` for each group of 64 of a row."""
    words, scales, biases = (kept[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    bits = 32 * words.shape[1] // (GROUP * scales.shape[1])
    places = np.arange(0, 32, bits, dtype=np.uint32)
    q = ((words[:, :, None] >> places) & (2**bits - 1)).reshape(len(words), -1, GROUP)
    numbers = scales[:, :, None] * q.astype(np.float32) + biases[:, :, None]
    return numbers.reshape(len(words), -1).astype(np.float32)


def bits_of(kept: dict[str, NDArray[Any]]) -> dict[str, int]:
    names = [name.removesuffix(".scales") for name in kept if name.endswith(".scales")]
    inputs = {name: GROUP * kept[f"{name}.scales"].shape[1] for name in names}
    return {name: 32 * kept[f"{name}.weight"].shape[1] // inputs[name] for name in names}


@dataclasses.dataclass
class Quantised:
    """The starter in fewer bits, and transformers with the numbers that are in the file."""

    runner: MlxRunner
    facts: EngineFacts
    home: Path
    kept: dict[str, NDArray[Any]]
    model: Any

    @property
    def file(self) -> Path:
        (file,) = (self.home / "quantized").iterdir()
        return file


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantised(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Quantised:
    home, checkpoint = tmp_path_factory.mktemp(request.param), inspect_checkpoint(starter())
    runner, facts, _ = load(checkpoint, home, request.param)
    found = Quantised(runner, facts, home, {}, reference(checkpoint))
    found.kept = load_file(found.file)
    parameters = dict(found.model.named_parameters())
    with torch.no_grad():
        for name in bits_of(found.kept):
            parameters[f"{name}.weight"].copy_(torch.from_numpy(unpack(found.kept, name)))
    return found


def test_quantised_weights_are_within_a_step(quantised: Quantised) -> None:
    """The step is the range of a group by the number of steps; mlx moves it so that one number is
    met exactly, so the others are rounded by up to a whole one."""
    published = {
        name: array.detach().numpy()
        for name, array in reference(inspect_checkpoint(starter())).named_parameters()
    }
    for name, bits in bits_of(quantised.kept).items():
        exact = published[f"{name}.weight"]
        groups = exact.reshape(len(exact), -1, GROUP)
        steps = (groups.max(2) - groups.min(2)) / (2**bits - 1)
        moved = abs(unpack(quantised.kept, name) - exact).reshape(groups.shape).max(2)
        assert (moved <= 1.01 * steps).all(), name
        assert moved.mean() > 0.1 * steps.mean()


def test_what_damages_most_keeps_8_bits(quantised: Quantised) -> None:
    bits = bits_of(quantised.kept)
    wide = {name for name, count in bits.items() if count == 8}
    assert set(bits.values()) == ({8} if quantised.facts.quantization == "int8" else {8, 4})
    assert "model.embed_tokens" in wide
    assert all(f"model.layers.{layer}.self_attn.v_proj" in wide for layer in range(30))
    size = quantised.file.stat().st_size / inspect_checkpoint(starter()).parameters
    assert size < {"int8": 1.13, "int4": 0.83}[quantised.facts.quantization]


def test_quantised_logits_are_those_of_the_numbers_in_the_file(quantised: Quantised) -> None:
    tokens = PARIS[:6]
    (found,) = quantised.runner.forward([Span(1, 0, tokens, wanted=len(tokens))])
    assert differs(found, logits_of(quantised.model, tokens)) < rounding(30, 1536)


def test_the_second_load_reads_what_the_first_has_kept(quantised: Quantised) -> None:
    before = quantised.file.stat()
    form = quantised.facts.quantization
    again, facts, observer = load(inspect_checkpoint(starter()), quantised.home, form)
    assert (facts, observer.stages) == (quantised.facts, list(MlxRunner.stages))
    after = quantised.file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    expected = quantised.runner.forward([Span(2, 0, PARIS[:4])])[0]
    assert np.array_equal(again.forward([Span(2, 0, PARIS[:4])])[0], expected)


@pytest.mark.parametrize("harm", ["truncated", "of another model", "nothing"])
def test_damaged_weights_are_made_again(harm: str, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")
    runner, _, _ = load(checkpoint, tmp_path, "int8")
    (file,) = (tmp_path / "quantized").iterdir()
    whole = file.read_bytes()
    if harm == "of another model":
        load(make_model(tmp_path / "other", "qwen2", num_hidden_layers=2), tmp_path / "2", "int8")
        (other,) = (tmp_path / "2" / "quantized").iterdir()
        file.write_bytes(other.read_bytes())
    else:
        file.write_bytes(whole[:-100] if harm == "truncated" else b"")
    again, facts, _ = load(checkpoint, tmp_path, "int8")
    assert file.read_bytes() == whole
    assert not facts.note
    tokens = some_tokens(9)
    assert np.array_equal(all_rows(again, 0, tokens), all_rows(runner, 0, tokens))


def test_weights_that_cannot_be_kept_are_told(tmp_path: Path) -> None:
    (tmp_path / "quantized").write_text("")  # a file where a directory must be
    checkpoint = make_model(tmp_path / "model", "qwen2")
    runner, facts, _ = load(checkpoint, tmp_path, "int8")
    assert f"Couldn't write the quantised weights to {tmp_path / 'quantized'}" in facts.note
    assert np.isfinite(all_rows(runner, 0, some_tokens(9))).all()


def test_auto_is_8_bits_and_a_model_is_kept_once_for_each_form(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")
    assert load(checkpoint, tmp_path, "auto")[1].quantization == "int8"
    for quantization in QUANTIZATIONS:
        load(checkpoint, tmp_path, quantization)
    made = set((tmp_path / "quantized").iterdir())
    assert len(made) == 2
    assert made <= set(MLX.stored(tmp_path, checkpoint))


def test_kept_weights_go_when_their_model_has_gone(tmp_path: Path) -> None:
    checkpoint, now = make_model(tmp_path / "model", "qwen2"), time.time()
    load(checkpoint, tmp_path, "int8")
    (file,) = (tmp_path / "quantized").glob("*.safetensors")
    assert not sweep(tmp_path, checkpoint.directory, now)
    other = make_model(tmp_path / "other", "llama")
    assert not sweep(tmp_path, other.directory, now)
    shutil.rmtree(checkpoint.directory)
    assert sweep(tmp_path, other.directory, now) == [file]


# --- slots --------------------------------------------------------------------------------


def test_slots_of_unequal_lengths_share_a_pass(qwen2: tuple[MlxRunner, Any]) -> None:
    """Beside each other, with others, in another order and alone: each goes on as it would."""
    runner, model = qwen2
    tokens = {slot: some_tokens(300 + 37 * slot, seed=slot) for slot in range(4)}
    exact = {slot: logits_of(model, tokens[slot]) for slot in tokens}
    held = {slot: 250 + 20 * slot for slot in tokens}  # beyond and below the room of 256
    for slot in tokens:
        runner.forward([Span(slot, 0, tokens[slot][: held[slot]], wanted=0)])
    for together in [(0, 1, 2, 3), (0, 1, 2, 3), (2, 0), (3,), (1, 3), (1, 3), (0, 1, 2, 3)]:
        spans = [Span(slot, held[slot], [tokens[slot][held[slot]]]) for slot in together]
        for slot, rows in zip(together, runner.forward(spans), strict=True):
            assert differs(rows[0], exact[slot][held[slot]]) < CLOSE
            held[slot] += 1


def test_a_chunk_and_single_tokens_share_a_pass(
    qwen2: tuple[MlxRunner, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, model = qwen2
    computed, passes = runner.model, list[int]()

    def count(tokens: Any, **options: Any) -> Any:
        passes.append(len(tokens))
        return computed(tokens, **options)

    one, other, long = some_tokens(20, 1), some_tokens(31, 2), some_tokens(50, 3)
    runner.forward([Span(0, 0, one[:-1], wanted=0), Span(1, 0, other[:-1], wanted=0)])
    monkeypatch.setattr(runner, "model", count)
    found = runner.forward(
        [Span(0, 19, one[-1:]), Span(2, 0, long[:30], wanted=0), Span(1, 30, other[-1:])]
    )
    assert passes == [32]
    assert [rows.shape for rows in found] == [(1, VOCABULARY), (0, VOCABULARY), (1, VOCABULARY)]
    assert differs(found[0][0], logits_of(model, one)[-1]) < CLOSE
    assert differs(found[2][0], logits_of(model, other)[-1]) < CLOSE
    (rest,) = runner.forward([Span(2, 30, long[30:], wanted=3)])
    assert differs(rest, logits_of(model, long)[-3:]) < CLOSE


def test_a_copy_goes_on_by_itself_and_spoils_nothing(qwen2: tuple[MlxRunner, Any]) -> None:
    runner, model = qwen2
    tokens, branch = some_tokens(60, 4), some_tokens(60, 5)
    branch[:40] = tokens[:40]
    runner.forward([Span(0, 0, tokens[:50], wanted=0)])
    runner.copy(0, 1, 40)
    for slot, each, start in ((1, branch, 40), (0, tokens, 50)):
        assert (
            differs(prefill(runner, slot, start, each[start:]), logits_of(model, each)[-1]) < CLOSE
        )
    # Out of a pass that both shared, into a slot that held something.
    decode(runner, [0, 1], [60, 60], [5, 6])
    runner.copy(1, 2, 55)
    runner.release(1)
    assert differs(prefill(runner, 2, 55, branch[55:]), logits_of(model, branch)[-1]) < CLOSE
    exact = logits_of(model, [*tokens, 5, 7])[-1]
    assert differs(decode(runner, [0], [61], [7])[0], exact) < CLOSE


def test_a_slot_is_cut_back(qwen2: tuple[MlxRunner, Any]) -> None:
    runner, model = qwen2
    tokens = some_tokens(80, 6)
    runner.forward([Span(3, 0, some_tokens(90, 7), wanted=0)])
    runner.forward([Span(3, 0, tokens[:70], wanted=0)])
    for start in (30, 69):
        found = prefill(runner, 3, start, tokens[start:])
        assert differs(found, logits_of(model, tokens)[-1]) < CLOSE


def test_a_slot_begins_anew_after_its_release(qwen2: tuple[MlxRunner, Any]) -> None:
    runner, model = qwen2
    for slot in (4, 5):
        runner.forward([Span(slot, 0, some_tokens(40, slot), wanted=0)])
    decode(runner, [4, 5], [40, 40], [8, 9])
    runner.release(4)
    tokens = some_tokens(12, 8)
    assert differs(prefill(runner, 4, 0, tokens), logits_of(model, tokens)[-1]) < CLOSE
    exact = logits_of(model, [*some_tokens(40, 5), 9, 10])[-1]
    assert differs(decode(runner, [5], [41], [10])[0], exact) < CLOSE


def test_a_pass_that_breaks_off_loses_its_own_slots_alone(
    qwen2: tuple[MlxRunner, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, model = qwen2
    for slot in (6, 7):
        runner.forward([Span(slot, 0, some_tokens(20, slot), wanted=0)])

    def fail(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("[metal::malloc] Attempting to allocate 9 bytes which is too much")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "model", fail)
        with pytest.raises(RuntimeError, match="Attempting to allocate"):
            decode(runner, [6], [20], [5])
    with pytest.raises(RuntimeError, match="slot 6 are lost"):
        decode(runner, [7, 6], [20, 20], [5, 5])
    exact = logits_of(model, [*some_tokens(20, 7), 5])[-1]
    assert differs(decode(runner, [7], [20], [5])[0], exact) < CLOSE


def test_another_thread_goes_on(qwen2: tuple[MlxRunner, Any]) -> None:
    """Nothing is left to be computed, which mlx would do on no other thread."""
    runner, model = qwen2
    tokens, found = some_tokens(40, 9), list[NDArray[np.float32]]()
    runner.forward([Span(0, 0, tokens[:20], wanted=0)])
    runner.copy(0, 1, 20)
    thread = threading.Thread(target=lambda: found.append(prefill(runner, 1, 20, tokens[20:])))
    thread.start()
    thread.join()
    assert differs(found[0], logits_of(model, tokens)[-1]) < CLOSE
    assert differs(decode(runner, [1], [40], [3])[0], logits_of(model, [*tokens, 3])[-1]) < CLOSE


def test_memory_is_taken_as_it_is_said_and_given_back(qwen2: tuple[MlxRunner, Any]) -> None:
    runner, _ = qwen2
    heads, size, both, width = 2, 16, 2, 4
    per_token = LAYERS * heads * size * both * width
    assert runner.kv_bytes_per_token() == per_token
    assert runner.free_bytes() > 0
    runner.reserve(8, 1024)
    empty, count = mx.get_active_memory(), 600
    for slot in range(4):
        runner.forward([Span(slot, 0, some_tokens(count, slot), wanted=0)])
    decode(runner, [0, 1, 2, 3], [count] * 4, [5] * 4)
    # Of what they hold together, none may keep the others'.
    for left in (3, 2, 1, 0):
        runner.release(left)
        taken = mx.get_active_memory() - empty
        assert left * count * per_token <= taken < 1.4 * max(left, 0.01) * count * per_token


# --- behind the scheduler -----------------------------------------------------------------


def start(checkpoint: Checkpoint, home: Path, quantization: str = "none") -> BatchedEngine:
    engine = BatchedEngine(MlxRunner())
    engine.load(checkpoint, LoadSettings("auto", "auto", quantization, home=home), Observer())
    return engine


def request(name: str, prompt: list[int], count: int = 12) -> SequenceRequest:
    plan = SamplingPlan(temperature=0.0)
    return SequenceRequest(name, tuple(prompt), plan, count, frozenset())


def answer(engine: BatchedEngine, *requests: SequenceRequest) -> tuple[dict[str, list[int]], int]:
    """What each is answered, and how many tokens of the prompts needed no computing."""
    for one in requests:
        engine.submit(one)
    tokens: dict[str, list[int]] = {one.request_id: [] for one in requests}
    reused = 0
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            tokens[result.request_id] += result.token_ids
            reused += result.reused
    return tokens, reused


def generate(checkpoint: Checkpoint, prompt: list[int], count: int = 12) -> list[int]:
    output = reference(checkpoint).generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None
    )
    ids: list[int] = output[0, len(prompt) :].tolist()
    return ids


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[BatchedEngine, Checkpoint]:
    directory = tmp_path_factory.mktemp("qwen3")
    checkpoint = make_model(directory / "model", "qwen3")
    return start(checkpoint, directory), checkpoint


def test_several_conversations_are_answered_as_generate_does(
    qwen3: tuple[BatchedEngine, Checkpoint],
) -> None:
    """Of one chunk and of two; more than there are places for."""
    engine, checkpoint = qwen3
    lengths = (3, 40, MlxRunner.limits.chunk + 60, 7, 90, 12, 200, 30, 5, 64)
    prompts = {str(seed): some_tokens(length, seed) for seed, length in enumerate(lengths)}
    found, _ = answer(engine, *(request(name, prompt) for name, prompt in prompts.items()))
    expected = {name: generate(checkpoint, prompt) for name, prompt in prompts.items()}
    assert found == expected
    assert len({token for answer in found.values() for token in answer}) > 20


def test_a_beginning_is_computed_once(qwen3: tuple[BatchedEngine, Checkpoint]) -> None:
    """The next turn goes on in its slot; an edited question in a copy, or a slot that is cut."""
    engine, checkpoint = qwen3
    first = some_tokens(50, 20)
    said = answer(engine, request("first", first))[0]["first"]
    second = [*first, *said, *some_tokens(10, 21)]
    edited = [*first[:30], *some_tokens(25, 22)]
    for prompt, known in ((second, 50), (edited, 30), (second, 50)):
        found, reused = answer(engine, request("next", prompt))
        assert found["next"] == generate(checkpoint, prompt)
        assert reused >= known


def test_a_cancelled_sequence_leaves_the_others_alone(
    qwen3: tuple[BatchedEngine, Checkpoint],
) -> None:
    engine, checkpoint = qwen3
    prompts = {name: some_tokens(20, 30 + n) for n, name in enumerate("abc")}
    for name, prompt in prompts.items():
        engine.submit(request(name, prompt))
    found: dict[str, list[int]] = {name: [] for name in prompts}
    while engine.active:
        for result in engine.step():
            found[result.request_id] += result.token_ids
        if len(found["b"]) == 3:
            engine.cancel("b")
    assert found["b"] == generate(checkpoint, prompts["b"], 3)
    assert {name: found[name] for name in "ac"} == {
        name: generate(checkpoint, prompts[name]) for name in "ac"
    }


# --- adapters -----------------------------------------------------------------------------


def test_an_adapter_is_added_to_quantised_layers(tmp_path: Path) -> None:
    """As if its product were in the weights; each row has its own, and without it nothing
    changes by a bit. (`test_adapter_exactness` compares with peft.)"""
    checkpoint, random = make_model(tmp_path / "model", "llama"), np.random.default_rng(1)
    runner, _, _ = load(checkpoint, tmp_path, "int8")
    (file,) = (tmp_path / "quantized").iterdir()
    kept, model = load_file(file), reference(checkpoint)
    parameters = dict(model.named_parameters())
    names = [
        f"model.layers.{n}.{part}" for n in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
    ]
    layers: dict[str, LowRank] = {}
    with torch.no_grad():
        for name in bits_of(kept):
            parameters[f"{name}.weight"].copy_(torch.from_numpy(unpack(kept, name)))
    tokens = some_tokens(40)
    plain = all_rows(runner, 0, tokens)
    with torch.no_grad():
        for name in names:
            outputs, inputs = parameters[f"{name}.weight"].shape
            down, up = (
                random.normal(0, 0.3, s).astype(np.float32) for s in ((4, inputs), (outputs, 4))
            )
            layers[name] = LowRank(down, up)
            parameters[f"{name}.weight"].add_(torch.from_numpy(up @ down))
    adapter = Adapter("key", "name", layers)
    assert runner.add_adapter(adapter) == adapter.bytes
    exact = logits_of(model, tokens)
    assert np.array_equal(all_rows(runner, 1, tokens), plain)
    found = runner.forward([Span(0, 0, tokens), Span(1, 0, tokens, "key"), Span(2, 0, tokens)])
    assert differs(found[1][0], exact[-1]) < CLOSE
    assert differs(plain[-1:], exact[-1:]) > FAR
    assert np.array_equal(found[0], found[2])
    assert differs(found[0][0], plain[-1]) < CLOSE
    runner.drop_adapter("key")
    assert np.array_equal(all_rows(runner, 1, tokens), plain)


@pytest.mark.parametrize(
    ("name", "shape", "code"),
    [
        ("model.layers.0.self_attn.x_proj", (64, 64), "adapter_wrong_base"),
        ("model.layers.0.self_attn.q_proj", (64, 65), "adapter_wrong_base"),
        ("model.embed_tokens", (384, 64), "adapter_unsupported"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    qwen2: tuple[MlxRunner, Any], name: str, shape: tuple[int, int], code: str
) -> None:
    runner, _ = qwen2
    outputs, inputs = shape
    fits = LowRank(np.ones((2, 64), np.float32), np.ones((64, 2), np.float32))
    other = LowRank(np.ones((2, inputs), np.float32), np.ones((outputs, 2), np.float32))
    before = all_rows(runner, 6, some_tokens(10))
    with pytest.raises(ShammahError) as refused:
        runner.add_adapter(
            Adapter("k", "n", {"model.layers.0.self_attn.o_proj": fits, name: other})
        )
    assert refused.value.code == code
    assert np.array_equal(all_rows(runner, 6, some_tokens(10)), before)


# --- the starter's answer -----------------------------------------------------------------


def greedy(runner: Runner, slot: int, prompt: tuple[int, ...], end: int = 2) -> list[int]:
    logits, tokens = prefill(runner, slot, 0, prompt), list[int]()
    while (token := int(logits.argmax())) != end and len(tokens) < 40:
        logits = decode(runner, [slot], [len(prompt) + len(tokens)], [token])[0]
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("quantised", ["int8"], indirect=True)
def test_native_and_mlx_give_the_same_answer(quantised: Quantised, tmp_path: Path) -> None:
    native = NativeRunner(tmp_path, KEPT_KERNELS)
    native.load(inspect_checkpoint(starter()), LoadSettings(), Observer())
    native.reserve(1, 100)
    expected = greedy(native, 0, PARIS)
    native.close()
    assert len(expected) > 5
    assert greedy(quantised.runner, 4, PARIS) == expected


def test_ask_names_the_engine(sandbox: Sandbox) -> None:
    (sandbox.shammah_home / "config.toml").write_text('[inference]\nengine = "mlx"\n')
    ran = run("ask", "--model", "starter", "--json", "What is the capital of France?")
    assert ran.code == 0, ran.said
    assert run("stop").code == 0
    document = json.loads(ran.out)
    assert document["text"] == "The capital of France is Paris."
    made = document["provenance"]
    assert (made["engine"], made["quantization"], made["fallback"]) == ("mlx", "int8", False)


# --- what it leaves alone -----------------------------------------------------------------

_ALONE = """
import json, resource, sys
from pathlib import Path
before = resource.getrlimit(resource.RLIMIT_NOFILE)
from workers.inference.engine import LoadSettings
from workers.inference.engines.mlx.runner import MlxRunner
from workers.inference.engines.mlx.spec import MLX
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Span

class Silent:
    def stage(self, name): pass
    def advance(self): pass

checkpoint = inspect_checkpoint(Path(sys.argv[1]))
assert not MLX.obstacle(checkpoint)
assert "mlx.core" not in sys.modules
runner = MlxRunner()
runner.prepare()
runner.load(checkpoint, LoadSettings(home=Path(sys.argv[2])), Silent())
runner.reserve(1, 100)
runner.forward([Span(0, 0, [1, 2, 3])])
assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
print(json.dumps(sorted(sys.modules)))
"""


def test_it_brings_neither_torch_nor_transformers(tmp_path: Path) -> None:
    """The package around mlx-lm's models would, and lower the limit of open files."""
    make_model(tmp_path / "model", "qwen2")
    ended = subprocess.run(
        [sys.executable, "-c", _ALONE, str(tmp_path / "model"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tops = {module.partition(".")[0] for module in json.loads(ended.stdout)}
    assert {"mlx", "mlx_lm"} <= tops
    assert not tops & {"torch", "transformers", "tokenizers", "huggingface_hub"}


def with_tensor(
    name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Path], None]:
    def apply(file: Path) -> None:
        from safetensors.torch import load_file as load_tensors
        from safetensors.torch import save_file

        tensors = load_tensors(file)
        tensors[name] = change(tensors[name])
        save_file(tensors, file, {"format": "pt"})

    return apply


@pytest.mark.parametrize(
    ("harm", "code", "words"),
    [
        (
            with_tensor("model.norm.weight", lambda t: t * float("nan")),
            "model_corrupt",
            "model.norm.weight holds NaN",
        ),
        (
            with_tensor("model.norm.weight", lambda t: t[:10].clone()),
            "model_config_invalid",
            "mlx cannot build the model",
        ),
        (
            with_tensor("model.layers.1.mlp.up_proj.weight", lambda t: t * 1e38),
            "model_unsupported",
            "NaN or infinite values",
        ),
    ],
)
def test_weights_that_cannot_be_computed_with_are_refused(
    harm: Callable[[Path], None], code: str, words: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")
    harm(checkpoint.directory / "model.safetensors")
    with pytest.raises(ShammahError, match=words) as refused:
        load(inspect_checkpoint(checkpoint.directory), tmp_path)
    assert refused.value.code == code
