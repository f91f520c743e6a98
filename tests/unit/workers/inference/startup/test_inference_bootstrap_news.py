"""What is known of a model that is not here yet is told as soon as anybody can hear it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.bus.messages import Failed, NotAvailable, Ready
from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import Settings
from tests.fakes.engines import only
from tests.fakes.sandbox import until
from tests.unit.workers.inference.startup.test_inference_bootstrap import (
    PATIENCE_S,
    FakeEngine,
    LiveSource,
    ScriptedSource,
    cache_model,
    progress,
)
from tests.unit.workers.inference.startup.test_inference_bootstrap import starter as starter
from workers.inference.startup.bootstrap import Bootstrap
from workers.inference.startup.transition import GeneratorState


class Importing(FakeEngine):
    """Its imports end when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.imported = threading.Event()

    def prepare(self) -> None:
        assert self.imported.wait(PATIENCE_S)


def make_bootstrap(
    cache: Path,
    model: str,
    source: ScriptedSource | LiveSource,
    publish: Callable[[GeneratorState], None],
    engine: FakeEngine | None = None,
) -> Bootstrap:
    used = engine or FakeEngine()
    return Bootstrap(
        Settings(cache, model),
        environ={"HF_HUB_CACHE": str(cache)},
        machine=Machine(4 * GIB),
        engines=only(lambda: used),
        source=source,
        publish=publish,
        advance=lambda: None,
    )


@pytest.mark.parametrize(
    ("code", "kind"), [("hub_unreachable", NotAvailable), ("model_gated", Failed)]
)
def test_why_it_does_not_come_is_told_while_the_imports_go_on(
    tmp_path: Path, code: str, kind: type[GeneratorState]
) -> None:
    states: list[GeneratorState] = []
    engine = Importing()
    source = ScriptedSource([Failed(code, "It does not come.")])
    bootstrap = make_bootstrap(tmp_path / "empty", "0.5B", source, states.append, engine)
    thread = threading.Thread(target=bootstrap.run)
    thread.start()
    try:
        until(lambda: isinstance(states[-1], kind) if states else False, "it is told", PATIENCE_S)
    finally:
        engine.imported.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert [type(state) for state in states].count(kind) == 1


def test_how_far_the_successor_is_was_told_while_the_stand_in_loaded(
    tmp_path: Path, starter: Path
) -> None:
    states: list[GeneratorState] = []
    source = LiveSource()
    told = threading.Event()

    def load() -> None:
        source.say(progress(40))
        until(lambda: source.heard, "it was heard", PATIENCE_S)
        told.set()

    bootstrap = make_bootstrap(
        tmp_path / "empty", "auto", source, states.append, FakeEngine(act=load)
    )
    model = bootstrap.run()
    assert told.is_set()
    assert model is not None
    ready = states[-1]
    assert isinstance(ready, Ready)
    assert ready.fallback
    assert ready.successor is not None
    assert (ready.successor.done, ready.successor.total) == (40, 100)
    bootstrap.stop()


def test_damage_that_cannot_be_mended_is_told_with_both_reasons(tmp_path: Path) -> None:
    weights = cache_model(tmp_path) / "model.safetensors"
    weights.write_bytes(bytes(8) + weights.read_bytes()[8:])

    def fail() -> None:
        raise ShammahError("hub_unreachable", "The Hub is away.", "Wait for it.")

    states: list[GeneratorState] = []
    bootstrap = make_bootstrap(tmp_path, "0.5B", ScriptedSource([], fail), states.append)
    assert bootstrap.run() is None
    failed = states[-1]
    assert isinstance(failed, Failed)
    assert failed.code == "model_corrupt"
    assert "model.safetensors is damaged" in failed.message
    assert "The Hub is away." in failed.message
    assert failed.hint == "Wait for it."
