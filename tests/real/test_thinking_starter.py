"""Thoughts are ended and answers go on, in the engines themselves, with the starter's weights."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Sampling, Token
from shammah.settings.model import InferenceSettings, Settings
from tests.fakes.engines import only
from tests.real.models import KEPT_KERNELS, starter
from workers.inference.engine import SequenceRequest, StepResult
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.runner import Runner
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.service import InferenceService
from workers.service import Outlet
from workers.text.chat_template import TEMPLATE_FILE
from workers.text.model_text import ModelText

PATIENCE_S = 100.0
BUDGET, WANTED = 12, 20
QUESTION = ChatMessage("user", "Tell me a long story about the sea.")


class Watched(BatchedEngine):
    """Notes what it is given and what each step has done."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.submitted: list[SequenceRequest] = []
        self.results: list[list[StepResult]] = []

    def submit(self, request: SequenceRequest) -> None:
        self.submitted.append(request)
        self.results.append([])
        super().submit(request)

    def step(self) -> list[StepResult]:
        done = super().step()
        self.results[-1] += done
        return done


@pytest.fixture
def thinking(tmp_path: Path) -> Path:
    """The starter with a template that opens its thoughts."""
    directory = tmp_path / "thinking"
    directory.mkdir()
    for file in starter().iterdir():
        if file.name not in (TEMPLATE_FILE, "shammah-manifest.json"):
            os.symlink(file, directory / file.name)
    text = ModelText.load(starter())
    assert text.template is not None
    opened = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    (directory / TEMPLATE_FILE).write_text(text.template.source + opened)
    return directory


def test_a_model_that_would_think_for_long_is_made_to_answer(
    thinking: Path, tmp_path: Path
) -> None:
    engine = Watched(NativeRunner(None, KEPT_KERNELS, 1))
    inference = InferenceSettings(think_tokens=BUDGET)
    settings = Settings(tmp_path, str(thinking), inference=inference)
    service = InferenceService(settings, engines=only(lambda: engine))
    outlet = Outlet(lambda: None)
    thread = threading.Thread(target=service.run, args=(outlet,), daemon=True)
    thread.start()
    service.submit(Generate("a", (QUESTION,), Sampling(temperature=0.0), WANTED, think=True))
    parts = {True: "", False: ""}
    while not isinstance(message := outlet.queue.get(timeout=PATIENCE_S), Done | Failed):
        if isinstance(message, Token):
            parts[message.reasoning] += message.text
    service.stop()
    thread.join(PATIENCE_S)
    assert isinstance(message, Done), message
    first, second = engine.submitted
    assert parts[True]
    assert parts[False].strip()
    assert "think>" not in parts[False]

    own = ModelText.load(thinking)
    closing = own.encode_written("\n</think>\n\n")
    begun = list(second.prompt[len(first.prompt) :])
    assert begun[-len(closing) :] == closing
    assert len(begun) - len(closing) in range(BUDGET, BUDGET + 4)  # a step may bring several
    computed = sum(result.prefilled for result in engine.results[1])
    assert computed <= len(closing) + 1  # the rest is in the slot

    # The answer is what a new sequence with this prompt would be.
    engine.submit(replace(second, request_id="b"))
    alone: list[int] = []
    while engine.active:
        alone += [token for result in engine.step() for token in result.token_ids]
    assert own.decode(alone) == parts[False]
