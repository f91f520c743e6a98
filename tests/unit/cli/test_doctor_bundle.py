"""The bundle for a bug report: what is in it, and what must not be."""

from __future__ import annotations

import json
import os
import zipfile
from typing import Any

import pytest

from shammah.cli import doctor_document, doctor_probes
from shammah.cli.doctor_bundle import WITHHELD, Redaction, check_place
from shammah.cli.doctor_probes import StartTime, measure_start
from shammah.cli.main import run
from shammah.errors import ShammahError
from shammah.settings.load import load_settings
from tests.fakes.sandbox import Sandbox

LOGGED = "2026-11-25 16:27:15,001 INFO inference[7] workers.inference.service:"

PLANTED = (
    *("sk-ant-planted", "hf_planted", "Zaphod", "secret-word", "planted-comment"),
    *("planted-url", "me@planted-mail.org", "a question in a log", "planted-path"),
    *("planted-source", "planted-history", "system planted"),
)


@pytest.fixture(autouse=True)
def planted(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home full of what must not leave it."""
    monkeypatch.setattr(
        doctor_document, "run_child", lambda *rest: json.dumps({"model": {"name": "starter"}})
    )
    monkeypatch.setattr(doctor_probes, "measure_start", lambda environ: StartTime(0.02, 0.015))
    monkeypatch.setenv("HF_TOKEN", "hf_planted")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:planted-url@hub.example")
    (sandbox.shammah_home / "config.toml").write_text(
        '# planted-comment\nsystem = "system planted"\n[cloud]\napi_key = "sk-ant-planted"\n'
        '[privacy]\nwords = ["Zaphod", "secret-word"]\npaths = ["~/planted-path"]\n'
    )
    logs = sandbox.shammah_home / "logs"
    logs.mkdir()
    (logs / "inference.log").write_text(
        f"{LOGGED} loaded the starter\n"
        f"{LOGGED} the key is sk-ant-planted\n"
        f"{LOGGED} Zaphod was here\n"
        f"{LOGGED} me@planted-mail.org wrote\n"
        f"{LOGGED} read {sandbox.home}/planted-path/x\n"
        f"{LOGGED} cache in {sandbox.home}/cache\n"
        "a question in a log\n"
        "Traceback (most recent call last):\n"
        f'  File "{sandbox.home}/lib.py", line 3, in load\n'
        '    raise ValueError("planted-source")\n'
        "ValueError: planted-source\n"
    )
    for name in ("history.db", "egress.jsonl"):
        (sandbox.shammah_home / name).write_text("planted-history")


def bundle(sandbox: Sandbox) -> dict[str, str]:
    file = sandbox.root / "report.zip"
    run(["doctor", "--model", "starter", "--json", "--bundle", str(file)])
    assert file.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_nothing_private_is_in_it(sandbox: Sandbox) -> None:
    parts = bundle(sandbox)
    everything = "".join([*parts, *parts.values()])
    assert [word for word in PLANTED if word in everything] == []
    assert str(sandbox.home) not in everything


def test_what_helps_is_in_it(sandbox: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    parts = bundle(sandbox)
    assert "Check what is in it before sharing" in capsys.readouterr().err
    report: dict[str, Any] = json.loads(parts["shammah-report/report.json"])
    assert report["settings"]["privacy.words"] == "(2 of your own)"
    assert report["settings"]["cloud.api_key"] == "(set)"
    assert set(report["took"]) >= {"start", "workers", "libraries"}
    log = parts["shammah-report/logs/inference.log"].splitlines()
    assert log == [
        f"{LOGGED} loaded the starter",
        WITHHELD,
        f"{LOGGED} cache in ~/cache",
        WITHHELD,
        "Traceback (most recent call last):",
        '  File "~/lib.py", line 3, in load',
        WITHHELD,
        "ValueError",
    ]


def test_without_readable_rules_no_log_is_shown(sandbox: Sandbox) -> None:
    (sandbox.shammah_home / "config.toml").write_text('[privacy]\nwords = "Zaphod"\n')
    parts = bundle(sandbox)
    assert parts["shammah-report/logs/inference.log"] == f"{WITHHELD}\n"
    assert "Zaphod" not in "".join(parts.values())


def test_what_cannot_be_written_is_said(
    sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sandbox.root / "file"
    file.write_text("")
    assert run(["doctor", "--model", "starter", "--bundle", str(file / "report.zip")]) == 1
    assert "Cannot write" in capsys.readouterr().err


def test_names_are_taken_out_as_words() -> None:
    settings = load_settings(os.environ)
    redaction = Redaction(settings, {"HOME": "/home/bob", "USER": "bob"})
    assert redaction.text("/home/bob/x of bob, not bobsled") == "~/x of user, not bobsled"


def test_the_start_is_measured_and_starts_no_worker(sandbox: Sandbox) -> None:
    found = measure_start(os.environ, pairs=1)
    assert found.prompt_s > 0
    assert found.bare_s > 0
    assert sandbox.processes() == []


def test_a_place_that_is_not_there_is_refused_at_once(sandbox: Sandbox) -> None:
    with pytest.raises(ShammahError, match="no directory"):
        check_place(sandbox.root / "nowhere" / "report.zip")
    check_place(sandbox.root / "report.zip")
