"""The native runner against transformers, on small random models of every supported kind.

transformers computes with weights, keys and values rounded as the runner holds them, so what is
compared is the computation; what rounding costs is asked of the real model
(`test_native_starter`). `kept_kernels` is where the machine code of these tests is kept.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import psutil
import pytest
import torch
import transformers
from numpy.typing import NDArray

from shammah.errors import ShammahError
from tests.fakes.spans import decode, prefill
from tests.real.models import make_random, make_tokenizer
from workers.inference.engine import LoadSettings
from workers.inference.engines.native import runner as native_runner
from workers.inference.engines.native.architecture import read_architecture
from workers.inference.engines.native.runner import NativeRunner, supports
from workers.inference.engines.native.spec import QUANTIZATIONS
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.runner import Span

CAPACITY = 400
VOCABULARY = 390
CLOSE = 4e-3
"""Of logits of about 1: activations are rounded to 16 bits by groups, and keys to float16 may
be rounded to the other side."""
BYTES_CLOSE = 0.1
"""With activations of 8 bits, of which more are rounded to the other side with each position."""

SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 72,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2", {}),
    "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
    "llama": ("Llama", {}),
    "llama-one-kv-head": ("Llama", {"num_key_value_heads": 1, "rms_norm_eps": 1e-3}),
    "llama-all-kv-heads": ("Llama", {"num_key_value_heads": 6, "head_dim": 16}),
    "llama-8-queries-a-head": ("Llama", {"num_attention_heads": 8, "num_key_value_heads": 1}),
    "llama3-rope": ("Llama", {"rope_parameters": LLAMA3}),
    "linear-rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}},
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen3": ("Qwen3", {}),
    "qwen3-wide-heads": ("Qwen3", {"head_dim": 80, "hidden_size": 64, "intermediate_size": 256}),
}


def kept_kernels() -> Path:
    """Where tests keep machine code, so that only their first run ever compiles."""
    return Path(sys.prefix, "share", "shammah", "kernels")


@dataclass
class Stages:
    """A load observer that remembers."""

    names: list[str] = field(default_factory=list)
    advanced: int = 0

    def stage(self, name: str) -> None:
        self.names.append(name)

    def advance(self) -> None:
        self.advanced += 1


def make_model(directory: Path, kind: str, **settings: Any) -> Checkpoint:
    family, own = KINDS[kind]
    return make_random(directory, family, {**SMALL, **own, **settings}, 0.1)


def load(
    checkpoint: Checkpoint, quantized: Path, threads: int = 2, quantization: str = "int8"
) -> NativeRunner:
    runner = NativeRunner(quantized, kept_kernels(), threads)
    open_model = native_runner.open_model

    def open_and_note(*given: Any, **options: Any) -> Any:
        opened = open_model(*given, **options)
        OPENED[runner] = opened[0]
        return opened

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_runner, "open_model", open_and_note)
        facts = runner.load(checkpoint, LoadSettings(quantization=quantization), Stages())
    assert facts.quantization == quantization
    return runner


OPENED: WeakKeyDictionary[NativeRunner, Any] = WeakKeyDictionary()
"""What `load` has opened for its runners: the packed weights that they compute with."""


def held_weights(checkpoint: Checkpoint, runner: NativeRunner) -> dict[str, NDArray[np.float32]]:
    """The weights that the runner computes with, under transformers' names."""
    from tests.fakes.int4_weights import unpack_int4, unpack_int6
    from workers.inference.engines.native.layout import padded
    from workers.inference.engines.native.packing import unpack
    from workers.inference.engines.native.packing_plan import matrices

    found: dict[str, NDArray[np.float32]] = {}
    for matrix in matrices(read_architecture(checkpoint), runner.quantization):
        held = getattr(OPENED[runner], matrix.name)
        shape = (matrix.channels, matrix.inputs)
        for place, layer in enumerate(matrix.layers):
            if held.bits == 4:
                arrays = held.weights[place], held.scales[place], held.units[place]
                every = unpack_int4(*arrays, *shape)
            elif held.bits == 6:
                every = unpack_int6(held.weights[place], held.scales[place], *shape)
            else:
                every = unpack(held.weights[place], held.scales[place], *shape)
            begin = 0
            for source in matrix.sources:
                own = every[begin : begin + source.channels]
                name = source.name.format(layer)
                found[name] = found[name] + own if source.remainder else own
                begin += padded(source.channels, matrix.padding)
    return found


def takes_bytes() -> bool:
    """Whether activations for weights of 4 bits get 8 bits on this processor."""
    from workers.inference.engines.native.processor import features

    return "AVX512_VNNI" in features()


def allowed(quantization: str) -> float:
    """How far logits of about 1 may be from the reference's."""
    return BYTES_CLOSE if quantization == "int4" and takes_bytes() else CLOSE


def as_bytes(module: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of a linear layer in groups of 32 with steps of a 127th of the largest."""
    (x,) = inputs
    groups = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    steps = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return ((torch.round(groups / steps) * steps).flatten(-2)[..., : x.shape[-1]],)


def round_activations(model: Any, checkpoint: Checkpoint, quantization: str) -> None:
    """Have a model of transformers round what the runner rounds to 8 bits."""
    from workers.inference.engines.native.packing_plan import matrices

    names = {
        source.name.format(layer).removesuffix(".weight")
        for matrix in matrices(read_architecture(checkpoint), quantization)
        if matrix.bits < 8 and takes_bytes()
        for layer, source in itertools.product(matrix.layers, matrix.sources)
    }
    for name in {"lm_head" if "embed" in name else name for name in names}:
        model.get_submodule(name).register_forward_pre_hook(as_bytes)


def reference(checkpoint: Checkpoint, runner: NativeRunner) -> Any:
    """transformers in float32, with the runner's weights."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=torch.float32
    )
    with torch.no_grad():
        for name, weights in held_weights(checkpoint, runner).items():
            model.get_parameter(name).copy_(torch.from_numpy(weights))
    round_activations(model, checkpoint, runner.quantization)
    return model


class RoundingCache(transformers.DynamicCache):
    """Holds keys and values as float16."""

    def update(self, keys: Any, values: Any, *arguments: Any, **options: Any) -> Any:
        return super().update(keys.half().float(), values.half().float(), *arguments, **options)


def reference_logits(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    with torch.inference_mode():
        cache = RoundingCache(config=model.config)
        logits: NDArray[np.float32] = (
            model(torch.tensor([tokens]), past_key_values=cache, use_cache=True).logits[0].numpy()
        )
        return logits


def some_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def decode_all(runner: NativeRunner, slot: int, tokens: list[int]) -> NDArray[np.float32]:
    rows = [decode(runner, [slot], [at], [token])[0] for at, token in enumerate(tokens)]
    return np.array(rows)


@pytest.fixture(scope="module", params=sorted(QUANTIZATIONS))
def qwen2(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[NativeRunner]:
    """A loaded model with twelve slots."""
    directory = tmp_path_factory.mktemp("qwen2")
    checkpoint = make_model(directory / "model", "qwen2")
    runner = load(checkpoint, directory / "quantized", quantization=request.param)
    runner.reserve(12, CAPACITY)
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("slot", "position", "token", "named"),
    [
        (0, 0, VOCABULARY, "token 390 to 390 of 390"),
        (0, 0, -1, "token -1"),
        (12, 0, 5, "slot 12 to 12 of 12"),
        (0, CAPACITY, 5, "position 400 to 400 of 400"),
    ],
)
def test_nothing_is_read_beyond_what_there_is(
    qwen2: NativeRunner, slot: int, position: int, token: int, named: str
) -> None:
    with pytest.raises(IndexError, match=named):
        decode(qwen2, [slot], [position], [token])


@pytest.mark.parametrize("quantization", sorted(QUANTIZATIONS))
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind: str, quantization: str, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", kind)
    assert supports(checkpoint) == ""
    runner = load(checkpoint, tmp_path / "quantized", quantization=quantization)
    runner.reserve(2, CAPACITY)
    tokens = some_tokens(70)
    expected = reference_logits(reference(checkpoint, runner), tokens)
    assert abs(expected).max() > 1
    decoded = decode_all(runner, 1, tokens)
    assert abs(decoded - expected).max() < allowed(quantization)
    assert np.array_equal(prefill(runner, 0, 0, tokens), decoded[-1])
    runner.close()


def test_a_long_sequence_is_computed_right_in_chunks(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")
    runner = load(checkpoint, tmp_path / "quantized")
    runner.reserve(1, 1000)
    tokens = some_tokens(900)
    expected = reference_logits(reference(checkpoint, runner), tokens)
    for start, end in ((0, 255), (255, 256), (256, 257), (257, 512), (512, 900)):
        logits = prefill(runner, 0, start, tokens[start:end])
        assert abs(logits - expected[end - 1]).max() < CLOSE
    runner.close()


# --- one arithmetic, however the work is cut ----------------------------------------------


@pytest.mark.parametrize("cut", [1, 5, 16, 64, 100, 256, 299])
def test_chunks_do_not_change_a_bit(qwen2: NativeRunner, cut: int) -> None:
    tokens = some_tokens(300)
    whole = prefill(qwen2, 0, 0, tokens)
    prefill(qwen2, 1, 0, tokens[:cut])
    assert np.array_equal(prefill(qwen2, 1, cut, tokens[cut:]), whole)


def test_prompts_and_answers_of_one_pass_get_the_bits_they_get_alone(qwen2: NativeRunner) -> None:
    tokens = some_tokens(60)
    for slot in range(4):
        prefill(qwen2, slot, 0, tokens[: 20 + slot])
    spans = [
        Span(0, 20, tokens[20:57], wanted=0),  # a prompt that goes on
        Span(1, 21, tokens[21:22]),
        Span(2, 22, tokens[22:60], wanted=1),  # the end of another
        Span(3, 23, tokens[23:27], wanted=4),  # guesses
    ]
    together = qwen2.forward(spans)
    assert [len(rows) for rows in together] == [0, 1, 1, 4]
    after = qwen2.forward([Span(0, 57, tokens[57:])])
    alone = decode_all(qwen2, 5, tokens)
    expected = [alone[:0], alone[21:22], alone[59:], alone[23:27]]
    for found, rows in zip([*together, *after], [*expected, alone[59:]], strict=True):
        assert np.array_equal(found, rows)


def test_decoding_gives_the_bits_of_prefilling(qwen2: NativeRunner) -> None:
    tokens = some_tokens(40)
    decoded = decode_all(qwen2, 0, tokens)
    for count in (1, 2, 3, 15, 16, 17, 40):
        assert np.array_equal(prefill(qwen2, 1, 0, tokens[:count]), decoded[count - 1])


@pytest.mark.parametrize("rows", [2, 3, 4, 5, 6, 7, 8])
def test_a_batch_gives_each_what_it_gets_alone(qwen2: NativeRunner, rows: int) -> None:
    slots = list(range(rows))[::-1]
    positions = [3 * slot + 1 for slot in slots]
    prompts = {slot: some_tokens(at, slot) for slot, at in zip(slots, positions, strict=True)}
    tokens = some_tokens(rows, 99)
    alone = []
    for slot, position, token in zip(slots, positions, tokens, strict=True):
        prefill(qwen2, slot, 0, prompts[slot])
        alone.append(decode(qwen2, [slot], [position], [token])[0])
    assert np.array_equal(decode(qwen2, slots, positions, tokens), np.array(alone))


def test_slots_do_not_touch_each_other(qwen2: NativeRunner) -> None:
    mine, other = some_tokens(50, 1), some_tokens(60, 2)
    undisturbed = prefill(qwen2, 0, 0, mine)
    prefill(qwen2, 1, 0, mine[:30])
    prefill(qwen2, 0, 0, other)
    prefill(qwen2, 2, 0, other)
    assert np.array_equal(prefill(qwen2, 1, 30, mine[30:]), undisturbed)


def test_a_slot_that_is_used_again_begins_anew(qwen2: NativeRunner) -> None:
    first, second = some_tokens(300, 1), some_tokens(20, 2)
    expected = prefill(qwen2, 0, 0, second)
    prefill(qwen2, 1, 0, first)
    assert np.array_equal(prefill(qwen2, 1, 0, second), expected)


def test_a_beginning_is_reused(qwen2: NativeRunner) -> None:
    shared, ends = some_tokens(100), (some_tokens(30, 1), some_tokens(17, 2))
    for end in ends:
        expected = prefill(qwen2, 0, 0, shared + end)
        prefill(qwen2, 1, 0, shared)
        assert np.array_equal(prefill(qwen2, 1, 100, end), expected)


def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "llama")
    tokens = some_tokens(100)
    found = []
    for threads in (1, 2, 3, 4, 5):
        runner = load(checkpoint, tmp_path / "quantized", threads)
        runner.reserve(1, 128)
        found.append((prefill(runner, 0, 0, tokens), decode_all(runner, 0, tokens)[-1]))
        runner.close()
    for prefilled, decoded in found[1:]:
        assert np.array_equal(prefilled, found[0][0])
        assert np.array_equal(decoded, found[0][1])


def test_the_last_position_of_a_slot_can_be_used(qwen2: NativeRunner) -> None:
    tokens = some_tokens(CAPACITY)
    prefill(qwen2, 0, 0, tokens[:-1])
    logits = decode(qwen2, [0], [CAPACITY - 1], tokens[-1:])[0]
    assert np.array_equal(prefill(qwen2, 1, 0, tokens), logits)


def test_the_cache_has_the_size_that_it_says(qwen2: NativeRunner) -> None:
    positions = 2 * 3 * (12 + 16)  # two heads of three layers; values padded to sixteen
    assert qwen2.kv_bytes_per_token() == positions * 2


def test_a_copy_goes_on_like_the_original(qwen2: NativeRunner) -> None:
    tokens = some_tokens(90)
    expected = prefill(qwen2, 0, 0, tokens)
    prefill(qwen2, 1, 0, some_tokens(70, 5))
    qwen2.copy(0, 1, 67)
    assert np.array_equal(prefill(qwen2, 1, 67, tokens[67:]), expected)


def test_released_memory_goes_back_and_the_slot_can_be_used_again(tmp_path: Path) -> None:
    runner = load(make_model(tmp_path / "model", "qwen2"), tmp_path / "quantized")
    runner.reserve(100, 50_000)  # more than a small machine has
    tokens = some_tokens(256) * 50
    before = resident()
    expected = prefill(runner, 40, 0, tokens)
    prefill(runner, 41, 0, tokens[:100])
    taken = resident() - before
    assert taken > 0.8 * len(tokens) * runner.kv_bytes_per_token()
    runner.release(40)
    assert resident() - before < 0.2 * taken
    assert np.array_equal(prefill(runner, 40, 0, tokens), expected)
    assert np.array_equal(
        prefill(runner, 41, 100, tokens[100:300]), prefill(runner, 40, 0, tokens[:300])
    )
    runner.close()


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


# --- the checkpoint -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_float_format_is_read(dtype: str, tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "first", "qwen2")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=getattr(torch, dtype)
    )
    model.save_pretrained(tmp_path / "model")
    make_tokenizer(tmp_path / "model")
    runner = load(inspect_checkpoint(tmp_path / "model"), tmp_path / "quantized")
    runner.reserve(1, 16)
    tokens = some_tokens(10)
    expected = reference_logits(reference(checkpoint, runner), tokens)[-1]
    assert abs(prefill(runner, 0, 0, tokens) - expected).max() < 0.05
    runner.close()


def test_shards_are_read_like_one_file(tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.directory)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    make_tokenizer(tmp_path / "sharded")
    sharded = inspect_checkpoint(tmp_path / "sharded")
    assert len(sharded.weights) > 2
    logits = []
    for found in (checkpoint, sharded):
        runner = load(found, tmp_path / "quantized")
        runner.reserve(1, 16)
        logits.append(prefill(runner, 0, 0, some_tokens(10)))
        runner.close()
    assert np.array_equal(*logits)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"num_hidden_layers": 2}, "does not describe"),
        ({"num_hidden_layers": 4}, "lack model.layers.3"),
        ({"intermediate_size": 96}, "hold model.layers.0.mlp.gate_proj.weight as [100, 72]"),
        ({"num_key_value_heads": 3}, "hold model.layers.0.self_attn.k_proj.weight"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(
    change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    checkpoint = make_model(tmp_path / "model", "llama")
    config = transformers.AutoConfig.from_pretrained(checkpoint.directory)
    for name, value in change.items():
        setattr(config, name, value)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(checkpoint.directory)
    with pytest.raises(ShammahError) as caught:
        load(inspect_checkpoint(checkpoint.directory), tmp_path / "quantized")
    assert caught.value.code == "model_config_invalid"
    assert why in caught.value.message
    assert not list((tmp_path / "quantized").glob("*"))
