"""Real train workers on a tiny random model: the command, SIGKILL, Ctrl-C, questions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import ChatMessage, ClientInfo, Event, Generate
from shammah.bus.training import Train, Trained, Training, TrainProgress
from shammah.learning.adapters import AdapterStore
from shammah.settings.load import load_settings
from shammah.supervision.lifecycle import ensure, worker_spec
from tests.fakes.command import SHAMMAH, Ran, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.real.local_hub import kill
from tests.real.models import make_qwen2
from workers.inference.packages.checkpoint import inspect_checkpoint

pytestmark = pytest.mark.timeout(2400)

LIMIT_S = 400.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_qwen2(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def examples(sandbox: Sandbox) -> Path:
    path = sandbox.root / "examples.jsonl"
    lines = [{"prompt": f"question {n} {n}", "response": "the dog sleeps"} for n in range(16)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(autouse=True)
def workers_end(sandbox: Sandbox) -> Iterator[None]:
    yield
    kill(sandbox)


def train(model: Path, examples: Path, *more: str) -> Ran:
    return run("train", "--model", str(model), "--examples", str(examples), *more, limit=LIMIT_S)


def test_a_killed_training_goes_on_with_the_same_curve(
    sandbox: Sandbox, model: Path, examples: Path, tmp_path: Path
) -> None:
    """First one that nobody disturbs, with all that is told and kept of it."""
    more = ("--learning-rate", "0.01", "--epochs", "20", "--json", "--no-serve")
    whole = train(model, examples, *more, "--name", "whole")
    assert whole.code in (0, 1), whole.said
    told = json.loads(whole.out)
    entry = AdapterStore(sandbox.shammah_home).get("whole")
    assert entry.verdict == told["verdict"]
    assert (told["examples"], told["held_out"]) == (13, 3)
    assert told["figures"]["held_out_after"] < told["figures"]["held_out_before"]
    assert entry.base_model == "tiny"
    assert entry.training["rank"] == 16
    kept = sandbox.shammah_home / "training"
    assert not list(kept.glob("*"))
    again = train(model, examples, "--name", "whole")
    assert again.code == 2
    assert "There is an adapter whole already" in again.err

    command = [*SHAMMAH, "train", "--model", str(model), "--examples", str(examples)]
    with subprocess.Popen(
        [*command, *more, "--name", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        until(lambda: list(kept.glob("*.safetensors")), "a checkpoint is there", LIMIT_S)
        os.kill(until(lambda: sandbox.holder("train"), "it runs"), signal.SIGKILL)
        out, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode in (0, 1), err
    assert json.loads(out)["curve"] == told["curve"]
    assert json.loads(out)["figures"] == told["figures"]

    assert run("adapters", "export", "cut", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    twice = run("adapters", "export", "cut", str(tmp_path / "out"))
    assert "already exists" in twice.err
    target = tmp_path / "merged"
    merged = run("adapters", "merge", "cut", str(target), limit=LIMIT_S)
    assert merged.code == 1
    assert "There is no model 'tiny'" in merged.err  # a directory's name: where is it?
    merged = run("adapters", "merge", "cut", str(target), "--model", str(model), limit=LIMIT_S)
    assert merged.code == 0, merged.said
    assert inspect_checkpoint(target).architecture == "Qwen2ForCausalLM"


def test_ctrl_c_keeps_what_was_learnt(sandbox: Sandbox, model: Path, examples: Path) -> None:
    command = [*SHAMMAH, "train", "--model", str(model), "--examples", str(examples)]
    with subprocess.Popen(
        [*command, "--epochs", "100", "--batch", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        kept = sandbox.shammah_home / "training"
        until(lambda: list(kept.glob("*.safetensors")), "a checkpoint is there", LIMIT_S)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 130
    assert "The same command resumes" in err
    assert out == ""
    until(lambda: not _is_training(sandbox), "the training has ended")
    assert list(kept.glob("*.safetensors"))


@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGHUP])
def test_what_ends_the_command_lets_the_training_go_on(
    sandbox: Sandbox, model: Path, examples: Path, ends: int
) -> None:
    command = [*SHAMMAH, "train", "--model", str(model), "--examples", str(examples)]
    command += ["--epochs", "100", "--batch", "1", "--name", "tidy"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        kept = sandbox.shammah_home / "training"
        until(lambda: list(kept.glob("*.safetensors")), "a checkpoint is there", LIMIT_S)
        running.send_signal(ends)
        _, err = running.communicate(timeout=LIMIT_S)
    assert running.returncode == 128 + ends
    assert "Training continues in the background. `shammah status` shows it" in err
    assert _is_training(sandbox)
    again = run(*command[1:])
    assert again.code == 1
    assert "tidy is already being trained" in again.err


def _is_training(sandbox: Sandbox) -> bool:
    if sandbox.holder("train") is None:
        return False
    peer = Peer(sandbox.endpoints, "train", None)
    try:
        found = until(
            lambda: peer.latest or sandbox.holder("train") is None, "its state is told, or it ends"
        )
        state = found.status.state if isinstance(found, Event) else None
        return isinstance(state, Training) and state.progress is not None
    finally:
        peer.close()


def test_a_question_has_the_training_stand_still(
    sandbox: Sandbox, model: Path, examples: Path
) -> None:
    echo = EchoProcess(sandbox, "inference", "starter", "--delay-ms", "20")
    asking: Peer | None = None
    peer: Peer | None = None
    try:
        echo.wait_up()
        settings = load_settings(os.environ)
        client = ClientInfo("test", os.getpid())
        peer = ensure(worker_spec(settings, "train", os.environ), sandbox.endpoints, client)
        asking = Peer(sandbox.endpoints, "inference", client)
        assert asking.wait_welcome(LIMIT_S)
        told: list[Any] = []
        task = peer.begin(
            Train(new_request_id(), str(model), str(examples), epochs=100, serve=False)
        )
        thread = threading.Thread(target=lambda: told.extend(task), daemon=True)
        thread.start()
        phases = lambda: [t.progress for t in told if isinstance(t, TrainProgress)]  # noqa: E731
        until(lambda: any(p.step for p in phases()), "it steps", LIMIT_S)
        question = asking.begin(
            Generate(new_request_id(), (ChatMessage("user", "forever and ever"),))
        )
        until(lambda: phases()[-1].phase == "paused", "it stands still")
        assert "question" in phases()[-1].detail
        stood_at = phases()[-1].step
        question.cancel()
        until(lambda: phases()[-1].step > stood_at or isinstance(told[-1], Trained), "it goes on")
        task.cancel()
        thread.join(LIMIT_S)
    finally:
        for one in (asking, peer):
            if one is not None:
                one.close()
        echo.kill()


def test_wrong_examples_are_told_with_their_line(model: Path, examples: Path) -> None:
    with examples.open("a") as file:
        file.write('{"prompt": "x"}\n')
    ran = train(model, examples)
    assert ran.code == 2
    assert "line 17: response must be a text" in ran.err
    assert "Traceback" not in ran.said


def test_no_feedback_yet_is_told(model: Path) -> None:
    ran = run("train", "--model", str(model))
    assert ran.code == 2
    assert "There are 0 questions" in ran.err
