"""The inference service on the real starter model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Ready, Sampling, Token
from shammah.settings.model import Settings
from tests.fakes.engines import only
from tests.real.models import starter
from workers.inference.engine import StepResult
from workers.inference.engines.transformers.runner import TransformersRunner
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.service import InferenceService
from workers.service import Outlet

PATIENCE_S = 100.0
GREEDY = Sampling(temperature=0.0)


class CountingEngine(BatchedEngine):
    """Counts steps, and cancels a request in the middle of one."""

    steps = 0
    cancel_at = 0

    def step(self) -> list[StepResult]:
        self.steps += 1
        if self.steps == self.cancel_at:
            running.service.cancel("cancelled")
        return super().step()


class Running:
    """One service for all tests: loading takes seconds."""

    def __init__(self, directory: Path) -> None:
        self.engine = CountingEngine(TransformersRunner())
        settings = Settings(directory, str(directory))
        self.service = InferenceService(settings, engines=only(lambda: self.engine))
        self.outlet = Outlet(lambda: None)
        self.ready: Ready | None = None
        self.tokens: dict[str, list[Token]] = {}
        self.ends: dict[str, Done | Failed] = {}
        self.thread = threading.Thread(target=self.service.run, args=(self.outlet,), daemon=True)
        self.thread.start()

    def ask(self, name: str, text: str, count: int = 24, sampling: Sampling = GREEDY) -> None:
        messages = (ChatMessage("user", text),)
        self.tokens[name] = []
        self.service.submit(Generate(name, messages, sampling, count))

    def end(self, name: str) -> Done | Failed:
        while name not in self.ends:
            message = self.outlet.queue.get(timeout=PATIENCE_S)
            match message:
                case Token(request_id):
                    self.tokens[request_id].append(message)
                case Ready():
                    self.ready = message
                case Done(request_id) | Failed(request_id=request_id):
                    self.ends[request_id] = message
        return self.ends.pop(name)

    def text(self, name: str) -> str:
        return "".join(token.text for token in self.tokens[name])


running: Running


@pytest.fixture(scope="module", autouse=True)
def service() -> Iterator[Running]:
    global running
    running = Running(starter())
    yield running
    running.service.stop()
    running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive()
    with pytest.raises(queue.Empty):
        running.outlet.queue.get_nowait()


def test_the_capital_of_france_is_paris(service: Running) -> None:
    service.ask("a", "What is the capital of France?")  # before the model is loaded
    done = service.end("a")
    assert isinstance(done, Done)
    assert service.text("a") == "The capital of France is Paris."
    assert done.finish_reason == "stop"
    assert done.usage.output_tokens == 8
    assert done.timings.prefill_tokens_per_second > 0
    assert done.timings.decode_tokens_per_second > 0
    assert 0 < done.timings.queue_s < done.timings.ttft_s < done.timings.total_s
    assert service.ready is not None
    assert service.ready.context_length == 8192
    assert len(service.ready.revision) == 40
    assert done.provenance.revision == service.ready.revision


def test_two_at_once_say_what_each_says_alone(service: Running) -> None:
    questions = {"a": "Name three colours.", "b": "What is the capital of France?"}
    alone = {}
    for name, question in questions.items():
        service.ask(name, question)
        service.end(name)
        alone[name] = service.text(name)
    for name, question in questions.items():
        service.ask(name, question)
    for name in questions:
        assert isinstance(service.end(name), Done)
    assert {name: service.text(name) for name in questions} == alone


@pytest.mark.parametrize("at", [1, 2, 6], ids=["first chunk", "second chunk", "decode"])
def test_a_cancel_takes_effect_within_a_step(service: Running, at: int) -> None:
    """The prompt has three chunks; the cancel comes while step number ``at`` is done."""
    service.engine.steps = 0
    service.engine.cancel_at = at
    service.ask("cancelled", "Tell me a story about the sea. " * 80)
    done = service.end("cancelled")
    assert isinstance(done, Done)
    assert done.finish_reason == "cancelled"
    service.ask("next", "What is the capital of France?")
    after = service.end("next")
    assert isinstance(after, Done)
    assert service.engine.steps - at == after.usage.output_tokens  # none was for the cancelled


def test_a_conversation_that_is_too_long_is_refused(service: Running) -> None:
    service.ask("a", "word " * 9000)
    failed = service.end("a")
    assert isinstance(failed, Failed)
    assert failed.code == "context_too_long"
    assert "9,031 tokens" in failed.message
    assert "8,192" in failed.message


def test_characters_of_several_tokens_arrive_whole(service: Running) -> None:
    service.ask("a", "Repeat this: \U0001f680 \U0001f469\u200d\U0001f680 \u65e5\u672c\u8a9e", 60)
    service.end("a")
    texts = [token.text for token in service.tokens["a"]]
    assert not any("\ufffd" in text for text in texts)
    assert any(ord(character) > 0x2FFF for text in texts for character in text)


def test_a_seed_makes_an_answer_repeatable(service: Running) -> None:
    sampling = Sampling(temperature=1.5, top_k=0, top_p=1.0, seed=11)
    for name in ("a", "b"):
        service.ask(name, "Tell me a story.", 16, sampling)
    service.ask("c", "Tell me a story.", 16, Sampling(1.5, 1.0, 0, seed=12))
    for name in ("a", "b", "c"):
        service.end(name)
    assert service.text("a") == service.text("b") != service.text("c")
