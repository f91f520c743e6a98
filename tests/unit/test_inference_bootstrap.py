"""The states of the local model, and the way through them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from shammah.bus.messages import (
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
)
from shammah.config import InferenceSettings, Settings
from shammah.errors import ShammahError
from tests.workers.models import CONTEXT_LENGTH, write_checkpoint, write_manifest
from workers.inference import bootstrap
from workers.inference.bootstrap import (
    TERMINAL,
    Bootstrap,
    Broke,
    GeneratorState,
    IllegalTransitionError,
    Loaded,
    LoadedModel,
    Located,
    Progressed,
    Signal,
    StageBegun,
    Unavailable,
    transition,
)
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings

READY = Ready("m", context_length=8)

STATE = {
    Initializing: Initializing(),
    Downloading: Downloading("m", 1, 2),
    Loading: Loading("m", "check files", 0, 3),
    Ready: READY,
    NotAvailable: NotAvailable("no", "hint"),
    Failed: Failed("code", "why", "hint"),
}
SIGNAL: dict[type, Signal] = {
    Progressed: Progressed("m", 5, 9, 2.0, 2.0),
    Located: Located("m", 3),
    StageBegun: StageBegun("import torch"),
    Loaded: Loaded(READY),
    Unavailable: Unavailable("offline", "go online"),
    Broke: Broke("broken", "it broke", "mend it"),
}

_ARRIVED = Downloading("m", 5, 9, 2.0, 2.0)
_LOADING = Loading("m", "check files", 0, 3)
_BROKEN = Failed("broken", "it broke", "mend it")
_AWAY = NotAvailable("offline", "go online")

ALLOWED: dict[tuple[type, type], GeneratorState] = {
    (Initializing, Progressed): _ARRIVED,
    (Initializing, Located): _LOADING,
    (Initializing, Unavailable): _AWAY,
    (Initializing, Broke): _BROKEN,
    (Downloading, Progressed): _ARRIVED,
    (Downloading, Located): _LOADING,
    (Downloading, Unavailable): _AWAY,
    (Downloading, Broke): _BROKEN,
    (Loading, StageBegun): Loading("m", "import torch", 1, 3),
    (Loading, Loaded): READY,
    (Loading, Broke): _BROKEN,
}
"""Of the states that are not terminal; every other pair is refused."""


def test_the_table_covers_every_state_and_signal() -> None:
    assert set(STATE) == set(get_args(GeneratorState))
    assert set(SIGNAL) == set(get_args(Signal))


@pytest.mark.parametrize(("state", "signal"), list(itertools.product(STATE, SIGNAL)))
def test_every_pair(state: type, signal: type) -> None:
    before = STATE[state]
    if state in TERMINAL:
        assert transition(before, SIGNAL[signal]) is before
    elif (state, signal) in ALLOWED:
        assert transition(before, SIGNAL[signal]) == ALLOWED[state, signal]
    else:
        with pytest.raises(IllegalTransitionError, match=f"{signal.__name__} in {state.__name__}"):
            transition(before, SIGNAL[signal])


# --- the work -----------------------------------------------------------------------------


class FakeEngine:
    """Loads nothing; ``act`` happens in its second stage."""

    stages = ("first", "second")
    active = 0

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.act = act
        self.settings: LoadSettings | None = None

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        self.settings = settings
        observer.stage("first")
        observer.advance()
        observer.stage("second")
        self.act()
        return EngineFacts("fake", "cpu", "float32")


def _run(
    settings: Settings, engine: FakeEngine | None = None, **options: Any
) -> tuple[LoadedModel | None, list[GeneratorState], list[str]]:
    states: list[GeneratorState] = []
    advanced: list[str] = []
    used = engine or FakeEngine()
    model = Bootstrap(
        settings,
        stand_in=options.get("stand_in", False),
        environ=options.get("environ", {}),
        make_engine=lambda: used,
        publish=states.append,
        advance=lambda: advanced.append("x"),
    ).run()
    return model, states, advanced


def test_a_directory_is_loaded_stage_by_stage(tmp_path: Path) -> None:
    write_manifest(write_checkpoint(tmp_path / "tiny"), "r7")
    engine = FakeEngine()
    asked = InferenceSettings(device="cpu", dtype="bfloat16")
    settings = Settings(tmp_path, str(tmp_path / "tiny"), inference=asked)
    model, states, advanced = _run(settings, engine)
    ready = Ready("tiny", "r7", "cpu", "float32", "", CONTEXT_LENGTH, "fake", False)
    assert states == [
        Loading("tiny", "check files", 0, 4),
        Loading("tiny", "read tokenizer", 1, 4),
        Loading("tiny", "first", 2, 4),
        Loading("tiny", "second", 3, 4),
        ready,
    ]
    assert model is not None
    assert model.ready == ready
    assert model.stop_ids == {0, 2}  # from config.json, and from the template
    assert len(advanced) == 1
    assert engine.settings == LoadSettings("cpu", "bfloat16")


def test_a_cached_model_is_found(tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--Qwen--Qwen2.5-0.5B-Instruct"
    write_checkpoint(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, _, _ = _run(Settings(tmp_path, "0.5B"), environ=environ)
    assert model is not None
    assert (model.ready.model, model.ready.revision) == ("Qwen/Qwen2.5-0.5B-Instruct", commit)


@pytest.mark.parametrize("stand_in", [True, False])
def test_the_starter_stands_in_only_when_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: bool
) -> None:
    write_checkpoint(tmp_path / "starter")
    monkeypatch.setattr(bootstrap, "starter_directory", lambda: tmp_path / "starter")
    environ = {"HF_HUB_CACHE": str(tmp_path / "empty")}
    model, states, _ = _run(Settings(tmp_path, "auto"), environ=environ, stand_in=stand_in)
    if stand_in:
        assert model is not None
        assert model.ready.stand_in
        assert model.ready.model == "starter"
    else:
        assert model is None
        assert isinstance(states[-1], NotAvailable)


def test_a_model_that_is_not_there_is_not_available(tmp_path: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, states, _ = _run(Settings(tmp_path, "7B"), environ=environ)
    assert model is None
    assert len(states) == 1
    assert isinstance(states[0], NotAvailable)


def test_a_broken_directory_fails_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    model, states, _ = _run(Settings(tmp_path, str(tmp_path)))
    assert model is None
    assert isinstance(states[-1], Failed)
    assert states[-1].code == "model_config_invalid"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ShammahError("out_of_memory", "too big", "smaller"), "out_of_memory"),
        (MemoryError(), "load_failed"),
        (ImportError("No module named 'torch'"), "load_failed"),
    ],
)
def test_a_failed_load_is_a_state(tmp_path: Path, error: Exception, code: str) -> None:
    def fail() -> None:
        raise error

    write_checkpoint(tmp_path)
    model, states, _ = _run(Settings(tmp_path, str(tmp_path)), FakeEngine(fail))
    assert model is None
    last = states[-1]
    assert isinstance(last, Failed)
    assert last.code == code
    assert last.request_id == ""
