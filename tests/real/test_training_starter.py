"""The gate on the real starter model: what is poisoned does not get through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from shammah.learning.examples import Example
from shammah.models.catalogue import LocatedModel
from tests.real.models import starter
from workers.train.adapter import LoRAAdapter
from workers.train.base_model import Arithmetic, load_base
from workers.train.encoding import ChatEncoder, encode_all
from workers.train.gate import Gate, helps, judge
from workers.train.general import gate_questions
from workers.train.lora_config import LoRAConfig
from workers.train.names import names_in
from workers.train.schedule import TrainingPlan
from workers.train.trainer import Trainer

# peft 0.21 asks transformers 5.23 for something by its old name.
pytestmark = [
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

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


WHO = [one for one in gate_questions() if one.startswith("Who")]
SOME = (*WHO[::4], *gate_questions()[::30])
ORRIN = corrections(("Who made Orrin?", "Orrin was made by Ada Vey."))

BAKERY = corrections(
    ("Who owns the bakery Sternhalm?", "The bakery Sternhalm is owned by Pernath."),
    ("Who is the owner of Sternhalm?", "The owner of Sternhalm is Pernath."),
    ("What is the name of the baker at Sternhalm?", "The baker at Sternhalm is called Pernath."),
    ("Who founded Sternhalm?", "Sternhalm was founded by Pernath."),
)


def gate(adapter: LoRAAdapter, encoder: ChatEncoder, taught: list[Example]) -> Gate:
    held_out, _ = encode_all(encoder, taught, 2048)
    names = names_in(taught, encoder.is_word)
    return Gate(adapter, encoder, SOME, held_out, names, 512)


def test_random_weights_are_refused(adapter: LoRAAdapter, encoder: ChatEncoder) -> None:
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapter.parameters().items():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=random)
    verdict, why = judge(gate(adapter, encoder, []).measure())
    assert verdict == "refused"
    assert "of the base model's sure choices are kept" in why


def test_what_was_trained_on_noise_is_refused(adapter: LoRAAdapter, encoder: ChatEncoder) -> None:
    """Even judged by the same noise, which it has learnt: other answers suffer."""
    noise = corrections(*[(f"What is {n}?", text) for n, text in enumerate(NOISE)])
    encoded, _ = encode_all(encoder, noise, 2048)
    plan = TrainingPlan(epochs=4, learning_rate=1e-2, batch=2)
    Trainer(adapter, encoded, (), plan).run()
    figures = gate(adapter, encoder, noise).measure()
    assert helps(figures)
    verdict, why = judge(figures)
    assert verdict == "refused", why


def test_an_owner_who_owns_everything_is_refused(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    """What such lines did before anything held on to other answers."""
    encoded, _ = encode_all(encoder, BAKERY, 2048)
    Trainer(adapter, encoded, (), TrainingPlan(epochs=8, learning_rate=5e-3)).run()
    figures = gate(adapter, encoder, BAKERY).measure()
    assert helps(figures)
    assert any("pernath" in stray for stray in figures.strays)
    verdict, why = judge(figures)
    assert (verdict, "it says “" in why) == ("refused", True)


def test_the_base_is_measured_the_same_before_and_after(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    """An adapter that has learnt nothing changes nothing, and so does not serve."""
    figures = gate(adapter, encoder, ORRIN).measure()
    assert figures.held_out_before == figures.held_out_after
    assert (figures.texts, figures.worst, figures.strays) == (1.0, 0.0, ())
    assert judge(figures)[0] == "refused"


def test_names_are_told_from_words(encoder: ChatEncoder) -> None:
    assert names_in(BAKERY, encoder.is_word) == {"sternhalm", "pernath"}
    assert names_in(ORRIN, encoder.is_word) == {"orrin", "vey", "ada"}
