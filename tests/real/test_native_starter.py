"""The native runner on the real starter model: what it says, and what 8 bits cost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tests.fakes.spans import decode, prefill
from tests.real.models import starter
from tests.real.test_native_models import Stages, decode_all, kept_kernels, load
from workers.inference.engine import LoadSettings
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "LICENSE"
TOKENS = 500
SMALL_DIVERGENCE, SMALL_TOP1 = 0.02, 0.88
"""With 4 bits; nearly all of it is the head's 6."""

PARIS = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
    "<|im_start|>assistant\n"
)
END = 2


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantized")


@pytest.fixture(scope="module")
def runner(quantized: Path) -> Iterator[NativeRunner]:
    runner = load(inspect_checkpoint(starter()), quantized)
    runner.reserve(4, 1024)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeRunner]:
    """With weights of 4 bits."""
    directory = tmp_path_factory.mktemp("small")
    runner = load(inspect_checkpoint(starter()), directory, quantization="int4")
    runner.reserve(4, 1024)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter() / "tokenizer.json"))


def answer(runner: NativeRunner, slot: int, prompt: list[int]) -> list[int]:
    """The most likely tokens up to the end of the answer."""
    logits, tokens = prefill(runner, slot, 0, prompt), list[int]()
    while (token := int(logits.argmax())) != END and len(tokens) < 60:
        logits = decode(runner, [slot], [len(prompt) + len(tokens)], [token])[0]
        tokens.append(token)
    return tokens


@pytest.mark.parametrize("quantization", ["runner", "small"])
def test_it_knows_the_capital_of_france(
    quantization: str, request: pytest.FixtureRequest, tokenizer: Tokenizer
) -> None:
    runner: NativeRunner = request.getfixturevalue(quantization)
    prompt = tokenizer.encode(PARIS, add_special_tokens=False).ids
    assert tokenizer.decode(answer(runner, 0, prompt)) == "The capital of France is Paris."


@dataclass(frozen=True)
class Agreement:
    """How near to float32: mean divergence in nats, share of equal first choices, perplexities."""

    divergence: float
    top1: float
    perplexity: float
    exact_perplexity: float


def compare(found: NDArray[np.float32], exact: NDArray[np.float32], tokens: list[int]) -> Agreement:
    ours, theirs = (torch.from_numpy(x).double().log_softmax(-1).numpy() for x in (found, exact))
    follows = np.arange(len(tokens) - 1), np.array(tokens[1:])
    return Agreement(
        float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()),
        float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        float(np.exp(-ours[follows].mean())),
        float(np.exp(-theirs[follows].mean())),
    )


def test_rounded_weights_are_close_to_float32(
    runner: NativeRunner, small: NativeRunner, tokenizer: Tokenizer
) -> None:
    tokens = tokenizer.encode(TEXT.read_text(), add_special_tokens=False).ids[100 : 100 + TOKENS]
    model = transformers.AutoModelForCausalLM.from_pretrained(starter(), dtype=torch.float32)
    with torch.inference_mode():
        exact = model(torch.tensor([tokens])).logits[0].numpy()
    found = compare(decode_all(runner, 0, tokens), exact, tokens)
    print(found)
    # llama.cpp's Q8_0 (weights and activations in 8 bits): 0.0045 and 96.1 % on this text.
    assert found.divergence < 0.0025
    assert found.top1 > 0.975
    assert found.perplexity == pytest.approx(found.exact_perplexity, rel=0.01)
    # The starter's weights come from groups of 32 with 4 bits, which flatters these.
    found = compare(decode_all(small, 0, tokens), exact, tokens)
    print(found)
    assert found.divergence < SMALL_DIVERGENCE
    assert found.top1 > SMALL_TOP1
    assert found.perplexity == pytest.approx(found.exact_perplexity, rel=0.05)


def test_the_first_start_packs_the_weights_and_later_ones_map_them(
    runner: NativeRunner, quantized: Path, tokenizer: Tokenizer
) -> None:
    (weights,) = quantized.glob("*.safetensors")
    made = weights.stat().st_mtime_ns
    again, stages = NativeRunner(quantized, kept_kernels()), Stages()
    again.load(inspect_checkpoint(starter()), LoadSettings(), stages)
    assert (tuple(stages.names), stages.advanced) == (again.stages, 0)
    assert weights.stat().st_mtime_ns == made
    assert weights.stat().st_size < 1.06 * inspect_checkpoint(starter()).parameters
    again.reserve(1, 100)
    prompt = tokenizer.encode(PARIS, add_special_tokens=False).ids
    assert np.array_equal(prefill(again, 0, 0, prompt), prefill(runner, 0, 0, prompt))
    again.close()


def test_both_quantizations_are_kept_side_by_side(
    runner: NativeRunner, small: NativeRunner, quantized: Path, tmp_path: Path
) -> None:
    for file in quantized.iterdir():
        (tmp_path / file.name).hardlink_to(file)
    (large,) = tmp_path.glob("*.safetensors")
    again = load(inspect_checkpoint(starter()), tmp_path, quantization="int4")
    again.reserve(1, 100)
    assert np.array_equal(prefill(again, 0, 0, [1, 2, 3]), prefill(small, 0, 0, [1, 2, 3]))
    (other,) = set(tmp_path.glob("*.safetensors")) - {large}
    assert other.stat().st_size < 0.72 * large.stat().st_size
    again.close()
    stages, again = Stages(), NativeRunner(tmp_path, kept_kernels())
    again.load(inspect_checkpoint(starter()), LoadSettings(), stages)
    assert stages.advanced == 0
    again.close()


def test_damaged_weights_are_packed_again(quantized: Path, tmp_path: Path) -> None:
    runner, stages = NativeRunner(tmp_path, kept_kernels()), Stages()
    (whole,) = quantized.glob("*.safetensors")
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-100])
    runner.load(inspect_checkpoint(starter()), LoadSettings(), stages)
    assert stages.advanced > 200
    assert (tmp_path / whole.name).read_bytes() == whole.read_bytes()
    runner.close()


_ALONE = """
import json, sys
from pathlib import Path
from tests.real.models import starter
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.engine import LoadSettings
from workers.inference.engines.native.runner import NativeRunner, supports
from workers.inference.runner import Span

class Silent:
    def stage(self, name): pass
    def advance(self): pass

checkpoint = inspect_checkpoint(starter())
assert not supports(checkpoint)
assert "llvmlite" not in sys.modules
runner = NativeRunner(Path(sys.argv[1]), Path(sys.argv[2]))
facts = runner.load(checkpoint, LoadSettings(), Silent())
runner.reserve(1, 100)
first = int(runner.forward([Span(0, 0, [1, 2, 3])])[0].argmax())
runner.forward([Span(0, 3, [first])])
print(json.dumps([facts.engine, facts.quantization, first, sorted(sys.modules)]))
"""


def test_it_needs_neither_torch_nor_transformers(runner: NativeRunner, quantized: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _ALONE, str(quantized), str(kept_kernels())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    engine, quantization, first, modules = json.loads(ended.stdout)
    assert (engine, quantization) == ("native", "int8")
    assert first == int(prefill(runner, 0, 0, [1, 2, 3]).argmax())
    tops = {module.partition(".")[0] for module in modules}
    assert not tops & {"torch", "transformers", "safetensors", "scipy", "huggingface_hub"}
    assert not tops & {"numba", "llvmlite"}
