#!/usr/bin/env python3
"""How fast the native runner is, beside transformers and llama.cpp, in one run.

    .venv/bin/python scripts/bench/decode.py                     the starter model
    .venv/bin/python scripts/bench/decode.py --shape 0.5B        random weights of that shape
    .venv/bin/python scripts/bench/decode.py --llama-bench PATH -m FILE.gguf
    .venv/bin/python scripts/bench/decode.py --llama-python .venv-servers/bin/python -m FILE.gguf

In every round each engine computes the same: a prompt of 128 tokens, then 64 more, one by one.
The engines take turns, and the best round of each counts, since other programs can only make a
round slower; the ratio beside it is the median of the rounds' own ratios. `read` is how fast all
threads together can read the packed weights, which no decoding of one sequence can surpass.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the worker

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from shammah.models import starter_directory
from workers.inference.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.engine import LoadSettings

PROMPT, ANSWER, TOGETHER = 128, 64, 8

SHAPES = {
    "135M": (576, 30, 9, 3, 1536, 49_152),
    "0.5B": (896, 24, 14, 2, 4864, 151_936),
    "1.5B": (1536, 28, 12, 2, 8960, 151_936),
}
"""Hidden size, layers, heads, heads of keys and values, intermediate size, vocabulary."""


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

    def ratio(self, other: Results, what: str) -> float:
        """The median of the rounds' ratios of the other's speed to this one's."""
        pairs = zip(other.rounds, self.rounds, strict=True)
        return statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- the contenders -----------------------------------------------------------------------


class Native:
    name = "native int8"

    def __init__(self, checkpoint: Checkpoint, scratch: Path, threads: int) -> None:
        from workers.inference.native.runner import NativeRunner

        self._runner = NativeRunner(scratch / "quantized", scratch / "kernels", threads)
        self._stages: list[tuple[str, float]] = []
        self._runner.load(checkpoint, LoadSettings(), self)
        self._stages.append(("", time.perf_counter()))
        self._runner.reserve(TOGETHER, PROMPT + ANSWER)
        self._prompt = list(range(100, 100 + PROMPT))
        for slot in range(TOGETHER):
            self._runner.prefill(slot, 0, self._prompt)

    def stage(self, name: str) -> None:
        self._stages.append((name, time.perf_counter()))

    def advance(self) -> None:
        pass

    @property
    def load_times(self) -> str:
        pairs = zip(self._stages, self._stages[1:], strict=False)
        return ", ".join(f"{name} {after - began:.2f} s" for (name, began), (_, after) in pairs)

    def round(self) -> Round:
        prefill = seconds(lambda: self._runner.prefill(0, 0, self._prompt))
        decode = seconds(lambda: self._decode(1, ANSWER))
        together = seconds(lambda: self._decode(TOGETHER, ANSWER // 4))
        return Round(PROMPT / prefill, ANSWER / decode, TOGETHER * (ANSWER // 4) / together)

    def _decode(self, rows: int, steps: int) -> None:
        tokens = [100] * rows
        for step in range(steps):
            logits = self._runner.decode(list(range(rows)), [PROMPT + step] * rows, tokens)
            tokens = [int(token) for token in logits.argmax(1)]

    def read(self) -> tuple[int, float]:
        """Bytes of packed weights, and GB/s at which the team reads them."""
        model = self._runner._computation._model
        matrices = (model.embedding, model.qkv, model.output, model.gate_up, model.down, model.head)
        arrays = {id(a): a for matrix in matrices for a in matrix[:2]}.values()
        parts = [
            np.array_split(a.reshape(-1).view(np.int64), self._runner._team.size) for a in arrays
        ]
        taken = seconds(
            lambda: self._runner._team.run(lambda member: [p[member].sum() for p in parts])
        )
        size = sum(a.nbytes for a in arrays)
        return size, size / taken / 1e9


class Transformers:
    name = "transformers generate, float32"

    def __init__(self, checkpoint: Checkpoint) -> None:
        import torch
        import transformers

        from workers.inference.placement import limit_threads

        limit_threads()
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()
        self._torch = torch
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
        return Round(PROMPT / prefill, ANSWER / decode)

    def _generate(self, rows: int, count: int) -> None:
        prompt = self._torch.arange(100, 100 + PROMPT).repeat(rows, 1)
        with self._torch.inference_mode():
            self._model.generate(
                prompt,
                attention_mask=self._torch.ones_like(prompt),
                min_new_tokens=count,
                max_new_tokens=count,
            )


class LlamaBench:
    """``llama-bench`` of a llama.cpp that was built here."""

    def __init__(self, program: str, model: str, threads: int) -> None:
        self.name = f"llama-bench {Path(model).name}"
        counts = ["-p", str(PROMPT), "-n", str(ANSWER), "-t", str(threads), "-r", "1"]
        self._command = [program, "-m", model, *counts, "-o", "json"]

    def round(self) -> Round:
        ended = subprocess.run(self._command, capture_output=True, text=True, check=True)
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

    def __init__(self, python: str, model: str, threads: int, stack: ExitStack) -> None:
        self.name = f"llama.cpp {Path(model).name}"
        self._port = 18_650
        process = subprocess.Popen(
            [python, "-c", _SERVER, model, str(self._port), str(threads)],
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
            "prompt": list(range(100, 100 + PROMPT)),
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


# --- models -------------------------------------------------------------------------------


def random_model(directory: Path, shape: str) -> Path:
    """A Qwen2 of this shape with random bfloat16 weights, tied; it has no tokenizer."""
    hidden, layers, heads, kv_heads, wide, vocabulary = SHAPES[shape]
    size = hidden // heads
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": wide,
        "vocab_size": vocabulary,
        "max_position_embeddings": 32_768,
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    tensors = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        own = {
            "self_attn.q_proj.weight": (heads * size, hidden),
            "self_attn.k_proj.weight": (kv_heads * size, hidden),
            "self_attn.v_proj.weight": (kv_heads * size, hidden),
            "self_attn.o_proj.weight": (hidden, heads * size),
            "self_attn.q_proj.bias": (heads * size,),
            "self_attn.k_proj.bias": (kv_heads * size,),
            "self_attn.v_proj.bias": (kv_heads * size,),
            "mlp.gate_proj.weight": (wide, hidden),
            "mlp.up_proj.weight": (wide, hidden),
            "mlp.down_proj.weight": (hidden, wide),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        tensors |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    _write_random(directory / "model.safetensors", tensors)
    return directory


def _write_random(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors.items():
        end = position + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in tensors.items():
            numbers = random.standard_normal(math.prod(shape), np.float32)
            numbers = 1 + 0 * numbers if "norm" in name else 0.02 * numbers
            file.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())


# --- the comparison -----------------------------------------------------------------------


@contextmanager
def scratch_directory(given: str) -> Iterator[Path]:
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        yield Path(given)
        return
    with tempfile.TemporaryDirectory(prefix="sh-bench-") as made:
        yield Path(made)


def report(results: list[Results]) -> None:
    first = results[0]
    print(f"{'tokens per second':40} {'prefill':>16} {'decode':>16} {'8 at once':>10}")
    for result in results:
        cells = []
        for what in ("prefill", "decode"):
            ratio = "" if result is first else f" (x {first_ratio(first, result, what):.2f})"
            cells.append(f"{result.best(what):8.1f}{ratio:>8}")
        together = f"{result.best('together'):10.1f}" if result.best("together") else " " * 10
        print(f"{result.name:40} {cells[0]:>16} {cells[1]:>16} {together}")
    print(f"(x n): {first.name} is n times as fast, median of the rounds' ratios")


def first_ratio(first: Results, other: Results, what: str) -> float:
    return other.ratio(first, what)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, help="random weights instead of the starter")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="default: physical cores")
    parser.add_argument("--scratch", default="", help="keep models and packed weights here")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--llama-bench", metavar="PATH")
    parser.add_argument("--llama-python", metavar="PATH", help="a Python with xllamacpp")
    parser.add_argument("-m", "--model", metavar="GGUF")
    return parser.parse_args()


def main() -> None:
    options = parse()
    with scratch_directory(options.scratch) as scratch, ExitStack() as stack:
        directory = starter_directory()
        if options.shape:
            directory = scratch / options.shape
            if not directory.exists():
                random_model(directory, options.shape)
        checkpoint = inspect_checkpoint(directory)
        from workers.inference.native.team import physical_cores

        threads = options.threads or physical_cores()
        native = Native(checkpoint, scratch, threads)
        print(f"{directory.name}, {threads} threads; load: {native.load_times}")
        contenders: list[Contender] = [native]
        if not options.no_transformers:
            contenders.append(Transformers(checkpoint))
        if options.llama_bench:
            contenders.append(LlamaBench(options.llama_bench, options.model, threads))
        if options.llama_python:
            contenders.append(LlamaServer(options.llama_python, options.model, threads, stack))
        results = [Results(contender.name) for contender in contenders]
        reads = []
        for _ in range(options.rounds):
            for contender, result in zip(contenders, results, strict=True):
                result.rounds.append(contender.round())
            reads.append(native.read())
        report(results)
        size, limit = reads[0][0], max(speed for _, speed in reads)
        used = size * results[0].best("decode") / 1e9
        print(f"{size / 1e6:.0f} MB of weights a token: {used:.1f} GB/s; read: {limit:.1f} GB/s")


if __name__ == "__main__":
    main()
