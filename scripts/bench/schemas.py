"""How many of 200 JSON schemas an answer of the local model fits.

    scripts/bench/schemas.py [--model NAME] [--count 200] [--tokens 1024] [--at-once 8]

The schemas grow: more fields, deeper, with unions, patterns, bounds, references, open objects. Each
is asked for in words that say little of its form. Needs ``jsonschema``.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from typing import Any

import jsonschema
from worker import Home, Worker, scratch

from shammah.bus.client import Task
from shammah.bus.messages import Done, Failed, Sampling, Token

WORDS = "name city age price colour owner weight status title country score note year kind".split()
FORMATS = ("date", "time", "date-time", "email", "ipv4", "uuid", "uri")
PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^[a-z]+(-[a-z]+)*$", "^(yes|no)$", "^#[0-9a-f]{6}$")
ODD = (
    {"not": {"type": "string"}},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    {"if": {"type": "string"}, "then": {"maxLength": 3}},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
)
"""What is refused."""


def make_schema(level: int, chance: random.Random) -> dict[str, Any]:
    """A schema of difficulty ``level``, from 0 to 9."""
    fields = {word: value(level, chance, 0) for word in chance.sample(WORDS, 1 + level // 2)}
    required = chance.sample(list(fields), chance.randint(1, len(fields)))
    schema = {"type": "object", "properties": fields, "required": required}
    if chance.random() < 0.7:
        schema["additionalProperties"] = False
    if level >= 6 and chance.random() < 0.5:
        node = {"type": "object", "properties": {"label": {"type": "string"}}}
        node["properties"]["children"] = {"type": "array", "items": {"$ref": "#/$defs/node"}}
        node |= {"required": ["label"], "additionalProperties": False}
        schema["$defs"] = {"node": node}
        schema["properties"]["tree"] = {"$ref": "#/$defs/node"}
        required.append("tree")
    if level >= 5 and chance.random() < 0.15:
        schema["properties"]["odd"] = chance.choice(ODD)
    return schema


def value(level: int, chance: random.Random, depth: int) -> dict[str, Any]:
    """A schema of a value."""
    simple: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"enum": ["red", "green", 3, None]},
    ]
    if level >= 2:
        simple += [
            {"type": "string", "minLength": 3, "maxLength": 12},
            {"type": "integer", "minimum": -5, "maximum": 120},
            {"type": ["string", "null"]},
            {"const": "fixed"},
        ]
    if level >= 4:
        simple += [{"type": "string", "format": one} for one in FORMATS]
        simple += [{"type": "string", "pattern": one} for one in PATTERNS]
    if depth > level // 3 or chance.random() < 0.5:
        return chance.choice(simple)
    kind = chance.randrange(4)
    inner = [value(level, chance, depth + 1) for _ in range(2)]
    if kind == 0:
        found: dict[str, Any] = {"type": "array", "items": inner[0]}
        return found | ({"minItems": 2, "maxItems": 5} if level >= 3 else {})
    if kind == 1:
        return {"anyOf": inner}
    if kind == 2 and level >= 3:
        return {"type": "object", "additionalProperties": inner[0]}
    names = chance.sample(WORDS, 2)
    fields = dict(zip(names, inner, strict=True))
    return {"type": "object", "properties": fields, "required": names[:1]}


def main() -> int:
    """Ask, check and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="starter")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--at-once", type=int, default=8)
    wanted = parser.parse_args()
    chance = random.Random(20261129)
    schemas = [make_schema(10 * n // wanted.count, chance) for n in range(wanted.count)]
    results: Counter[str] = Counter()
    tokens = 0
    with scratch() as directory:
        worker = Worker(Home.make(directory, "native"), wanted.model)
        try:
            for first in range(0, wanted.count, wanted.at_once):
                some = range(first, min(first + wanted.at_once, wanted.count))
                tasks = [
                    worker.ask(
                        f"Describe item number {number} as JSON.",
                        wanted.tokens,
                        Sampling(wanted.temperature, seed=1, schema=json.dumps(schemas[number])),
                    )
                    for number in some
                ]
                for number, task in zip(some, tasks, strict=True):
                    text, end = collect(task)
                    results[verdict(schemas[number], text, end, number)] += 1
                    tokens += end.usage.output_tokens if isinstance(end, Done) else 0
        finally:
            worker.close()
    print(dict(results), f"{tokens} tokens")
    return 0


def collect(task: Task) -> tuple[str, Any]:
    """An answer, and how it ended."""
    text, end = "", None
    for reply in task:
        if isinstance(reply, Token):
            text += reply.text
        elif isinstance(reply, Done | Failed):
            end = reply
    return text, end


def verdict(schema: dict[str, Any], text: str, end: Any, number: int) -> str:
    """What became of one."""
    if isinstance(end, Failed):
        print(number, end.message, file=sys.stderr)
        return f"refused ({end.code})"
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        print(number, end.finish_reason, repr(str(error))[:200], text[-200:], file=sys.stderr)
        return "invalid"
    return "valid"


if __name__ == "__main__":
    sys.exit(main())
