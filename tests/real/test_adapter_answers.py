"""Adapters from the prompt to the starter and back: a real worker, adapters made by peft."""

from __future__ import annotations

import gc
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Sampling, Token
from shammah.chat.conversation import Conversation
from shammah.chat.session import Session
from shammah.history.recorder import Recorder
from shammah.learning.adapters import ACCEPTED, WEIGHTS, AdapterEntry, AdapterStore
from shammah.models.catalogue import STARTER
from shammah.repl.commands import table
from shammah.repl.loop import Repl
from shammah.repl.questions import Questions
from shammah.router.decision import Override
from shammah.router.route import AUTO, OFF
from shammah.router.store import Store
from shammah.settings.load import load_settings
from shammah.supervision.lifecycle import stop
from shammah.terminal.screen import Screen
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.turns import way_of
from tests.real.models import starter

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]

QUESTION = (ChatMessage("user", "What is the capital of France?"),)
PARIS = "The capital of France is Paris."


def make_adapters(directory: Path, *names: str) -> None:
    """PEFT directories of strong random adapters, for the starter."""
    import peft
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    base = transformers.AutoModelForCausalLM.from_pretrained(starter(), dtype=torch.bfloat16)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
    model = peft.get_peft_model(base, config)
    for seed, name in enumerate(names):
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_(0, 0.15, generator=random)
        model.save_pretrained(directory / name)
    del base, model
    gc.collect()


@dataclass
class Asking:
    """One frontend and its worker."""

    session: Session
    store: AdapterStore
    made: Path

    def add(self, name: str, made: str, base_model: str = STARTER) -> AdapterEntry:
        facts = AdapterEntry(name, Path(), base_model, verdict=ACCEPTED)

        def fill(directory: Path) -> None:
            for path in (self.made / made).glob("adapter_*"):
                (directory / path.name).write_bytes(path.read_bytes())

        return self.store.add(facts, fill)

    def ask(self, adapter: str = AUTO) -> tuple[str, Done | Failed]:
        steps = list(
            way_of(self.session, QUESTION, Override(adapter=adapter), Sampling(temperature=0.0), 12)
        )
        end = steps[-1]
        assert isinstance(end, Done | Failed)
        return "".join(step.text for step in steps if isinstance(step, Token)), end

    def answer(self, adapter: str = AUTO) -> str:
        """The text; that the answer says what it came from is looked at."""
        text, end = self.ask(adapter)
        assert isinstance(end, Done), end
        serving = self.store.active(STARTER)
        named = "" if adapter == OFF else adapter
        expected = (serving.name if serving else "") if adapter == AUTO else named
        assert end.provenance.adapter == expected
        return text

    def refusal(self, adapter: str = AUTO) -> Failed:
        text, end = self.ask(adapter)
        assert isinstance(end, Failed)
        assert text == ""
        assert "/adapter off" in end.hint or end.code == "adapter_not_found"
        return end


@pytest.fixture
def asking(sandbox: Sandbox, tmp_path: Path) -> Iterator[Asking]:
    make_adapters(tmp_path, "loud", "terse")
    settings = load_settings(os.environ, STARTER)
    session = Session(settings, os.environ, "test", local_only=True)
    yield Asking(session, AdapterStore(sandbox.shammah_home), tmp_path)
    session.close()
    stop("inference", sandbox.endpoints)
    until(lambda: not sandbox.holders(), "the worker has ended")


def test_adapters_are_swapped_between_turns_and_harm_nothing(
    asking: Asking, sandbox: Sandbox
) -> None:
    base = asking.answer()
    assert base == PARIS
    worker = sandbox.holder()
    _swap(asking, base)
    _refuse(asking, base)
    _replace(asking)
    _say_it_at_the_prompt(asking, base)
    assert sandbox.holder() == worker
    log = sandbox.log()
    assert log.count(" in int8, ") == 1  # the base was loaded once
    assert log.count("adapter loud@") == 1
    _count(asking, sandbox)


def _swap(asking: Asking, base: str) -> None:
    asking.add("loud", "loud")
    asking.add("terse", "terse")
    assert asking.answer() == base  # nothing is in service
    loud, terse = asking.answer("loud"), asking.answer("terse")
    assert len({base, loud, terse}) == 3
    asking.store.use("loud")
    assert asking.answer() == loud
    assert asking.answer(OFF) == base
    assert asking.answer("terse") == terse
    assert asking.answer() == loud
    asking.store.use("terse")
    assert asking.answer() == terse
    asking.store.rollback(STARTER)
    assert asking.answer() == loud
    asking.store.use_base(STARTER)
    assert asking.answer() == base


def _refuse(asking: Asking, base: str) -> None:
    harmed = asking.add("harmed", "loud").directory / WEIGHTS
    data = bytearray(harmed.read_bytes())
    data[-7] ^= 1
    harmed.write_bytes(data)
    assert asking.refusal("harmed").code == "adapter_damaged"
    asking.store.use("harmed")
    assert asking.refusal().code == "adapter_damaged"
    assert asking.answer(OFF) == base
    asking.store.use_base(STARTER)
    assert asking.refusal("nowhere").code == "adapter_not_found"
    asking.add("others", "loud", "Qwen/Qwen2.5-1.5B-Instruct")
    assert asking.refusal("others").code == "adapter_wrong_base"
    assert asking.answer() == base


def _replace(asking: Asking) -> None:
    """The same name, other numbers: they are read anew."""
    before = asking.answer("terse")
    asking.store.remove("terse")
    asking.add("terse", "loud")
    assert asking.answer("terse") == asking.answer("loud") != before


def _say_it_at_the_prompt(asking: Asking, base: str) -> None:
    conversation, said = Conversation(), io.StringIO()
    history = Recorder(Path(), enabled=False, report=said.write)
    screen = Screen({}, said)
    questions = Questions(asking.session, conversation, screen)
    repl = SimpleNamespace(
        conversation=conversation,
        session=asking.session,
        screen=screen,
        history=history,
        questions=questions,
    )
    for line in ("/adapter", "/adapter loud", "/adapter nonsense", "/adapter"):
        table.run(line, cast(Repl, repl))
    assert conversation.adapter == "loud"
    for words in ("No adapter is active", "Known are: harmed, loud", "no adapter 'nonsense'"):
        assert words in said.getvalue()
    table.run("/adapter off", cast(Repl, repl))
    assert conversation.adapter == OFF
    table.run("/clear", cast(Repl, repl))
    assert conversation.adapter == AUTO
    asked = ("ask", "--model", STARTER, "--local", "--json", "--temperature", "0", "Hello")
    ended = run(*asked, "--adapter", "harmed", limit=60)
    assert (ended.code, json.loads(ended.out)["error"]["code"]) == (1, "adapter_damaged")
    assert "harmed is damaged" in ended.err
    ended = run(*asked, "--adapter", "loud", "--max-tokens", "3", limit=60)
    assert json.loads(ended.out)["provenance"]["adapter"] == "loud"


def _count(asking: Asking, sandbox: Sandbox) -> None:
    """Each adapter has statistics of its own, and the refused ones have none."""
    asking.session.close()
    store = Store(sandbox.shammah_home / "router.db")
    arms = store.read().arms
    store.close()
    counts = {arm.adapter: tally.answers for arm, tally in arms.items() if arm.model == STARTER}
    assert counts.keys() == {"", "loud", "terse"}
    assert all(counts.values())
