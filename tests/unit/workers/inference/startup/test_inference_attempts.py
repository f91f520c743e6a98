"""What a killed worker leaves behind, for the next one and for those who have lost it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shammah.settings.model import InferenceSettings
from shammah.supervision import oom_record as record
from shammah.supervision.oom_record import explain_death, forget_attempt, read_attempt
from workers.inference.startup.attempts import REMEMBERED_S, Attempts, Past

ASKED = InferenceSettings()


class Kernel:
    """Counts its kills, of ours and of everybody's; time passes as a test says."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = directory / "attempt"
        self.own, self.all = directory / "memory.events", directory / "vmstat"
        self.now = 1e9
        self.pid = 100
        self.set(3, 5)
        monkeypatch.setattr(record, "VMSTAT", self.all)
        monkeypatch.setattr(record, "kill_counter", lambda: self.own)

    def set(self, own: int, everybody: int) -> None:
        self.counts = own, everybody
        self.own.write_text(f"oom 1\noom_kill {own}\n")
        self.all.write_text(f"nr_free 7\noom_kill {everybody}\n")

    def kill(self) -> None:
        """One of ours."""
        self.set(self.counts[0] + 1, self.counts[1] + 1)

    def attempts(self) -> Attempts:
        """Those of a new worker."""
        self.pid += 1
        return Attempts(self.path, lambda: self.now, self.pid)

    def begin(self, model: str = "m", level: int = 0, asked: InferenceSettings = ASKED) -> Past:
        """A new worker begins, and gets as far as ``level``."""
        attempts = self.attempts()
        past = attempts.begin(model, asked)
        attempts.note(model, level, "Next.")
        return past


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(tmp_path, monkeypatch)


def test_a_kill_is_told_to_the_next_one_with_where_it_was(kernel: Kernel) -> None:
    assert kernel.begin(level=0) == Past()
    kernel.kill()
    assert kernel.begin(level=1) == Past(1, "m", 0)
    kernel.kill()
    assert kernel.begin(level=3) == Past(2, "m", 1)
    kernel.kill()
    past = kernel.begin()
    assert past == Past(3, "m", 3)
    assert past.given_up
    assert not Past(2, "m", 1).given_up


def test_another_death_changes_nothing(kernel: Kernel) -> None:
    kernel.begin()
    kernel.kill()
    kernel.begin(level=1)
    assert kernel.begin(level=1) == Past(1, "m", 0)


def test_a_kill_elsewhere_is_none_of_ours(kernel: Kernel) -> None:
    kernel.begin()
    kernel.set(3, 9)
    assert kernel.begin() == Past()


def test_without_a_group_of_ours_the_whole_machine_counts(kernel: Kernel) -> None:
    kernel.begin()
    kernel.own.unlink()
    assert kernel.begin() == Past()
    kernel.all.write_text("oom_kill 6\n")
    assert kernel.begin() == Past(1, "m", 0)
    kernel.all.unlink()
    assert kernel.begin() == Past(1, "m", 0)


def test_another_model_or_setting_begins_anew(kernel: Kernel) -> None:
    kernel.begin("m")
    kernel.kill()
    assert kernel.begin("n") == Past()
    kernel.kill()
    assert kernel.begin("n", asked=InferenceSettings(quantization="int4")) == Past()


def test_what_was_killed_is_remembered_for_a_day(kernel: Kernel) -> None:
    kernel.begin()
    kernel.kill()
    attempts = kernel.attempts()
    attempts.begin("m", ASKED)
    attempts.note("m", 1, "")
    attempts.end()
    kernel.kill()  # somebody else: it had ended by itself
    kernel.now += REMEMBERED_S - 1
    assert kernel.begin(level=1) == Past(1, "m", 0)
    kernel.now += 2
    assert kernel.begin() == Past()


def test_what_was_only_refused_is_not(kernel: Kernel) -> None:
    attempts = kernel.attempts()
    attempts.begin("m", ASKED)
    attempts.note("m", 2, "")
    attempts.end()
    assert not kernel.path.exists()


def test_a_second_load_in_one_process_is_no_death(kernel: Kernel) -> None:
    attempts = kernel.attempts()
    attempts.begin("m", ASKED)
    attempts.note("m", 0, "")
    kernel.kill()
    assert attempts.begin("m", ASKED) == Past()


def test_one_that_ends_before_it_loads_forgets_nothing(kernel: Kernel) -> None:
    kernel.begin(level=1)
    kernel.kill()
    attempts = kernel.attempts()
    attempts.begin("m", ASKED)
    attempts.end()
    assert kernel.begin() == Past(1, "m", 1)


def test_what_a_person_has_taken_back_is_forgotten(kernel: Kernel) -> None:
    attempts = kernel.attempts()
    for _ in range(2):
        attempts.begin("m", ASKED)
        attempts.note("m", 0, "")
        kernel.kill()
        attempts = kernel.attempts()
    attempts.begin("m", ASKED)
    forget_attempt(kernel.path)
    attempts.end()  # the worker that has failed is stopped after that
    assert kernel.begin() == Past()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"asked": "m"}', '{"pid": "x"}', "null", '"\\ud800"', "\0"]
)
def test_a_damaged_file_counts_for_nothing(kernel: Kernel, text: str) -> None:
    kernel.path.write_text(text)
    assert kernel.begin() == Past()


def test_a_damaged_count_counts_for_nothing(kernel: Kernel) -> None:
    kernel.begin()
    kernel.kill()
    held = json.loads(kernel.path.read_text())
    kernel.path.write_text(json.dumps({**held, "kills": [3]}))
    assert kernel.begin() == Past()


def test_the_file_is_for_its_owner_alone(kernel: Kernel) -> None:
    kernel.begin()
    assert kernel.path.stat().st_mode & 0o777 == 0o600


# --- the frontends ------------------------------------------------------------------------


def test_a_death_is_explained_to_those_who_have_lost_it(kernel: Kernel) -> None:
    kernel.begin("big")
    assert explain_death(kernel.path, kernel.pid) is None
    kernel.kill()
    assert explain_death(kernel.path, kernel.pid + 1) is None
    why = explain_death(kernel.path, kernel.pid)
    assert why is not None
    assert why.code == "out_of_memory"
    assert str(why) == "The system killed big because memory ran out. Next. Ask again."


def test_when_nothing_is_left_a_person_must_act(kernel: Kernel) -> None:
    attempts = kernel.attempts()
    attempts.begin("big", ASKED)
    attempts.note("big", 3, "")
    kernel.kill()
    why = explain_death(kernel.path, kernel.pid)
    assert why is not None
    assert "Ask again" not in why.hint
    assert "--model" in why.hint
    assert read_attempt(kernel.path) is not None


def test_without_a_record_nothing_is_known(tmp_path: Path) -> None:
    assert explain_death(tmp_path / "none", 7) is None
