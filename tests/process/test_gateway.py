"""`shammah serve` as a process, with an echo behind it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shammah.bus.messages import Serving
from shammah.bus.probe import ask_status
from tests.fakes.asking_http import TOKEN_FILE, Endpoint, chat, hasty_gateway, start_gateway
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import LIMIT_S, Sandbox, until
from tests.fakes.terminal import Record

MIB = 1024 * 1024
CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
MAIL = "Write to anna.weber@firma-weber.de today"
AS = "--model starter".split()


@pytest.fixture
def endpoint(sandbox: Sandbox, echo: EchoProcess) -> Endpoint:
    return start_gateway(sandbox, *AS)


def run(*words: str) -> str:
    command = [sys.executable, "-P", "-m", "shammah", *words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    return ended.stdout


def asked(record: Record) -> list[list[list[str]]]:
    return [json.loads(line) for line in Path(record.path).read_text().splitlines()]


def test_a_question_is_answered_whole_and_as_it_comes(endpoint: Endpoint) -> None:
    whole = endpoint.ask(CHAT, chat("one two three", max_tokens=128000))
    assert whole.status == 200
    [choice] = whole.document["choices"]
    assert choice["message"]["content"] == "one two three"
    assert (choice["finish_reason"], whole.document["model"]) == ("stop", "starter")
    assert whole.document["usage"]["completion_tokens"] == 3
    assert whole.headers["shammah-target"] == "local"
    assert whole.headers["shammah-reason"] == "model_ready"
    options = {"include_usage": True}
    stream = endpoint.ask(CHAT, chat("one two", stream=True, stream_options=options))
    deltas = [one["choices"][0]["delta"] for one in stream.events if one["choices"]]
    assert "".join(delta.get("content", "") for delta in deltas) == "one two"
    assert stream.events[-1]["usage"]["completion_tokens"] == 2
    assert stream.text.endswith("data: [DONE]\n\n")
    assert {one["model"] for one in stream.events} == {"starter"}


def test_each_api_answers_in_its_own_words(endpoint: Endpoint) -> None:
    ask = {"model": "local", "max_tokens": 9, "messages": [{"role": "user", "content": "a b"}]}
    message = endpoint.ask(MESSAGES, ask, {"x-api-key": endpoint.token, "Authorization": ""})
    assert message.document["content"] == [{"type": "text", "text": "a b"}]
    assert message.document["stop_reason"] == "end_turn"
    stream = endpoint.ask(MESSAGES, ask | {"stream": True})
    kinds = [one["type"] for one in stream.events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    response = endpoint.ask("/v1/responses", {"model": "auto", "input": "a b"})
    assert response.document["output"][0]["content"][0]["text"] == "a b"
    completion = endpoint.ask("/v1/completions", {"model": "auto", "prompt": "a b"})
    assert completion.document["choices"][0]["text"] == "a b"
    assert endpoint.ask("/v1/embeddings", {"input": "a"}).status == 400
    names = [one["id"] for one in endpoint.ask("/v1/models").document["data"]]
    assert names == ["auto", "local", "starter"]
    shown = endpoint.ask("/v1/models", None, {"anthropic-version": "2023-06-01"}).document
    assert [one["type"] for one in shown["data"]] == ["model"] * 3


def test_a_whole_conversation_reaches_the_model_and_one_conversation_the_history(
    endpoint: Endpoint, record: Record
) -> None:
    system = {"role": "system", "content": "Be brief."}
    first = chat("one")
    first["messages"].insert(0, system)
    endpoint.ask(CHAT, first, {"User-Agent": "crush/1.0"})
    second = chat("one", "one", "two")
    second["messages"].insert(0, system)
    endpoint.ask(CHAT, second, {"User-Agent": "crush/1.0"})
    said = [["system", "Be brief."], ["user", "one"], ["assistant", "one"], ["user", "two"]]
    assert asked(record)[-1] == said
    listed = run("history", "list")
    assert len(listed.splitlines()) == 1
    assert "2 turns" in listed
    assert run("history", "show", "1").count("asked by crush") == 2


def test_what_is_asked_is_not_kept_where_the_setting_says_so(
    sandbox: Sandbox, echo: EchoProcess
) -> None:
    (sandbox.shammah_home / "config.toml").write_text('[gateway]\nhistory = "off"\n')
    assert start_gateway(sandbox, *AS).ask(CHAT, chat("one")).status == 200
    assert not (sandbox.shammah_home / "history.db").exists()


def test_a_private_conversation_stays_here_and_the_refusal_names_the_rule_only(
    endpoint: Endpoint, record: Record
) -> None:
    here = endpoint.ask(CHAT, chat("Hello", "Hello.", MAIL, "Done.", "And now?"))
    assert here.headers["shammah-reason"] == "private"
    assert "privacy.emails" in here.headers["shammah-private"]
    for headers, model in (({"shammah-target": "cloud"}, "auto"), ({}, "claude-opus-5-5")):
        refused = endpoint.ask(CHAT, chat(MAIL, "Done.", "And now?", model=model), headers)
        assert refused.status == 403
        assert "privacy.emails" in refused.text
        assert "weber" not in refused.text
    said = endpoint.ask(CHAT, chat("hello"), {"shammah-private": "yes"})
    assert said.headers["shammah-reason"] == "private"
    again = endpoint.ask(CHAT, chat("hello", "hello", "more", model="cloud"))
    assert again.status == 403


def test_what_a_tool_returned_and_what_a_tool_is_are_judged_as_well(endpoint: Endpoint) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    said = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": MAIL},
    ]
    tool = {"type": "function", "function": {"name": "read", "description": MAIL}}
    for asked in (
        {"model": "cloud", "messages": said},
        chat("Look.", model="cloud", tools=[tool]),
    ):
        refused = endpoint.ask(CHAT, asked)
        assert (refused.status, refused.document["error"]["code"]) == (403, "private")
        assert "weber" not in refused.text


def test_who_is_asked_follows_from_the_model_and_the_header(endpoint: Endpoint) -> None:
    missing = endpoint.ask(CHAT, chat("one", model="gpt-4"))
    assert (missing.status, missing.document["error"]["code"]) == (404, "model_not_found")
    local = endpoint.ask(CHAT, chat("one", model="gpt-4"), {"shammah-target": "local"})
    assert local.headers["shammah-reason"] == "user"
    cloud = endpoint.ask(MESSAGES, chat("one", model="claude-x", max_tokens=9))
    assert cloud.status == 400
    assert "ANTHROPIC_API_KEY" in cloud.document["error"]["message"]
    wrong = endpoint.ask(CHAT, chat("one"), {"shammah-target": "elsewhere"})
    assert "shammah-target" in wrong.document["error"]["message"]


def test_a_failure_in_the_midst_of_a_stream_ends_it(endpoint: Endpoint) -> None:
    stream = endpoint.ask(CHAT, chat("fail for good", stream=True))
    assert stream.status == 200
    assert stream.events[-1]["error"]["code"] == "planted"
    whole = endpoint.ask(MESSAGES, chat("fail for good", max_tokens=9))
    assert (whole.status, whole.document["error"]["type"]) == (500, "api_error")


def test_a_client_that_leaves_ends_its_answer(
    endpoint: Endpoint, echo: EchoProcess, record: Record
) -> None:
    with endpoint.open(CHAT, chat("forever and ever", stream=True)) as response:
        assert response.read(100)
    until(lambda: not echo.status().status.active, "the answer was cancelled")
    until(lambda: "cancelled" in run("history", "show", "1"), "what had come is stored")


def test_a_stop_ends_what_is_in_hand(endpoint: Endpoint, sandbox: Sandbox) -> None:
    with endpoint.open(CHAT, chat("forever and ever", stream=True)) as response:
        assert response.read(100)
        run("stop", "gateway")
        assert "gateway_stopped" in response.read().decode()
    assert sandbox.holder("gateway") is None


def test_the_status_tells_of_it(endpoint: Endpoint, sandbox: Sandbox) -> None:
    assert f"Serving at {endpoint.url}" in run("status", "--once")
    with endpoint.open(CHAT, chat("forever", stream=True)) as response:
        assert response.read(1)
        until(
            lambda: ask_status(sandbox.endpoints, "gateway").status.state.requests == 1,  # type: ignore[union-attr]
            "one is in hand",
        )


def test_a_second_one_is_refused_and_a_taken_port_explained(
    endpoint: Endpoint, sandbox: Sandbox
) -> None:
    command = [sys.executable, "-P", "-m", "shammah", "serve", *AS]
    second = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S)
    assert "already running" in second.stderr
    run("stop", "gateway")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        other = subprocess.run(
            [*command, "--port", port], capture_output=True, text=True, timeout=LIMIT_S
        )
    assert f"Can't listen at port {port}" in other.stderr


def test_a_socket_is_its_owners_and_leaves_with_it(sandbox: Sandbox, echo: EchoProcess) -> None:
    path = sandbox.root / "gate.sock"
    said = run("serve", "--background", "--socket", str(path), *AS)
    assert str(path) in said
    assert path.stat().st_mode & 0o777 == 0o600
    token = run("serve", "--token").strip()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        head = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
        client.sendall(f"{head}Connection: close\r\n\r\n".encode())
        assert b"200 OK" in client.makefile("rb").read()
    run("stop", "gateway")
    assert not path.exists()


# --- who may not --------------------------------------------------------------------------


STRANGER = """
import os, socket, sys
os.setgid(65534), os.setuid(65534)
for name, reach in (("socket", socket.socket(socket.AF_UNIX).connect), ("token", open)):
    try:
        reach(sys.argv[1 + (name == "token")])
    except OSError as error:
        print(f"{name}:{type(error).__name__}")
"""


GIGABYTE, CHUNKED = f"Content-Length: {10**9}", "Transfer-Encoding: chunked"


def post(endpoint: Endpoint, token: str, length: str) -> socket.socket:
    """A question's header has been sent."""
    client = socket.create_connection((endpoint.host, endpoint.port), LIMIT_S)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
    client.sendall(f"{head}{length}\r\n\r\n".encode())
    return client


def pour(client: socket.socket) -> int:
    """Send a gigabyte, in chunks; how much of it was taken."""
    chunk, sent = b"%x\r\n%s\r\n" % (MIB, b"x" * MIB), 0
    with contextlib.suppress(OSError):
        while sent < 10**9:
            sent += client.send(chunk[sent % len(chunk) :])
    return sent


def status_of(client: socket.socket) -> bytes:
    return client.makefile("rb").readline().split()[1]


def serving(sandbox: Sandbox) -> tuple[int, int] | None:
    """How many are answered, and how many wait."""
    state = ask_status(sandbox.endpoints, "gateway").status.state
    return (state.requests, state.waiting) if isinstance(state, Serving) else None


def raw(endpoint: Endpoint, said: str, limit: float = LIMIT_S) -> bytes:
    with socket.create_connection((endpoint.host, endpoint.port), limit) as client:
        client.sendall(said.encode())
        return client.makefile("rb").read()


def test_a_stranger_is_refused_whatever_the_body(endpoint: Endpoint) -> None:
    for headers, status in (
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "", "x-api-key": "wrong"}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ):
        assert endpoint.ask(CHAT, chat("one"), headers).status == status
    for length in (GIGABYTE, CHUNKED):
        with post(endpoint, "wrong", length) as client:
            assert status_of(client) == b"401"
            assert pour(client) < 4 * MIB


def test_an_allowed_page_may_ask(sandbox: Sandbox, echo: EchoProcess) -> None:
    page = "http://localhost:3000"
    endpoint = start_gateway(sandbox, *AS, "--origin", page)
    first = "OPTIONS /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    first += f"Origin: {page}\r\nAccess-Control-Request-Method: GET\r\n\r\n"
    assert f"access-control-allow-origin: {page}".encode() in raw(endpoint, first)
    assert endpoint.ask("/v1/models", None, {"Origin": page}).status == 200
    assert endpoint.ask("/v1/models", None, {"Origin": page, "Authorization": ""}).status == 401


def test_a_body_of_a_gigabyte_is_cut_off_as_it_comes(endpoint: Endpoint, sandbox: Sandbox) -> None:
    gateway = psutil.Process(sandbox.holder("gateway"))
    assert endpoint.ask(CHAT, chat("one")).status == 200
    before = gateway.memory_info().rss
    for length, most in ((GIGABYTE, 4 * MIB), *[(CHUNKED, 24 * MIB)] * 3):
        with post(endpoint, endpoint.token, length) as client:
            assert pour(client) < most
            assert status_of(client) == b"413"
        assert endpoint.ask(CHAT, chat("one")).status == 200
    assert gateway.memory_info().rss - before < 3 * 16 * MIB  # less than the three together


def test_slow_bodies_are_let_go_of_and_hold_little_together(
    sandbox: Sandbox, echo: EchoProcess
) -> None:
    with hasty_gateway(sandbox, *AS) as endpoint:
        slow = [post(endpoint, endpoint.token, f"Content-Length: {2 * MIB}") for _ in range(3)]
        try:
            for client in slow:
                client.sendall(b"x" * MIB)
            assert sorted(map(status_of, slow)) == [b"408", b"408", b"429"]
            assert endpoint.ask(CHAT, chat("one")).status == 200
        finally:
            for client in slow:
                client.close()


def test_beyond_those_that_wait_a_question_is_told_when_to_come_again(
    endpoint: Endpoint, sandbox: Sandbox
) -> None:
    body = json.dumps(chat("forever and ever", stream=True)).encode()
    length = f"Content-Length: {len(body)}"
    asking = [post(endpoint, endpoint.token, length) for _ in range(40)]
    try:
        for client in asking:
            client.sendall(body)
        until(lambda: serving(sandbox) == (8, 32), "eight are answered, and the others wait")
        for path in (CHAT, MESSAGES):
            refused = endpoint.ask(path, chat("one", max_tokens=9))
            assert (refused.status, refused.headers["retry-after"]) == (429, "5")
    finally:
        for client in asking:
            client.close()
    until(lambda: serving(sandbox) == (0, 0), "all have left")
    assert endpoint.ask(CHAT, chat("one")).status == 200


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be another user")
def test_another_user_reaches_neither_the_socket_nor_the_token(
    sandbox: Sandbox, echo: EchoProcess
) -> None:
    path = sandbox.root / "gate.sock"
    run("serve", "--background", "--socket", str(path), *AS)
    for directory in (sandbox.root, sandbox.shammah_home):
        directory.chmod(0o755)  # so that nothing but their own modes keeps them
    found = subprocess.run(
        [sys.executable, "-c", STRANGER, str(path), str(sandbox.shammah_home / TOKEN_FILE)],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert found.stdout.split() == ["socket:PermissionError", "token:PermissionError"]


def test_a_slow_header_and_idle_connections_are_let_go_of(
    sandbox: Sandbox, echo: EchoProcess
) -> None:
    with hasty_gateway(sandbox, *AS) as endpoint:
        idle = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(500)]
        idle[-1].sendall(b"GET /v1/models HTT")
        try:
            assert endpoint.ask(CHAT, chat("one")).status == 200
            until(lambda: _closed(idle) == 500, "all are closed")
        finally:
            for one in idle:
                one.close()


def test_idle_connections_keep_nobody_out(endpoint: Endpoint) -> None:
    idle = [socket.create_connection((endpoint.host, endpoint.port)) for _ in range(500)]
    try:
        assert endpoint.ask(CHAT, chat("one")).status == 200
        until(lambda: _closed(idle) >= 300, "the oldest of them are closed")
    finally:
        for one in idle:
            one.close()


def test_a_client_that_never_reads_is_cut_off(sandbox: Sandbox, echo: EchoProcess) -> None:
    with hasty_gateway(sandbox, *AS) as endpoint, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((endpoint.host, endpoint.port))
        words = "forever " + " ".join(["w" * 50_000] * 4)
        body = json.dumps(chat(words, stream=True))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        client.sendall(f"{head}Authorization: Bearer {endpoint.token}\r\n\r\n{body}".encode())
        until(lambda: echo.status().status.active, "it is being answered")
        assert endpoint.ask(CHAT, chat("one")).status == 200
        until(lambda: not echo.status().status.active, "its answer was ended")


def test_leases_are_given_back_while_nobody_asks(sandbox: Sandbox, echo: EchoProcess) -> None:
    with hasty_gateway(sandbox, *AS) as endpoint:
        for _ in range(2):
            assert endpoint.ask(CHAT, chat("one")).status == 200
            until(lambda: echo.status().status.clients == 0, "nobody holds the model")
        assert "starter" in endpoint.ask("/v1/models").text


def _closed(sockets: list[socket.socket]) -> int:
    count = 0
    for one in sockets:
        one.setblocking(False)
        try:
            count += one.recv(1) == b""
        except BlockingIOError:
            pass
        except OSError:
            count += 1
    return count


def test_the_units_run_the_same_command() -> None:
    systemd = run("serve", "--unit", "systemd", "--port", "12000", *AS)
    assert re.search(r"ExecStart=.* -m shammah serve --port 12000 --model starter", systemd)
    launchd = run("serve", "--unit", "launchd", *AS)
    assert "<string>serve</string>" in launchd
