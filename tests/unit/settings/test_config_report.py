"""What of the settings is shown, by whichever command: one rule for all of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from shammah.repl.commands.table import COMMANDS
from shammah.repl.loop import Repl
from shammah.settings.load import load_settings
from shammah.settings.model import CloudSettings, PrivacySettings, Settings
from shammah.settings.report import changed_settings, for_strangers, shown, without_secrets, written
from tests.fakes.sandbox import Sandbox

SETTINGS = Settings(
    Path("/home/me/.shammah"),
    system="secret-1 https://a.example/?q=1",
    cloud=CloudSettings(api_key="secret-2", base_url="https://me:secret-3@api.example/?t=secret-4"),
    privacy=PrivacySettings(words=("Alice",)),
)
CHANGED = dict(changed_settings(SETTINGS, Settings(SETTINGS.home)))


def at_the_prompt(settings: Settings, **environ: str) -> tuple[list[str], list[str]]:
    """The lines of /config, and where each is said to come from."""
    lines: list[str] = []
    hints: list[str] = []
    screen = SimpleNamespace(line=lines.append, hint=hints.append)
    session = SimpleNamespace(settings=settings, environ={"HOME": "/none", **environ})
    COMMANDS["config"][1](cast(Repl, SimpleNamespace(session=session, screen=screen)), "")
    parts = [line.rpartition("   ") for line in lines if line.endswith(")")]
    return [line for line, _, _ in parts], [whence for _, _, whence in parts] + hints


def test_the_prompt_says_where_each_setting_comes_from(sandbox: Sandbox) -> None:
    home = sandbox.shammah_home
    environ = {"SHAMMAH_HOME": str(home), "SHAMMAH_MODEL": "starter"}
    settings = load_settings(environ)
    lines, whence = at_the_prompt(settings, **environ)
    assert lines == ['model = "starter"']
    assert whence[0] == "(SHAMMAH_MODEL)"
    assert "does not exist yet" in whence[1]
    (home / "config.toml").write_text('[cloud]\nuse = "ask"\n')
    settings = replace(load_settings(environ), model="7B")
    lines, whence = at_the_prompt(settings, **environ)
    assert lines == ['model = "7B"', 'cloud.use = "ask"']
    assert whence == ["(--model or /model)", f"({home}/config.toml:2)"]


def test_the_prompt_shows_what_config_show_does() -> None:
    lines, _ = at_the_prompt(SETTINGS)
    assert lines == [written(name, value) for name, value in CHANGED.items()]
    assert "cloud.api_key = (set)" in lines
    assert 'cloud.base_url = "https://api.example/"' in lines
    assert 'privacy.words = ["Alice"]' in lines
    assert 'system = "secret-1 https://a.example/?q=1"' in lines
    assert not any(f"secret-{number}" in " ".join(lines) for number in (2, 3, 4))


def test_strangers_see_less() -> None:
    seen = {name: for_strangers(name, value) for name, value in CHANGED.items()}
    assert seen["privacy.words"] == "(1 of your own)"
    assert "secret" not in str(seen)


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        ("http://me:p@host:1/v1?t=p#p", "http://host:1/v1"),
        ("http://p@host", "http://host"),
        ("http://a@b:p@host/", "http://host/"),
        ("me:p@host/v1", "host/v1"),
        ("http://[::1", "(no address)"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_what_opens_it(address: str, bare: str) -> None:
    assert without_secrets(address) == bare
    assert shown("cloud.base_url", address) == bare
