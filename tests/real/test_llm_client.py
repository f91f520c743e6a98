"""The endpoint with Simon Willison's `llm`, set up as `shammah connect llm` says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shammah.cli.connect_clients import CLIENTS, MODELS, Use, describe_words
from shammah.supervision.lifecycle import stop
from tests.fakes.asking_http import TOKEN_FILE, Endpoint, start_gateway
from tests.fakes.calling_api import ANSWER, PROOF, TASK, CallingApi
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.real.servers import servers_python

QUESTION = "What is the capital of France?"
SHELL = """
def bash(command: str) -> str:
    "Runs a command."
    import subprocess
    return subprocess.check_output(command, shell=True, text=True)
"""


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[CallingApi]:
    server = CallingApi()
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", server.url)
    yield server
    server.close()


@pytest.fixture
def endpoint(sandbox: Sandbox, cloud: CallingApi) -> Iterator[Endpoint]:
    yield start_gateway(sandbox, "--model", "starter")
    for role in ("gateway", "inference", "cloud"):
        stop(role, sandbox.endpoints)


def llm(*words: str, at: Path) -> str:
    """What it prints."""
    command = [servers_python(), "-m", "llm", *words]
    environ = {**os.environ, "LLM_USER_PATH": str(at)}
    ended = subprocess.run(
        command, cwd=at, env=environ, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    return (ended.stdout + ended.stderr).strip()


def test_llm_asks_keeps_a_schema_and_has_a_tool_called(
    sandbox: Sandbox, endpoint: Endpoint, cloud: CallingApi, tmp_path: Path
) -> None:
    use = Use(endpoint.url, str(sandbox.shammah_home / TOKEN_FILE))
    words = describe_words(CLIENTS["llm"], use).splitlines()
    model = "".join(f"{line}\n" for line in words if line.startswith(("  - ", "    ")))
    named = [model.replace("shammah\n", f"{one}\n", 1).replace("auto", one) for one in MODELS]
    (tmp_path / "extra-openai-models.yaml").write_text("".join(named))
    llm("keys", "set", "shammah", "--value", endpoint.token, at=tmp_path)
    assert "Paris" in llm("-m", "local", QUESTION, at=tmp_path)
    held = llm("-m", "local", "--schema", "city str", QUESTION, at=tmp_path)
    assert held.startswith('{"city"')
    assert llm("-m", "cloud", "--functions", SHELL, TASK, at=tmp_path) == ANSWER
    assert (tmp_path / "proof.txt").read_text().strip() == PROOF
    assert b"tool_result" in cloud.bodies[-1]
    long = llm("-m", "local", "word " * 20000, at=tmp_path)
    assert "maximum context length is 8192 tokens" in long
    assert "ask the model cloud" in long
