"""With which numbers a machine trains: the decisions for GPUs, and 16 bits on the CPU.

No GPU computes here. What is held is what is asked of torch and bitsandbytes.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from shammah.errors import ShammahError
from shammah.models.catalogue import LocatedModel
from tests.real.models import make_qwen2
from workers.train.adapter import LoRAAdapter
from workers.train.base_model import Arithmetic, choose_arithmetic, load_base
from workers.train.encoding import EncodedExample
from workers.train.lora_config import LoRAConfig
from workers.train.loss import example_losses, keeps_apart, make_micro_batch
from workers.train.schedule import TrainingPlan
from workers.train.service import as_failure
from workers.train.trainer import Trainer

# peft 0.21 asks transformers 5.23 for something by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

EXAMPLES = [EncodedExample(tuple(range(5 + n, 25 + n)), 8, 1.0) for n in range(4)]


@pytest.fixture(scope="module")
def located(tmp_path_factory: pytest.TempPathFactory) -> LocatedModel:
    return LocatedModel("tiny", make_qwen2(tmp_path_factory.mktemp("tiny")), "tiny")


def pretend(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    *,
    cuda: bool = False,
    bf16: bool = False,
    mps: bool = False,
    flags: str = "fpu avx2",
) -> None:
    """Have torch and the kernel say that the machine has this."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    def is_bf16_supported(including_emulation: bool = True) -> bool:
        return bf16 or including_emulation  # as torch has it of older GPUs

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")


@pytest.mark.parametrize(
    ("machine", "four_bit", "expected"),
    [
        ({"cuda": True, "bf16": True}, False, Arithmetic("cuda", "bfloat16")),
        ({"cuda": True, "bf16": True}, True, Arithmetic("cuda", "bfloat16", True)),
        ({"cuda": True}, False, Arithmetic("cuda", "float32")),
        ({"cuda": True}, True, Arithmetic("cuda", "float32", True)),
        ({"cuda": True, "bf16": True, "mps": True}, False, Arithmetic("cuda", "bfloat16")),
        ({"mps": True, "flags": "avx512_bf16"}, False, Arithmetic("mps", "float32")),
        ({"flags": "avx2 avx512_bf16 x"}, False, Arithmetic("cpu", "bfloat16")),
        ({"flags": "amx_bf16"}, False, Arithmetic("cpu", "bfloat16")),
        ({"flags": "avx2 avx512f"}, False, Arithmetic("cpu", "float32")),
    ],
)
def test_a_machine_computes_with_what_it_is_fast_at(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    machine: dict[str, Any],
    four_bit: bool,
    expected: Arithmetic,
) -> None:
    pretend(monkeypatch, tmp_path, **machine)
    assert choose_arithmetic(four_bit=four_bit, cpu_info=tmp_path / "cpuinfo") == expected


def test_a_kernel_that_tells_no_flags_has_32_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pretend(monkeypatch, tmp_path)
    assert choose_arithmetic(cpu_info=tmp_path / "nowhere") == Arithmetic("cpu", "float32")


@pytest.mark.parametrize("mps", [False, True])
def test_four_bits_need_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mps: bool) -> None:
    pretend(monkeypatch, tmp_path, mps=mps)
    with pytest.raises(ShammahError, match="needs a CUDA GPU") as caught:
        choose_arithmetic(four_bit=True)
    assert (caught.value.code, caught.value.hint) == (
        "quantization_unavailable",
        "Leave --qlora away.",
    )


def test_four_bits_need_bitsandbytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pretend(monkeypatch, tmp_path, cuda=True, bf16=True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert choose_arithmetic() == Arithmetic("cuda", "bfloat16")
    with pytest.raises(ShammahError, match="needs bitsandbytes") as caught:
        choose_arithmetic(four_bit=True)
    assert "pip install 'shammah[int4]'" in caught.value.hint


def test_four_bits_are_asked_for_as_qlora_has_them(
    monkeypatch: pytest.MonkeyPatch, located: LocatedModel
) -> None:
    """NF4, with its scales quantised, too, straight onto the GPU; computed in 16 bits."""
    asked: dict[str, Any] = {}

    class Loaded:
        def requires_grad_(self, wanted: bool) -> None:
            asked["frozen"] = not wanted

        def eval(self) -> Loaded:
            return self

        def named_parameters(self) -> list[Any]:
            return []

    def from_pretrained(directory: Path, **options: Any) -> tuple[Loaded, Any]:
        asked.update(options)
        return Loaded(), defaultdict(list)

    monkeypatch.setattr(transformers.Qwen2ForCausalLM, "from_pretrained", from_pretrained)
    load_base(located, Arithmetic("cuda", "bfloat16", four_bit=True))
    config = asked["quantization_config"]
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert asked["device_map"] == {"": "cuda"}
    assert asked["frozen"]


def test_no_numbers_of_64_bits_go_to_a_device() -> None:
    """Apple's GPUs have none."""
    batch = make_micro_batch(EXAMPLES, "meta")
    for name in ("ids", "positions", "places", "targets"):
        tensor = getattr(batch, name)
        assert (tensor.device.type, tensor.is_floating_point()) == ("meta", False)
    assert batch.shares.device.type == batch.owners.device.type == "cpu"


def test_a_full_gpu_is_told_as_such() -> None:
    failed = as_failure(torch.OutOfMemoryError("CUDA out of memory."), "1")
    assert failed.code == "out_of_memory"
    assert "--qlora" in failed.hint


def test_16_bits_learn_on_the_cpu_what_32_do(located: LocatedModel) -> None:
    """The frozen weights have 16 bits, what is learnt has 32; the losses differ by rounding."""
    curves = []
    for dtype in ("float32", "bfloat16"):
        base = load_base(located, Arithmetic("cpu", dtype))
        assert keeps_apart(base, EXAMPLES)
        alone = example_losses(base, make_micro_batch(EXAMPLES))
        adapter = LoRAAdapter.new(base, LoRAConfig(rank=4, alpha=8), 1)
        assert {one.dtype for one in adapter.parameters().values()} == {torch.float32}
        assert base.model.layers[0].mlp.up_proj.weight.dtype is getattr(torch, dtype)
        plan = TrainingPlan(epochs=10, learning_rate=1e-2, batch=2)
        curve = Trainer(adapter, EXAMPLES, (), plan).run()
        curves.append((alone, curve.losses))
    (exact, wide), (rounded, narrow) = curves
    assert rounded == pytest.approx(exact, rel=0.02)
    assert narrow != wide
    assert narrow[-1] < 0.7 * narrow[0]
    assert narrow == pytest.approx(wide, rel=0.1)
