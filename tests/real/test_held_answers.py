"""Answers of the starter that are held to a schema, and its calls of tools."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Sampling, Token, Tool
from shammah.settings.model import Settings
from tests.fakes.engines import only
from tests.real.models import KEPT_KERNELS, starter
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.service import InferenceService
from workers.service import Outlet

PATIENCE_S = 100.0
ROOM = 120
QUESTION = ChatMessage("user", "What is the weather in Paris?")
CITY: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = Tool("weather", "Says how the weather of a city is.", json.dumps(CITY))
BILL = {
    "type": "object",
    "properties": {
        "shop": {"type": "string"},
        "date": {"type": "string", "format": "date"},
        "items": {"type": "array", "items": {"type": "number"}},
        "note": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"}]},
    },
    "required": ["shop", "date", "items", "note"],
}

Ask = Callable[..., tuple[str, Done | Failed]]


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    settings = Settings(tmp_path_factory.mktemp("home"), str(starter()))
    engine = BatchedEngine(NativeRunner(None, KEPT_KERNELS, 1))
    service = InferenceService(settings, engines=only(lambda: engine))
    outlet = Outlet(lambda: None)
    thread = threading.Thread(target=service.run, args=(outlet,), daemon=True)
    thread.start()

    def ask(sampling: Sampling, *more: ChatMessage) -> tuple[str, Done | Failed]:
        service.submit(Generate("a", (QUESTION, *more), sampling, ROOM))
        text = ""
        while not isinstance(message := outlet.queue.get(timeout=PATIENCE_S), Done | Failed):
            text += message.text if isinstance(message, Token) else ""
        return text, message

    yield ask
    service.stop()
    thread.join(PATIENCE_S)


@pytest.mark.parametrize("schema", [CITY, BILL, {"type": "object"}], ids=["city", "bill", "open"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_fits_its_schema(ask: Ask, schema: dict[str, Any], temperature: float) -> None:
    text, end = ask(Sampling(temperature, seed=5, schema=json.dumps(schema)))
    assert isinstance(end, Done), end
    assert end.finish_reason == "stop"
    jsonschema.validate(json.loads(text), schema)


def test_one_that_cannot_be_held_is_refused_and_the_next_answered(ask: Ask) -> None:
    _, end = ask(Sampling(schema='{"not": {}}'))
    assert isinstance(end, Failed)
    assert end.code == "schema_not_enforced"
    assert isinstance(ask(Sampling(schema=json.dumps(CITY)))[1], Done)


def test_it_calls_a_tool_and_reads_what_it_returned(ask: Ask) -> None:
    sampling = Sampling(0.0, tools=(WEATHER,), tool_choice="any", parallel=False)
    text, end = ask(sampling)
    assert isinstance(end, Done), end
    assert (text, end.finish_reason) == ("", "tool_call")
    (call,) = end.tool_calls
    assert call.name == "weather"
    jsonschema.validate(json.loads(call.arguments), CITY)
    called = ChatMessage("assistant", "", tool_calls=(call,))
    result = ChatMessage("tool", "It is raining in Paris.", tool_call_id=call.id)
    text, end = ask(Sampling(0.0, tools=(WEATHER,), tool_choice="none"), called, result)
    assert isinstance(end, Done), end
    assert "rain" in text
