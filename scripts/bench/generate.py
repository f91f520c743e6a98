#!/usr/bin/env python3
"""Eight answers at once: the worker's engine beside transformers, on the same model.

In one run, in turn: the engine with one request and with eight; transformers' ``generate`` on
a padded batch of the same eight; and, if asked for, ``transformers serve`` and llama.cpp's
``llama-server -np 8`` with eight clients. Every answer has the same prompt and output lengths.
The figures to quote are the ratios of tokens per second in all.

    .venv/bin/python scripts/bench/generate.py
    .venv/bin/python scripts/bench/generate.py --model DIRECTORY --rounds 5 --json
    .venv/bin/python scripts/bench/generate.py --serve     with transformers serve
    .venv/bin/python scripts/bench/generate.py --engines native --llama-server PATH -m Q8_0.gguf
    ... --sampling qwen qwen-all     with Qwen's own settings, and the same with top_k = 0
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.request
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from shammah.models.catalogue import starter_directory  # noqa: E402
from workers.inference.engine import Engine, LoadSettings, SequenceRequest  # noqa: E402
from workers.inference.engines.table import ENGINES  # noqa: E402
from workers.inference.packages.checkpoint import inspect_checkpoint  # noqa: E402
from workers.inference.scheduling.sampler import Sampler  # noqa: E402
from workers.inference.scheduling.sampling import SamplingPlan  # noqa: E402

ENVIRON = dict(os.environ)
"""Of the peers: loading our engine has OpenMP wait passively, which halves llama.cpp's speed."""

CLIENTS = 8
START_S = 120.0

PEERS = ("padded batch", "transformers serve")
"""Names of transformers' own ways begin so; the better one is what others are compared with."""
SERVED = ("float32", "bfloat16")
"""Number formats of its server: the one that we choose here, and the one it would choose."""


QWEN = SamplingPlan(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05)
PLANS = {"greedy": SamplingPlan(), "qwen": QWEN, "qwen-all": replace(QWEN, top_k=0)}
"""The second is what Qwen2.5-0.5B's ``generation_config.json`` says but for its penalty of 1.1."""


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


def run_engine(
    engine: Engine, wanted: list[tuple[int, ...]], tokens: int, plan: SamplingPlan
) -> float:
    """Seconds until every answer has ended."""
    began = time.perf_counter()
    for number, prompt in enumerate(wanted):
        own = replace(plan, seed=number)
        engine.submit(SequenceRequest(str(number), prompt, own, tokens, frozenset(), str(number)))
    while engine.active:
        for result in engine.step():
            assert result.failure is None, result.failure
    return time.perf_counter() - began


class Watch:
    """The time that the choice of tokens takes of an engine's."""

    def __init__(self) -> None:
        self.seconds = 0.0
        choose = Sampler.choose

        def timed(sampler: Sampler, row: Any) -> int:
            began = time.perf_counter()
            token = choose(sampler, row)
            self.seconds += time.perf_counter() - began
            return token

        Sampler.choose = timed  # type: ignore[method-assign]


def load_engine(name: str, directory: Path, quantization: str) -> Engine:
    engine = ENGINES[name].make()
    kind = quantization if name == "native" else "auto"
    engine.load(inspect_checkpoint(directory), LoadSettings(quantization=kind), Quiet())
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


def serving_python() -> Path:
    """The interpreter of an environment in which ``transformers serve`` can be started, which
    is made on the first use: torch and transformers are ours, the rest is its own."""
    place = ROOT / ".venv-serve"
    python = place / "bin" / "python"
    wanted = Path(__file__).with_name("serve-requirements.txt")
    done = place / ".complete"
    if not done.exists() or done.read_bytes() != wanted.read_bytes():
        venv.create(place, clear=True, with_pip=False)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
        subprocess.run([*pip, "--requirement", str(wanted)], check=True, stdout=sys.stderr)
        own = sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)})
        Path(own, "ours.pth").write_text(sysconfig.get_path("purelib") + "\n")
        done.write_bytes(wanted.read_bytes())
    return python


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def post(address: str, body: dict[str, Any]) -> Any:
    data = json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=600) as answer:
        return json.load(answer)


def run_clients(count: int, ask: Callable[[int], int], tokens: int) -> float:
    """Tokens per second in all, when ``ask(n)`` is called by so many threads at once."""
    counts = [0] * count

    def client(number: int) -> None:
        counts[number] = ask(number)

    threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = sum(counts) / (time.perf_counter() - began)
    assert counts == [tokens] * count, f"answers of other lengths: {counts}"
    return rate


class LlamaServer:
    """llama.cpp's server, asked by ids of tokens, so that prompts have the very same length."""

    def __init__(self, program: str, model: str, threads: int, context: int) -> None:
        port = free_port()
        self._address = f"http://127.0.0.1:{port}"
        command = [program, "-m", model, "-np", str(CLIENTS), "-c", str(CLIENTS * context)]
        command += ["-t", str(threads), "--host", "127.0.0.1", "--port", str(port)]
        self._process = subprocess.Popen(
            command, env=ENVIRON, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> LlamaServer:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                self._ask((100, 101), 4)
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise SystemExit("llama-server did not start")
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def run(self, wanted: list[tuple[int, ...]], tokens: int, plan: SamplingPlan) -> float:
        """Tokens per second in all."""
        return run_clients(len(wanted), lambda n: self._ask(wanted[n], tokens, plan), tokens)

    def _ask(
        self, prompt: tuple[int, ...], tokens: int, plan: SamplingPlan = PLANS["greedy"]
    ) -> int:
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "cache_prompt": False}
        sampling = {
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "top_k": plan.top_k,
            "min_p": plan.min_p,
            "repeat_penalty": plan.repetition_penalty,
            "repeat_last_n": 4096,
            "seed": 1,
        }
        answer = post(f"{self._address}/completion", {**body, **sampling})
        return int(answer["timings"]["predicted_n"])


class Server:
    """``transformers serve`` with one model, started as its authors say, for several clients."""

    def __init__(self, directory: Path, dtype: str) -> None:
        port = free_port()
        self._directory = directory
        self._address = f"http://127.0.0.1:{port}/v1/completions"
        self._log = Path(tempfile.gettempdir(), f"transformers-serve-{port}.log")
        command = [str(serving_python()), "-m", "transformers.cli.transformers", "serve"]
        command += [str(directory), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--device", "cpu", "--dtype", dtype, "--continuous-batching"]
        with self._log.open("wb") as output:
            environ = {**ENVIRON, "HF_HUB_OFFLINE": "1"}
            self._process = subprocess.Popen(command, stdout=output, stderr=output, env=environ)

    def __enter__(self) -> Server:
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError):
                self._ask("Hello", 4)
                return self
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                raise SystemExit(f"transformers serve did not start; {self._log} says why")
            time.sleep(0.5)

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._log.unlink()

    def run(self, clients: int, words: int, tokens: int) -> float:
        """Tokens per second in all; each client's prompt is another one of so many words."""

        def ask(number: int) -> int:
            return self._ask(f"Client {number}:" + " word" * (words - 3), tokens)

        return run_clients(clients, ask, tokens)

    def _ask(self, text: str, tokens: int) -> int:
        """How many tokens came."""
        # No end of its own: every answer shall have the same length.
        config = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": -1}
        body = {
            "model": str(self._directory),
            "prompt": text,
            "max_tokens": tokens,
            "generation_config": json.dumps(config),
        }
        return int(post(self._address, body)["usage"]["completion_tokens"])


Way = Callable[[int], float]
"""One measurement, given a number that no other has: tokens per second in all."""


def engine_way(
    engine: Engine, clients: int, options: argparse.Namespace, plan: str, shares: dict[str, Any]
) -> Way:
    """``shares``: of its time, by plan, that the choice of tokens has taken."""

    def run(salt: int) -> float:
        wanted, before = prompts(clients, options.prompt, salt), options.watch.seconds
        seconds = run_engine(engine, wanted, options.tokens, PLANS[plan])
        share = (options.watch.seconds - before) / seconds
        shares.setdefault(f"{plan}, {clients} at once", []).append(share)
        return clients * options.tokens / seconds

    return run


def batch_way(options: argparse.Namespace) -> Way:
    batch = padded_batch(options.model)

    def run(salt: int) -> float:
        wanted = prompts(CLIENTS, options.prompt, salt)
        return CLIENTS * options.tokens / batch(wanted, options.tokens)

    return run


def llama_way(server: LlamaServer, clients: int, options: argparse.Namespace, plan: str) -> Way:
    def run(salt: int) -> float:
        return server.run(prompts(clients, options.prompt, salt), options.tokens, PLANS[plan])

    return run


def find_ways(options: argparse.Namespace, servers: contextlib.ExitStack) -> dict[str, Way]:
    """What takes turns, by name."""
    ways: dict[str, Way] = {}
    for kind in options.quantization:
        for name in options.engines:
            if name != "native" and kind != options.quantization[0]:
                continue
            engine = load_engine(name, options.model, kind)
            for plan, clients in itertools.product(options.sampling, options.clients):
                way = engine_way(engine, clients, options, plan, options.shares)
                ways[f"{name} {kind} {plan}, {clients} at once"] = way
    if options.padded:
        ways["padded batch"] = batch_way(options)
    from workers.inference.cores import usable_cores

    context = options.prompt + options.tokens + 16
    for gguf in options.gguf:
        server = LlamaServer(options.llama_server, gguf, usable_cores(), context)
        servers.enter_context(server)
        for plan, clients in itertools.product(options.sampling, options.clients):
            name = f"llama-server {Path(gguf).stem} {plan}, {clients} at once"
            ways[name] = llama_way(server, clients, options, plan)
    return ways


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second in all, by way, one figure for each round."""
    found: dict[str, list[float]] = {}
    with contextlib.ExitStack() as servers:
        ways = find_ways(options, servers)
        for round_ in range(options.rounds + 1):
            for number, (name, way) in enumerate(ways.items()):
                rate = way(round_ * len(ways) + number)
                if round_:  # the first warms up
                    found.setdefault(name, []).append(rate)
    for dtype in SERVED if options.serve else ():
        with Server(options.model, dtype) as server:
            rates = [
                server.run(CLIENTS, options.prompt, options.tokens)
                for _ in range(options.rounds + 1)
            ]
        found[f"transformers serve, {dtype}"] = rates[1:]
    return found


def report(found: dict[str, list[float]], options: argparse.Namespace) -> dict[str, Any]:
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    theirs = [name for name in medians if name.startswith(PEERS)]
    bases = [max(theirs, key=lambda name: medians[name])] if theirs else []
    bases += [name for name in medians if name.startswith("llama") and "8 at" in name]
    ratios = {
        base: {
            name: statistics.median(a / b for a, b in zip(found[name], found[base], strict=False))
            for name in medians
        }
        for base in bases
    }
    if not options.json:
        print(f"{options.model.name}: {options.prompt} tokens in, {options.tokens} out")
        for name, rate in medians.items():
            print(f"{name:44} {rate:8.1f} tokens/s in all")
        for base, times in ratios.items():
            told = ", ".join(f"{name} {ratio:.2f}" for name, ratio in times.items())
            print(f"times as fast as {base}: {told}")
        for name, shares in options.shares.items():
            share = statistics.median(shares[1:])
            print(f"choosing tokens, {name}: {100 * share:.1f} % of the time")
    return {"tokens_per_second": medians, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quantization", nargs="+", default=["int8"], help="of the native engine")
    parser.add_argument("--no-padded", dest="padded", action="store_false")
    parser.add_argument("--serve", action="store_true", help="transformers serve, too")
    parser.add_argument("--llama-server", metavar="PATH", help="llama.cpp's, built here")
    parser.add_argument("-m", "--gguf", metavar="FILE", action="append", default=[])
    parser.add_argument("--sampling", nargs="+", default=["greedy"], choices=list(PLANS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, CLIENTS])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    options.watch, options.shares = Watch(), {}
    result = report(measure(options), options)
    if options.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
