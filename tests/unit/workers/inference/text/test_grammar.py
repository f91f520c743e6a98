"""An answer that is held fits its schema, whatever the model would rather write."""

from __future__ import annotations

import json
from functools import cache
from random import Random
from typing import Any

import jsonschema
import numpy as np
import pytest

from shammah.bus.messages import Sampling, Tool
from shammah.errors import ShammahError
from shammah.models.catalogue import starter_directory
from workers.inference.text.grammar import Grammars
from workers.inference.text.tools import CallSplitter
from workers.text.model_text import ModelText

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool("weather", "", json.dumps(CITY | {"additionalProperties": False}))
TIME = Tool("time", "", '{"type": "object", "properties": {}, "additionalProperties": false}')
OPEN = {"type": "object"}
DEEP = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "label": {"type": "string", "minLength": 2},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["label", "children"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}
FORMATS = ("date", "time", "date-time", "email", "ipv4", "ipv6", "uuid", "uri", "hostname")
SCHEMAS: dict[str, dict[str, Any]] = {
    "city": CITY,
    "open": OPEN,
    "deep": DEEP,
    "number": {"type": "number"},
    "array": {"type": "array", "items": {"type": ["integer", "string", "null"]}, "minItems": 3},
    "union": {"anyOf": [{"type": "string"}, {"type": "array"}, CITY]},
    "pattern": {"type": "string", "pattern": "^[a-z]+(-[a-z]+)*$"},
    "needs its end": {"type": "string", "pattern": "^a+b$"},
    **{one: {"type": "array", "items": {"type": "string", "format": one}} for one in FORMATS},
}


@cache
def text() -> ModelText:
    return ModelText.load(starter_directory())


@cache
def grammars() -> Grammars:
    return Grammars(text(), text().ends)


def write(sampling: Sampling, room: int, wishes: list[str], seed: int = 0) -> tuple[str, bool]:
    """What a model writes that wants nothing but ``wishes``, in this order, or where there are
    none anything; and whether it comes to an end."""
    grammar, _ = grammars().hold(sampling, room)
    wanted = [text().encode_text(wish)[0] for wish in wishes]
    chance, written = Random(seed), list[int]()
    for _ in range(room):
        mask = grammar.allowed()
        found = [one for one in wanted if mask[one]]
        token = found[0] if found else chance.choice(np.flatnonzero(mask).tolist())
        grammar.take(token)
        if token in text().ends:
            return text().decode(written), True
        written.append(token)
    return text().decode(written), False


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("wishes", [[], ["-red", "a", "1", "[", "{", '"'], ["}", "0"]])
def test_it_fits_whatever_the_model_would_write(name: str, wishes: list[str]) -> None:
    schema = SCHEMAS[name]
    for seed in range(3):
        found, ended = write(Sampling(schema=json.dumps(schema)), 160, wishes, seed)
        assert ended, found
        jsonschema.validate(json.loads(found), schema)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "https://example.org/a.json"}, "example.org"),
        ({"type": "string", "format": "haiku"}, "haiku"),
    ],
)
def test_what_it_cannot_hold_is_refused_with_the_reason(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(ShammahError, match=why) as caught:
        grammars().hold(Sampling(schema=json.dumps(schema)), 100)
    assert caught.value.code == "schema_not_enforced"


def calls(found: str) -> list[tuple[str, Any]]:
    splitter = CallSplitter(expected=True)
    splitter.add(found)
    return [(call.name, json.loads(call.arguments)) for call in splitter.calls()]


@pytest.mark.parametrize("choice", ["any", "weather"])
@pytest.mark.parametrize("seed", range(4))
def test_calls_fit_their_tools(choice: str, seed: int) -> None:
    sampling = Sampling(tools=(WEATHER, TIME), tool_choice=choice, parallel=False)
    found, ended = write(sampling, 160, [], seed)
    assert ended, found
    ((name, arguments),) = calls(found)
    assert name in ("weather", "time")
    assert name == "weather" or choice == "any"
    jsonschema.validate(arguments, CITY if name == "weather" else OPEN)


def test_words_stay_free_until_a_call_begins() -> None:
    grammar, _ = grammars().hold(Sampling(tools=(WEATHER,)), 100)
    for token in text().encode_text("I'll look it up.\n<tool_call>"):
        assert grammar.allowed()[token]
        grammar.take(token)
    allowed = np.flatnonzero(grammar.allowed())
    assert all(text().decode([token]).startswith("\n") for token in allowed.tolist())


def test_of_a_tool_whose_schema_is_beyond_it_the_rest_is_held_and_the_user_told() -> None:
    odd = Tool("odd", "", json.dumps(CITY | {"not": {"required": ["x"]}}))
    _, notices = grammars().hold(Sampling(tools=(odd, WEATHER)), 100)
    (notice,) = notices
    assert notice.startswith("Calls of odd are not held to all of its schema")


def test_a_choice_that_is_no_tool_is_refused() -> None:
    with pytest.raises(ShammahError, match="no tool 'cook'"):
        grammars().hold(Sampling(tools=(TIME,), tool_choice="cook"), 100)
