"""One greedy answer of the starter in 8 bits and one in 4, by the native engine alone: what
scripts/test-arm compares.

    answer.py STARTER SCRATCH [TOKENS]

Prints the machine and its library on stderr, and for each the tokens, the text and a digest of the
packed weights on stdout.
"""

from __future__ import annotations

import hashlib
import platform
import sys
from pathlib import Path

from workers.inference.engine import LoadSettings
from workers.inference.engines.native.kernels import carried_library
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Span
from workers.text.model_text import ModelText

QUESTION = "What is the capital of France?"


class Quiet:
    def stage(self, name: str) -> None:
        print(f"  {name}", file=sys.stderr, flush=True)

    def advance(self) -> None:
        """Not of interest."""


def main() -> None:
    starter, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 16
    carried = carried_library()
    print(f"{platform.machine()}: {carried and carried[0].name}", file=sys.stderr)
    for quantization in ("int8", "int4"):
        answer(starter, scratch / quantization, quantization, count)


def answer(starter: Path, scratch: Path, quantization: str, count: int) -> None:
    """Load the starter in so many bits, and print its answer and a digest of the packed weights."""
    text = ModelText.load(starter)
    runner = NativeRunner(scratch / "quantized", scratch / "kernels", 2)
    runner.load(inspect_checkpoint(starter), LoadSettings(quantization=quantization), Quiet())
    prompt = text.encode([("user", QUESTION)], ask=True)
    runner.reserve(1, len(prompt) + count)
    tokens: list[int] = []
    logits = runner.forward([Span(0, 0, prompt)])[0]
    while len(tokens) < count:
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in text.ends:
            break
        logits = runner.forward([Span(0, len(prompt) + len(tokens) - 1, tokens[-1:])])[0]
    runner.close()
    (packed,) = (scratch / "quantized").glob("*.safetensors")
    print(quantization)
    print(" ".join(map(str, tokens)))
    print(text.decode(tokens))
    print(hashlib.sha256(packed.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
