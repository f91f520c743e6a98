"""``shammah models plan`` against a Hub on loopback: what a person reads, and what it costs."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from shammah.models.catalogue import QWEN2_5, CatalogueModel, select_model, total_memory
from tests.fakes import command
from tests.fakes.command import Ran
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox, online
from tests.real.models import write_checkpoint
from tests.unit.supervision.test_plan import config_of

HALF, ONE_AND_A_HALF, THREE, SEVEN, FOURTEEN = QWEN2_5
WEIGHTS = "model.safetensors"
LIMIT_S = 60
TERABYTE = 10**12


class Large:
    """A file of which only the size is ever asked."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def files(model: CatalogueModel = HALF, **changes: Any) -> dict[str, bytes]:
    """A model's repository, the weights left out."""
    config = json.dumps(config_of(model.shape, **changes), indent=2).encode()
    return {"config.json": config, "tokenizer.json": b"{}" * 3000, WEIGHTS: b"weights"}


def serve(
    monkeypatch: pytest.MonkeyPatch, model_id: str, content: dict[str, bytes], **options: Any
) -> StandInHub:
    hub = StandInHub(content, model_id=model_id, **options)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    return hub


def enlarge(hub: StandInHub, path: str, size: int) -> None:
    """Have the Hub list a file as ``size`` bytes long."""
    listed = hub.commits[hub.main]
    listed[path] = replace(listed[path], content=cast(Any, Large(size)), large=True)


def run(*arguments: str, code: int = 0) -> Ran:
    ran = command.run(*arguments, limit=LIMIT_S)
    assert "Traceback" not in ran.err, ran.err
    assert ran.code == code, ran.said
    return ran


def plan(*arguments: str, code: int = 0) -> Any:
    return json.loads(run("models", "plan", "--json", *arguments, code=code).out)


def lines(ran: Ran) -> dict[str, str]:
    """What is told, by the first word of its line."""
    found = re.findall(r"^ ?([\w ]+?)  +(.+)$", ran.out, re.MULTILINE)
    return {name.strip(): text for name, text in found}


@pytest.fixture(autouse=True)
def _stopped(sandbox: Sandbox) -> Iterator[None]:
    yield
    run("stop")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    """Qwen2.5-0.5B-Instruct, as large as it is on the Hub."""
    with serve(monkeypatch, HALF.model_id, files()) as hub:
        enlarge(hub, WEIGHTS, 988_097_824)
        yield hub


# --- what is told -------------------------------------------------------------------------


def test_a_person_reads_what_it_costs(hub: StandInHub) -> None:
    ran = run("models", "plan", "0.5B")
    told = lines(ran)
    assert told["model"] == HALF.model_id
    assert told["parameters"] == "494 million"
    assert told["licence"] == "apache-2.0"
    assert told["revision"] == hub.main
    assert told["size"] == "988.1 MB in 3 files"
    assert told["download"] == "988.1 MB"
    assert re.fullmatch(r"\d.* free, \d.* after the download", told["disk"])
    assert told["time"] == "unknown until the first download"
    assert told["verdict"].startswith("fits")
    assert "\x1b" not in ran.said
    assert ran.err == ""


def test_nothing_is_fetched_but_the_configuration(hub: StandInHub, sandbox: Sandbox) -> None:
    run("models", "plan", "0.5B")
    assert hub.sent == {"config.json": len(files()["config.json"])}
    assert [asked.path for asked in hub.asked] == ["revision", "tree", "config.json"]
    assert not list((sandbox.home / ".cache" / "huggingface" / "hub").glob("models--*"))


def test_as_json_every_number_is_there(hub: StandInHub) -> None:
    told = plan("0.5B")
    total = 988_097_824 + 6000 + len(files()["config.json"])
    assert (told["total"], told["missing"], told["held"]) == (total, total, 0)
    assert (told["rate"], told["eta_s"]) == (0.0, None)
    assert told["disk_left"] == told["disk_free"] - total
    assert {file["path"] for file in told["files"]} == set(files())
    assert told["parameters"] == 988_097_824 // 2
    memory = told["memory"]
    assert memory["loaded"] == memory["weights"] + memory["libraries"]
    assert memory["full"] == memory["loaded"] + memory["kv_cache"] + memory["activations"]
    assert memory["usable"] == total_memory(psutil.virtual_memory().total)
    assert told["refusals"] == []


def test_without_a_name_it_is_the_model_that_would_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = total_memory(psutil.virtual_memory().total)
    for option, permissive in (("any", False), ("permissive", True)):
        chosen = select_model(memory, permissive=permissive)
        assert chosen is not None
        with serve(monkeypatch, chosen.model_id, files(chosen)):
            ran = run("models", "plan", "--license", option)
            assert lines(ran)["model"] == f"{chosen.model_id}, chosen for this machine's memory"
            run("stop")


def test_the_configured_one(hub: StandInHub, sandbox: Sandbox) -> None:
    (sandbox.shammah_home / "config.toml").write_text('model = "0.5B"')
    assert plan()["model"] == HALF.model_id


def test_a_licence_that_forbids_commercial_use_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, THREE.model_id, files(THREE)):
        told = lines(run("models", "plan", "3B"))
        assert "qwen-research: no commercial use" in told["licence"]
        pulled = run("models", "pull", "3B", "--force")
        assert (
            "Qwen2.5-3B-Instruct is not licensed for commercial use (qwen-research). "
            "--licence permissive skips it."
        ) in pulled.err
        assert pulled.out.strip().endswith(told["revision"])


def test_the_time_is_reckoned_with_the_last_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random.Random(1).randbytes(9 * 2**20)
    with serve(monkeypatch, "acme/tiny", {**files(), WEIGHTS: weights}) as hub:
        run("models", "pull", "acme/tiny")
        hub.publish({**files(), WEIGHTS: weights[::-1]})
        told = plan("acme/tiny", "--revision", hub.main)
        assert told["rate"] > 0
        assert told["eta_s"] == pytest.approx(told["missing"] / told["rate"])
        assert (
            "the last measured rate"
            in lines(run("models", "plan", "acme/tiny", "--revision", hub.main))["time"]
        )


# --- without a network --------------------------------------------------------------------


def test_of_a_model_that_is_here_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, "acme/tiny", files()) as hub:
        run("models", "pull", "acme/tiny")
        asked = len(hub.asked)
        told = lines(run("models", "plan", "acme/tiny"))
        assert told["download"] == "none: it is on this disk"
        assert len(hub.asked) == asked


def test_a_directory_and_the_starter_need_no_worker(sandbox: Sandbox) -> None:
    directory = write_checkpoint(sandbox.root / "mine")
    told = plan(str(directory))
    assert (told["missing"], told["eta_s"], told["verdict"]) == (0, 0.0, "fits")
    assert told["memory"]["context_length"] == 640
    assert lines(run("models", "plan", "starter"))["parameters"] == "135 million"
    assert sandbox.holders() == {}


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    online(monkeypatch, "http://127.0.0.1:9")
    ran = run("models", "plan", "acme/tiny", code=1)
    assert "Could not reach http://127.0.0.1:9: the connection was refused." in ran.err
    assert ran.out == ""
    ran = run("models", "plan", "0.5B")
    assert "the connection was refused. These are the catalogue's numbers" in ran.err
    told = lines(ran)
    assert (told["size"], told["parameters"]) == ("988.1 MB", "494 million")
    assert told["download"] == "988.1 MB"
    assert told["verdict"].startswith("fits")


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("acme/nothing", 1, "There is no model acme/nothing"),
        ("nonsense", 2, "There is no model 'nonsense'"),
        ("/nonexistent", 1, "No model found in /nonexistent"),
    ],
)
def test_a_model_that_is_not_there(hub: StandInHub, model: str, code: int, says: str) -> None:
    assert says in run("models", "plan", model, code=code).err


def test_a_gated_model(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, "acme/gated", files(), token="secret"):
        assert "acme/gated is gated" in run("models", "plan", "acme/gated", code=1).err


def test_too_little_memory(hub: StandInHub) -> None:
    enlarge(hub, WEIGHTS, 4 * psutil.virtual_memory().total)
    ran = run("models", "plan", "0.5B", code=1)
    assert lines(ran)["verdict"] == "does not fit: not enough memory"
    assert re.search(r"needs [\d.]+ GiB of memory as int8 for a conversation", ran.err)
    told = plan("0.5B", code=1)
    assert told["verdict"] == told["refusals"][0]["code"] == "memory_too_small"
    forced = run("models", "plan", "0.5B", "--force")
    assert "Warning: Qwen/Qwen2.5-0.5B-Instruct needs" in forced.err


def test_a_pull_is_refused_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, "acme/large", files()) as hub:
        enlarge(hub, WEIGHTS, 4 * psutil.virtual_memory().total)
        refused = run("models", "pull", "acme/large", code=1)
        assert "of memory as int8" in refused.err
        assert "--force" in refused.err
        told = json.loads(run("models", "pull", "acme/large", "--json", code=1).out)
        assert (told["model"], told["error"]["code"]) == ("acme/large", "memory_too_small")
        assert set(hub.sent) == {"config.json"}


def test_of_a_model_in_the_catalogue_a_pull_asks_for_the_listing_alone(hub: StandInHub) -> None:
    enlarge(hub, WEIGHTS, shutil.disk_usage("/").total + TERABYTE)
    assert "The disk is too small" in run("models", "pull", "0.5B", code=1).err
    assert [asked.path for asked in hub.asked] == ["revision", "tree"]


def test_unless_it_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    # A conversation of 2,048 tokens in so many layers takes terabytes.
    with serve(monkeypatch, "acme/deep", files(num_hidden_layers=10**7)) as hub:
        run("models", "pull", "acme/deep", code=1)
        assert hub.sent[WEIGHTS] == 0
        forced = run("models", "pull", "acme/deep", "--force")
        assert "Warning: acme/deep needs" in forced.err
        assert Path(forced.out.strip(), WEIGHTS).read_bytes() == b"weights"


def test_too_little_disk(monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    content = {**files(), "README.md": b"long"}
    with serve(monkeypatch, "acme/long", content) as hub:
        enlarge(hub, "README.md", shutil.disk_usage(sandbox.root).free + TERABYTE)
        ran = run("models", "plan", "acme/long", code=1)
        assert lines(ran)["verdict"] == "does not fit: not enough disk space"
        assert lines(ran)["disk"].endswith("free, 0.0 MB after the download")
        assert "The disk is too small for acme/long" in ran.err
        assert plan("acme/long", code=1)["disk_left"] < 0
        assert "The disk is too small" in run("models", "pull", "acme/long", code=1).err
        assert set(hub.sent) == {"config.json"}


def test_a_configuration_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(monkeypatch, "acme/odd", {**files(), "config.json": b'{"model_type": "odd"}'}):
        told = lines(run("models", "plan", "acme/odd"))
        assert told["memory"] == "unknown: config.json does not say hidden_size"
        assert told["verdict"] == "the download fits; memory unknown"


def test_a_download_that_runs_is_joined_without_a_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = {**files(), WEIGHTS: random.Random(2).randbytes(2**20)}
    line = [*command.SHAMMAH, "models", "pull", "acme/tiny"]
    begin = partial(subprocess.Popen, line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with serve(monkeypatch, "acme/tiny", content, rate=1e4) as hub:
        with begin() as first:
            assert b"acme/tiny" in first.stderr.readline()
            assert hub.count("revision") == 2  # by the plan, and by the fetch
            with begin() as second:
                assert b"acme/tiny" in second.stderr.readline()
                hub.rate = None
                second.communicate()
            first.communicate()
        assert hub.count("revision") == 2
        assert (first.returncode, second.returncode) == (0, 0)
