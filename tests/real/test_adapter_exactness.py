"""Adapters against peft, in every engine, on small random models with random adapters.

peft computes with weights (and in the native engine's case keys and values) rounded as the engine
holds them, so what is compared is what the adapter adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from numpy.typing import NDArray

from shammah.errors import ShammahError
from shammah.learning.adapters import ACCEPTED, AdapterEntry, AdapterStore
from tests.fakes.spans import decode, prefill
from tests.real.models import make_tokenizer
from tests.real.test_native_models import (
    OPENED,
    SMALL,
    Stages,
    allowed,
    decode_all,
    kept_kernels,
    load,
    make_model,
    reference,
    reference_logits,
    some_tokens,
)
from workers.inference.engine import LoadSettings
from workers.inference.engines.mlx.runner import MlxRunner
from workers.inference.engines.native.architecture import read_architecture
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.packages.adapter_file import Adapter, read_adapter
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.runner import Runner

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"  # peft 0.21 reads it
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
RANKS = (1, 8, 16, 64)
KINDS = ("qwen2", "qwen2-tied", "llama", "llama-one-kv-head", "qwen3-wide-heads")

CLOSE = 1e-4
"""Of float32 computed in another order."""
CLOSE_NATIVE = 6e-3
"""Of what `test_native_models` allows, relative to logits that an adapter has made larger."""
CLOSE_MLX = 1e-3
"""The adapter of rank 1, times 12, makes models that enlarge rounding: peft's own float32 is up to
6e-5 from its float64, and mlx's, which approximates exponentials otherwise, 5e-4."""
PLAIN = 35
"""Tokens of a prompt, after which some more are decoded."""


def make_adapter(checkpoint: Checkpoint, home: Path, name: str, **options: Any) -> AdapterEntry:
    """A strong random one, made and saved by peft."""
    base = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint.directory, dtype=torch.float32
    )
    options = {"target_modules": list(EVERY), "lora_alpha": 12, **options}
    model = peft.get_peft_model(base, peft.LoraConfig(**options))
    random = torch.Generator().manual_seed(len(name) + options["r"])
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0, 0.15, generator=random)
    facts = AdapterEntry(name, Path(), checkpoint.directory.name, verdict=ACCEPTED)
    return AdapterStore(home).add(facts, model.save_pretrained)


def add(runner: Runner, entry: AdapterEntry) -> Adapter:
    adapter = read_adapter(entry, entry.name)
    assert runner.add_adapter(adapter) >= adapter.bytes
    return adapter


def with_peft(base: Any, entry: AdapterEntry) -> Any:
    """What peft makes of a model and an adapter; ``base`` is never the same again."""
    return peft.PeftModel.from_pretrained(base, str(entry.directory)).eval()


def compute(runner: Runner, slot: int, tokens: list[int], adapter: str = "") -> NDArray[np.float32]:
    """The logits after the prompt, in two chunks, and after each token that follows."""
    prefill(runner, slot, 0, tokens[:20], adapter)
    rows = [prefill(runner, slot, 20, tokens[20:PLAIN], adapter)]
    for at in range(PLAIN, len(tokens)):
        keys = (adapter,) if adapter else ()
        rows.append(decode(runner, [slot], [at], tokens[at : at + 1], keys)[0])
    return np.array(rows)


def differs(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest difference, relative to the largest logit."""
    return float(abs(found - expected).max() / max(1.0, abs(expected).max()))


def load_transformers(checkpoint: Checkpoint, **settings: Any) -> TransformersRunner:
    runner = TransformersRunner()
    runner.load(checkpoint, LoadSettings("cpu", **settings), Stages())
    runner.reserve(6, 200)
    return runner


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp(request.param), request.param)


class Made:
    """A model with an adapter of each rank."""

    def __init__(self, directory: Path, kind: str) -> None:
        self.directory = directory
        self.checkpoint = make_model(directory / "model", kind)
        self.entries = [
            make_adapter(self.checkpoint, directory, f"rank{rank}", r=rank) for rank in RANKS
        ]

    def base(self) -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            self.checkpoint.directory, dtype=torch.float32
        )


Reference = Callable[[Any, list[int]], NDArray[np.float32]]


def plain_logits(model: Any, tokens: list[int]) -> NDArray[np.float32]:
    """`reference_logits`, with keys and values of 32 bits."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
        return logits


def check(
    runner: Runner, made: Made, base: Callable[[], Any], logits: Reference, close: float
) -> None:
    """Each adapter is peft's, and between and after them the model is itself to the bit."""
    tokens = some_tokens(PLAIN + 6)
    alone = compute(runner, 0, tokens)
    for entry in made.entries:
        add(runner, entry)
        assert np.array_equal(compute(runner, 1, tokens), alone)
        found = compute(runner, 2, tokens, entry.name)
        expected = logits(with_peft(base(), entry), tokens)[PLAIN - 1 :]
        assert differs(found, expected) < close
        assert differs(found, alone) > min(20 * close, 20 * CLOSE_NATIVE)
        assert np.array_equal(compute(runner, 2, tokens), alone)
    for entry in made.entries:
        runner.drop_adapter(entry.name)
    assert np.array_equal(compute(runner, 3, tokens), alone)


def test_the_transformers_engine_computes_what_peft_computes(made: Made) -> None:
    runner = load_transformers(made.checkpoint, dtype="float32", quantization="none")
    check(runner, made, made.base, plain_logits, CLOSE)


def test_the_mlx_engine_computes_what_peft_computes(made: Made, tmp_path: Path) -> None:
    runner = MlxRunner()
    runner.load(made.checkpoint, LoadSettings(quantization="none", home=tmp_path), Stages())
    runner.reserve(6, 200)
    check(runner, made, made.base, plain_logits, CLOSE_MLX)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_the_native_engine_computes_what_peft_computes(made: Made, quantization: str) -> None:
    runner = load(made.checkpoint, made.directory / "quantized", quantization=quantization)
    runner.reserve(6, 200)
    base = lambda: reference(made.checkpoint, runner)  # noqa: E731
    close = max(CLOSE_NATIVE, allowed(quantization))
    check(runner, made, base, reference_logits, close)
    runner.close()


# --- one model, more closely --------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("one"), "llama")


def test_quantised_layers_of_transformers_are_adapted(llama: Made) -> None:
    runner = load_transformers(llama.checkpoint, quantization="int4")
    tokens = some_tokens(PLAIN)
    alone = prefill(runner, 0, 0, tokens)
    base = llama.base()
    with torch.inference_mode():
        for name, module in base.named_modules():
            if isinstance(module, torch.nn.Linear):
                held = runner.model.get_submodule(name)
                kind = next(held.parameters()).dtype if name == "lm_head" else torch.float32
                module.weight.copy_(held(torch.eye(module.in_features, dtype=kind)).T.float())
    entry = llama.entries[2]
    add(runner, entry)
    found = prefill(runner, 1, 0, tokens, entry.name)
    expected = plain_logits(with_peft(base, entry), tokens)[-1]
    assert differs(found, expected) < 0.02  # activations may have 16 bits
    assert differs(found, alone) > 0.2
    assert np.array_equal(prefill(runner, 2, 0, tokens), alone)


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "use_rslora": True},
        {"r": 4, "rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 8}},
        {"r": 4, "alpha_pattern": {"v_proj": 3, "layers.[01].mlp.down_proj": 40}},
        {"r": 4, "target_modules": ["v_proj"]},
        {"r": 5, "layers_to_transform": [1]},
        {"r": 3, "init_lora_weights": False, "lora_dropout": 0.3},
    ],
)
def test_what_peft_can_be_told_of_scale_and_place_is_understood(
    llama: Made, options: dict[str, Any], tmp_path: Path
) -> None:
    entry = make_adapter(llama.checkpoint, tmp_path, "own", **options)
    plain = load_transformers(llama.checkpoint, dtype="float32", quantization="none")
    native = load(llama.checkpoint, llama.directory / "quantized")
    native.reserve(1, 100)
    tokens = some_tokens(PLAIN)
    expected = plain_logits(with_peft(llama.base(), entry), tokens)[-1]
    add(plain, entry)
    assert differs(prefill(plain, 0, 0, tokens, "own"), expected) < CLOSE
    rounded = with_peft(reference(llama.checkpoint, native), entry)
    expected = reference_logits(rounded, tokens)[-1]
    add(native, entry)
    assert differs(prefill(native, 0, 0, tokens, "own"), expected) < CLOSE_NATIVE
    native.close()


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "use_dora": True},
        {"r": 4, "bias": "lora_only"},
        {"r": 4, "modules_to_save": ["lm_head"]},
    ],
)
def test_what_is_not_computed_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    checkpoint = make_model(tmp_path / "model", "qwen2")  # has biases
    entry = make_adapter(checkpoint, tmp_path, "own", **{"target_modules": ["q_proj"], **options})
    with pytest.raises(ShammahError) as caught:
        read_adapter(entry, "own")
    assert caught.value.code == "adapter_unsupported"


def test_other_architectures_are_adapted_where_their_layers_are(tmp_path: Path) -> None:
    """GPT-2 keeps its matrices the other way round, and q, k and v in one."""
    config = transformers.GPT2Config(
        vocab_size=SMALL["vocab_size"], n_embd=48, n_layer=2, n_head=4, n_positions=128
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    make_tokenizer(tmp_path / "model")
    checkpoint = inspect_checkpoint(tmp_path / "model")
    entry = make_adapter(
        checkpoint, tmp_path, "own", r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True
    )
    runner = load_transformers(checkpoint, dtype="float32", quantization="none")
    tokens = some_tokens(PLAIN)
    alone = prefill(runner, 0, 0, tokens)
    add(runner, entry)
    base = transformers.AutoModelForCausalLM.from_pretrained(checkpoint.directory)
    expected = plain_logits(with_peft(base, entry), tokens)[-1]
    found = prefill(runner, 1, 0, tokens, "own")
    assert differs(found, expected) < CLOSE
    assert differs(found, alone) > 20 * CLOSE


@pytest.mark.parametrize("kind", ["native", "transformers"])
def test_an_adapter_of_another_shape_is_refused_and_harms_nothing(
    llama: Made, kind: str, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "model", "llama", intermediate_size=104)
    entry = make_adapter(other, tmp_path, "other", r=4)
    runner: Runner = (
        load(llama.checkpoint, llama.directory / "quantized")
        if kind == "native"
        else load_transformers(llama.checkpoint, dtype="float32", quantization="none")
    )
    runner.reserve(2, 100)
    tokens = some_tokens(PLAIN)
    alone = prefill(runner, 0, 0, tokens)
    with pytest.raises(ShammahError) as caught:
        add(runner, entry)
    assert caught.value.code == "adapter_wrong_base"
    assert "104" in caught.value.message
    assert np.array_equal(prefill(runner, 1, 0, tokens), alone)
    if isinstance(runner, NativeRunner):
        runner.close()


# --- company ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def native(llama: Made) -> Iterator[NativeRunner]:
    runner = load(llama.checkpoint, llama.directory / "quantized")
    runner.reserve(12, 200)
    for entry in llama.entries:
        add(runner, entry)
    yield runner
    runner.close()


MIXED = ("rank16", "", "rank1", "rank64", "", "rank16", "rank8", "", "rank64", "rank1", "rank16")


@pytest.mark.parametrize("rows", [2, 5, 8])
def test_a_mixed_batch_gives_each_the_bits_that_it_gets_alone(
    native: NativeRunner, rows: int
) -> None:
    keys, slots = MIXED[:rows], list(range(rows))
    tokens = some_tokens(rows, 99)
    alone = []
    for slot, key in enumerate(keys):
        prefill(native, slot, 0, some_tokens(5 + slot, slot), key)
        alone.append(decode(native, [slot], [5 + slot], [tokens[slot]], [key])[0])
    together = decode(native, slots, [5 + slot for slot in slots], tokens, keys)
    assert np.array_equal(together, np.array(alone))


def test_a_mixed_batch_of_transformers_is_as_close_as_alone(llama: Made) -> None:
    runner = load_transformers(llama.checkpoint, dtype="float32", quantization="none")
    for entry in llama.entries:
        add(runner, entry)
    keys, slots = MIXED[:6], list(range(6))
    tokens = some_tokens(6, 99)
    alone = []
    for slot, key in enumerate(keys):
        prefill(runner, slot, 0, some_tokens(5 + slot, slot), key)
        alone.append(decode(runner, [slot], [5 + slot], [tokens[slot]], [key])[0])
    together = decode(runner, slots, [5 + slot for slot in slots], tokens, keys)
    assert differs(together, np.array(alone)) < CLOSE


def test_steps_with_adapters_and_without_are_one_machine_code(
    native: NativeRunner, llama: Made
) -> None:
    """They are refused if the code is not for them: one must not be used unseen."""
    from workers.inference.engines.native.computation import Computation
    from workers.inference.engines.native.kernels import prepare_kernels
    from workers.inference.engines.native.kv_memory import KVMemory
    from workers.inference.engines.native.machine_code import Function, kinds_of
    from workers.inference.engines.native.thread_pool import ThreadPool
    from workers.inference.runner import Span

    seen: list[str] = []
    check = Function.check

    def note(code: Function, operands: object) -> None:
        seen.append(kinds_of(operands))
        check(code, operands)

    architecture = read_architecture(llama.checkpoint)
    adapter = read_adapter(llama.entries[0], "one")
    pool = ThreadPool(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Function, "check", note)
        for keys in (["one", ""], [""]):
            computation = Computation(
                prepare_kernels(kept_kernels()),
                architecture,
                quantization=native.quantization,
                model=OPENED[native],
                pool=pool,
                rows=8,
                outputs=8,
            )
            computation.adapters.add(adapter)
            memory = KVMemory(architecture, 2, 4)
            computation.step(memory, [Span(slot, 0, [1], key) for slot, key in enumerate(keys)])
    pool.close()
    assert len(seen) == 2
    assert len(set(seen)) == 1


@pytest.mark.parametrize("cut", [1, 7, 64, 256])
def test_chunks_and_rows_do_not_change_a_bit(native: NativeRunner, cut: int) -> None:
    tokens = some_tokens(100)
    whole = prefill(native, 0, 0, tokens, "rank8")
    prefill(native, 1, 0, tokens[:cut], "rank8")
    if cut < len(tokens):
        assert np.array_equal(prefill(native, 1, cut, tokens[cut:], "rank8"), whole)
    rows = decode(native, [1] * 6, range(94, 100), tokens[94:], ["rank8"] * 6)  # as guesses are
    assert np.array_equal(rows[-1], whole)


def test_the_number_of_threads_does_not_change_a_bit(llama: Made) -> None:
    found = []
    for threads in (1, 3):
        runner = load(llama.checkpoint, llama.directory / "quantized", threads)
        runner.reserve(1, 128)
        add(runner, llama.entries[3])
        found.append(prefill(runner, 0, 0, some_tokens(60), "rank64"))
        runner.close()
    assert np.array_equal(*found)


def test_decoding_without_an_adapter_is_what_it_was_before_there_was_one(
    llama: Made, native: NativeRunner
) -> None:
    tokens = some_tokens(40)
    fresh = load(llama.checkpoint, llama.directory / "quantized")
    fresh.reserve(1, 100)
    assert np.array_equal(decode_all(native, 0, tokens), decode_all(fresh, 0, tokens))
    fresh.close()
