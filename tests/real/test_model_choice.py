"""``shammah models list`` and ``use``: what is here, and which model is the default."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from shammah.models.catalogue import CATALOGUE, starter_directory
from shammah.settings.load import load_settings
from tests.fakes.command import run as run_any
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox
from tests.real.test_download_commands import FILES, MODEL, run
from tests.real.test_download_commands import hub as hub

WEIGHTS = "model.safetensors"


def config(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "config.toml"


class TestList:
    def test_an_empty_cache_says_what_to_do_next(self, hub: StandInHub) -> None:
        listed = run("models", "list").stdout
        assert "No models yet. To download one: `shammah models pull 1.5B`." in listed
        assert re.search(r"^  starter +\d+\.\d MB  built in$", listed, re.MULTILINE)
        assert json.loads(run("models", "list", "--json").stdout)["models"] == []

    def test_a_table_with_the_default_marked(self, hub: StandInHub, sandbox: Sandbox) -> None:
        hub.names.add("acme/a-rather-long-name-for-a-model")
        config(sandbox).write_text('model = "0.5B"\n')
        run("models", "pull", MODEL, "acme/a-rather-long-name-for-a-model")
        header, *rows, total, note = run("models", "list").stdout.splitlines()
        assert header.split() == ["MODEL", "SIZE", "ORIGIN", "REVISIONS", "STATE"]
        assert [row.split()[:2] for row in rows[:2]] == [
            ["*", MODEL],
            ["acme/a-rather-long-name-for-a-model", "6.3"],
        ]
        assert rows[2].split()[0] == "starter"
        commit = hub.main[:8]
        for row in rows[:2]:
            assert row.endswith(f"  6.3 MB  Hub       {commit}   verified"), row
        assert len({row.index("MB") for row in (*rows, header.replace("SIZE", "  MB"))}) == 1
        assert total == "12.6 MB in the Hub's cache; shared files count once."
        assert note == "* is the default."

    def test_the_states_of_a_model(self, hub: StandInHub, sandbox: Sandbox) -> None:
        directory = Path(run("models", "pull", MODEL).stdout.strip())
        os.truncate((directory / WEIGHTS).resolve(), 1000)
        assert re.search(f"{MODEL} .*  not verified\n", run("models", "list").stdout)
        part = directory.parents[1] / "shammah" / "parts" / f"{'f' * 64}.part"
        part.write_bytes(b"x" * 4_000_000)
        listed = run("models", "list").stdout
        assert re.search(f"{MODEL} .*  incomplete, 4.0 MB\n", listed)
        (found,) = json.loads(run("models", "list", "--json").stdout)["models"]
        assert not found["verified"]
        assert 4_000_000 <= found["unfinished"] < 4_100_000

    def test_what_revisions_share_is_counted_once(self, hub: StandInHub) -> None:
        run("models", "pull", MODEL)
        hub.publish({**FILES, "config.json": b'{"model_type": "qwen2", "new": true}'})
        run("models", "pull", MODEL, "--update")
        found = json.loads(run("models", "list", "--json").stdout)
        assert len(found["models"][0]["revisions"]) == 2
        weights = len(FILES[WEIGHTS])
        assert weights < found["total_size"] < weights + 1000

    def test_a_default_that_is_not_here_is_said(self, hub: StandInHub, sandbox: Sandbox) -> None:
        config(sandbox).write_text('model = "acme/other"\n')
        assert "The default, acme/other, is not on this machine." in run("models", "list").stdout
        config(sandbox).write_text('model = "/tmp"\n')
        assert "The default is /tmp." in run("models", "list").stdout
        config(sandbox).write_text('model = "starter"\n')
        assert re.search(r"^\* starter", run("models", "list").stdout, re.MULTILINE)

    def test_json_has_all(self, hub: StandInHub) -> None:
        found = json.loads(run("models", "list", "--json").stdout)
        assert found["wanted"] == "auto"
        assert found["default"] in {"", *(model.model_id for model in CATALOGUE)}
        assert found["starter"]["directory"] == str(starter_directory())
        assert found["starter"]["size"] > 0


class TestUse:
    def test_writes_one_line_and_keeps_the_others(self, hub: StandInHub, sandbox: Sandbox) -> None:
        kept = '# mine\nsystem = "Be brief." # always\n\n[cloud]\n# Claude\nmodel = "x"\n'
        config(sandbox).write_text(kept)
        said = run("models", "use", "1.5B").stdout
        assert said.splitlines() == [
            f"The default model is now 1.5B ({config(sandbox)}).",
            "The next start downloads it (3.1 GB).",
        ]
        text = config(sandbox).read_text()
        assert [line for line in text.splitlines() if line not in kept.splitlines()] == [
            'model = "1.5B"'
        ]
        assert config(sandbox).stat().st_mode & 0o777 == 0o600
        settings = load_settings(os.environ)
        assert (settings.model, settings.cloud.model) == ("1.5B", "x")

    def test_says_where_the_model_is(self, hub: StandInHub) -> None:
        directory = run("models", "pull", MODEL).stdout.strip()
        assert f"It is in {directory}.\n" in run("models", "use", "0.5B").stdout
        os.truncate(Path(directory, WEIGHTS).resolve(), 1000)
        assert "It is not verified yet" in run("models", "use", MODEL).stdout

    def test_says_what_is_here_of_an_unfinished_one(
        self, hub: StandInHub, sandbox: Sandbox
    ) -> None:
        cache = sandbox.home / ".cache" / "huggingface" / "hub"
        parts = cache / "models--Qwen--Qwen2.5-1.5B-Instruct" / "shammah" / "parts"
        parts.mkdir(parents=True)
        (parts / f"{'f' * 64}.part").write_bytes(b"x" * 100_000_000)
        said = run("models", "use", "1.5B").stdout
        assert "Partly downloaded (0.1 of 3.1 GB). The next start resumes" in said

    def test_takes_a_directory_by_its_whole_name(
        self, hub: StandInHub, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (sandbox.root / "my-model").mkdir()
        monkeypatch.chdir(sandbox.root)
        said = run("models", "use", "./my-model").stdout
        assert f"The default model is now {sandbox.root / 'my-model'} " in said
        assert load_settings(os.environ).model == str(sandbox.root / "my-model")

    def test_auto_says_what_that_is(self, hub: StandInHub) -> None:
        assert "The default model is still auto" in run("models", "use", "auto").stdout
        said = run("models", "use", "starter").stdout
        assert f"It is in {starter_directory()}." in said

    @pytest.mark.parametrize(
        ("model", "why"),
        [
            ("nonsense", "There is no model 'nonsense'."),
            ("./nothing", "No model directory"),
            ("/nothing", "No model directory /nothing."),
        ],
    )
    def test_what_cannot_be_used_changes_nothing(
        self, hub: StandInHub, sandbox: Sandbox, model: str, why: str
    ) -> None:
        config(sandbox).write_text('model = "3B"\n')
        failed = run_failing("models", "use", model)
        assert why in failed
        assert config(sandbox).read_text() == 'model = "3B"\n'

    @pytest.mark.parametrize("broken", ["model = \n", "modle = 'x'\n", "model = 5\n"])
    def test_an_invalid_file_is_an_error_and_stays(
        self, hub: StandInHub, sandbox: Sandbox, broken: str
    ) -> None:
        config(sandbox).write_text(broken)
        assert str(config(sandbox)) in run_failing("models", "use", "3B")
        assert config(sandbox).read_text() == broken

    def test_a_variable_that_wins_is_said(
        self, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox
    ) -> None:
        monkeypatch.setenv("SHAMMAH_MODEL", "3B")
        said = run("models", "use", "starter").stdout
        assert "The default model is now starter" in said
        assert "But SHAMMAH_MODEL is set and overrides it." in said
        assert config(sandbox).read_text() == 'model = "starter"\n'


def run_failing(*arguments: str) -> str:
    """What is said when it fails, in whatever way."""
    ended = run_any(*arguments)
    assert ended.code in (1, 2)
    assert "Traceback" not in ended.err
    return ended.err
