"""A worker is killed while it writes a conversation to the disk: the next answers the same."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from shammah.storage.kept import kept_directory
from tests.fakes.observer import Observer
from tests.fakes.sandbox import LIMIT_S
from workers.inference.engine import LoadSettings, SequenceRequest
from workers.inference.engines.native import processor
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Logits, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan

pytestmark = [
    pytest.mark.skipif(bool(processor.obstacle()), reason="no native engine here"),
    pytest.mark.timeout(300),
]

ROOT = Path(__file__).resolve().parents[2]
FIRST = tuple(number * 37 % 2000 for number in range(600))
SECOND = (*FIRST, *range(100, 160))

WRITER = """
import os, signal, sys
from pathlib import Path
from tests.process import test_kept_kill as kill
from workers.inference.kept_conversations import KeptConversations

seen = []
whole = KeptConversations.write

def write(self, slot, enough, *, last):
    whole(self, slot, enough, last=last, at=at)

def at(stage):
    seen.append(stage)
    if len(seen) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

KeptConversations.write = write
loaded = kill.load(Path(sys.argv[1]), Path(sys.argv[2]))
kill.answer(loaded, kill.SECOND if sys.argv[4] == "more" else kill.FIRST)
loaded[0].keep(lambda: False, last=True)
print(*seen)
"""


class Watched(NativeRunner):
    """Notes every bit of the logits: what a random model says hangs on little."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.noted = hashlib.sha256()

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        found = super().forward(spans)
        for rows in found:
            self.noted.update(np.ascontiguousarray(rows))
        return found


def load(model: Path, home: Path) -> tuple[BatchedEngine, Watched]:
    runner = Watched()
    engine = BatchedEngine(runner)
    settings = LoadSettings(quantization="int8", kv_memory=0.1, home=home)
    engine.load(inspect_checkpoint(model), settings, Observer())
    runner.noted = hashlib.sha256()
    return engine, runner


def answer(
    loaded: tuple[BatchedEngine, Watched], prompt: tuple[int, ...]
) -> tuple[list[int], str, int]:
    """The greedy answer, all its logits, and how many tokens of the prompt were read from the
    disk."""
    (engine, runner), plan = loaded, SamplingPlan()
    engine.submit(SequenceRequest("a", prompt, plan, 12, frozenset(), conversation="c"))
    tokens, restored = list[int](), 0
    while engine.active:
        for result in engine.step():
            assert result.failure is None
            tokens += result.token_ids
            restored += result.restored
    return tokens, runner.noted.hexdigest(), restored


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = ROOT / "scripts" / "bench" / "random_model.py"
    spec = importlib.util.spec_from_file_location("random_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: Path = module.random_model(tmp_path_factory.mktemp("model") / "tiny", "tiny")
    return made


def write(model: Path, home: Path, kill_at: int, what: str = "first") -> list[str]:
    """The stages that a worker went through; none if it was killed at stage ``kill_at``."""
    command = [sys.executable, "-c", WRITER, str(model), str(home), str(kill_at), what]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert ended.returncode == (-signal.SIGKILL if kill_at else 0), ended.stderr
    return ended.stdout.split()


def test_a_kill_at_any_stage_costs_at_most_a_prefill(model: Path, tmp_path: Path) -> None:
    *cold, restored = answer(load(model, tmp_path / "cold"), SECOND)
    assert restored == 0
    other = (5, *SECOND[1:])
    assert answer(load(model, tmp_path / "cold"), other)[1] != cold[1]
    stages = write(model, tmp_path / "whole", 0)
    assert stages == ["begin", "block", "block", "block", "header", "end", "renamed"]
    for number, stage in enumerate(stages, 1):
        home = tmp_path / f"{number}"
        write(model, home, number)
        *warm, restored = answer(load(model, home), SECOND)
        assert (warm, restored) == (cold, 600 if stage == "renamed" else 0)
        drafts = [name for name in os.listdir(kept_directory(home)) if name.startswith(".")]
        assert len(drafts) == (0 if stage == "begin" or stage == "renamed" else 1)


def test_a_kill_leaves_the_file_of_before(model: Path, tmp_path: Path) -> None:
    *cold, _ = answer(load(model, tmp_path / "cold"), SECOND)
    write(model, tmp_path, 0)
    for number in range(1, 7):
        write(model, tmp_path, number, "more")
        assert answer(load(model, tmp_path), SECOND) == (*cold, 600)
