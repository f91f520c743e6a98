"""A conversation goes on warm after its worker has ended, if the history keeps it.

The real starter, and the shell's commands.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shammah.storage.kept import kept_directory
from tests.fakes.command import run
from tests.fakes.sandbox import Sandbox, until

pytestmark = pytest.mark.timeout(600)

LIMIT_S = 300.0
LONG = "The watchman looks at the harbour, and counts the ships that come and go. " * 25
"""More tokens than a block, which is the least that is kept."""


def ask(*options: str, text: str = LONG) -> dict[str, Any]:
    command = ("ask", "--model", "starter", "--local", "--json", "--max-tokens", "4")
    ended = run(*command, *options, text, limit=LIMIT_S)
    assert ended.code == 0, ended.err
    document: dict[str, Any] = json.loads(ended.out)
    return document


def stop() -> None:
    assert run("stop", "inference", limit=LIMIT_S).code == 0


def kept(sandbox: Sandbox) -> list[Path]:
    return sorted(kept_directory(sandbox.shammah_home).glob("*.kv"))


def test_a_conversation_comes_back_warm_and_is_erased_with_the_history(sandbox: Sandbox) -> None:
    first = ask()
    assert first["usage"]["restored_tokens"] == 0
    stop()
    [file] = kept(sandbox)
    assert os.stat(file).st_mode & 0o777 == 0o600
    again = ask("--continue", text="And then?")["usage"]
    assert again["restored_tokens"] > first["usage"]["input_tokens"] - 3
    assert again["input_tokens"] - again["restored_tokens"] < 40
    assert run("history", "rm", "--all", "--yes").code == 0
    assert kept(sandbox) == []
    stop()  # the worker had it in memory
    assert kept(sandbox) == []


@pytest.mark.parametrize("how", ["--no-history", "kv_disk"])
def test_what_is_not_to_be_kept_is_not(sandbox: Sandbox, how: str) -> None:
    if how == "kv_disk":
        (sandbox.shammah_home / "config.toml").write_text("[inference]\nkv_disk = 0\n")
    ask(*([how] if how == "--no-history" else []))
    stop()
    assert kept(sandbox) == []


def test_a_private_conversation_is_kept_as_the_history_keeps_it(sandbox: Sandbox) -> None:
    ask(text=f"!private {LONG}")
    stop()
    assert len(kept(sandbox)) == 1
    assert run("history", "rm", "1", "--yes").code == 0
    assert kept(sandbox) == []


def test_sigterm_keeps_it_too(sandbox: Sandbox) -> None:
    ask()
    pid = sandbox.holder()
    assert pid
    os.kill(pid, signal.SIGTERM)
    until(lambda: sandbox.holder() is None, "the worker has ended")
    assert len(kept(sandbox)) == 1


def test_a_system_prompt_is_shared_by_another_conversation(sandbox: Sandbox) -> None:
    ask("--system", LONG, text="hello")
    stop()
    usage = ask("--system", LONG, text="what is the time")["usage"]
    assert 256 <= usage["restored_tokens"] < usage["input_tokens"]
    stop()
