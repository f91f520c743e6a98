"""The page of `shammah serve` and what it asks, of a process with an echo behind it."""

from __future__ import annotations

import pytest

from tests.fakes.asking_http import Endpoint, chat, start_gateway
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox

CHAT = "/v1/chat/completions"
STRANGER = {"Authorization": ""}


@pytest.fixture
def endpoint(sandbox: Sandbox, echo: EchoProcess) -> Endpoint:
    return start_gateway(sandbox, "--model", "starter")


def test_the_page_alone_is_for_all_and_only_for_this_machine(endpoint: Endpoint) -> None:
    page = endpoint.ask("/", None, STRANGER)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert endpoint.token not in page.text
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    for path in ("/shammah/status", "/shammah/ledger", "/shammah/why/1", "/v1/models", "//", "/x"):
        assert endpoint.ask(path, None, STRANGER).status == 401
    assert endpoint.ask("/", {}, STRANGER).status == 401
    assert endpoint.ask("/", None, {"Host": "evil.example"}).status == 403
    assert endpoint.ask("/", None, {"Origin": "http://evil.example"}).status == 403


def test_the_page_is_told_who_answered_and_why(endpoint: Endpoint) -> None:
    asked = endpoint.ask(CHAT, chat("one two", stream=True), {"Origin": endpoint.url})
    number = asked.headers["x-request-id"].removeprefix("req_")
    why = endpoint.ask(f"/shammah/why/{number}").document["why"]
    assert why.startswith("Answered locally: local model ready.")
    assert "Model: starter" in why
    assert "one two" not in why
    assert endpoint.ask("/shammah/why/0").status == 404
    workers = {one["role"]: one for one in endpoint.ask("/shammah/status").document}
    assert workers["gateway"]["event"]["status"]["state"]["type"] == "Serving"
    assert workers["inference"]["said"].startswith("Ready")
    assert workers["cloud"]["said"] == "not running"
    assert endpoint.ask("/shammah/ledger").document["total"] is None
