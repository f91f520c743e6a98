"""Whatever clients send through the endpoint, nothing marked goes out, and the ledger has all that
does.

The gateway and the cloud worker are real; the local model repeats everything that it was told, and
a server on loopback records what it is sent. In each conversation one of `EVENTS` happens: a worker
is killed, between answers or in the midst of one, or the client leaves.
``SHAMMAH_TEST_CONVERSATIONS`` says how many conversations there are, ``SHAMMAH_TEST_SEED`` which is
the first.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from shammah.bus.messages import Serving
from shammah.bus.probe import ask_status
from shammah.privacy.ledger import read_ledger
from tests.fakes import standing_gateway
from tests.fakes.asking_http import Endpoint, endpoint_of
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.real.evening import RULES
from tests.real.recorder import Recorder

pytestmark = pytest.mark.timeout(900)

SEEDS = int(os.environ.get("SHAMMAH_TEST_CONVERSATIONS", "14"))
FIRST = int(os.environ.get("SHAMMAH_TEST_SEED", "0"))
TURNS = 8
EVENTS = (
    "cloud cut off",
    "inference cut off",
    "client leaves",
    "gateway cut off",
    "inference killed",
    "cloud killed",
    "gateway killed",
)
"""``killed``: while nothing is asked; ``cut off``: in the midst of its answer."""

MARKED = ("secret", "forbidden", "vault", "case-", "@acme")
SAID = {
    "word": "SECRET and forbidden {n}",
    "path": "SECRET in ~/vault/plan{n}.txt",
    "pattern": "SECRET of case-{n}",
    "address": "SECRET for jo{n}@acme.de",
}
"""What a rule applies to, wherever it stands."""
PLACES = ("question", "result", "call", "name", "tool", "stop", "schema", "line")
"""Where it stands; ``line``: in a call, as the first word of a line."""
SERVERS = ("ok", "ok", "ok", "refuse", "drop", "break", "empty")
MODELS = ("auto", "auto", "local", "cloud", "claude-opus-5-5")


class World:
    """The endpoint, what is behind it, and what may be done to them."""

    def __init__(self, sandbox: Sandbox, recorder: Recorder) -> None:
        self.sandbox = sandbox
        self.recorder = recorder
        self.happened = Counter[str]()
        self._steer = sandbox.root / "steer"
        self.begin()

    def begin(self) -> None:
        command = [sys.executable, "-P", standing_gateway.__file__, "gateway", "--foreground"]
        self._gateway = subprocess.Popen(
            [*command, "--keep-alive", "-1", "--port", "0", "--model", "starter"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._gateway.stdout is not None
        self.endpoint: Endpoint = endpoint_of(self.sandbox, self._gateway.stdout.readline())

    def arrange(self, servers: list[str], steer: str) -> None:
        self.recorder.go_on.clear()
        self.recorder.behaviours = servers
        self._steer.write_text(steer)

    def release(self) -> None:
        """Let whoever is asked from now on answer."""
        self.arrange([], "")
        self.recorder.go_on.set()

    def kill(self, role: str) -> None:
        if role == "gateway":
            self.end(signal.SIGKILL)
            self.begin()
        else:
            os.kill(until(lambda: self.sandbox.holder(role), f"{role} runs"), signal.SIGKILL)

    def end(self, number: signal.Signals) -> None:
        self._gateway.send_signal(number)
        self._gateway.communicate(timeout=LIMIT_S)

    def rest(self) -> None:
        """Until nothing is in hand."""
        until(self._idle, "all answers have ended")

    def _idle(self) -> bool:
        status = ask_status(self.sandbox.endpoints, "gateway")
        return isinstance(status.status.state, Serving) and not status.status.state.requests

    def check(self) -> None:
        """No marked text in any request, and every byte in the ledger."""
        bodies = self.recorder.bodies
        for body in bodies:
            said = body.decode().lower()
            assert not [word for word in MARKED if word in said], said
        entries, damaged = read_ledger(self.sandbox.shammah_home)
        got = [(len(body), hashlib.sha256(body).hexdigest()) for body in bodies]
        assert [(entry.bytes, entry.sha256) for entry in entries] == got
        assert damaged == 0


class Talk:
    """One conversation of a client that speaks OpenAI's or Anthropic's API."""

    def __init__(self, world: World, seed: int) -> None:
        self._world = world
        self._random = Random(seed)
        self._anthropic = self._random.random() < 0.5
        self._messages: list[dict[str, Any]] = []
        self._seed = seed
        self._when = self._random.randrange(2, TURNS)

    def turn(self, number: int) -> None:
        draw, world = self._random, self._world
        event = EVENTS[self._seed % len(EVENTS)] if number == self._when else ""
        role, _, how = event.partition(" ")
        if how == "killed":
            world.kill(role)
            world.happened[event] += 1
        midst = how in ("cut off", "leaves")
        if midst or draw.random() < 0.3:
            self._messages = []  # another conversation
        before = [*self._messages]
        document, headers = self._compose(f"{self._seed}{number}", marks=not midst)
        if midst:
            world.arrange(["wait"], "--pause-after 2")
            answers = {"inference": "local", "cloud": "cloud"}
            document |= {"stream": True, "model": answers.get(role, draw.choice(MODELS))}
        else:
            steer = draw.choice((*[""] * 20, *["--knows case-7"] * 4, "--crash-after 2"))
            world.arrange(draw.choices(SERVERS, k=draw.randint(1, 3)), steer)
        path = "/v1/messages" if self._anthropic else "/v1/chat/completions"
        answer = None
        with (
            contextlib.suppress(http.client.HTTPException, OSError),
            world.endpoint.open(path, document, headers) as response,
        ):
            if midst:
                assert response.status == 200
                response.read(1)
                world.happened[event] += 1
                self._break_off(role, response.headers["shammah-target"])
            said = response.read().decode()
            answer = self._read(said, response.status, stream=bool(document.get("stream")))
        world.release()
        world.rest()
        if answer:
            self._messages.append({"role": "assistant", "content": answer})
        else:
            self._messages = before
        world.check()

    def _break_off(self, role: str, target: str) -> None:
        """When some of the answer has come."""
        world = self._world
        world.recorder.behaviours = []
        world.arrange([], "")
        if role in ("inference", "cloud"):
            world.recorder.go_on.set()
            world.kill(role)  # and somebody goes on
            return
        if role == "gateway":
            if target == "local":
                world.kill("inference")  # its question would be in its way
            world.kill(role)
        raise ConnectionAbortedError

    def _compose(self, number: str, *, marks: bool) -> tuple[dict[str, Any], dict[str, str]]:
        draw = self._random
        plain, headers = f"tell me of {number}", dict[str, str]()
        place = draw.choice((*[""] * 10, *PLACES, "prefix", "header", "header")) if marks else ""
        marked = SAID[draw.choice([*SAID])].format(n=number)
        text = {"question": marked, "prefix": f"!private SECRET {number}"}.get(place, plain)
        if place == "header":
            headers["shammah-private"] = "yes"
            text = f"SECRET {number}"
        self._messages = [*self._messages, {"role": "user", "content": text}]
        if place in ("result", "call", "name", "line") or draw.random() < 0.2:
            self._call(number, place, marked)
        document: dict[str, Any] = {
            "model": draw.choice(MODELS),
            "messages": self._messages,
            "max_tokens": 50,
            "stream": draw.random() < 0.5,
        }
        described = marked if place == "tool" else "Reads."
        if place == "tool" or draw.random() < 0.2:
            document["tools"] = [self._tool(described)]
        if place == "stop":
            document["stop_sequences" if self._anthropic else "stop"] = [marked]
        if place == "schema":
            document |= self._schema(marked)
        return document, headers

    def _call(self, number: str, place: str, marked: str) -> None:
        """Two tools were called, and have returned something: the question is what to make of it.
        What is marked comes first, since the last message is judged as the question, too."""
        given = {"call": marked, "line": f"see:\n{marked.removeprefix('SECRET and ')}"}
        name = "forbidden" if place == "name" else "read"
        result = marked if place == "result" else f"it is {number}"
        calls = (
            (f"a{number}", name, {"of": given.get(place, number)}, result),
            (f"b{number}", "read", {"of": number}, f"it is {number}, too"),
        )
        if self._anthropic:
            called = [
                {"type": "tool_use", "id": one, "name": name, "input": arguments}
                for one, name, arguments, _ in calls
            ]
            returned = [
                {"type": "tool_result", "tool_use_id": one, "content": result}
                for one, _, _, result in calls
            ]
            self._messages += [
                {"role": "assistant", "content": called},
                {"role": "user", "content": returned},
            ]
            return
        asked = [
            {
                "id": one,
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for one, name, arguments, _ in calls
        ]
        self._messages += [{"role": "assistant", "content": None, "tool_calls": asked}]
        self._messages += [
            {"role": "tool", "tool_call_id": one, "content": result} for one, _, _, result in calls
        ]

    def _tool(self, described: str) -> dict[str, Any]:
        if self._anthropic:
            return {"name": "read", "description": described, "input_schema": {"type": "object"}}
        return {"type": "function", "function": {"name": "read", "description": described}}

    def _schema(self, marked: str) -> dict[str, Any]:
        schema = {"type": "object", "description": marked}
        if self._anthropic:
            return {"output_config": {"format": {"type": "json_schema", "schema": schema}}}
        formed = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return {"response_format": formed}

    def _read(self, said: str, status: int, *, stream: bool) -> str:
        """The text of an answer; empty: there is none."""
        if status != 200:
            return ""
        if not stream:
            one = json.loads(said)
            if self._anthropic:
                return "".join(block.get("text", "") for block in one["content"])
            return str(one["choices"][0]["message"]["content"] or "")
        events = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
        if any("error" in one for one in events):
            return ""
        if self._anthropic:
            return "".join(one.get("delta", {}).get("text", "") for one in events)
        deltas = (choice["delta"] for one in events for choice in one["choices"])
        return "".join(delta.get("content") or "" for delta in deltas)


@pytest.fixture
def world(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    recorder = Recorder(sandbox)
    (sandbox.shammah_home / "config.toml").write_text(RULES)
    steer = sandbox.root / "steer"
    steer.touch()
    monkeypatch.setenv("STAND_IN_INFERENCE", f"--recite --steer {steer}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", recorder.url)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    made = World(sandbox, recorder)
    yield made
    made.end(signal.SIGINT)
    until(lambda: not _end(sandbox.processes()), "no worker is left")
    recorder.close()


def _end(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Kill them; one that was only just started may start another."""
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    return processes


def test_nothing_marked_goes_out_and_the_ledger_has_every_byte(world: World) -> None:
    for seed in range(FIRST, FIRST + SEEDS):
        talk = Talk(world, seed)
        for number in range(TURNS):
            try:
                talk.turn(number)
            except BaseException as error:
                error.add_note(f"seed {seed}, turn {number}: SHAMMAH_TEST_SEED={seed}")
                raise
        assert world.happened.total() == seed - FIRST + 1
    assert len(world.recorder.bodies) > SEEDS  # much may go out
