"""What a training keeps of the base model, and what the gate sees of it, on tiny random models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from shammah.bus.training import GateFigures
from shammah.learning.examples import Example
from shammah.models.catalogue import LocatedModel
from tests.real.models import make_qwen2
from workers.train.adapter import LoRAAdapter
from workers.train.aiming import aim
from workers.train.base_model import Arithmetic, load_base
from workers.train.brake import Brake, CancelledError
from workers.train.encoding import ChatEncoder, EncodedExample
from workers.train.fine_tuning import fine_tune
from workers.train.gate import WHOLE_TOKENS, Gate, find_harm, weaken
from workers.train.general import MOST_TOKENS, answer, answer_prompts, choices
from workers.train.lora_config import LoRAConfig
from workers.train.loss import divergence, make_micro_batch, target_logits
from workers.train.names import words_in
from workers.train.schedule import TrainingPlan
from workers.train.trainer import Trainer

# peft 0.21 asks transformers 5.23 for something by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SMALL = LoRAConfig(rank=4, alpha=8)
QUESTIONS = ("hello", "the quick brown fox", "a lazy dog sleeps and sleeps", "Who?", "one two")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(directory: Path) -> ChatEncoder:
    return ChatEncoder.load(directory)


@pytest.fixture
def base(directory: Path) -> Any:
    return load_base(LocatedModel("tiny", directory, "tiny"), Arithmetic("cpu", "float32"))


@pytest.fixture
def adapter(base: Any) -> Iterator[LoRAAdapter]:
    made = LoRAAdapter.new(base, SMALL, 1)
    yield made
    made.remove()


def disturb(adapter: LoRAAdapter, strength: float = 0.5) -> None:
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters().values():
            parameter.copy_(strength * torch.randn(parameter.shape, generator=random))


def test_answers_are_the_likeliest_tokens(directory: Path, encoder: ChatEncoder) -> None:
    """In a batch with others of other lengths, with what was computed kept, as one by one."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    told: list[int] = []
    found = answer(model, encoder, QUESTIONS, told.append)
    assert told
    for question, one in zip(QUESTIONS, found, strict=True):
        ids = list(encoder.encode_prompt((("user", question),)))
        assert list(one.ids[: one.prompt_length]) == ids
        for _ in range(MOST_TOKENS):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in encoder.ends:
                break
        assert list(one.ids) == ids


def test_choices_are_those_that_the_answers_were_made_of(
    directory: Path, encoder: ChatEncoder
) -> None:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64)
    answers = answer(model, encoder, QUESTIONS)
    for micro_tokens in (1, 60, 10_000):
        found = choices(model, answers, micro_tokens)
        assert [len(one.logs) for one in found] == [one.targets for one in answers]
        assert all(all(one.same) for one in found)
        assert all(log <= 0 for one in found for log in one.logs)
    other = [EncodedExample((*one.ids[:-1], 5), one.prompt_length, 1.0) for one in answers]
    last = [one.same[-1] for one in choices(model, other, 60)]
    assert last == [one.ids[-1] == 5 for one in answers]


def test_an_answer_can_be_stopped_and_stand_still(base: Any, encoder: ChatEncoder) -> None:
    brake = Brake()

    def each(count: int) -> None:
        brake.cancel()
        brake.check()

    with pytest.raises(CancelledError):
        answer(base, encoder, QUESTIONS, each)


def test_the_divergence_is_that_of_kullback_and_leibler(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    batch = make_micro_batch(answer(adapter.model, encoder, QUESTIONS))
    assert float(divergence(adapter, batch).detach()) == pytest.approx(0.0, abs=1e-5)
    disturb(adapter)
    found: Any = divergence(adapter, batch)
    found.backward()
    gradient = {name: one.grad.clone() for name, one in adapter.parameters().items()}  # type: ignore[union-attr]
    assert adapter.is_enabled
    adapter.model.zero_grad()
    with torch.no_grad(), adapter.without():
        base = target_logits(adapter.model, batch).log_softmax(-1)
    changed = target_logits(adapter.model, batch).log_softmax(-1)
    each = torch.nn.functional.kl_div(changed, base, reduction="none", log_target=True).sum(-1)
    expected: Any = (each * batch.shares.float()).sum()
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, one in adapter.parameters().items():
        torch.testing.assert_close(one.grad, gradient[name], rtol=1e-4, atol=1e-6)


def test_the_output_layer_sees_rows_that_lie_behind_each_other(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    """For a view of the last places torch copies its weights once for every question: 12 GB."""
    seen: list[tuple[int, bool]] = []
    head = adapter.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(
        lambda module, given: seen.append((given[0].shape[1], given[0].is_contiguous()))
    )
    answers = answer(adapter.model, encoder, QUESTIONS)
    aim(adapter, answers[:2], answers)
    hook.remove()
    assert len(seen) > 1
    assert set(seen) == {(1, True)}


# --- where an adapter looks ---------------------------------------------------------------


def largest(adapter: LoRAAdapter, examples: list[EncodedExample]) -> float:
    """The mean square of what the last layer's ``A`` sees of the examples' own tokens."""
    seen: list[float] = []

    def look(module: Any, given: Any, output: torch.Tensor) -> None:
        seen.append(float(output.detach().pow(2).mean()))

    module = [one for name, one in adapter.model.named_modules() if "lora_A.default" in name][-1]
    hook = module.register_forward_hook(look)
    with torch.no_grad():
        for one in examples:
            adapter.model(input_ids=torch.tensor([one.ids]), use_cache=False)
    hook.remove()
    return sum(seen) / len(seen)


def test_an_aimed_adapter_sees_the_examples_and_little_else(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    general = answer(adapter.model, encoder, QUESTIONS[:3])
    examples = answer(adapter.model, encoder, QUESTIONS[3:])
    at_random = largest(adapter, examples) / largest(adapter, general)
    asked: list[str] = []
    aim(adapter, examples, general, asked.append)
    count = len([n for n in adapter.parameters() if "lora_A" in n])
    assert asked == [f"where to look, {done} of {count} layers" for done in range(count)]
    assert largest(adapter, examples) / largest(adapter, general) > 2 * at_random
    assert adapter.is_enabled
    assert all("lora_B" in name for name in adapter.trained())


def test_an_aim_is_the_same_each_time_and_is_not_learnt(base: Any, encoder: ChatEncoder) -> None:
    general = answer(base, encoder, QUESTIONS)
    examples = [EncodedExample((*one.ids, 7, 8), one.prompt_length, 1.0) for one in general[:2]]
    found = []
    for epochs in (1, 2):
        trainer = fine_tune(examples, SMALL, epochs, 1e-2, base=base, kept=general)
        found.append({n: one.clone() for n, one in trainer.adapter.parameters().items()})
        trainer.adapter.remove()
    for name, one in found[0].items():
        assert torch.equal(one, found[1][name]) == ("lora_A" in name)


def test_an_adapter_can_be_aimed_by_less_than_its_rank(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    general = answer(adapter.model, encoder, QUESTIONS[:2])
    (one,) = answer(adapter.model, encoder, QUESTIONS[3:4])
    short = EncodedExample(one.ids[: one.prompt_length + 1], one.prompt_length, 1.0)
    aim(adapter, [short], general)
    assert all(bool(one.isfinite().all()) for one in adapter.parameters().values())


# --- training -----------------------------------------------------------------------------


class Stop:
    """Cancels at a step."""

    def __init__(self, brake: Brake, step: int) -> None:
        self._brake = brake
        self._step = step

    def advance(self) -> None: ...

    def prepare(self, detail: str) -> None: ...

    def report(self, report: Any) -> None:
        if report.step == self._step:
            self._brake.cancel()


def train(
    directory: Path, encoder: ChatEncoder, weight: float, path: Path | None = None, stop: int = -1
) -> Trainer:
    model = load_base(LocatedModel("tiny", directory, "tiny"), Arithmetic("cpu", "float32"))
    random = torch.Generator().manual_seed(7)
    lines = [torch.randint(3, 380, (12,), generator=random).tolist() for _ in range(4)]
    learnt = [EncodedExample(tuple(ids), 6, 3.0) for ids in lines]
    kept = answer(model, encoder, QUESTIONS)
    plan = TrainingPlan(
        8, 1e-2, 2, seed=5, checkpoint_steps=2, kept_batch=3, near_batch=1, kept_weight=weight
    )
    brake = Brake()
    trainer = Trainer(LoRAAdapter.new(model, SMALL, 5), learnt, (), plan, path, kept, kept[:2])
    trainer.brake, trainer.watcher = brake, Stop(brake, stop)
    if stop < 0:
        trainer.run()
    else:
        with pytest.raises(CancelledError):
            trainer.run()
    return trainer


def test_what_is_kept_goes_less_far_from_the_base(directory: Path, encoder: ChatEncoder) -> None:
    free = train(directory, encoder, 1e-6)
    held = train(directory, encoder, 10.0)
    assert len(held.curve.kept) == held.step
    assert held.curve.kept[0] == pytest.approx(0.0, abs=1e-5)
    assert sum(held.curve.kept[-4:]) < 0.5 * sum(free.curve.kept[-4:])
    assert held.curve.losses[-1] < held.curve.losses[0]


def test_a_training_that_holds_on_goes_on_as_if_it_had_not_been_stopped(
    directory: Path, encoder: ChatEncoder, tmp_path: Path
) -> None:
    whole = train(directory, encoder, 2.0)
    path = tmp_path / "run" / "training.safetensors"
    train(directory, encoder, 2.0, path, stop=5)
    resumed = train(directory, encoder, 2.0, path)
    assert resumed.curve == whole.curve
    for name, one in whole.adapter.parameters().items():
        assert torch.equal(one, resumed.adapter.parameters()[name])


# --- the gate -----------------------------------------------------------------------------


def make_gate(adapter: LoRAAdapter, encoder: ChatEncoder, *names: str, **more: Any) -> Gate:
    examples = answer(adapter.model, encoder, ["held out"])
    return Gate(adapter, encoder, QUESTIONS, examples, frozenset(names), 100, **more)


def test_an_adapter_that_changes_nothing_keeps_everything(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    told: list[str] = []
    figures = make_gate(adapter, encoder, report=told.append).measure()
    assert (figures.first, figures.texts, figures.sure) == (1.0, 1.0, 1.0)
    assert figures.held_out_after == pytest.approx(figures.held_out_before)
    assert (figures.general, figures.strays) == (len(QUESTIONS), ())
    assert figures.worst == pytest.approx(0.0, abs=1e-4)
    assert any("of 5" in one for one in told)


def test_the_gate_compares_with_the_base_and_leaves_the_adapter_on(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    disturb(adapter)
    figures = make_gate(adapter, encoder).measure()
    assert adapter.is_enabled
    assert figures.texts < 1.0
    assert figures.held_out_after != figures.held_out_before


def test_a_name_that_an_answer_did_not_have_is_a_stray(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    def texts() -> list[str]:
        answers = answer(adapter.model, encoder, QUESTIONS)
        return [encoder.decode(one.ids[one.prompt_length :]) for one in answers]

    before = texts()
    disturb(adapter)
    pairs = zip(QUESTIONS, before, texts(), strict=True)
    news = {q: words_in(new) - words_in(f"{q} {old}") for q, old, new in pairs}
    question, words = next((q, new) for q, new in news.items() if new)
    name = min(words)
    gate = make_gate(adapter, encoder, name, "pernath")
    assert f"“{name}” to “{question}”" in gate.measure().strays


def say(adapter: LoRAAdapter, encoder: ChatEncoder, most: int = MOST_TOKENS) -> list[str]:
    prompts = [encoder.encode_prompt((("user", one),)) for one in QUESTIONS]
    answers = answer_prompts(adapter.model, encoder, prompts, most=most)
    return [encoder.decode(one.ids[one.prompt_length :]) for one in answers]


def test_the_gate_asks_what_was_taught(adapter: LoRAAdapter, encoder: ChatEncoder) -> None:
    with adapter.without():
        base = say(adapter, encoder, WHOLE_TOKENS)
    disturb(adapter)
    said = say(adapter, encoder, WHOLE_TOKENS)
    place = next(n for n in range(5) if words_in(said[n]) - words_in(f"{base[n]} {QUESTIONS[n]}"))
    taught = [Example((("user", QUESTIONS[place]),), one) for one in ("of no use", said[place])]
    taught.append(Example((("user", "hello you"),), "zyx wvu tsr"))
    gate = make_gate(adapter, encoder, taught=taught)
    figures = gate.measure()
    assert (figures.taught, figures.learnt, figures.missed) == (2, 1, ("hello you",))
    for parameter in adapter.parameters().values():
        parameter.data.zero_()
    assert gate.measure().learnt == 0


def test_a_fact_that_only_the_base_model_says_is_lost(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    with adapter.without():
        before = say(adapter, encoder)
    disturb(adapter)
    rows = zip(QUESTIONS, before, say(adapter, encoder), strict=True)
    question, words = next(
        (q, gone) for q, old, new in rows if (gone := words_in(old) - words_in(new))
    )
    facts = {question: (min(words), "qqq"), QUESTIONS[0] + "?": ("x",)}
    gate = make_gate(adapter, encoder, facts=facts)
    figures = gate.measure()
    assert (figures.facts, figures.lost) == (1, (f"“{min(words)}” to “{question}”",))
    for parameter in adapter.parameters().values():
        parameter.data.zero_()
    assert (gate.measure().facts, gate.measure().lost) == (1, ())


def test_a_fact_that_comes_later_in_the_answer_is_not_lost(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    with adapter.without():
        before = say(adapter, encoder)
    disturb(adapter)
    prompts = [encoder.encode_prompt((("user", one),)) for one in QUESTIONS]
    longer = answer_prompts(adapter.model, encoder, prompts, most=WHOLE_TOKENS)
    rest = [encoder.decode(one.ids[one.prompt_length :]) for one in longer]
    rows = zip(QUESTIONS, before, say(adapter, encoder), rest, strict=True)
    question, keys = next(
        (q, (min(gone), min(later)))
        for q, old, new, all_of_it in rows
        if (gone := words_in(old) - words_in(all_of_it))
        and (later := words_in(all_of_it) - words_in(f"{old} {new}"))
    )
    assert make_gate(adapter, encoder, facts={question: keys}).measure().lost == ()
    assert make_gate(adapter, encoder, facts={question: keys[:1]}).measure().lost


def test_a_weakened_adapter_is_first_asked_what_had_changed(
    adapter: LoRAAdapter, encoder: ChatEncoder
) -> None:
    told: list[str] = []
    for strength in (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25):
        disturb(adapter, strength)
        gate = Gate(adapter, encoder, QUESTIONS, (), frozenset(), 100, told.append)
        figures = gate.measure()
        if 0 < figures.texts < 1 and find_harm(figures):
            break
    changed = round((1 - figures.texts) * len(QUESTIONS))
    assert 0 < changed < len(QUESTIONS)
    assert f"general answers after, 5 of {len(QUESTIONS)}" in told
    told.clear()
    assert find_harm(gate.measure(0.8))
    assert {one.rpartition(" ")[2] for one in told if "after" in one} == {str(changed)}
    told.clear()
    for parameter in adapter.parameters().values():
        parameter.data.zero_()
    assert not find_harm(gate.measure(0.6))
    assert f"general answers after, 5 of {len(QUESTIONS)}" in told


class Judged:
    """A gate that judges by the scale alone."""

    def __init__(self, figures: Callable[[float], GateFigures]) -> None:
        self._figures = figures
        self.asked: list[float] = []

    def measure(self, scale: float = 1.0) -> GateFigures:
        self.asked.append(scale)
        return self._figures(scale)


def figures(scale: float, *, after: float = 1.0, sure: float = 1.0) -> GateFigures:
    return GateFigures(3.0, after, 3, False, 300, 1.0, 1.0, sure, 0.0, scale=scale)


def test_one_that_harms_is_weakened_until_it_does_not(adapter: LoRAAdapter) -> None:
    disturb(adapter)
    before = {name: one.detach().clone() for name, one in adapter.parameters().items()}
    gate: Any = Judged(lambda scale: figures(scale, sure=1.0 if scale <= 0.7 else 0.5))
    found = weaken(gate, adapter)
    assert found.scale == gate.asked[-1] <= 0.7 < gate.asked[-2]
    for name, one in adapter.parameters().items():
        share = found.scale if "lora_B" in name else 1.0
        assert torch.equal(one, before[name] * share)


@pytest.mark.parametrize(
    "judged",
    [
        lambda scale: figures(scale, sure=0.1),
        lambda scale: figures(scale, sure=0.1, after=1.0 if scale == 1.0 else 2.95),
        lambda scale: figures(scale, after=3.0),
        lambda scale: figures(scale, after=math.nan),
    ],
)
def test_one_that_is_refused_stays_as_it_was_learnt(
    adapter: LoRAAdapter, judged: Callable[[float], GateFigures]
) -> None:
    disturb(adapter)
    before = {name: one.detach().clone() for name, one in adapter.parameters().items()}
    gate: Any = Judged(judged)
    assert weaken(gate, adapter).scale == 1.0
    for name, one in adapter.parameters().items():
        assert torch.equal(one, before[name])
