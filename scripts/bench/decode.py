#!/usr/bin/env python3
"""How fast the native runner is, beside transformers and llama.cpp, in one run.

    .venv/bin/python scripts/bench/decode.py                     the starter model
    .venv/bin/python scripts/bench/decode.py --shape 0.5B        random weights of that shape
    .venv/bin/python scripts/bench/decode.py --quantization both --prompt 512
    .venv/bin/python scripts/bench/decode.py --llama-bench PATH -m Q8_0.gguf -m Q4_K_M.gguf
    .venv/bin/python scripts/bench/decode.py --llama-python .venv-servers/bin/python -m FILE.gguf
    .venv/bin/python scripts/bench/decode.py --ik-python OTHER/bin/python -m Q4_K_R4.gguf

In every round each engine computes the same: a prompt of 128 tokens, then 64 more, one by one.
(llama-bench makes its 64 without the prompt before them.) The engines take turns, and the best
round of each counts, since other programs can only make a round slower; the ratios are medians of
the rounds' own. `read` is how fast all threads together can read the packed weights, which no
decoding of one sequence can surpass. random_model.py makes GGUF files of a shape.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.bench.random_model import SHAPES, random_model
from shammah.models.catalogue import starter_directory
from workers.inference.engine import LoadSettings
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.runner import Span

ENVIRON = dict(os.environ)
"""Of the peers: our engines have OpenMP wait passively, which halves llama.cpp's speed."""

ANSWER, TOGETHER = 64, 8


@dataclass
class Round:
    """Tokens per second of one round; 0: not measured."""

    prefill: float
    decode: float
    together: float = 0.0


class Contender(Protocol):
    name: str

    def round(self) -> Round: ...


@dataclass
class Results:
    name: str
    rounds: list[Round] = field(default_factory=list)

    def best(self, what: str) -> float:
        return max((getattr(r, what) for r in self.rounds), default=0.0)

    def slower(self, other: Results, what: str) -> float:
        """The median of the rounds' ratios of the other's speed to this one's."""
        pairs = zip(other.rounds, self.rounds, strict=True)
        return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- the contenders -----------------------------------------------------------------------


class Native:
    def __init__(
        self, checkpoint: Checkpoint, quantization: str, prompt: int, scratch: Path, threads: int
    ) -> None:
        from workers.inference.engines.native.runner import NativeRunner

        self.name = f"native {quantization}"
        self._runner = NativeRunner(scratch / "quantized", scratch / "kernels", threads)
        self._stages: list[tuple[str, float]] = []
        self._runner.load(checkpoint, LoadSettings(quantization=quantization), self)
        self._stages.append(("", time.perf_counter()))
        self._runner.reserve(TOGETHER, prompt + ANSWER)
        self._prompt = list(range(100, 100 + prompt))
        for slot in range(TOGETHER):
            self._prefill(slot)

    def stage(self, name: str) -> None:
        self._stages.append((name, time.perf_counter()))

    def advance(self) -> None:
        pass

    @property
    def load_times(self) -> str:
        pairs = zip(self._stages, self._stages[1:], strict=False)
        return ", ".join(f"{name} {after - began:.2f} s" for (name, began), (_, after) in pairs)

    def round(self) -> Round:
        prefill = seconds(lambda: self._prefill(0))
        decode = seconds(lambda: self._decode(1, ANSWER))
        together = seconds(lambda: self._decode(TOGETHER, ANSWER // 4))
        together = TOGETHER * (ANSWER // 4) / together
        return Round(len(self._prompt) / prefill, ANSWER / decode, together)

    def _prefill(self, slot: int) -> None:
        chunk = self._runner.limits.chunk
        for start in range(0, len(self._prompt), chunk):
            self._runner.forward([Span(slot, start, self._prompt[start : start + chunk])])

    def _decode(self, rows: int, steps: int) -> None:
        tokens = [100] * rows
        for step in range(steps):
            at = len(self._prompt) + step
            spans = [Span(slot, at, (token,)) for slot, token in enumerate(tokens)]
            tokens = [int(logits[0].argmax()) for logits in self._runner.forward(spans)]

    def read(self) -> tuple[int, float]:
        """Bytes of the weights that a token needs, and GB/s at which the team reads them."""
        model = self._runner._computation._model
        matrices = [x for x in model._replace(embedding=None) if hasattr(x, "scales")]
        arrays = [a for matrix in matrices for a in (matrix.weights, matrix.scales)]
        parts = [
            np.array_split(a.reshape(-1).view(np.int64), self._runner._pool.size) for a in arrays
        ]
        taken = seconds(
            lambda: self._runner._pool.run(lambda member: [p[member].sum() for p in parts])
        )
        size = sum(a.nbytes for a in arrays)
        return size, size / taken / 1e9


class Transformers:
    name = "transformers generate, float32"

    def __init__(self, checkpoint: Checkpoint, prompt: int) -> None:
        import torch
        import transformers

        from workers.inference.engines.transformers.placement import limit_threads

        limit_threads()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self._torch = torch
        self._prompt = prompt
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.directory, dtype=torch.float32
        )
        self._model.generation_config = transformers.GenerationConfig(
            do_sample=False, eos_token_id=None, pad_token_id=0
        )
        self._generate(1, 8)

    def round(self) -> Round:
        prefill = seconds(lambda: self._generate(1, 1))
        decode = seconds(lambda: self._generate(1, 1 + ANSWER)) - prefill
        return Round(self._prompt / prefill, ANSWER / decode)

    def _generate(self, rows: int, count: int) -> None:
        prompt = self._torch.arange(100, 100 + self._prompt).repeat(rows, 1)
        with self._torch.inference_mode():
            self._model.generate(
                prompt,
                attention_mask=self._torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
            )


class LlamaBench:
    """``llama-bench`` of a llama.cpp that was built here."""

    def __init__(self, program: str, model: str, prompt: int, threads: int) -> None:
        self.name = f"llama-bench {Path(model).name}"
        counts = ["-p", str(prompt), "-n", str(ANSWER), "-t", str(threads), "-r", "1"]
        self._command = [program, "-m", model, *counts, "-o", "json"]

    def round(self) -> Round:
        ended = subprocess.run(
            self._command, env=ENVIRON, capture_output=True, text=True, check=True
        )
        tests = json.loads(ended.stdout)
        speed = {("decode" if t["n_gen"] else "prefill"): t["avg_ts"] for t in tests}
        return Round(speed["prefill"], speed["decode"])


_SERVER = """
import sys, threading, xllamacpp
threading.Thread(target=lambda: (sys.stdin.buffer.read(), __import__("os")._exit(0))).start()
p = xllamacpp.CommonParams()
p.model.path, p.port, p.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
p.n_parallel, p.n_ctx = 1, 1024
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = int(sys.argv[3])
server = xllamacpp.Server(p)
threading.Event().wait()
"""


class LlamaServer:
    """xllamacpp, which is llama.cpp with its server; its own timings, without HTTP."""

    def __init__(
        self, python: str, model: str, prompt: int, threads: int, stack: ExitStack
    ) -> None:
        self.name = f"llama.cpp {Path(model).name}"
        self._prompt = prompt
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        process = subprocess.Popen(
            [python, "-c", _SERVER, model, str(self._port), str(threads)],
            env=ENVIRON,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        for _ in range(600):
            try:
                self.round()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the llama.cpp server does not answer")

    def round(self) -> Round:
        asked = {
            "prompt": list(range(100, 100 + self._prompt)),
            "n_predict": ANSWER,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/completion",
            json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=300) as response:
            timings = json.loads(response.read())["timings"]
        return Round(timings["prompt_per_second"], timings["predicted_per_second"])


_IK = """
import ctypes, sys, time
from ik_llama_cpp import _ctypes_api as c
path, prompt, answer, threads = sys.argv[1], *map(int, sys.argv[2:])
c.llama_backend_init()
model = c.llama_model_load_from_file(path.encode(), c.llama_model_default_params())
params = c.llama_context_default_params()
params.n_ctx = params.n_batch = params.n_ubatch = 1024
params.n_threads = params.n_threads_batch = threads
context = c.llama_init_from_model(model, params)
batch = c.llama_batch_init(1024, 0, 1)
def decode(first, tokens):
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i] = token, first + i
        batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == len(tokens) - 1
    assert c.llama_decode(context, batch) == 0
for _ in sys.stdin:
    c.llama_kv_cache_clear(context)
    began = time.perf_counter()
    decode(0, list(range(100, 100 + prompt)))
    between = time.perf_counter()
    for i in range(answer):
        decode(prompt + i, [100])
    print(prompt / (between - began), answer / (time.perf_counter() - between), flush=True)
"""


class IkLlama:
    """ik_llama.cpp, through the package ik-llama-cpp-python of another environment."""

    def __init__(
        self, python: str, model: str, prompt: int, threads: int, stack: ExitStack
    ) -> None:
        self.name = f"ik_llama.cpp {Path(model).name}"
        counts = [str(prompt), str(ANSWER), str(threads)]
        self._process = subprocess.Popen(
            [python, "-c", _IK, str(Path(model).resolve()), *counts],
            env=ENVIRON,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)
        self.round()

    def round(self) -> Round:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        prefill, decode = self._process.stdout.readline().split()
        self._process.send_signal(signal.SIGSTOP)  # its idle threads would take others' time
        return Round(float(prefill), float(decode))


# --- the comparison -----------------------------------------------------------------------


@contextmanager
def scratch_directory(given: str) -> Iterator[Path]:
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="sh-bench-") as made:
        yield Path(made)


def report(results: list[Results], prompt: int) -> None:
    print(f"{'tokens per second':40} {f'prefill {prompt}':>12} {'decode':>8} {'8 at once':>10}")
    for result in results:
        together = f"{result.best('together'):10.1f}" if result.best("together") else ""
        speeds = f"{result.best('prefill'):12.1f} {result.best('decode'):8.1f} {together}"
        print(f"{result.name:40} {speeds}")
    ours = [result for result in results if result.name.startswith("native")]
    for mine, other in itertools.product(reversed(ours), results):
        if mine is other or (other in ours and results.index(other) > results.index(mine)):
            continue
        kinds = [kind for kind in ("prefill", "decode", "together") if other.best(kind)]
        ratios = ", ".join(f"{kind} {other.slower(mine, kind):.2f}" for kind in kinds)
        print(f"{mine.name} : {other.name} = {ratios}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of the starter")
    parser.add_argument("--quantization", choices=("int8", "int4", "both"), default="int8")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="default: physical cores")
    parser.add_argument("--scratch", default="", help="keep models and packed weights here")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--llama-python", metavar="PATH", help="a Python with xllamacpp")
    parser.add_argument("--ik-python", metavar="PATH", help="a Python with ik-llama-cpp-python")
    parser.add_argument("--target", help="of the carried machine code, such as x86-64-v3")
    parser.add_argument("-m", "--model", metavar="GGUF", action="append", default=[])
    return parser.parse_args()


def pretend(name: str) -> None:
    """Have the native engine take the machine code of another target than this processor's."""
    from workers.inference.engines.native import processor, targets

    (target,) = (one for one in targets.TARGETS if one.name == name)
    processor.features = lambda *_: frozenset(target.needs)  # type: ignore[assignment]


def main() -> None:
    options = parse()
    if options.target:
        pretend(options.target)
    with scratch_directory(options.scratch) as scratch, ExitStack() as stack:
        directory = starter_directory()
        if options.shape:
            directory = scratch / options.shape
            if not directory.exists():
                random_model(directory, options.shape)
        checkpoint = inspect_checkpoint(directory)
        from workers.inference.cores import usable_cores

        threads = options.threads or usable_cores()
        wanted = {"both": ["int8", "int4"]}.get(options.quantization, [options.quantization])
        natives = [Native(checkpoint, kind, options.prompt, scratch, threads) for kind in wanted]
        contenders: list[Contender] = [*natives, *others(options, checkpoint, threads, stack)]
        for native in natives:
            print(f"{directory.name}, {native.name}, {threads} threads; load: {native.load_times}")
        results = [Results(contender.name) for contender in contenders]
        reads: list[list[tuple[int, float]]] = []
        for _ in range(options.rounds):
            for contender, result in zip(contenders, results, strict=True):
                result.rounds.append(contender.round())
            reads.append([native.read() for native in natives])
        report(results, options.prompt)
        for native, result, read in zip(natives, results, zip(*reads, strict=True), strict=False):
            size, limit = read[0][0], max(speed for _, speed in read)
            used = size * result.best("decode") / 1e9
            megabytes = f"{size / 1e6:.0f} MB of weights a token"
            print(f"{native.name}: {megabytes}: {used:.1f} GB/s; read: {limit:.1f} GB/s")


def others(
    options: argparse.Namespace, checkpoint: Checkpoint, threads: int, stack: ExitStack
) -> Iterator[Contender]:
    prompt = options.prompt
    if not options.no_transformers:
        yield Transformers(checkpoint, prompt)
    for model in options.model:
        if options.llama_bench:
            yield LlamaBench(options.llama_bench, model, prompt, threads)
        if options.llama_python:
            yield LlamaServer(options.llama_python, model, prompt, threads, stack)
        if options.ik_python:
            yield IkLlama(options.ik_python, model, prompt, threads, stack)


if __name__ == "__main__":
    main()
