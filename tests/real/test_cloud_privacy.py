"""Whatever a person does at the prompt, nothing marked goes out, and the ledger knows all that
does. What they do is in `tests/real/evening.py`."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import settings as examples
from hypothesis.stateful import run_state_machine_as_test

from shammah.router.decision import Target
from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec
from tests.fakes import frontend, impatient
from tests.fakes.personal_data import draw
from tests.fakes.sandbox import LIMIT_S, Sandbox
from tests.real.evening import MARKS, SYSTEMS, TAUGHT, Evening, prepare_home
from tests.real.recorder import Recorder

pytestmark = pytest.mark.timeout(900)

MakeEvening = Callable[..., Evening]


@pytest.fixture
def recorder(sandbox: Sandbox) -> Iterator[Recorder]:
    server = Recorder(sandbox)
    yield server
    server.close()


@pytest.fixture
def make_evening(
    sandbox: Sandbox, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeEvening]:
    """The cloud worker is real, the local model a stand-in; whatever was started ends."""
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", recorder.url)
    monkeypatch.setattr(Evening, "crashes", Evening.crashes)
    prepare_home(sandbox, monkeypatch)
    cloud = impatient.command_of(lifecycle.worker_command)

    def command(spec: WorkerSpec) -> list[str]:
        return cloud(spec) if spec.role == "cloud" else frontend.echo_command(spec)

    monkeypatch.setattr(lifecycle, "worker_command", command)
    yield lambda first="": Evening(sandbox, recorder, monkeypatch, first)
    # One that is still attaching may be about to start a worker.
    attaching = [t for t in threading.enumerate() if t.name.startswith("attach-")]
    for thread in attaching:
        thread.join(LIMIT_S)
    for child in lifecycle.children:
        child.kill()
        child.wait()


def test_whatever_happens(make_evening: MakeEvening) -> None:
    firsts = itertools.cycle(MARKS)
    run_state_machine_as_test(
        lambda: make_evening(next(firsts)),
        settings=examples(
            max_examples=10,
            stateful_step_count=10,
            # Each step costs processes: a failure is shown as it was found.
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_personal_data_in_the_forms_of_people(
    make_evening: MakeEvening, recorder: Recorder
) -> None:
    """Each before a question that does go to the cloud, with the conversation so far."""
    evening, random, asked = make_evening(), Random(14), 40
    evening.sit_down("")
    try:
        said = []
        for number in range(asked):
            _, data, text = draw(random)
            evening.say(text, Target.CLOUD)
            evening.say(f"What is the tide of day {number}?", Target.CLOUD)
            assert evening.knock_with(text).code == "private"
            said += [data, text]
            evening.command("/clear")  # or the local model repeats all of them, each time twice
        evening.the_ledger_has_what_the_server_got()
    finally:
        evening.teardown()
    bodies = [json.loads(body) for body in recorder.bodies]
    assert len(bodies) == asked
    sent = [message["content"] for body in bodies for message in body["messages"]]
    assert sum("tide" in str(content) for content in sent) >= asked
    assert [one for one in said if any(one in str(content) for content in sent)] == []


def test_what_the_local_model_repeats(make_evening: MakeEvening, recorder: Recorder) -> None:
    """The shortest ways in which something could leak: by a later turn, and by a redo."""
    evening = make_evening()
    evening.sit_down("")
    try:
        evening.ask("prefix", None, ["ok"])
        evening.redo("cloud")
        evening.ask("plain", Target.LOCAL, ["ok"])  # the answer repeats what is private
        evening.redo("cloud")
        evening.check()
        assert recorder.bodies == []
        evening.ask("plain", Target.CLOUD, ["ok"])
        evening.redo("local")
        evening.leave_and_resume()
        evening.ask("word", Target.CLOUD, ["ok"])
        evening.ask("plain", Target.CLOUD, ["refuse", "drop", "ok"])
        evening.redo("cloud")
        evening.check()
        assert len(recorder.bodies) == 5
    finally:
        evening.teardown()


def test_a_cloud_worker_that_is_killed(make_evening: MakeEvening, recorder: Recorder) -> None:
    evening = make_evening()
    evening.sit_down(SYSTEMS[-1])
    try:
        evening.ask("switch", Target.CLOUD, ["crash"])
        assert recorder.bodies == []
        evening.ask("plain", Target.CLOUD, ["crash"])
        evening.ask("plain", Target.LOCAL, ["ok"])
        for server in ("refuse", "break", "empty", "ok"):
            evening.ask("plain", Target.CLOUD, [server])
        evening.check()
    finally:
        evening.teardown()


def test_what_the_local_model_knows_by_itself(make_evening: MakeEvening) -> None:
    """What a rule is about, what its adapter was taught, and what it had begun to say."""
    for what in ("rule", "adapter", "begun"):
        evening = make_evening()
        evening.sit_down("")
        try:
            if what == "rule":
                evening.ask("plain", Target.LOCAL, ["ok"], "--knows case-7")
            elif what == "adapter":
                evening.command(f"/adapter {TAUGHT}")
                evening.ask("plain", Target.LOCAL, ["ok"])
            else:
                evening.ask("prefix", Target.LOCAL, ["ok"])
                evening.ask_before_it_dies("plain", 1)
            evening.check()
            evening.ask_the_cloud("ok")
            evening.check()
        finally:
            evening.teardown()
