#!/usr/bin/env python3
"""A conversation whose worker has ended: how soon it goes on, and what a kill can cost.

One process computes a conversation, keeps it on disk and goes on with it from memory; others go on
with it from the file, and from the file when it is not in the page cache. The figure to quote is
the ratio of the times to the first token (the model is loaded by then).

    .venv/bin/python scripts/bench/random_model.py --shape 0.5B /tmp/model
    .venv/bin/python scripts/bench/resume.py --model /tmp/model --prompt 16000
    .venv/bin/python scripts/bench/resume.py --prompt 1500 --kills 50

With --kills a writer is killed at a random moment so many times; each time the next process must
compute the same logits, to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from generate import Quiet, prompts

from shammah.models.catalogue import starter_directory
from shammah.storage.kept import kept_directory
from workers.inference.engine import LoadSettings, SequenceRequest
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Logits, Span
from workers.inference.scheduling.batched_engine import BatchedEngine
from workers.inference.scheduling.sampling import SamplingPlan

ANSWER, QUESTION = 16, 24
LONGEST_WRITE_S = 0.3
"""A kill comes within so many seconds after the writing has begun."""


class Watched(NativeRunner):
    """Notes every bit of its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.noted = hashlib.sha256()

    def forward(self, spans: Sequence[Span]) -> list[Logits]:
        found = super().forward(spans)
        for rows in found:
            self.noted.update(np.ascontiguousarray(rows))
        return found


class Process:
    """An engine that has just been loaded."""

    def __init__(self, model: Path, home: Path, context: int) -> None:
        self.runner = Watched()
        self.engine = BatchedEngine(self.runner, speculates=False)
        settings = LoadSettings(quantization="int8", context_length=context, home=home)
        self.engine.load(inspect_checkpoint(model), settings, Quiet())

    def ask(self, prompt: tuple[int, ...]) -> dict[str, Any]:
        """Answer; seconds to the first token, the logits' digest, and tokens read from the disk."""
        began, self.runner.noted = time.perf_counter(), hashlib.sha256()
        plan, nobody = SamplingPlan(), frozenset[int]()
        self.engine.submit(SequenceRequest("a", prompt, plan, ANSWER, nobody, conversation="c"))
        first, restored = 0.0, 0
        while self.engine.active:
            for result in self.engine.step():
                assert result.failure is None, result.failure
                restored += result.restored
                if result.generated and not first:
                    first = time.perf_counter() - began
        return {"ttft_s": first, "logits": self.runner.noted.hexdigest(), "restored": restored}


def conversation(options: argparse.Namespace, *, question: bool) -> tuple[int, ...]:
    talk = prompts(1, options.prompt, 1)[0]
    return (*talk, *prompts(1, QUESTION, 1000)[0]) if question else talk


def play(options: argparse.Namespace) -> None:
    """What one process does."""
    process = Process(options.model, options.home, options.prompt + 4 * QUESTION + ANSWER)
    found = process.ask(conversation(options, question=options.play == "resume"))
    print(json.dumps(found), flush=True)
    began = time.perf_counter()
    while options.play == "write":
        process.engine.keep(lambda: False, last=True)
        print(json.dumps({"write_s": time.perf_counter() - began}), flush=True)
        # With kills there must be something to write again.
        print(
            json.dumps(process.ask(conversation(options, question=not options.kills))), flush=True
        )
        if not options.kills:
            return


def start(options: argparse.Namespace, part: str) -> subprocess.Popen[str]:
    arguments = ("--model", options.model, "--home", options.home, "--prompt", options.prompt)
    command = [sys.executable, __file__, *map(str, arguments), "--play", part]
    command += ["--kills", str(options.kills)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def run(options: argparse.Namespace, part: str) -> list[dict[str, Any]]:
    lines = start(options, part).communicate()[0].splitlines()
    return [json.loads(line) for line in lines]


def measure(options: argparse.Namespace) -> None:
    [computed, written, memory] = run(options, "write")
    [file] = kept_directory(options.home).glob("*.kv")
    size = file.stat().st_size
    [warm] = run(options, "resume")
    descriptor = os.open(file, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    [dropped] = run(options, "resume")
    assert warm["logits"] == dropped["logits"] == memory["logits"], "other logits"
    ratios = {
        name: one["ttft_s"] / computed["ttft_s"]
        for name, one in {"memory": memory, "warm": warm, "dropped": dropped}.items()
    }
    print(
        f"{options.prompt:,} tokens, {size / 1e6:.1f} MB, written in {written['write_s']:.2f} s. "
        f"First token: computed {computed['ttft_s']:.2f} s; of the next turn from memory "
        f"{memory['ttft_s']:.2f} s = {ratios['memory']:.4f} of that, from the file "
        f"{warm['ttft_s']:.2f} s = {ratios['warm']:.4f}, from the file dropped from the page cache "
        f"{dropped['ttft_s']:.2f} s = {ratios['dropped']:.4f}; the same logits"
    )


def kill(options: argparse.Namespace) -> None:
    cold = Process(options.model, options.home / "cold", 2 * options.prompt)
    wanted = cold.ask(conversation(options, question=True))["logits"]
    dice, restored = random.Random(options.seed), 0
    for _ in range(options.kills):
        writer = start(options, "write")
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(dice.uniform(0, LONGEST_WRITE_S))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        found = Process(options.model, options.home, 2 * options.prompt).ask(
            conversation(options, question=True)
        )
        assert found["logits"] == wanted, "other logits"
        restored += bool(found["restored"])
        if dice.random() < 0.5:  # so that the next one has to begin anew
            for file in kept_directory(options.home).glob("*.kv"):
                file.unlink()
    print(
        f"{options.kills} kills: every answer had the logits of a cold one; {restored} came back "
        f"warm, {options.kills - restored} were computed"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--play", choices=("write", "resume"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.play:
        play(options)
        return
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        options.home = Path(directory)
        (kill if options.kills else measure)(options)


if __name__ == "__main__":
    main()
