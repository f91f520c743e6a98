"""``shammah doctor``: what it makes of what it finds. The child process is a fake here."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.endpoints import RoleLock
from shammah.cli import doctor_document, doctor_probes
from shammah.cli.doctor_probes import StartTime
from shammah.cli.main import run as shammah
from shammah.errors import ShammahError
from tests.fakes.sandbox import Sandbox

COMPUTED = {
    "name": "starter",
    "directory": "/share/starter",
    "architecture": "Qwen2ForCausalLM",
    "parameters": 134_543_808,
    "engine": "native",
    "engine_why": "the fastest on a CPU",
    "next_best": {"engine": "transformers", "why": "it computes every model", "install": ""},
    "faster": None,
    "notices": ["Its directory also holds an adapter, which is not used."],
    "device": "cpu",
    "dtype": "float32",
    "quantization": "int8",
    "why": "as set",
    "needed": 2**27,
    "free": 2**33,
}
FOUND: dict[str, Any] = {
    "libraries": {"python": "3.11.7", "torch": "2.13.0", "bitsandbytes": None},
    "kernels": {"directory": "/share/kernels", "compiled": True},
    "accelerator": {"device": "cuda", "name": "A GPU", "free": 2**34, "total": 2**35},
    "model": {"here": True, **COMPUTED},
}
BROKEN = {"error": {"code": "examination_failed", "message": "ImportError: no torch", "hint": ""}}


def _missing(fallback: dict[str, Any] | None) -> dict[str, Any]:
    return {"name": "Qwen/X", "here": False, "present": False, "fallback": fallback}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the child process says; a test may change it."""
    said: dict[str, Any] = json.loads(json.dumps(FOUND))
    monkeypatch.setattr(doctor_document, "run_child", lambda *rest: json.dumps(said))
    monkeypatch.setattr(doctor_probes, "measure_start", lambda environ: StartTime(0.02, 0.015))
    monkeypatch.setattr(doctor_probes, "USUAL_PORTS", {})
    monkeypatch.delenv("HF_HUB_OFFLINE")
    return said


def _examined(capsys: pytest.CaptureFixture[str], model: str = "starter") -> tuple[int, Any]:
    code = shammah(["doctor", "--model", model, "--json"])
    return code, json.loads(capsys.readouterr().out)


def _text(capsys: pytest.CaptureFixture[str], model: str = "starter") -> tuple[int, str]:
    code = shammah(["doctor", "--model", model])
    return code, capsys.readouterr().out


@pytest.mark.usefixtures("found")
def test_where_nothing_is_wrong(capsys: pytest.CaptureFixture[str], sandbox: Sandbox) -> None:
    code, document = _examined(capsys)
    assert (code, document["ok"], document["problems"]) == (0, True, [])
    assert document["directories"]["home"]["path"] == str(sandbox.shammah_home)
    assert document["directories"]["home"]["free"] > 0
    assert set(document["directories"]) == {"home", "models", "runtime"}
    assert document["machine"]["memory"] >= document["machine"]["memory_free"] > 0
    assert document["settings"] == {"model": "starter"}
    hub = {"endpoint": "https://huggingface.co", "offline": False, "token": False}
    assert document["hub"] == hub
    assert not any(worker["running"] for worker in document["workers"].values())
    assert document["machine"]["processor"]


@pytest.mark.usefixtures("found")
def test_the_text_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = _text(capsys)
    lines = text.splitlines()
    assert code == 0
    assert "engine      native: the fastest on a CPU" in lines
    assert "weights     8-bit weights on cpu: as set" in lines
    assert "            0.12 GiB needed, 8.0 GiB free" in lines
    assert "            Its directory also holds an adapter, which is not used." in lines
    assert "gpu         A GPU, 32.0 GiB, 16.0 free" in lines
    assert "libraries   torch 2.13.0, bitsandbytes missing" in lines
    assert "worker      none running" in lines
    assert lines[-1] == "verdict     OK, Shammah can answer"
    assert "\x1b" not in text


def test_nothing_secret_is_shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sandbox: Sandbox,
    found: dict[str, Any],
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret-1")
    monkeypatch.setenv("HF_TOKEN", "hf_secret-2")
    monkeypatch.setenv("HF_ENDPOINT", "https://me:secret-3@hub.example/x?token=secret-4")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://me:secret-5@api.example/")
    (sandbox.shammah_home / "config.toml").write_text(
        'system = "secret-6"\n[privacy]\nwords = ["secret-7"]\n[inference]\nqueue = 9\n'
    )
    _, document = _examined(capsys)
    _, text = _text(capsys)
    assert "secret" not in json.dumps(document) + text
    assert document["cloud"]["key"]
    assert document["hub"]["token"]
    assert document["hub"]["endpoint"] == "https://hub.example/x"
    assert document["settings"] == {
        "model": "starter",
        "system": "(8 characters)",
        "inference.queue": 9,
        "cloud.api_key": "(set)",
        "cloud.base_url": "https://api.example/",
        "privacy.words": "(1 of your own)",
    }


def test_a_home_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sandbox: Sandbox,
    found: dict[str, Any],
) -> None:
    blocked = sandbox.root / "file"
    blocked.write_text("")
    monkeypatch.setenv("SHAMMAH_HOME", str(blocked))
    code, document = _examined(capsys)
    problems = {problem["code"]: problem for problem in document["problems"]}
    assert code == 1
    assert "Not a directory" in problems["directory_unwritable"]["message"]
    assert "SHAMMAH_HOME" in problems["directory_unwritable"]["hint"]
    code, text = _text(capsys)
    assert f"problem     Cannot write to {blocked}: Not a directory." in text.splitlines()
    assert "verdict" not in text


def test_a_full_disk(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, found: dict[str, Any]
) -> None:
    monkeypatch.setattr(doctor_document, "LEAST_DISK", 2**80)
    code, document = _examined(capsys)
    assert code == 1
    assert {problem["code"] for problem in document["problems"]} == {"disk_full"}


def test_a_runtime_directory_of_somebody_else(
    capsys: pytest.CaptureFixture[str], sandbox: Sandbox, found: dict[str, Any]
) -> None:
    (sandbox.xdg / "shammah").symlink_to("/tmp")
    code, document = _examined(capsys)
    assert code == 1
    assert [problem["code"] for problem in document["problems"]] == ["runtime_directory"]
    assert document["workers"] == {}
    assert "worker      none running" in _text(capsys)[1]


def test_a_configuration_that_is_wrong(
    capsys: pytest.CaptureFixture[str], sandbox: Sandbox, found: dict[str, Any]
) -> None:
    (sandbox.shammah_home / "config.toml").write_text("modle = 1\n")
    code, document = _examined(capsys)
    assert code == 1
    assert [problem["code"] for problem in document["problems"]] == ["config_invalid"]
    assert document["model"]["engine"] == "native"  # the rest is told all the same


@pytest.mark.parametrize(
    ("fallback", "offline", "key", "code", "blocking"),
    [
        (None, True, "", 1, [True]),
        (COMPUTED, True, "", 0, [False]),
        (None, True, "sk", 0, [False]),
        (None, False, "", 0, []),
        (COMPUTED, False, "", 0, []),
        (BROKEN, True, "", 1, [True, True]),
    ],
)
def test_a_model_that_is_not_here(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    found: dict[str, Any],
    fallback: dict[str, Any] | None,
    offline: bool,
    key: str,
    code: int,
    blocking: list[bool],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    monkeypatch.setenv("ANTHROPIC_API_KEY", key)
    found["model"] = _missing(fallback)
    ended, document = _examined(capsys, "auto")
    assert ended == code
    assert [problem["blocking"] for problem in document["problems"]] == blocking
    text = _text(capsys, "auto")[1]
    assert "model       Qwen/X, not on this disk" in text
    assert ("meanwhile   starter" in text) == (fallback is COMPUTED)
    assert ("HF_HUB_OFFLINE forbids a download" in text) == offline


def test_kernels_that_are_not_compiled_are_only_slower(
    capsys: pytest.CaptureFixture[str], found: dict[str, Any]
) -> None:
    found["kernels"]["compiled"] = False
    code, text = _text(capsys)
    assert code == 0
    assert "note        The native engine's kernels are not compiled" in text
    assert "Its first start compiles them" in text


@pytest.mark.parametrize("part", ["libraries", "accelerator", "kernels", "model"])
def test_a_part_that_fails_is_told_with_the_others(
    capsys: pytest.CaptureFixture[str], found: dict[str, Any], part: str
) -> None:
    found[part] = BROKEN
    code, text = _text(capsys)
    assert code == 1
    assert "problem     ImportError: no torch" in text.splitlines()
    assert "Traceback" not in text
    assert "shammah " in text


def test_a_worker_that_is_silent(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sandbox: Sandbox,
    found: dict[str, Any],
) -> None:
    def silent(*rest: Any) -> Any:
        raise ShammahError("no_answer", "The inference worker does not answer.", "Stop it.")

    monkeypatch.setattr(doctor_document, "ask_status", silent)
    lock = RoleLock(sandbox.endpoints.lock("inference"))
    assert lock.acquire()
    code, document = _examined(capsys)
    assert code == 1
    assert document["workers"]["inference"]["pid"] == os.getpid()
    assert "does not answer" in _text(capsys)[1]
    lock.release()


# --- the child process --------------------------------------------------------------------


def test_a_child_that_breaks_is_a_line() -> None:
    command = [sys.executable, "-c", "raise ValueError('libfoo is broken')"]
    with pytest.raises(ShammahError, match="ValueError: libfoo is broken"):
        doctor_document.run_child(command, os.environ)


def test_a_child_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor_document, "PATIENCE_S", 0.01)
    said: list[str] = []
    monkeypatch.setattr(doctor_document.Screen, "live", lambda screen, text: said.append(text))
    command = [sys.executable, "-c", "import signal; signal.pause()"]
    with pytest.raises(ShammahError, match="took over"):
        doctor_document.run_child(command, os.environ, limit=0.2)
    assert said
    assert said[0].startswith("importing")


def test_what_the_child_says_is_told_when_it_is_nonsense(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_document, "run_child", lambda *rest: b"not JSON")
    code, document = _examined(capsys)
    assert code == 1
    assert [problem["code"] for problem in document["problems"]] == ["examination_failed"]


def test_the_child_is_told_where_a_relative_directory_is(
    monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sandbox.root)
    (sandbox.root / "mine").mkdir()
    given: list[list[str]] = []

    def run(command: list[str], environ: Mapping[str, str], limit: float = 0.0) -> bytes:
        given.append(command)
        return b"{}"

    monkeypatch.setattr(doctor_document, "run_child", run)
    shammah(["doctor", "--model", "./mine", "--json"])
    assert str(sandbox.root / "mine") in given[0]
    capsys.readouterr()


@pytest.fixture
def served() -> Iterator[int]:
    """The port of a server with one model."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = b'{"data": [{"id": "small"}]}' if self.path == "/v1/models" else b"?"
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *rest: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("found")
def test_a_server_is_found_and_how_to_use_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, served: int
) -> None:
    monkeypatch.setattr(doctor_probes, "USUAL_PORTS", {"llama": served, "vllm": 1})
    _, text = _text(capsys)
    assert f"llama (http://127.0.0.1:{served}/v1): small" in text
    assert f"config set servers.llama.base_url http://127.0.0.1:{served}/v1" in text
    assert "vllm" not in text


def test_a_server_that_is_the_model_must_answer(
    capsys: pytest.CaptureFixture[str], found: dict[str, Any], sandbox: Sandbox, served: int
) -> None:
    del found["model"]
    file = sandbox.shammah_home / "config.toml"
    table = "[servers.box]\nbase_url = 'http://127.0.0.1:{}/{}'"
    file.write_text(table.format(served, "v1"))
    code, document = _examined(capsys, "server:box")
    assert (code, document["servers"]["box"]["models"]) == (0, ["small"])
    for port, path, words in ((1, "v1", "refused"), (served, "v2", "does not speak")):
        file.write_text(table.format(port, path))
        code, document = _examined(capsys, "server:box")
        (problem,) = document["problems"]
        assert (code, problem["code"]) == (1, "server_unreachable")
        assert words in problem["message"]
