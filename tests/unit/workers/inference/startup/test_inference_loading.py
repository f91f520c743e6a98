"""How a load asks for less and less."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import GIB, LocatedModel, Machine
from shammah.models.footprint import SHORT_CONTEXT
from shammah.settings.model import InferenceSettings
from tests.real.models import CONTEXT_LENGTH, write_checkpoint
from tests.unit.workers.inference.startup.test_inference_attempts import Kernel
from workers.inference.engine import EngineFacts, LoadObserver, LoadSettings
from workers.inference.engines.table import ENGINES
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.startup.loading import Loader
from workers.text.model_text import ModelText

LONG = 32_768
MODELS = ("big", "middle", "small")

Load = Callable[[Checkpoint, LoadSettings], None]


class PickyEngine:
    """Loads when ``load`` does not object."""

    stages = ("weigh",)
    active = waiting = 0

    def __init__(self, load: Load, name: str) -> None:
        self._load = load
        self.name = name

    def prepare(self) -> None:
        """Nothing to import."""

    def load(
        self, checkpoint: Checkpoint, settings: LoadSettings, observer: LoadObserver
    ) -> EngineFacts:
        self._load(checkpoint, settings)
        dtype = "bfloat16" if settings.lean else "float32"
        quantization = "" if settings.quantization == "auto" else settings.quantization
        return EngineFacts(self.name, "cpu", dtype, quantization, settings.context_length)


class World:
    """A big model and two smaller ones; what is tried is written down."""

    def __init__(self, directory: Path, kernel: Kernel) -> None:
        self.models = [LocatedModel(name, directory / name, "big") for name in MODELS]
        self.big = self.models[0]
        self.kernel = kernel
        self.tried: list[tuple[str, int, str]] = []
        self.asked = InferenceSettings(engine="transformers")
        self.located_models: list[str] = []
        self.machine = Machine(16 * GIB)
        self.installed: tuple[str, ...] = ()

    def load(self, accepts: Callable[[str, LoadSettings], bool] = lambda name, s: True) -> str:
        """What a new worker says when it is ready, as the model and the note."""

        def weigh(checkpoint: Checkpoint, settings: LoadSettings) -> None:
            name = checkpoint.directory.name
            self.tried.append((name, settings.context_length, settings.quantization))
            if not accepts(name, settings):
                raise ShammahError("out_of_memory", "It needs 9 GiB, and 4 are free.", "Buy more.")

        self._attempts = self.kernel.attempts()
        loader = Loader(
            self.asked,
            machine=self.machine,
            engines={
                name: replace(
                    engine,
                    make=partial(PickyEngine, weigh, name),
                    obstacle=lambda checkpoint: "",
                    requires=() if name in self.installed else engine.requires,
                )
                for name, engine in ENGINES.items()
            },
            attempts=self._attempts,
            smaller=self._smaller,
            watcher=self,
        )
        ready = loader.load(self.big).ready
        return f"{ready.model}: {ready.note}"

    def killed(self) -> None:
        self.kernel.kill()

    def _smaller(self, located: LocatedModel) -> LocatedModel | None:
        rest = self.models[self.models.index(located) + 1 :]
        return rest[0] if rest else None

    def located(self, model: str, stages: int) -> None:
        self.located_models.append(model)

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def world(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    for name in MODELS:
        shutil.copytree(checkpoint, tmp_path / name)
    return World(tmp_path, Kernel(tmp_path, monkeypatch))


def test_enough_memory_is_no_step(world: World) -> None:
    assert world.load() == "big: "
    assert world.tried == [("big", 0, "auto")]
    assert CONTEXT_LENGTH < SHORT_CONTEXT


def test_one_rung_after_the_other(world: World) -> None:
    with pytest.raises(ShammahError, match="9 GiB") as refused:
        world.load(lambda name, settings: False)
    assert (refused.value.code, refused.value.hint) == ("out_of_memory", "Buy more.")
    of_each = [(0, "auto"), (4096, "auto"), (4096, "int4")]
    assert world.tried == [(m.name, *rung) for m in world.models for rung in of_each]


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ("auto", "big runs with bfloat16 and a context of 4,096 tokens."),
        ("int4", "big runs with 4-bit weights and a context of 4,096 tokens."),
    ],
)
def test_the_note_says_what_was_given_up(world: World, quantization: str, said: str) -> None:
    note = world.load(lambda name, s: s.lean and s.quantization == quantization)
    assert note == f"big: It needs 9 GiB, and 4 are free. {said}"


def test_a_smaller_model_begins_whole(world: World) -> None:
    note = world.load(lambda name, settings: name == "middle")
    assert note == "middle: It needs 9 GiB, and 4 are free. middle answers instead of big."
    assert world.tried[-1] == ("middle", 0, "auto")
    note = world.load(lambda name, s: name == "small" and s.quantization == "int4")
    assert note.endswith(
        "small runs with 4-bit weights and a context of 4,096 tokens instead of big."
    )


def test_a_smaller_model_that_is_broken_is_left_out(world: World) -> None:
    (world.models[1].directory / "config.json").write_text("{")
    assert world.load(lambda name, settings: name == "small").startswith("small: ")
    assert "middle" not in {name for name, *_ in world.tried}


@pytest.mark.parametrize(
    "code", ["settings_conflict", "quantization_unavailable", "model_unsupported"]
)
def test_a_width_that_is_not_to_be_had_is_left_out(world: World, code: str) -> None:
    def accepts(name: str, settings: LoadSettings) -> bool:
        if settings.quantization == "int4":
            raise ShammahError(code, "There are no 4 bits here.", "")
        return name == "middle"

    note = world.load(accepts)
    assert note == "middle: It needs 9 GiB, and 4 are free. middle answers instead of big."


@pytest.mark.parametrize("code", ["model_corrupt", "settings_conflict"])
def test_another_failure_is_no_reason_to_step_down(world: World, code: str) -> None:
    def accepts(name: str, settings: LoadSettings) -> bool:
        raise ShammahError(code, "It is damaged.", "Fetch it.")

    with pytest.raises(ShammahError, match="damaged"):
        world.load(accepts)
    assert world.tried == [("big", 0, "auto")]


def test_memory_that_runs_out_in_an_unforeseen_place_is_a_step_down(world: World) -> None:
    def accepts(name: str, settings: LoadSettings) -> bool:
        if not settings.lean:
            raise MemoryError
        return True

    assert "Memory ran out while big was loading." in world.load(accepts)
    with pytest.raises(RuntimeError, match="broken"):
        world.load(lambda name, settings: (_ for _ in ()).throw(RuntimeError("broken")))


class TestAGPU:
    """Chosen for a model, and not to be had."""

    @pytest.fixture
    def world(self, world: World) -> World:
        world.asked = InferenceSettings()
        world.machine = Machine(16 * GIB, gpu_memory=24 * GIB)
        return world

    def test_is_used_where_it_can_be(self, world: World) -> None:
        assert world.load(lambda name, settings: settings.device == "cuda") == "big: "

    def test_that_is_busy_gives_way_to_the_processor(self, world: World) -> None:
        said = world.load(lambda name, settings: settings.device == "cpu")
        assert said.startswith("big: It needs 9 GiB, and 4 are free. big runs on the CPU")
        assert world.tried == [("big", 0, "auto"), ("big", 0, "auto")]

    @pytest.mark.parametrize(
        "error",
        [
            ShammahError("device_unavailable", "torch found no usable cuda device.", "x"),
            RuntimeError("CUDA error: no kernel image is available"),
        ],
    )
    def test_that_torch_refuses_gives_way_to_the_processor(
        self, world: World, error: Exception
    ) -> None:
        def accepts(name: str, settings: LoadSettings) -> bool:
            if settings.device == "cuda":
                raise error
            return True

        said = world.load(accepts)
        assert "usable cuda device" in said or "use the GPU" in said
        assert "big runs on the CPU" in said

    def test_with_vllm_computes_by_transformers_what_that_does_not_take(self, world: World) -> None:
        world.installed = ("vllm",)

        def accepts(name: str, settings: LoadSettings) -> bool:
            if len(world.tried) == 1:
                raise ShammahError("model_unsupported", "vLLM: there is no such layer.", "")
            assert settings.device == "cuda"
            return True

        assert world.load(accepts) == "big: "
        assert world.tried == [("big", 0, "auto"), ("big", 0, "auto")]
        world.tried.clear()
        world.asked = InferenceSettings(engine="vllm")
        with pytest.raises(ShammahError, match="no such layer"):
            world.load(accepts)

    def test_gets_fewer_bits_before_a_smaller_model_does(self, world: World) -> None:
        said = world.load(
            lambda name, settings: settings.device == "cuda" and settings.quantization == "int4"
        )
        assert said.startswith("big: It needs 9 GiB, and 4 are free. big runs with 4-bit weights")
        world.tried.clear()
        assert world.load(lambda name, settings: name == "middle").startswith("middle: ")

    def test_a_processor_that_has_been_tried_is_not_tried_again_after_a_kill(
        self, world: World
    ) -> None:
        world.load(lambda name, settings: settings.device == "cpu")
        world.killed()
        world.load(lambda name, settings: settings.device == "cpu")
        assert world.tried[-1] == ("big", SHORT_CONTEXT, "int4")

    def test_that_was_set_is_not_given_up(self, world: World) -> None:
        world.asked = InferenceSettings(device="cuda")

        def accepts(name: str, settings: LoadSettings) -> bool:
            assert settings.device == "cuda"
            raise ShammahError("device_unavailable", "There is none.", "")

        with pytest.raises(ShammahError, match="There is none"):
            world.load(accepts)


# --- after a kill -------------------------------------------------------------------------


def test_after_a_kill_the_next_rung_is_the_first(world: World) -> None:
    world.load()
    world.killed()
    said = "big: The system killed big because memory ran out. big runs with bfloat16"
    assert world.load().startswith(said)
    assert world.tried == [("big", 0, "auto"), ("big", 4096, "auto")]


def test_a_rung_that_changes_nothing_is_no_step(world: World) -> None:
    world.asked = InferenceSettings()
    world.load()
    world.killed()
    assert world.load().startswith("big: The system killed big because memory ran out. big ")
    assert world.tried == [("big", 0, "auto"), ("big", 4096, "int4")]
    world.killed()
    assert world.load().startswith("middle: ")


def test_a_kill_after_a_refusal_counts_from_there(world: World) -> None:
    world.load(lambda name, settings: settings.lean)
    world.killed()
    world.load()
    assert world.tried[-1] == ("big", 4096, "int4")


def test_after_the_third_kill_nothing_is_tried_by_itself(world: World) -> None:
    for _ in range(3):
        world.load()
        world.killed()
    assert len(world.tried) == 3
    for _ in range(2):
        with pytest.raises(ShammahError) as refused:
            world.load()
        assert refused.value.code == "out_of_memory"
        assert "killed big 3 times because memory ran out" in refused.value.message
        assert refused.value.message.count("GiB") == 2
        assert "/load" in refused.value.hint
    assert len(world.tried) == 3


def test_nor_when_there_is_nothing_left(world: World) -> None:
    world.models = world.models[:1]
    world.asked = InferenceSettings(dtype="float32", quantization="none")
    world.load()
    world.killed()
    with pytest.raises(ShammahError, match="killed big once"):
        world.load()


def test_what_comes_next_is_written_down_for_those_who_lose_it(world: World) -> None:
    from shammah.supervision.oom_record import read_attempt

    told = []

    def accepts(name: str, settings: LoadSettings) -> bool:
        attempt = read_attempt(world.kernel.path)
        assert attempt is not None
        told.append((attempt.model, attempt.next_step))
        return False

    with pytest.raises(ShammahError):
        world.load(accepts)
    assert told[:4] == [
        ("big", "Retrying with less context and 16-bit numbers."),
        ("big", "Retrying with 4-bit weights."),
        ("big", "Loading middle instead."),
        ("middle", "Retrying with less context and 16-bit numbers."),
    ]
    assert told[-1] == ("small", "")


def test_the_tokenizer_is_read_while_the_engine_loads(world: World) -> None:
    together = threading.Barrier(2, timeout=60)
    native = ENGINES["native"]

    def read_text(checkpoint: Checkpoint) -> ModelText:
        together.wait()
        return native.read_text(checkpoint)

    def load(checkpoint: Checkpoint, settings: LoadSettings) -> None:
        together.wait()

    spec = replace(native, make=lambda: PickyEngine(load, "native"), read_text=read_text)
    loader = Loader(
        InferenceSettings(), machine=world.machine, engines={"native": spec}, watcher=world
    )
    assert loader.load(world.big).ready.engine == "native"
