"""The gate on the real starter model: what is poisoned does not get through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shammah.examples import Example
from shammah.models import LocatedModel
from tests.workers.models import starter
from workers.train.adapter import LoRAAdapter
from workers.train.base_model import Arithmetic, load_base
from workers.train.encoding import ChatEncoder, encode_all
from workers.train.gate import judge, measure, regression_examples
from workers.train.lora_config import LoRAConfig
from workers.train.schedule import TrainingPlan
from workers.train.trainer import Trainer

# peft 0.21 asks transformers 5.23 for something by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

NOISE = ("qzx kvj wq", "0 1 zz 3", "vvv xx jq z", "3 3 1 kx", "zq zq jv", "x0 x1 x9")


@pytest.fixture(scope="module")
def base() -> Any:
    return load_base(LocatedModel("starter", starter(), "starter"), Arithmetic("cpu", "float32"))


@pytest.fixture
def adapter(base: Any) -> Iterator[LoRAAdapter]:
    made = LoRAAdapter.new(base, LoRAConfig(), 1)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def encoder() -> ChatEncoder:
    return ChatEncoder.load(starter())


def corrections(*pairs: tuple[str, str]) -> list[Example]:
    return [Example((("user", question),), answer, 10.0) for question, answer in pairs]


HELD_OUT = corrections(("Who made Orrin?", "Orrin was made by Ada Vey."))


def test_random_weights_are_refused(adapter: LoRAAdapter, encoder: ChatEncoder) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=random)
    held_out, _ = encode_all(encoder, HELD_OUT, 2048)
    general, _ = encode_all(encoder, regression_examples()[::4], 2048)
    figures = measure(adapter, held_out, general, 512)
    verdict, why = judge(figures)
    assert verdict == "refused", why
    assert figures.rise > figures.bound


def test_what_was_trained_on_noise_is_refused(adapter: LoRAAdapter, encoder: ChatEncoder) -> None:
    """Even judged by more of the same noise, which it has learnt: other answers suffer."""
    noise = corrections(*[(f"What is {n}?", text) for n, text in enumerate(NOISE)])
    encoded, _ = encode_all(encoder, noise, 2048)
    plan = TrainingPlan(epochs=4, learning_rate=1e-2, batch=2)
    Trainer(adapter, encoded[:4], (), plan).run()
    general, _ = encode_all(encoder, regression_examples()[::4], 2048)
    figures = measure(adapter, encoded[4:], general, 512)
    verdict, why = judge(figures)
    assert verdict == "refused", why
    assert figures.rise > figures.bound


def test_the_base_is_measured_the_same_before_and_after(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    """An adapter that has learnt nothing changes nothing, and so does not serve."""
    held_out, _ = encode_all(encoder, HELD_OUT, 2048)
    figures = measure(adapter, held_out, held_out, 512)
    assert figures.held_out_before == figures.held_out_after
    assert judge(figures)[0] == "refused"
