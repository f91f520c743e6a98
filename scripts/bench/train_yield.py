#!/usr/bin/env python3
"""Time to the first token of a question while a training goes on, against an idle machine.

Both workers are real ones. Questions are asked in turns, one while nothing else happens and one
in the middle of a training; the median of each and their ratio are told, with the time that one
training step takes alone. Demanded: at most 1.3 times the idle time, plus one step::

    scripts/bench/train_yield.py
    scripts/bench/train_yield.py --questions 15 --json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from shammah.bus.client import Peer, new_request_id
from shammah.bus.endpoints import open_endpoints
from shammah.bus.messages import (
    ChatMessage,
    ClientInfo,
    Done,
    Failed,
    Generate,
    Ready,
    Sampling,
    Token,
)
from shammah.bus.training import Train, TrainingProgress, TrainProgress
from shammah.settings.load import load_settings
from shammah.supervision.lifecycle import ensure, stop, worker_spec

PATIENCE_S = 300.0
CORRECTIONS = 24


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--questions", type=int, default=9)
    parser.add_argument("--json", action="store_true", dest="as_json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as directory:
        os.environ |= {"SHAMMAH_HOME": directory, "XDG_RUNTIME_DIR": directory}
        figures = measure(options, Path(directory))
    if options.as_json:
        print(json.dumps(figures))
    else:
        print(
            f"first token: idle {figures['idle_s']:.3f} s, during training "
            f"{figures['training_s']:.3f} s (worst {figures['worst_s']:.3f}); one step "
            f"{figures['step_s']:.2f} s; allowed {figures['allowed_s']:.3f} s"
        )
    return 0 if figures["training_s"] <= figures["allowed_s"] else 1


def measure(options: argparse.Namespace, home: Path) -> dict[str, float]:
    settings = load_settings(os.environ, options.model)
    endpoints, client = open_endpoints(os.environ), ClientInfo("bench", os.getpid())
    examples = home / "examples.jsonl"
    lines = [
        {"prompt": f"Who made number {n}?", "response": f"Number {n} was made by Ines Takahashi."}
        for n in range(CORRECTIONS)
    ]
    examples.write_text("".join(json.dumps(line) + "\n" for line in lines))
    asking = ensure(worker_spec(settings, "inference", os.environ), endpoints, client)
    training: Peer | None = None
    try:
        wait(lambda: asking.latest and isinstance(asking.latest.status.state, Ready))
        ask(asking, 0)
        idle = [ask(asking, number) for number in range(1, options.questions + 1)]
        training = ensure(worker_spec(settings, "train", os.environ), endpoints, client)
        followed = Followed(
            training,
            Train(
                new_request_id(),
                options.model,
                str(examples),
                epochs=100,
                serve=False,
                on_battery=True,
            ),
        )
        wait(lambda: followed.step >= 2)
        step = followed.step_time()
        busy = []
        for number in range(1, options.questions + 1):
            reached = followed.step
            wait(lambda reached=reached: followed.step > reached or followed.ended)
            assert not followed.ended, followed.ended
            time.sleep(step * (number % 5) / 5)  # anywhere within a step
            busy.append(ask(asking, 100 + number))
        followed.task.cancel()
    finally:
        for peer, role in ((asking, "inference"), (training, "train")):
            if peer is not None:
                stop(role, endpoints, peer)
                peer.close()
    found = {
        "idle_s": statistics.median(idle),
        "training_s": statistics.median(busy),
        "worst_s": max(busy),
        "step_s": step,
    }
    return found | {"allowed_s": 1.3 * found["idle_s"] + step}


class Followed:
    """A training on its way."""

    def __init__(self, peer: Peer, train: Train) -> None:
        self.step = 0
        self.ended: object = None
        self.times: list[float] = []
        self.task = peer.begin(train)
        threading.Thread(target=self._follow, daemon=True).start()

    def step_time(self) -> float:
        """Seconds of a step without questions."""
        wait(lambda: len(self.times) >= 6 or self.ended)
        pairs = zip(self.times[1:], self.times[2:], strict=False)
        return statistics.median(later - earlier for earlier, later in pairs)

    def _follow(self) -> None:
        for reply in self.task:
            if isinstance(reply, TrainProgress):
                self._on_progress(reply.progress)
            else:
                self.ended = reply if not hasattr(reply, "ahead") else None

    def _on_progress(self, progress: TrainingProgress) -> None:
        if progress.step > self.step:
            self.step = progress.step
            self.times.append(time.monotonic())


def ask(peer: Peer, number: int) -> float:
    """Seconds to the first token of a question that shares no beginning with another."""
    question = f"{number} is a number. Say something about {number * 7 + 3} in two sentences."
    began = time.monotonic()
    first = 0.0
    messages = (ChatMessage("user", question),)
    for reply in peer.begin(
        Generate(new_request_id(), messages, Sampling(temperature=0.0), max_new_tokens=8)
    ):
        if isinstance(reply, Token) and not first:
            first = time.monotonic() - began
        if isinstance(reply, Failed):
            raise SystemExit(f"{reply.message} {reply.hint}")
        if isinstance(reply, Done):
            break
    return first


def wait(look: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit("nothing happened for too long")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
