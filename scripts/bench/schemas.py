"""How many of 200 JSON schemas an answer of the starter fits, asked for by each API.

    scripts/bench/schemas.py [--by chat messages tool] [--count 200] [--tokens 256] [--at-once 8]

The schemas grow: more fields, deeper, with unions, patterns, bounds, references, open objects. Each
is asked for through the gateway in words that say little of its form: by OpenAI's
``response_format`` (``chat``), Anthropic's ``output_config`` (``messages``), and as the arguments
of a tool that has to be called (``tool``). Then the answers are gone through again, to time what
holding them takes of the processor, beside what a token takes. Needs ``jsonschema``.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import psutil
from worker import Home, scratch

from shammah.bus.endpoints import lock_holder
from shammah.bus.messages import Sampling
from shammah.models.catalogue import starter_directory
from workers.inference.text.grammar import Grammars
from workers.text.model_text import ModelText

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


@dataclass(frozen=True)
class Way:
    """How an API is asked for a value: the path, the request for a schema, where the value is."""

    path: str
    asked: Callable[[dict[str, Any]], dict[str, Any]]
    value: Callable[[dict[str, Any]], Any]


def _named(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "item", "schema": schema}}


def _tool(schema: dict[str, Any]) -> dict[str, Any]:
    tool = {"name": "describe", "description": "Takes a description.", "input_schema": schema}
    return {"tools": [tool], "tool_choice": {"type": "tool", "name": "describe"}}


WAYS = {
    "chat": Way(
        "/v1/chat/completions",
        lambda schema: {"response_format": _named(schema)},
        lambda said: json.loads(said["choices"][0]["message"]["content"]),
    ),
    "messages": Way(
        "/v1/messages",
        lambda schema: {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        lambda said: json.loads(said["content"][0]["text"]),
    ),
    "tool": Way("/v1/messages", _tool, lambda said: said["content"][-1]["input"]),
}


class Gateway:
    """One with the starter behind it, in a home of its own."""

    def __init__(self, home: Home, port: int) -> None:
        self._home = home
        self._port = port
        self._run("serve", "--background", "--port", str(port), "--model", "starter")
        self._token = self._run("serve", "--token").strip()

    def ask(self, path: str, document: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        headers = {"Authorization": f"Bearer {self._token}"}
        connection.request("POST", path, json.dumps(document), headers)
        response = connection.getresponse()
        said = json.load(response)
        connection.close()
        return response.status, said

    def processor_s(self) -> float:
        """What the model has taken of all processors so far."""
        times = psutil.Process(lock_holder(self._home.endpoints.lock("inference"))).cpu_times()
        return times.user + times.system

    def close(self) -> None:
        for role in ("gateway", "inference"):
            self._run("stop", role)

    def _run(self, *words: str) -> str:
        command = [sys.executable, "-P", "-m", "shammah", *words]
        environ = self._home.environ
        return subprocess.run(command, env=environ, stdout=-1, text=True, check=True).stdout


def question(number: int, tokens: int) -> dict[str, Any]:
    said = [{"role": "user", "content": f"Describe item number {number} as JSON."}]
    return {"model": "local", "max_tokens": tokens, "temperature": 0, "messages": said}


def judge(
    gateway: Gateway, way: Way, schema: dict[str, Any], number: int, tokens: int
) -> tuple[str, Any]:
    """What becomes of one, and its value."""
    status, said = gateway.ask(way.path, question(number, tokens) | way.asked(schema))
    if status != 200:
        return f"refused ({said['error'].get('code') or status})", None
    try:
        value = way.value(said)
        jsonschema.validate(value, schema)
    except (ValueError, KeyError, TypeError, IndexError, jsonschema.ValidationError) as error:
        print(number, repr(str(error))[:200], json.dumps(said)[-300:], file=sys.stderr)
        return "invalid", None
    return "valid", value


def token_s(gateway: Gateway) -> float:
    """Seconds of all processors that a token takes which is held to nothing."""
    took = []
    for number, tokens in ((9001, 1), (9002, 41)):
        began = gateway.processor_s()
        _, said = gateway.ask(WAYS["chat"].path, question(number, tokens))
        took.append((gateway.processor_s() - began, said["usage"]["completion_tokens"]))
    (first, _), (last, count) = took
    return (last - first) / (count - 1)


def held_s(grammars: Grammars, text: ModelText, schema: dict[str, Any], value: Any) -> list[float]:
    """Seconds of the processor that each token of a value takes to be held."""
    tokens = text.encode_text(json.dumps(value))
    grammar, _ = grammars.hold(Sampling(schema=json.dumps(schema)), 10 * len(tokens))
    found = []
    for token in tokens:
        began = time.thread_time()
        allowed = grammar.allowed()
        if not allowed[token]:  # the fields were written in another order
            break
        grammar.take(token)
        found.append(time.thread_time() - began)
    return found


def main() -> int:
    """Ask, check and count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--port", type=int, default=11698)
    wanted = parser.parse_args()
    chance = random.Random(20261129)
    schemas = [make_schema(10 * n // wanted.count, chance) for n in range(wanted.count)]
    text = ModelText.load(Path(starter_directory()))
    grammars = Grammars(text, text.ends)
    with scratch() as directory:
        gateway = Gateway(Home.make(directory, "native"), wanted.port)
        try:
            for name in wanted.by:
                way = WAYS[name]
                with ThreadPoolExecutor(wanted.at_once) as threads:
                    found = [
                        threads.submit(judge, gateway, way, schema, number, wanted.tokens)
                        for number, schema in enumerate(schemas)
                    ]
                    results = [one.result() for one in found]
                print(name, dict(Counter(verdict for verdict, _ in results)), flush=True)
            took = [
                one
                for schema, (verdict, value) in zip(schemas, results, strict=True)
                if verdict == "valid"
                for one in held_s(grammars, text, schema, value)
            ]
            token = statistics.median(token_s(gateway) for _ in range(5))
            held = statistics.mean(took)
            print(f"holding a token: {1e6 * held:.0f} us on average, {len(took)} tokens;", end=" ")
            print(f"a token: {1000 * token:.1f} ms of all processors; share {held / token:.4f}")
        finally:
            gateway.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
