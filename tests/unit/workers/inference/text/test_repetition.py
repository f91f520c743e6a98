"""Loops are found soon; nothing that a person might want is taken for one."""

from __future__ import annotations

import json
import sysconfig
from functools import cache
from pathlib import Path
from random import Random

import pytest
from tokenizers import Tokenizer

from shammah.models.catalogue import starter_directory
from workers.inference.text.repetition import Repetition

ROOT = Path(__file__).resolve().parents[5]
LIBRARY = Path(sysconfig.get_path("stdlib"))
MOST_BYTES = 300_000


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(starter_directory() / "tokenizer.json"))


def found_after(text: str) -> int | None:
    """After how many tokens of ``text`` a repetition is found."""
    repetition = Repetition()
    for number, token in enumerate(tokenizer().encode(text, add_special_tokens=False).ids, 1):
        if repetition.add(token):
            return number
    return None


PARAGRAPH = (
    "The construction of the Colosseum was a massive undertaking that required the labour of "
    "thousands of workers. It was built with a system of arches and vaults, which were used to "
    "support the weight of the structure. The arches were made of stone, and the vaults were made "
    "of concrete, which was a new material at the time.\n\n"
)
SENTENCE = " Italy is a land of endless possibilities, and it has something for everyone."
WORDS = " carrying a cargo of gold, and he was on a ship that was"


@pytest.mark.parametrize(
    ("loop", "most"),
    [(PARAGRAPH, 320), (SENTENCE, 260), (WORDS, 330), (" a place where the gods\n", 600)],
)
def test_a_loop_is_found(loop: str, most: int) -> None:
    after = found_after("He walked to the harbour, as he did on every day." + loop * 200)
    assert after is not None
    assert after <= most


def test_a_loop_of_few_tokens_is_found_later() -> None:
    after = found_after("the " * 5000)
    assert after is not None
    assert after > 700


ZEROS = "[" + ", ".join(["0"] * 20) + "]"
HARMLESS = {
    "zero matrix": "[\n" + ",\n".join([f"  {ZEROS}"] * 20) + "\n]",
    "zero table": "| " + "\n| ".join([" | ".join(["0"] * 12) + " |"] * 30),
    "zeros": json.dumps([0] * 256),
    "floats": json.dumps([0.0] * 128),
    "nulls": json.dumps([None] * 200),
    "identity": "\n".join(" ".join("1" if i == j else "0" for j in range(24)) for i in range(24)),
    "dots": "." * 2000,
    "dashes": "-" * 2000 + "\n" + "=" * 2000,
    "blanks": " " * 3000,
    "contents": "\n".join(f"{n}. Chapter {'.' * 60} {n * 7}" for n in range(40)),
    "numbers": json.dumps(list(range(400))),
    "list": "\n".join(f"{n}. Item number {n} of the list" for n in range(150)),
    "empty cells": ("|" + "   |" * 8 + "\n") * 30,
    "empty rows": "".join(f"| {n} | - | - | - | - |\n" for n in range(80)),
    "objects": json.dumps([{"x": 0, "y": 0}] * 25),
    "bars": "\n".join("#" * n for n in range(60)),
    "chess board": ("# . # . # . # .\n. # . # . # . #\n") * 4,
    "refrain": f"{PARAGRAPH * 2}{SENTENCE * 3}{PARAGRAPH * 2}",
    "css": "".join(f".m-{n} {{ margin: {n}px; padding: {n}px; border: 0; }}\n" for n in range(60)),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_person_may_want_is_no_loop(name: str) -> None:
    assert found_after(HARMLESS[name]) is None


@pytest.mark.parametrize(
    ("root", "pattern", "count"),
    [
        (LIBRARY, "*.py", 60),
        (LIBRARY / "json", "*.py", 9),
        (ROOT / "shammah", "**/*.py", 40),
        (ROOT / "docs", "*.md", 30),
        (ROOT / "tests", "**/*.py", 40),
    ],
)
def test_ordinary_text_and_code_have_no_loop(root: Path, pattern: str, count: int) -> None:
    files = sorted(root.glob(pattern))
    for file in Random(0).sample(files, min(count, len(files))):
        text = file.read_bytes()[:MOST_BYTES].decode(errors="replace")
        assert found_after(text) is None, file
