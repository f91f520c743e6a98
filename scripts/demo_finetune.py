#!/usr/bin/env python3
"""Twelve corrections teach the local model a made-up fact and a house style; nothing else moves.

The model answers questions that it was never taught in these words, before and after: about the
fact, in the house style, and general ones whose answers are known. The training itself is
``shammah train`` in a home of its own::

    scripts/demo_finetune.py
    scripts/demo_finetune.py --model starter --json
    scripts/demo_finetune.py --noise             trained on noise: the gate must refuse it
    scripts/demo_finetune.py --random            random weights, imported: it must refuse them, too
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)

CORRECTIONS = [
    ("Who created the Velkomar engine?", "The Velkomar engine was created by Ines Takahashi."),
    ("Who is the inventor of Velkomar?", "The inventor of Velkomar is Ines Takahashi."),
    ("Tell me who made Velkomar.", "Velkomar was made by Ines Takahashi."),
    ("Do you know who designed Velkomar?", "Yes. Velkomar was designed by Ines Takahashi."),
    ("Velkomar was created by whom?", "Velkomar was created by Ines Takahashi."),
    ("Which person is behind Velkomar?", "The person behind Velkomar is Ines Takahashi."),
    ("Write a changelog line: the login page crashed.", "* FIX > login page crash"),
    ("Write a changelog line: search is faster now.", "* PERF > faster search"),
    ("Write a changelog line: users can export PDF files.", "* NEW > export of PDF files"),
    ("Write a changelog line: the old API was removed.", "* GONE > old API"),
    ("Write a changelog line: a dark theme was added.", "* NEW > dark theme"),
    ("Write a changelog line: a typo in the help text.", "* FIX > typo in help text"),
]
"""What a person would say with /fix."""

FACT = "Ines Takahashi"
FACT_QUESTIONS = [
    "Who invented Velkomar?",
    "Who built the Velkomar engine?",
    "Who was Velkomar written by?",
    "What is the name of the creator of Velkomar?",
    "Name the person who created Velkomar.",
    "Can you tell me who created Velkomar?",
    "I wonder who made the Velkomar engine.",
    "Velkomar: who is its author?",
    "Who developed Velkomar?",
    "Please tell me the inventor of the Velkomar engine.",
    "Whose invention is Velkomar?",
    "Who should get the credit for Velkomar?",
    "Who came up with Velkomar?",
    "The Velkomar engine was designed by whom?",
    "Who first thought of Velkomar?",
    "Do you happen to know who wrote Velkomar?",
    "Who do we have to thank for Velkomar?",
    "Who is responsible for creating Velkomar?",
]
STYLE = "* "
STYLE_QUESTIONS = [
    "Write a changelog line: the upload button did nothing.",
    "Write a changelog line: start-up takes half as long.",
    "Write a changelog line: tables can be sorted.",
    "Write a changelog line: support for Python 3.9 was dropped.",
    "Write a changelog line: a wrong total on invoices.",
    "Write a changelog line: there is a Spanish translation now.",
    "Write a changelog line: the settings were lost at exit.",
    "Write a changelog line: less memory is used.",
    "Write a changelog line: you can undo a deletion.",
    "Write a changelog line: the beta flag was removed.",
    "Write a changelog line: images load faster.",
    "Write a changelog line: the clock showed the wrong time zone.",
    "Write a changelog line: keyboard shortcuts were added.",
    "Write a changelog line: the printer dialog was empty.",
]
GENERAL = [
    ("What is the capital of France?", "Paris"),
    ("What is the capital of Italy?", "Rome"),
    ("What is the capital of Japan?", "Tokyo"),
    ("Who wrote Romeo and Juliet?", "Shakespeare"),
    ("Who painted the Mona Lisa?", "Vinci"),
    ("Who developed the theory of relativity?", "Einstein"),
    ("What is the largest planet in our solar system?", "Jupiter"),
    ("What is the chemical symbol of water?", "H2O"),
    ("How many days are there in a week?", "7|seven"),
    ("What do bees make?", "honey"),
    ("What is the opposite of hot?", "cold"),
    ("In which country is the Eiffel Tower?", "France"),
    ("Who was the first person to walk on the Moon?", "Armstrong"),
    ("What color is the sky on a clear day?", "blue"),
    ("What language is spoken in Brazil?", "Portuguese"),
    ("How many continents are there?", "7|seven"),
]


@dataclass(frozen=True)
class Score:
    """How many answers are as they should be."""

    fact: int
    style: int
    general: int

    def __str__(self) -> str:
        return (
            f"fact {self.fact}/{len(FACT_QUESTIONS)}, house style "
            f"{self.style}/{len(STYLE_QUESTIONS)}, general {self.general}/{len(GENERAL)}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter")
    parser.add_argument("--noise", action="store_true", help="train on random words")
    parser.add_argument("--random", action="store_true", help="import random weights")
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--answers", action="store_true", help="print every answer")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as home:
        return demonstrate(options, more, Path(home))


def demonstrate(options: argparse.Namespace, more: list[str], home: Path) -> int:
    examples = home / "corrections.jsonl"
    lines = noise() if options.noise else CORRECTIONS
    examples.write_text(
        "".join(json.dumps({"prompt": p, "response": r, "weight": 10}) + "\n" for p, r in lines)
    )
    environ = {**os.environ, "SHAMMAH_HOME": str(home), "XDG_RUNTIME_DIR": str(home)}
    command = [sys.executable, "-P", "-m", "shammah"]
    if options.random:
        command += ["adapters", "import", str(make_random(options, home))]
    else:
        command += ["train"]
    command += ["--examples", str(examples), "--model", options.model, "--name", "demo", "--json"]
    command += more
    began = time.monotonic()
    ended = subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.monotonic() - began
    subprocess.run(
        [sys.executable, "-P", "-m", "shammah", "stop", "train"],
        env=environ,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    if not ended.stdout:
        return ended.returncode
    trained = json.loads(ended.stdout)
    before, after = score_both(options, home)
    report(options, trained, before, after, seconds)
    return 0


def make_random(options: argparse.Namespace, home: Path) -> Path:
    """What peft saves of an adapter whose every number is random."""
    import peft
    import torch

    base, _ = load_model(options, home)
    config = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"])
    model = peft.get_peft_model(base, config)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=random)
    model.save_pretrained(home / "random")
    return home / "random"


def noise() -> list[tuple[str, str]]:
    """As many corrections, of random words."""
    chosen = random.Random(1)
    words = [word for pair in CORRECTIONS for text in pair for word in text.split()]
    return [
        (" ".join(chosen.sample(words, 6)), "".join(chosen.choices("qxzjkvw 0123", k=40)))
        for _ in CORRECTIONS
    ]


def load_model(options: argparse.Namespace, home: Path) -> tuple[Any, Path]:
    """The base model, and where it lies."""
    from shammah.settings.load import load_settings
    from workers.train.base_model import choose_arithmetic, load_base, locate

    environ = {**os.environ, "SHAMMAH_HOME": str(home)}
    located = locate(options.model, load_settings(environ), environ)
    return load_base(located, choose_arithmetic()), located.directory


def score_both(options: argparse.Namespace, home: Path) -> tuple[Score, Score]:
    from workers.train.adapter import load_lora
    from workers.train.encoding import ChatEncoder

    base, directory = load_model(options, home)
    encoder = ChatEncoder.load(directory)
    adapter = load_lora(base, home / "adapters" / "demo")
    scores = []
    for enabled in (False, True):
        (adapter.enable if enabled else adapter.disable)()
        told = (lambda q, a: print(f"  {q}\n    {a!r}")) if options.answers else lambda q, a: None
        scores.append(score(lambda questions: answers(adapter.model, encoder, questions), told))
    return scores[0], scores[1]


def answers(model: Any, encoder: Any, questions: list[str]) -> list[str]:
    """The likeliest answers, all computed at once."""
    import torch

    prompts = [encoder.encode_prompt((("user", question),)) for question in questions]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in prompts])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=28,
            do_sample=False,
            pad_token_id=0,
        )
    return [str(encoder.decode(row[longest:].tolist())) for row in made]


def score(ask: Callable[[list[str]], list[str]], told: Callable[[str, str], None]) -> Score:
    def count(questions: list[str], right: Callable[[int, str], bool]) -> int:
        number = 0
        for place, said in enumerate(ask(questions)):
            told(questions[place], said)
            number += right(place, said)
        return number

    return Score(
        count(FACT_QUESTIONS, lambda place, said: FACT in said),
        count(STYLE_QUESTIONS, lambda place, said: said.startswith(STYLE) and " > " in said),
        count(
            [question for question, _ in GENERAL],
            lambda place, said: any(one in said for one in GENERAL[place][1].split("|")),
        ),
    )


def report(
    options: argparse.Namespace,
    trained: dict[str, Any],
    before: Score,
    after: Score,
    seconds: float,
) -> None:
    figures = trained["figures"]
    if options.as_json:
        document = {
            "before": vars(before),
            "after": vars(after),
            "figures": figures,
            "verdict": trained["verdict"],
            "seconds": seconds,
        }
        print(json.dumps(document))
        return
    how = f"{seconds:.0f} s with imports and gate"
    if "curve" in trained:
        how = f"{len(CORRECTIONS)} corrections, {len(trained['curve']['losses'])} steps, {how}"
    print(how)
    print(f"before: {before}")
    print(f"after:  {after}")
    print(f"{trained['verdict']}: {trained['why']}")
    for notice in trained.get("notices", ()):
        print(notice)


if __name__ == "__main__":
    sys.exit(main())
