"""The states of the local model, and the way through them."""

from __future__ import annotations

import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import (
    Downloading,
    Failed,
    Loading,
    NotAvailable,
    Ready,
)
from shammah.bus.transfers import Fetched, FetchProgress, Transfer
from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import InferenceSettings, Settings
from shammah.supervision import model_list
from shammah.supervision.download import FetchReply
from shammah.terminal.wording import describe_state
from tests.fakes.engines import only
from tests.fakes.gguf_files import gguf_file
from tests.real.models import CONTEXT_LENGTH, write_checkpoint, write_manifest
from tests.unit.models.test_gguf_files import pull
from workers.inference.engine import EngineFacts, EngineSpec, LoadObserver, LoadSettings
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup import bootstrap
from workers.inference.startup.acquisition import Acquisition
from workers.inference.startup.bootstrap import Bootstrap
from workers.inference.startup.loading import LoadedModel
from workers.inference.startup.transition import GeneratorState
from workers.listing import RemoteFile, RepositoryListing
from workers.manifest import Manifest, dump_manifest, manifest_path
from workers.text.model_text import ModelText

SMALLEST = "Qwen/Qwen2.5-0.5B-Instruct"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATIENCE_S = 60.0


def cache_model(cache: Path, *, whole: bool = True) -> Path:
    """A snapshot as the library lays it out; ``whole``: with our manifest."""
    repository = cache / f"models--{SMALLEST.replace('/', '--')}"
    snapshot = write_checkpoint(repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    if whole:
        files = tuple(
            RemoteFile(path.name, path.stat().st_size, None, "0" * 40)
            for path in snapshot.iterdir()
        )
        listing = RepositoryListing(SMALLEST, COMMIT, "", files)
        manifest_path(snapshot).parent.mkdir()
        manifest_path(snapshot).write_text(dump_manifest(Manifest(listing)))
    return snapshot


def progress(done: int) -> FetchProgress:
    return FetchProgress("", Transfer(SMALLEST, COMMIT, "running", done, 100, 5.0, 7.0))


def fetched(directory: Path) -> Fetched:
    return Fetched("", SMALLEST, COMMIT, str(directory))


class ScriptedSource:
    """Says ``replies`` to every fetch."""

    def __init__(
        self, replies: list[FetchReply], repair: Callable[[], object] = lambda: None
    ) -> None:
        self.replies = replies
        self.fetched: list[str] = []
        self.repaired: list[str] = []
        self._repair = repair

    def fetch(self, model_id: str) -> ScriptedSource:
        self.fetched.append(model_id)
        return self

    def repair(self, model_id: str) -> None:
        self.repaired.append(model_id)
        self._repair()

    def leave(self) -> None:
        raise AssertionError("nobody leaves")

    def __iter__(self) -> Iterator[FetchReply]:
        return iter(self.replies)


class LiveSource:
    """Says what a test says, when it says it."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.heard = 0  # replies that were dealt with
        self.started: Callable[[], None] = lambda: None
        self._replies: queue.SimpleQueue[FetchReply] = queue.SimpleQueue()

    def say(self, reply: FetchReply) -> None:
        self._replies.put(reply)

    def fetch(self, model_id: str) -> LiveSource:
        self.fetched.append(model_id)
        return self

    def repair(self, model_id: str) -> None:
        raise AssertionError("nothing is damaged")

    def leave(self) -> None:
        self.say(Failed("cancelled", "Cancelled."))

    def __iter__(self) -> Iterator[FetchReply]:
        self.started()
        while True:
            reply = self._replies.get(timeout=PATIENCE_S)
            yield reply
            self.heard += 1
            if not isinstance(reply, FetchProgress):
                return


class FakeEngine:
    """Loads nothing; ``act`` happens in its second stage."""

    name = "fake"
    stages = ("first", "second")
    active = 0
    waiting = 0

    def __init__(self, act: Callable[[], None] = lambda: None) -> None:
        self.act = act
        self.settings: LoadSettings | None = None
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

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
        environ=options.get("environ", {}),
        machine=Machine(4 * GIB),
        engines=options.get("engines") or only(lambda: used),
        source=options.get("source"),
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
    assert engine.settings == LoadSettings("cpu", "bfloat16", home=tmp_path)


@pytest.fixture
def gguf_engines(tmp_path: Path) -> Mapping[str, EngineSpec]:
    text = ModelText.load(write_checkpoint(tmp_path / "text"))
    table = only(FakeEngine)
    spec = replace(table["fake"], formats=("gguf",), read_text=lambda checkpoint: text)
    return {"fake": spec}


class TestAGgufFile:
    NAME = "acme/tiny:tiny.gguf"

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT / "tiny.gguf"
        path.parent.mkdir(parents=True)
        path.write_bytes(gguf_file())
        return path

    def test_of_the_hub_is_fetched(
        self, tmp_path: Path, file: Path, gguf_engines: Mapping[str, EngineSpec]
    ) -> None:
        source = ScriptedSource([Fetched("", self.NAME, COMMIT, str(file))])
        environ = {"HF_HUB_CACHE": str(tmp_path / "elsewhere")}
        model, _, _ = _run(
            Settings(tmp_path, self.NAME), environ=environ, source=source, engines=gguf_engines
        )
        assert source.fetched == [self.NAME]
        assert model is not None
        assert (model.ready.model, model.ready.revision) == (self.NAME, COMMIT)
        assert model.ready.context_length == 64
        assert model.directory == file
        assert 1 in model.stop_ids

    def test_of_the_hub_is_repaired(
        self, tmp_path: Path, file: Path, gguf_engines: Mapping[str, EngineSpec]
    ) -> None:
        (tmp_path / "models--acme--tiny" / "refs").mkdir()
        (tmp_path / "models--acme--tiny" / "refs" / "main").write_text(COMMIT)
        listed = (RemoteFile(file.name, len(gguf_file()), "b" * 64, None),)
        listing = RepositoryListing(self.NAME, COMMIT, "", listed)
        manifest_path(file).parent.mkdir()
        manifest_path(file).write_text(dump_manifest(Manifest(listing)))
        file.write_bytes(bytes(len(gguf_file())))
        source = ScriptedSource([], repair=lambda: file.write_bytes(gguf_file()))
        model, _, _ = _run(
            Settings(tmp_path, self.NAME),
            environ={"HF_HUB_CACHE": str(tmp_path)},
            source=source,
            engines=gguf_engines,
        )
        assert source.repaired == [self.NAME]
        assert model is not None
        assert "A damaged file was downloaded again." in model.ready.note

    def test_of_another_program_is_not(
        self, tmp_path: Path, gguf_engines: Mapping[str, EngineSpec]
    ) -> None:
        blob = pull(tmp_path, "registry.ollama.ai/library/tiny/latest", "no GGUF file")
        source = ScriptedSource([])
        model, states, _ = _run(
            Settings(tmp_path, "ollama:tiny"),
            environ={"OLLAMA_MODELS": str(tmp_path)},
            source=source,
            engines=gguf_engines,
        )
        assert (model, source.repaired) == (None, [])
        last = states[-1]
        assert isinstance(last, Failed)
        assert blob.name in last.message
        assert last.hint.startswith("Download it again with ollama")


def test_a_cached_model_is_found(tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path)
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    source = ScriptedSource([])
    model, states, _ = _run(Settings(tmp_path, "0.5B"), environ=environ, source=source)
    assert model is not None
    assert (model.ready.model, model.ready.revision) == (SMALLEST, snapshot.name)
    assert isinstance(states[0], Loading)
    assert source.fetched == []


# --- a model that is not here -------------------------------------------------------------


def test_a_missing_model_is_fetched_and_loaded(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "whole")
    source = ScriptedSource([progress(10), progress(90), fetched(directory)])
    engine = FakeEngine()
    environ = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    model, states, _ = _run(Settings(tmp_path, "0.5B"), engine, environ=environ, source=source)
    assert model is not None
    assert model.ready.model == SMALLEST
    assert source.fetched == [SMALLEST]
    assert states[:2] == [Downloading(SMALLEST), Downloading(SMALLEST, 10, 100, 5.0, 7.0)]
    assert isinstance(states[2], Loading)  # the second report came within a second
    assert engine.prepared == 1


@pytest.mark.parametrize(
    ("code", "expected"),
    [("hub_unreachable", NotAvailable), ("model_gated", Failed), ("download_cancelled", Failed)],
)
def test_no_network_is_told_apart_from_a_failure(tmp_path: Path, code: str, expected: type) -> None:
    source = ScriptedSource([Failed(code, "so it is", "do this")])
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, states, _ = _run(Settings(tmp_path, "7B"), environ=environ, source=source)
    assert model is None
    assert isinstance(states[-1], expected)
    told = describe_state(states[-1])
    assert "so it is" in told


def test_offline_nobody_is_asked(tmp_path: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, states, _ = _run(Settings(tmp_path, "7B"), environ=environ)
    assert model is None
    (state,) = states
    assert isinstance(state, NotAvailable)
    assert "Qwen/Qwen2.5-7B-Instruct is not on this machine" in state.reason
    assert "HF_HUB_OFFLINE" in state.reason


@pytest.mark.parametrize("source", [True, False])
def test_what_another_program_left_is_used_when_nothing_can_be_fetched(
    tmp_path: Path, source: bool
) -> None:
    cache_model(tmp_path, whole=False)
    asked = ScriptedSource([Failed("hub_unreachable", "no", "")]) if source else None
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, _, _ = _run(Settings(tmp_path, "0.5B"), environ=environ, source=asked)
    assert model is not None
    assert model.ready.model == SMALLEST


def test_but_not_if_it_is_half_a_model(tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path, whole=False)
    (snapshot / "model.safetensors").unlink()
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, states, _ = _run(
        Settings(tmp_path, "0.5B"),
        environ=environ,
        source=ScriptedSource([Failed("hub_unreachable", "no", "")]),
    )
    assert model is None
    assert isinstance(states[-1], NotAvailable)


def test_a_damaged_file_is_repaired_and_the_model_loaded(tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path)
    weights = (snapshot / "model.safetensors").read_bytes()
    (snapshot / "model.safetensors").write_bytes(bytes(8) + weights[8:])

    source = ScriptedSource(
        [], repair=lambda: (snapshot / "model.safetensors").write_bytes(weights)
    )
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, _, _ = _run(Settings(tmp_path, "0.5B"), environ=environ, source=source)
    assert model is not None
    assert source.repaired == [SMALLEST]
    assert "downloaded again" in model.ready.note


def test_a_damaged_file_that_cannot_be_repaired_is_a_failure(tmp_path: Path) -> None:
    snapshot = cache_model(tmp_path)
    weights = (snapshot / "model.safetensors").read_bytes()
    (snapshot / "model.safetensors").write_bytes(bytes(8) + weights[8:])
    source = ScriptedSource([])
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    model, states, _ = _run(Settings(tmp_path, "0.5B"), environ=environ, source=source)
    assert model is None
    assert isinstance(states[-1], Failed)
    assert states[-1].code == "model_corrupt"
    assert source.repaired == [SMALLEST]


# --- a stand-in ---------------------------------------------------------------------------


@pytest.fixture
def starter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = write_checkpoint(tmp_path / "starter")
    for module in (bootstrap, model_list):
        monkeypatch.setattr(module, "starter_directory", lambda: directory)
    return directory


def test_the_starter_stands_in_for_the_automatic_choice(tmp_path: Path, starter: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path / "empty")}
    model, _, _ = _run(Settings(tmp_path, "auto"), environ=environ)
    assert model is not None
    assert model.ready.fallback
    assert model.ready.model == "starter"
    assert SMALLEST in model.ready.note
    assert model.ready.missing == SMALLEST


def test_nothing_stands_in_where_there_is_no_starter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_list, "starter_directory", lambda: tmp_path / "none")
    environ = {"HF_HUB_CACHE": str(tmp_path / "empty")}
    model, states, _ = _run(Settings(tmp_path, "auto"), environ=environ)
    assert model is None
    assert isinstance(states[-1], NotAvailable)


class QuickAcquisition(Acquisition):
    """Begun, it has said already why it does not come."""

    def __init__(
        self,
        source: LiveSource,
        model_id: str,
        *,
        missed: Callable[[Failed], None],
        done: Callable[[Path | Failed], None],
        **options: Any,
    ) -> None:
        self._told = threading.Event()

        def note_missed(failure: Failed) -> None:
            missed(failure)
            self._told.set()

        def note_done(result: Path | Failed) -> None:
            done(result)
            self._told.set()

        super().__init__(source, model_id, missed=note_missed, done=note_done, **options)

    def start(self) -> None:
        super().start()
        assert self._told.wait(PATIENCE_S)


class StandIn:
    """A bootstrap with a starter, and a source that says what the test puts into it."""

    def __init__(
        self, tmp_path: Path, engine: FakeEngine | None = None, model: str = "auto"
    ) -> None:
        self.source = LiveSource()
        self.states: queue.SimpleQueue[GeneratorState] = queue.SimpleQueue()
        self.due = threading.Event()
        engines = iter([FakeEngine(), engine or FakeEngine(), FakeEngine()])
        self.bootstrap = Bootstrap(
            Settings(tmp_path, model),
            environ={"HF_HUB_CACHE": str(tmp_path / "hub")},
            machine=Machine(4 * GIB),
            engines=only(lambda: next(engines)),
            source=self.source,
            publish=self.states.put,
            advance=lambda: None,
            replacement_due=self.due.set,
        )

    def until(self, wanted: Callable[[GeneratorState], object]) -> GeneratorState:
        while not wanted(state := self.states.get(timeout=PATIENCE_S)):
            pass
        return state


def test_the_stand_in_answers_at_once_and_then_gives_way(tmp_path: Path, starter: Path) -> None:
    world = StandIn(tmp_path)
    model = world.bootstrap.run()
    assert model is not None
    assert model.ready.fallback
    world.source.say(progress(10))
    state = world.until(lambda state: isinstance(state, Ready) and state.successor)
    assert isinstance(state, Ready)
    assert (state.model, state.successor) == ("starter", Downloading(SMALLEST, 10, 100, 5.0, 7.0))
    assert not world.due.is_set()
    world.source.say(fetched(write_checkpoint(tmp_path / "whole")))
    assert world.due.wait(PATIENCE_S)
    successor = world.bootstrap.replace()
    assert successor is not None
    assert (successor.ready.model, successor.ready.fallback) == (SMALLEST, False)


def test_a_successor_that_cannot_be_loaded_leaves_the_stand_in(
    tmp_path: Path, starter: Path
) -> None:
    def refuse() -> None:
        raise ShammahError("model_unsupported", "It needs too much.", "Name another.")

    world = StandIn(tmp_path, FakeEngine(refuse))
    assert world.bootstrap.run() is not None
    world.source.say(fetched(write_checkpoint(tmp_path / "whole")))
    assert world.due.wait(PATIENCE_S)
    model = world.bootstrap.replace()
    assert model is not None
    assert model.ready.fallback
    assert "It needs too much." in model.ready.note
    assert model.ready.missing == ""  # it is here


def test_a_successor_that_never_comes_leaves_the_stand_in_with_the_reason(
    tmp_path: Path, starter: Path
) -> None:
    world = StandIn(tmp_path)
    assert world.bootstrap.run() is not None
    world.source.say(Failed("model_gated", "It is gated.", "Log in."))
    state = world.until(lambda state: isinstance(state, Ready) and state.note)
    assert isinstance(state, Ready)
    assert state.fallback
    assert "It is gated. Log in." in state.note
    assert state.missing == SMALLEST
    assert not world.due.is_set()


@pytest.mark.parametrize("code", ["hub_unreachable", "model_gated"])
def test_a_successor_that_is_given_up_before_the_stand_in_is_looked_at(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """A download worker that runs already says at once that there is no network."""
    world = StandIn(tmp_path)
    monkeypatch.setattr(bootstrap, "Acquisition", QuickAcquisition)
    world.source.say(Failed(code, "It is no use.", "Wait."))
    model = world.bootstrap.run()
    assert model is not None
    state = world.until(lambda state: not isinstance(state, Downloading | Loading))
    assert isinstance(state, Ready)
    assert (state, state.fallback, state.successor) == (model.ready, True, None)
    assert "It is no use. Wait." in state.note
    assert state.missing == SMALLEST
    world.bootstrap.stop()


def test_a_hub_that_cannot_be_reached_is_tried_again(
    tmp_path: Path, starter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "retry_pauses", lambda: itertools.repeat(0.0))
    world = StandIn(tmp_path)
    assert world.bootstrap.run() is not None
    world.source.say(Failed("hub_unreachable", "No network.", "Plug it in."))
    state = world.until(lambda state: isinstance(state, Ready) and state.note)
    assert isinstance(state, Ready)
    assert "No network." in state.note
    world.source.say(fetched(write_checkpoint(tmp_path / "whole")))
    assert world.due.wait(PATIENCE_S)
    assert world.source.fetched == [SMALLEST, SMALLEST]


def test_a_stop_ends_the_wait_for_a_download(tmp_path: Path) -> None:
    world = StandIn(tmp_path, model=SMALLEST)
    world.source.started = world.bootstrap.stop  # as soon as it waits
    assert world.bootstrap.run() is None
    assert not isinstance(world.bootstrap.state, NotAvailable | Failed)


# --- a load -------------------------------------------------------------------------------


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
        (MemoryError(), "out_of_memory"),
        (RuntimeError("surprise"), "load_failed"),
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
