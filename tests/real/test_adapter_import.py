"""Adapters that peft alone has made: taken in, judged, served with peft's logits, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers

from shammah.bus.messages import ChatMessage
from shammah.bus.training import ImportAdapter
from shammah.errors import ShammahError
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterStore
from shammah.learning.feedback import Feedback, JudgedTurn
from shammah.settings.model import Settings
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox
from tests.fakes.spans import prefill
from tests.real.local_hub import kill
from tests.real.models import make_llama, starter
from workers.inference.engine import LoadSettings
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.packages.adapter_file import read_adapter
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.train import general, importing
from workers.train.importing import import_adapter

# peft 0.21 asks transformers 5.23 for something by its old name.
pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),
]

TOKENS = list(range(5, 35))
LIMIT_S = 400.0
SOME = general.gate_questions()[::12]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("models") / "tiny")


def make_foreign(model: Path, target: Path, strength: float = 0.3, **options: Any) -> Path:
    """What a program that knows peft and nothing of us leaves behind."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    options = {"r": 4, "lora_alpha": 8, "target_modules": r".*\.(q_proj|down_proj)", **options}
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, strength, generator=random)
    adapted.save_pretrained(target)
    return target


@pytest.fixture(scope="module")
def foreign(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_foreign(model, tmp_path_factory.mktemp("foreign") / "House Style")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "home")


@pytest.fixture(autouse=True)
def quiet_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own variables, without leaving them to other tests."""
    monkeypatch.setattr(importing, "prepare_libraries", lambda: None)


@pytest.fixture(autouse=True)
def few_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(general, "gate_questions", lambda: SOME)


def asked(directory: Path, model: Path, name: str = "style", examples: str = "") -> ImportAdapter:
    return ImportAdapter("1", name, str(directory), str(model), examples)


def take(settings: Settings, directory: Path, model: Path, **more: Any) -> Any:
    return import_adapter(asked(directory, model, **more), settings, {}, lambda: None)


def test_one_made_by_peft_alone_is_served_with_its_logits(
    settings: Settings, foreign: Path, model: Path
) -> None:
    imported = take(settings, foreign, model)
    assert imported.figures.held_out == 0
    assert imported.figures.general == len(SOME)
    entry = AdapterStore(settings.home).get("style")
    assert (entry.base_model, entry.verdict) == ("tiny", imported.verdict)
    assert entry.training["source"] == "imported"
    assert entry.training["rank"] == 4
    assert (foreign / WEIGHTS).read_bytes() == (entry.directory / WEIGHTS).read_bytes()
    names = {path.name for path in entry.directory.iterdir()}
    assert names == {CONFIG, WEIGHTS, "shammah.json"}

    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        alone = base(torch.tensor([TOKENS])).logits[0, -1].numpy()
        theirs = peft.PeftModel.from_pretrained(base, str(foreign)).eval()
        expected = theirs(torch.tensor([TOKENS])).logits[0, -1].numpy()
    runner = TransformersRunner()
    load = LoadSettings("cpu", dtype="float32", quantization="none")
    runner.load(inspect_checkpoint(model), load, Stages())
    runner.reserve(1, 64)
    runner.add_adapter(read_adapter(entry, "key"))
    found = prefill(runner, 0, 0, TOKENS, "key")
    assert abs(found - expected).max() < 1e-4 * abs(expected).max()
    assert abs(found - alone).max() > 1e-2 * abs(alone).max()


class Stages:
    """Nobody looks at how it is loaded."""

    def stage(self, name: str) -> None: ...

    def advance(self) -> None: ...


def test_the_persons_feedback_judges_it(settings: Settings, foreign: Path, model: Path) -> None:
    feedback = Feedback(settings.home)
    for number in range(3):
        asked = (ChatMessage("user", f"question {number}"),)
        turn = JudgedTurn(asked, "the dog sleeps", role="inference")
        feedback.note(turn, "good")
    imported = take(settings, foreign, model)
    assert imported.figures.held_out == 3
    assert imported.verdict in ("accepted", "refused")
    assert "3 held-out examples" in imported.why or "harms" in imported.why


def test_a_poisoned_one_is_kept_and_refused(settings: Settings, tmp_path: Path) -> None:
    """Of the starter: what a random model says cannot get worse."""
    imported = take(settings, make_foreign(starter(), tmp_path / "poison"), starter())
    assert imported.verdict == "refused"
    assert "It harms other answers" in imported.why
    with pytest.raises(ShammahError, match="was refused"):
        AdapterStore(settings.home).use("style")


def test_one_that_harms_nothing_stays_unjudged_without_examples(
    settings: Settings, model: Path, tmp_path: Path
) -> None:
    imported = take(settings, make_foreign(model, tmp_path / "weak", 1e-4), model)
    assert imported.verdict == "unjudged"
    assert "no telling whether it helps" in imported.why
    store = AdapterStore(settings.home)
    with pytest.raises(ShammahError, match="has not been judged"):
        store.use("style")
    assert store.use("style", force=True).name == "style"


# --- refused ------------------------------------------------------------------------------


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for name in (CONFIG, WEIGHTS):
        (target / name).write_bytes((source / name).read_bytes())
    return target


def _pickle(directory: Path) -> None:
    (directory / WEIGHTS).unlink()
    torch.save({}, directory / "adapter_model.bin")


def _configure(**own: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / CONFIG).read_text()) | own
        (directory / CONFIG).write_text(json.dumps(config))

    return change


def _rewrite(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    from safetensors.torch import load_file, save_file

    def harm(directory: Path) -> None:
        tensors = load_file(directory / WEIGHTS)
        change(tensors)
        save_file(tensors, directory / WEIGHTS)

    return harm


def _rename(tensors: dict[str, Any], old: str, new: str) -> None:
    for key in list(tensors):
        tensors[key.replace(old, new)] = tensors.pop(key)


def _spoil(tensors: dict[str, Any]) -> None:
    next(iter(tensors.values()))[0, 0] = np.nan


def _halve(tensors: dict[str, Any]) -> None:
    tensors.pop(next(iter(tensors)))


@pytest.mark.parametrize(
    ("harm", "code", "said"),
    [
        (_pickle, "adapter_unsupported", "a pickle: reading one runs what is in it"),
        (lambda d: (d / CONFIG).unlink(), "adapter_damaged", f"There is no {CONFIG}"),
        (lambda d: (d / CONFIG).write_text("{"), "adapter_damaged", "is not JSON"),
        (lambda d: (d / CONFIG).write_text("[]"), "adapter_damaged", "is not a JSON object"),
        (lambda d: (d / WEIGHTS).write_bytes(b"x" * 99), "adapter_damaged", WEIGHTS),
        (_configure(use_dora=True), "adapter_unsupported", "it uses use_dora"),
        (_configure(peft_type="IA3"), "adapter_unsupported", "its peft_type is 'IA3'"),
        (_configure(modules_to_save=["lm_head"]), "adapter_unsupported", "modules_to_save"),
        (_configure(r=8), "adapter_invalid", "size mismatch"),
        (_rewrite(_spoil), "adapter_damaged", "NaN or infinite numbers"),
        (_rewrite(_halve), "adapter_damaged", "lacks one of its two matrices"),
        (_rewrite(lambda t: t.clear()), "adapter_damaged", "is empty"),
        (
            _rewrite(lambda t: _rename(t, "lora_A", "lora_embedding_A")),
            "adapter_unsupported",
            "not a LoRA matrix",
        ),
        (
            _rewrite(lambda t: _rename(t, "layers.0.", "layers.70.")),
            "adapter_wrong_base",
            "which tiny lacks",
        ),
        (
            _rewrite(lambda t: _rename(t, "self_attn.q_proj", "input_layernorm")),
            "adapter_unsupported",
            "not a linear layer",
        ),
        (
            _rewrite(lambda t: _rename(t, "self_attn.q_proj", "mlp.gate_proj")),
            "adapter_wrong_base",
            "and tiny has",
        ),
        (
            _rewrite(lambda t: _rename(t, "self_attn.q_proj", "self_attn.o_proj")),
            "adapter_invalid",
            "only its weights have base_model.model.model.layers.0.self_attn.o_proj",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_and_leaves_nothing(
    settings: Settings,
    foreign: Path,
    model: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    code: str,
    said: str,
) -> None:
    directory = _copy(foreign, tmp_path / "given")
    harm(directory)
    with pytest.raises(ShammahError) as caught:
        take(settings, directory, model)
    assert caught.value.code == code
    assert said in caught.value.message
    assert AdapterStore(settings.home).entries() == ()


def test_too_little_memory_is_told_before_anything_is_loaded(
    settings: Settings, foreign: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "free_memory", lambda: 1 << 20)
    with pytest.raises(ShammahError, match="Judging the adapter needs 0"):
        take(settings, foreign, model)


# --- the command --------------------------------------------------------------------------


@pytest.fixture
def ends(sandbox: Sandbox) -> Iterator[None]:
    yield
    kill(sandbox)


@pytest.mark.usefixtures("ends")
def test_the_command_takes_one_in_and_it_answers(
    sandbox: Sandbox, model: Path, foreign: Path
) -> None:
    wrong = run("adapters", "import", str(model), "--model", str(model), limit=LIMIT_S)
    assert wrong.code == 1
    assert f"There is no {CONFIG}" in wrong.err
    ran = run("adapters", "import", str(foreign), "--model", str(model), limit=LIMIT_S)
    assert ran.code in (0, 1), ran.said
    assert "Imported house-style, an adapter of tiny." in ran.out
    assert "shammah adapters use house-style --force" in ran.out
    again = run("adapters", "import", str(foreign), "--name", "house-style", "--model", str(model))
    assert again.code == 2
    assert "There is an adapter house-style already" in again.err
    assert "imported" in run("adapters", "show", "house-style").out
    asked = ("ask", "--model", str(model), "--local", "--json", "--temperature", "0")
    asked = (*asked, "--max-tokens", "8", "hello")
    before = json.loads(run(*asked, limit=LIMIT_S).out)
    assert run("adapters", "use", "house-style", "--force").code == 0
    after = json.loads(run(*asked, limit=LIMIT_S).out)
    assert after["provenance"]["adapter"] == "house-style"
    assert after["text"] != before["text"]
    assert run("adapters", "rollback").code == 0
    assert json.loads(run(*asked, limit=LIMIT_S).out)["text"] == before["text"]
