"""The page asks nobody but us, and what it is told of workers and ledger."""

from __future__ import annotations

import asyncio
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from starlette.requests import Request

from shammah.bus.endpoints import ROLES, Endpoints
from shammah.privacy.ledger import Ledger, Outcome, Sent
from shammah.supervision.gateway_use import describe_use
from workers.gateway.page import list_sent, list_workers, show

NOON = 1_763_985_600.0
"""2025-11-24 12:00:00 UTC."""
ANY = Request({"type": "http", "headers": []})


def sent(number: str) -> Sent:
    where = ("https", "api.anthropic.com", "/v1/messages", "claude-opus-5-5")
    return Sent(number, "", "r", 1, *where, 100, "ab" * 32)


def test_the_page_names_no_other_place_and_sets_no_markup() -> None:
    page = files("workers.gateway").joinpath("page.html").read_text("utf-8")
    assert not re.findall(r"https?:|//[\w.]+/|@import|url\(|\bsrc=|<link", page)
    assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval|\bon\w+=", page)
    assert "style=" not in page
    assert page.count("NONCE") == 2


def test_each_page_has_a_policy_with_a_nonce_of_its_own() -> None:
    nonces = set()
    for _ in range(2):
        shown = asyncio.run(show(ANY))
        policy = shown.headers["content-security-policy"]
        [nonce] = set(re.findall(r"'nonce-([\w-]{20,})'", policy))
        nonces.add(nonce)
        text = bytes(shown.body).decode()
        assert text.count(f'nonce="{nonce}"') == 2
        assert "NONCE" not in text
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules.pop("script-src") == rules.pop("style-src") == f"'nonce-{nonce}'"
        assert rules.pop("connect-src") == "'self'"
        assert set(rules) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
        assert set(rules.values()) == {"'none'"}
        assert shown.headers["x-frame-options"] == "DENY"
        assert shown.headers["referrer-policy"] == "no-referrer"
        assert shown.headers["cache-control"] == "no-store"
    assert len(nonces) == 2


def test_the_ledger_is_that_of_today(tmp_path: Path) -> None:
    def read() -> Any:
        return json.loads(bytes(list_sent(tmp_path, lambda: NOON, ANY).body))

    assert read() == {"day": "2025-11-24", "total": None, "requests": [], "damaged": 0}
    for number, ago_s in (("a", 86400.0), ("b", 60.0), ("c", 0.0)):
        Ledger(tmp_path, lambda at=NOON - ago_s: at).write_sent(sent(number))
    Ledger(tmp_path).write_outcome("b", Outcome("answered", 200, 5, 7, 0.25))
    found = read()
    assert [one["id"] for one in found["requests"]] == ["c", "b"]
    assert (found["total"]["requests"], found["total"]["cost"]) == (2, 0.25)
    assert found["requests"][1]["outcome"] == "answered"


def test_workers_that_do_not_run_are_told_of(tmp_path: Path) -> None:
    listed = json.loads(bytes(list_workers(Endpoints(tmp_path), ANY).body))
    assert [one["role"] for one in listed] == list(ROLES)
    absent = {"running": False, "event": None, "said": "not running"}
    assert {key: listed[0][key] for key in absent} == absent


def test_only_a_terminal_is_shown_the_token() -> None:
    address = "http://127.0.0.1:11611"
    assert f"{address}/#sk-1\n" in describe_use(address, "", "sk-1")
    assert f"{address}/#$(shammah serve --token)\n" in describe_use(address, "")
    assert "browser" not in describe_use("/run/sh.sock", "", "sk-1")
