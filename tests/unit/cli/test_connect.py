"""Other programs' settings: changed where they must be, and put back byte for byte."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path

import pytest
import tomlkit

from shammah.cli import connect
from shammah.cli.connect_clients import CLIENTS, Use, apply, revert
from shammah.cli.main import run as shammah
from shammah.errors import ExitCode

FILES = {
    "claude": ".claude/settings.json",
    "opencode": ".config/opencode/opencode.json",
    "codex": ".codex/config.toml",
    "crush": ".config/crush/crush.json",
    "zed": ".config/zed/settings.json",
}
OTHER_JSON = (
    '{\r\n\t"theme": "d\u00e4rk",\r\n\t"model": "mine",\r\n'
    '\t"env": {"A": "1", "ANTHROPIC_API_KEY": "k"}\r\n}'
)
OTHER_TOML = """\
# mine
model = "gpt"  # best

[model_providers.other]
name = "Other" # o

[tools]
x = 1
"""
MINE = {name: OTHER_TOML if name == "codex" else OTHER_JSON for name in FILES}

each = pytest.mark.parametrize("name", FILES)


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CLAUDE_CONFIG_DIR", "XDG_CONFIG_HOME", "CODEX_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path / "shammah"))
    return tmp_path


def write(person: Path, name: str, text: str) -> Path:
    file = person / FILES[name]
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode())
    return file


def read(name: str, file: Path) -> dict[str, object]:
    text = file.read_text()
    return tomlkit.parse(text).unwrap() if name == "codex" else json.loads(text)


def agreed(*words: str) -> int:
    return shammah(["connect", *words, "--yes"])


@each
def test_a_file_is_made_and_removed_again(name: str, person: Path) -> None:
    assert agreed(name) == 0
    file = person / FILES[name]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "http://127.0.0.1:11611" in file.read_text()
    token = (person / "shammah" / "gateway.token").read_text().strip()
    assert token not in file.read_text()
    assert agreed(name) == 0  # once more changes nothing
    assert agreed(name, "--undo") == 0
    assert not file.exists()
    assert not list((person / "shammah" / connect.BACKUPS).iterdir())


@each
def test_what_else_is_there_stays_and_comes_back(name: str, person: Path) -> None:
    file = write(person, name, MINE[name])
    file.chmod(0o640)
    assert agreed(name) == 0
    text = file.read_bytes().decode()
    if name == "codex":
        assert all(words in text for words in ("# mine", "# o", "[tools]\nx = 1"))
    else:
        assert text.startswith('{\r\n\t"theme": "d\u00e4rk"')
        assert not text.endswith("\n")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    [backup] = (person / "shammah" / connect.BACKUPS).iterdir()
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert agreed(name, "--undo") == 0
    assert file.read_bytes().decode() == MINE[name]


@each
def test_what_the_person_changes_later_survives_the_undo(name: str, person: Path) -> None:
    file = write(person, name, MINE[name])
    before = read(name, file)
    assert agreed(name) == 0
    if name == "codex":
        file.write_text('later = "yes"\n' + file.read_text())
    else:
        file.write_text(json.dumps({"later": "yes", **read(name, file)}))
    assert agreed(name, "--undo") == 0
    assert read(name, file) == {"later": "yes", **before}


def test_a_key_of_ours_that_the_person_changed_is_left(
    person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(person, "opencode", OTHER_JSON)
    agreed("opencode")
    file.write_text(file.read_text().replace("shammah/auto", "shammah/local"))
    assert agreed("opencode", "--undo") == 0
    assert read("opencode", file)["model"] == "shammah/local"
    assert "provider" not in read("opencode", file)
    assert "Left, because it was changed since: model." in capsys.readouterr().out


def test_another_port_is_followed_and_the_first_state_comes_back(person: Path) -> None:
    file = write(person, "codex", OTHER_TOML)
    agreed("codex")
    (person / "shammah" / "config.toml").write_text("[gateway]\nport = 4711\n")
    agreed("codex")
    assert "4711" in file.read_text()
    assert "11611" not in file.read_text()
    agreed("codex", "--undo")
    assert file.read_text() == OTHER_TOML


@each
@pytest.mark.parametrize(
    "text", ["{", '// mine\n{"a": 1}', '{"a": 1, "a": 2}', "a = 1\na = 2", "[]"]
)
def test_a_malformed_file_is_refused_and_untouched(
    name: str, text: str, person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name == "codex" and text == "[]":
        text = "[[]]"
    file = write(person, name, text)
    assert agreed(name) == ExitCode.FAILED
    assert file.read_text() == text
    assert "127.0.0.1:11611" in capsys.readouterr().err  # what to add by hand


def test_a_value_in_the_place_of_a_table_is_refused(person: Path) -> None:
    file = write(person, "claude", '{"env": "no table"}')
    assert agreed("claude") == ExitCode.FAILED
    assert file.read_text() == '{"env": "no table"}'


@each
def test_a_link_stays_a_link(name: str, person: Path) -> None:
    file = person / FILES[name]
    target = person / "dotfiles"
    target.write_bytes(MINE[name].encode())
    file.parent.mkdir(parents=True)
    file.symlink_to(target)
    assert agreed(name) == 0
    assert file.is_symlink()
    assert "127.0.0.1" in target.read_text()
    assert agreed(name, "--undo") == 0
    assert file.is_symlink()
    assert target.read_bytes().decode() == MINE[name]


def test_what_cannot_be_written_is_an_error_and_leaves_no_backup(
    person: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(person, "crush", OTHER_JSON)
    replace = os.replace

    def refuse(source: str, target: str | Path) -> None:
        if Path(target) == file:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    assert agreed("crush") == ExitCode.FAILED
    assert "Permission denied" in capsys.readouterr().err
    assert file.read_bytes().decode() == OTHER_JSON
    assert not list((person / "shammah" / connect.BACKUPS).iterdir())
    assert os.listdir(file.parent) == [file.name]


def test_nothing_is_written_without_a_yes(
    person: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("yes\n"))
    assert shammah(["connect", "claude"]) == ExitCode.USAGE
    said = capsys.readouterr()
    assert '+  "apiKeyHelper": "cat ' in said.out
    assert "--yes" in said.err
    assert not (person / FILES["claude"]).exists()


def test_keys_that_would_win_are_put_aside(person: Path) -> None:
    file = write(person, "claude", OTHER_JSON)
    agreed("claude")
    assert read("claude", file)["env"] == {"A": "1", "ANTHROPIC_BASE_URL": "http://127.0.0.1:11611"}


@pytest.mark.parametrize("name", [name for name in CLIENTS if name not in FILES])
def test_others_are_told_what_to_set(
    name: str, person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shammah(["connect", name]) == 0
    said = capsys.readouterr().out
    token = person / "shammah" / "gateway.token"
    assert "http://127.0.0.1:11611/v1" in said
    assert f"$(cat {token})" in said
    assert token.read_text().strip() not in said
    assert os.listdir(person) == ["shammah"]


def test_the_list_says_what_is_connected(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agreed("opencode")
    capsys.readouterr()
    assert shammah(["connect", "--json"]) == 0
    rows = {row["client"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert list(rows) == list(CLIENTS)
    assert [name for name, row in rows.items() if row["connected"]] == ["opencode"]
    assert rows["opencode"]["found"]
    assert rows["aider"]["file"] is None


def test_json_has_the_change(person: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert agreed("codex", "--json") == 0
    [row] = map(json.loads, capsys.readouterr().out.splitlines())
    assert row["written"]
    assert row["file"] == str(person / FILES["codex"])
    assert '+model_provider = "shammah"' in row["diff"]


def test_an_unknown_name_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert shammah(["connect", "Opencod"]) == ExitCode.USAGE
    assert "Did you mean 'opencode'?" in capsys.readouterr().err


def test_to_undo_what_was_not_done_changes_nothing(
    person: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(person, "codex", OTHER_TOML)
    assert agreed("codex", "--undo") == 0
    assert "nothing to undo" in capsys.readouterr().out
    assert file.read_text() == OTHER_TOML


@each
def test_taking_the_keys_back_alone_leaves_the_same_values(name: str) -> None:
    client = CLIENTS[name]
    assert client.sets is not None
    text = MINE[name]
    after, changes = apply(client.kind, text, client.sets(Use("http://127.0.0.1:1", "/t o/ken")))
    back, left = revert(client.kind, after, changes)
    assert not left
    read_text = tomlkit.parse if name == "codex" else json.loads
    assert read_text(back) == read_text(text)
