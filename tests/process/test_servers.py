"""Servers beside the local model and in the cloud's place, as whole programs show it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from shammah.privacy.ledger import Sent, read_ledger
from tests.fakes.chat_api import ChatApi
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox

pytestmark = pytest.mark.timeout(300)

TOWER = "Where is the Eiffel Tower?"
MAIL = "My mail is jo.doe@firma.de. Where do I live?"
KEY = "sk-of-the-box"


@pytest.fixture
def box() -> Iterator[ChatApi]:
    """Breaks off in mid-answer."""
    yield from running(ChatApi("box-70b", "It stands ", "today ", "never", breaks_after=2))


@pytest.fixture
def shed() -> Iterator[ChatApi]:
    yield from running(ChatApi("shed-30b", "It stands today ", "in ", "Paris."))


def running(api: ChatApi) -> Iterator[ChatApi]:
    yield api
    api.close()


def configure(sandbox: Sandbox, *lines: str) -> None:
    """The local model is a server where nobody listens, so that others are needed."""
    text = [
        *lines,
        'model = "server:own"',
        "[servers.own]",
        'base_url = "http://127.0.0.1:9/v1"',
    ]
    tables = [line for line in lines if "[servers" in line]
    text = [line for line in text if line not in tables]
    (sandbox.shammah_home / "config.toml").write_text("\n".join([*text, *tables]))


def table(name: str, api: ChatApi, trust: str, *more: str) -> str:
    lines = (f"[servers.{name}]", f'base_url = "{api.url}"', f'trust = "{trust}"', *more)
    return "\n".join(lines)


def ask(question: str) -> dict[str, Any]:
    ended = run("ask", "--json", question)
    found = json.loads(ended.out)
    assert isinstance(found, dict), ended
    return found


def seen(entry: Sent) -> tuple[str, int, str]:
    return entry.server, entry.bytes, entry.sha256


def sent(name: str, api: ChatApi) -> list[tuple[str, int, str]]:
    return [(name, len(body), hashlib.sha256(body).hexdigest()) for body in api.bodies]


def test_one_goes_on_for_another_and_what_left_is_in_the_ledger(
    sandbox: Sandbox, box: ChatApi, shed: ChatApi
) -> None:
    configure(
        sandbox,
        table("box", box, "trusted", f'key = "{KEY}"'),
        table("shed", shed, "trusted", "private = true"),
    )
    told = ask(TOWER)
    assert told["text"] == "It stands today in Paris.", told
    assert (told["target"], told["reason"]) == ("server:shed", "server_failed")
    assert told["model"] == "shed/shed-30b"
    (notice,) = told["notices"]
    assert notice.startswith("The server box (127.0.0.1:")
    assert notice.endswith("broke off before the answer was complete. The server shed continues.")
    box.breaks_after = None
    marked = ask(MAIL)
    assert (marked["target"], marked["reason"]) == ("server:shed", "private")
    assert not any(b"jo.doe" in body for body in box.bodies)
    assert any(b"jo.doe" in body for body in shed.bodies)
    entries, damaged = read_ledger(sandbox.shammah_home)
    assert sorted(map(seen, entries)) == sorted([*sent("box", box), *sent("shed", shed)])
    assert damaged == 0
    assert (set(box.keys), set(shed.keys)) == ({f"Bearer {KEY}"}, {""})
    shown = [str(process.environ()) + str(process.cmdline()) for process in living(sandbox)]
    assert shown
    kept = [path.read_text() for path in (sandbox.shammah_home / "logs").iterdir()]
    ledger = (sandbox.shammah_home / "egress.jsonl").read_text()
    assert not any(KEY in text for text in [*shown, *kept, ledger])


def living(sandbox: Sandbox) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in sandbox.holders().values()]


def test_a_server_in_the_clouds_place_has_its_gate_budget_and_ledger(
    sandbox: Sandbox, shed: ChatApi
) -> None:
    configure(
        sandbox,
        'cloud.provider = "far"',
        "cloud.daily_budget = 0.00001",
        table("far", shed, "cloud", 'model = "m"', "input_price = 1.0", "output_price = 1.0"),
    )
    told = ask(TOWER)
    assert (told["target"], told["model"]) == ("cloud", "shed-30b")
    assert told["usage"]["cost"] == pytest.approx(10e-6)
    refused = run("ask", "--json", MAIL)
    assert refused.code
    assert "jo.doe" not in refused.out
    spent = run("ask", "--cloud", TOWER)
    assert "far has cost $0.00 today" in spent.err
    assert len(shed.bodies) == 1, "neither what is private nor what is beyond the budget left"
    entries, _ = read_ledger(sandbox.shammah_home)
    assert list(map(seen, entries)) == sent("far", shed)
    assert entries[0].cost == told["usage"]["cost"]
