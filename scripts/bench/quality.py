#!/usr/bin/env python3
"""What fewer bits cost: each form of the weights beside transformers in float32.

Every form is given the same text, token by token (teacher forcing), and compared in what it
says of the next one: perplexity, the mean divergence (Kullback-Leibler, in nats) and how often
the first choice is the same; and in the size of its file, the memory it keeps and the time it
takes to load. Each runs in a process of its own, for the second time, so that what is made once
for a model is there.

The text is the same on every machine: the LICENSE of this repository, which is the Apache
Licence 2.0, and msgpack/fallback.py of the msgpack release that constraints.txt names (also
Apache 2.0). Its digest is checked.

    .venv/bin/python scripts/bench/quality.py
    .venv/bin/python scripts/bench/quality.py --forms native:int8 --tokens 1024 --json
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from shammah.errors import ShammahError  # noqa: E402
from shammah.models.catalogue import starter_directory  # noqa: E402
from workers.inference.engine import LoadSettings  # noqa: E402
from workers.inference.engines.table import ENGINES  # noqa: E402
from workers.inference.packages.checkpoint import inspect_checkpoint  # noqa: E402
from workers.inference.runner import Span  # noqa: E402

WINDOW, TOGETHER = 512, 8
"""Tokens of one sequence, and sequences that are computed together."""

DIGEST = "2d9602619d3245c968b84b0c645b77d38db13c00f477fdf7d30e4cc6d4c9a47c"
"""Of both texts (SHA-256), so that other numbers have other reasons."""

REFERENCE = "transformers:float32"
FORMS = (
    REFERENCE,
    "transformers:bfloat16",
    "transformers:int4",
    "native:int8",
    "native:int4",
)


def texts() -> list[str]:
    """English and code.

    Raises:
        SystemExit: they are not the ones that the published numbers are of.
    """
    spec = importlib.util.find_spec("msgpack")
    assert spec is not None
    assert spec.origin is not None
    found = [ROOT / "LICENSE", Path(spec.origin).with_name("fallback.py")]
    every = [path.read_bytes() for path in found]
    digest = hashlib.sha256(b"\0".join(every)).hexdigest()
    if digest != DIGEST:
        raise SystemExit(f"the texts are other ones: {digest}; install what constraints.txt says")
    return [text.decode() for text in every]


def windows(directory: Path, tokens: int) -> NDArray[np.int64]:
    """Equal parts of both texts: (sequences, WINDOW)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    every = texts()
    each = max(1, tokens // len(every) // WINDOW)
    parts = []
    for text in every:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: each * WINDOW]
        assert len(ids) == each * WINDOW, "the text is too short for so many tokens"
        parts.append(np.array(ids).reshape(each, WINDOW))
    return np.concatenate(parts)


class Quiet:
    """A load that nobody watches."""

    def stage(self, name: str) -> None:
        """Not of interest."""

    def advance(self) -> None:
        """Not of interest."""


def logits(runner: Any, ids: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """What follows each token of the sequences, position after position: (sequences,
    vocabulary)."""
    for first in range(0, len(ids), TOGETHER):
        some = ids[first : first + TOGETHER]
        for position in range(WINDOW):
            tokens = [int(token) for token in some[:, position]]
            spans = [Span(slot, position, (token,)) for slot, token in enumerate(tokens)]
            yield np.concatenate(runner.forward(spans))


def log_probabilities(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    wide = rows.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(-1, keepdims=True))
    return wide.astype(np.float32)


def run_form(options: argparse.Namespace) -> dict[str, Any]:
    """Load a form, compare it with what the reference has left, or leave that."""
    name, _, form = options.form.partition(":")
    dtype = form if form in ("float32", "bfloat16") else "auto"
    quantization = "none" if dtype != "auto" else form
    process = psutil.Process()
    engine: Any = ENGINES[name].make()
    settings = LoadSettings("cpu", dtype, quantization, home=options.home)
    began = time.perf_counter()
    facts = engine.load(inspect_checkpoint(options.model), settings, Quiet())
    loaded_s = time.perf_counter() - began
    resident = process.memory_info().rss
    if options.only_load:
        return {}
    runner = engine._runner
    runner.reserve(TOGETHER, WINDOW)
    ids = windows(options.model, options.tokens)
    found = compare(runner, ids, options.kept)
    return {
        "quantization": facts.quantization,
        "dtype": facts.dtype,
        "load_s": loaded_s,
        "resident_bytes": resident,
        "peak_bytes": peak_bytes(),
        **found,
    }


def compare(runner: Any, ids: NDArray[np.int64], kept: Path) -> dict[str, Any]:
    """Perplexity; beside the reference, if its numbers are in ``kept``, else they go there."""
    reading = kept.exists()
    batches = [ids[n : n + TOGETHER] for n in range(0, len(ids), TOGETHER)]
    surprise = divergence = 0.0
    same = count = 0
    with kept.open("rb" if reading else "wb") as file:
        for number, rows in enumerate(logits(runner, ids)):
            some, position = batches[number // WINDOW], number % WINDOW
            ours = log_probabilities(rows)
            if reading:
                data = file.read(ours.nbytes)
                theirs = np.frombuffer(data, np.float32).reshape(ours.shape)
                divergence += float((np.exp(theirs) * (theirs - ours)).sum())
                same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
            else:
                file.write(ours.tobytes())
            if position + 1 < WINDOW:
                surprise -= float(ours[range(len(some)), some[:, position + 1]].sum())
                count += len(some)
    found = {"tokens": int(ids.size), "perplexity": float(np.exp(surprise / count))}
    if reading:
        found |= {"divergence": divergence / ids.size, "top1": same / ids.size}
    return found


def peak_bytes() -> int:
    """The most memory that this process has had resident; 0 where nobody tells."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Every form, in processes of their own."""
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="quality-") as scratch:
        home, kept = Path(scratch, "home"), Path(scratch, "reference")
        for form in dict.fromkeys((REFERENCE, *options.forms)):
            # Alone in its home, so that its files are its own.
            own = home / form.replace(":", "-")
            own.mkdir(parents=True)
            if options.kernels.is_dir():
                (own / "kernels").symlink_to(options.kernels)
            run_child(options, form, own, kept, "--only-load")
            found[form] = run_child(options, form, own, kept)
            made = [p for p in own.rglob("*") if p.is_file() and "kernels" not in p.parts]
            weights = sum(path.stat().st_size for path in made if path.stat().st_size > 1e6)
            stored = inspect_checkpoint(options.model).weight_bytes
            found[form]["file_bytes"] = weights or stored
            if not options.json:
                print(describe(form, found), flush=True)
    return found


def run_child(
    options: argparse.Namespace, form: str, home: Path, kept: Path, *more: str
) -> dict[str, Any]:
    command = [sys.executable, __file__, "--form", form, "--home", str(home), "--kept", str(kept)]
    command += ["--model", str(options.model), "--tokens", str(options.tokens), *more]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{form} failed")
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def describe(form: str, found: dict[str, dict[str, Any]]) -> str:
    facts = found[form]
    if "refused" in facts:
        return f"{form:22} {facts['refused']}"
    exact = found[REFERENCE]["perplexity"]
    worse = 100 * (facts["perplexity"] / exact - 1)
    quality = f"perplexity {facts['perplexity']:.4f} ({worse:+.2f} %)"
    if "divergence" in facts:
        quality += f", divergence {facts['divergence']:.5f}, same choice {facts['top1']:.2%}"
    megabytes = [facts[f"{name}_bytes"] / 1e6 for name in ("file", "resident", "peak")]
    return (
        f"{form:22} {quality}; file {megabytes[0]:.0f} MB, resident {megabytes[1]:.0f} MB "
        f"(peak {megabytes[2]:.0f}), load {facts['load_s']:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=starter_directory())
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--tokens", type=int, default=4096, help="half of each text")
    parser.add_argument(
        "--kernels", type=Path, default=Path(sys.prefix, "share", "shammah", "kernels")
    )
    parser.add_argument("--json", action="store_true")
    for name in ("--form", "--home", "--kept", "--only-load"):
        kind: dict[str, Any] = {"type": str if name == "--form" else Path}
        if name == "--only-load":
            kind = {"action": "store_true"}
        parser.add_argument(name, help=argparse.SUPPRESS, **kind)
    options = parser.parse_args()
    if options.form is None:
        found = measure(options)
        if options.json:
            print(json.dumps(found))
        return
    try:
        print(json.dumps(run_form(options)))
    except ShammahError as error:
        print(json.dumps({"refused": f"refused: {error.message}"}))


if __name__ == "__main__":
    main()
