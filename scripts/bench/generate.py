#!/usr/bin/env python3
"""Eight answers at once: the worker's engine beside transformers, on the same model.

In one run, in turn: the engine with one request and with eight; transformers' ``generate`` on
a padded batch of the same eight; and, where its server can be started, ``transformers serve``
with eight clients. Every answer has the same prompt and output lengths. The figures to quote
are the ratios of tokens per second in all.

    .venv/bin/python scripts/bench/generate.py
    .venv/bin/python scripts/bench/generate.py --model DIRECTORY --rounds 5 --json
    .venv/bin/python scripts/bench/generate.py --serve     with transformers serve
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from shammah.models import starter_directory  # noqa: E402
from workers.inference.checkpoint import inspect_checkpoint  # noqa: E402
from workers.inference.choice import ENGINES  # noqa: E402
from workers.inference.engine import Engine, LoadSettings, SequenceRequest  # noqa: E402
from workers.inference.sampling import SamplingPlan  # noqa: E402

CLIENTS = 8
START_S = 120.0


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def prompts(count: int, length: int, salt: int) -> list[tuple[int, ...]]:
    """Different from round to round, so that no prefix is reused."""
    return [
        tuple(100 + (salt * 7919 + n * 613 + k * (31 + n)) % 20000 for k in range(length))
        for n in range(count)
    ]


def run_engine(engine: Engine, wanted: list[tuple[int, ...]], tokens: int) -> float:
    """Seconds until every answer has ended."""
    began = time.perf_counter()
    for number, prompt in enumerate(wanted):
        plan = SamplingPlan()
        engine.submit(SequenceRequest(str(number), prompt, plan, tokens, frozenset(), str(number)))
    while engine.active:
        for result in engine.step():
            assert result.failure is None, result.failure
    return time.perf_counter() - began


def load_engine(name: str, directory: Path) -> Engine:
    engine = ENGINES[name]()
    engine.load(inspect_checkpoint(directory), LoadSettings("auto"), Quiet())
    return engine


def padded_batch(directory: Path) -> Callable[[list[tuple[int, ...]], int], float]:
    """transformers' own way: one call for all of them."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()

    def run(wanted: list[tuple[int, ...]], tokens: int) -> float:
        ids = torch.tensor(wanted)
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
            )
        return time.perf_counter() - began

    return run


@contextlib.contextmanager
def transformers_serve(directory: Path) -> Iterator[Callable[[int, int, int], float]]:
    """Its server as its authors start it, with continuous batching."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.prefix, "bin", "transformers")), "serve", str(directory)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--continuous-batching"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/v1/chat/completions"

    def ask(text: str, tokens: int) -> int:
        body = {
            "model": str(directory),
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0.0,
        }
        data = json.dumps(body).encode()
        request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as answer:
            return int(json.load(answer)["usage"]["completion_tokens"])

    def run(clients: int, words: int, tokens: int) -> float:
        """Tokens per second in all."""
        counts = [0] * clients

        def client(number: int) -> None:
            text = f"Story {number}: " + "word " * words + "Go on with it at length."
            counts[number] = ask(text, tokens)

        threads = [threading.Thread(target=client, args=(n,)) for n in range(clients)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.perf_counter() - began)

    try:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                ask("Hello", 4)
                break
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("transformers serve did not start")
            time.sleep(0.5)
        yield run
    finally:
        server.kill()
        server.wait()


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second in all, by way, one figure for each round."""
    engines = {name: load_engine(name, options.model) for name in options.engines}
    batch = padded_batch(options.model)
    found: dict[str, list[float]] = {}
    for round_ in range(options.rounds + 1):
        every: dict[str, Callable[[], float]] = {}
        for name, engine in engines.items():
            for clients in (1, CLIENTS):
                salt = round_ * 10 + clients
                wanted = prompts(clients, options.prompt, salt)
                every[f"{name}, {clients} at once"] = lambda engine=engine, wanted=wanted: (
                    len(wanted) * options.tokens / run_engine(engine, wanted, options.tokens)
                )
        wanted = prompts(CLIENTS, options.prompt, round_ * 10 + 9)
        every["padded batch"] = lambda wanted=wanted: (
            CLIENTS * options.tokens / batch(wanted, options.tokens)
        )
        for name, way in every.items():
            rate = way()
            if round_:  # the first warms up
                found.setdefault(name, []).append(rate)
    if options.serve:
        with transformers_serve(options.model) as serve:
            serve(CLIENTS, options.prompt, options.tokens)
            found["transformers serve"] = [
                serve(CLIENTS, options.prompt, options.tokens) for _ in range(options.rounds)
            ]
    return found


def report(found: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    peers = {
        name: medians[name] for name in ("padded batch", "transformers serve") if name in medians
    }
    best = max(peers, key=lambda name: peers[name])
    ratios = {
        name: statistics.median(
            ours / theirs for ours, theirs in zip(found[name], found[best], strict=False)
        )
        for name in medians
    }
    if not options.json:
        print(f"{options.model.name}: {options.prompt} tokens in, {options.tokens} out")
        for name, rate in medians.items():
            print(f"{name:28} {rate:8.1f} tokens/s in all   {ratios[name]:6.2f} x {best}")
    return {"tokens_per_second": medians, "best_peer": best, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="transformers serve, too")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    result = report(measure(options), options)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
