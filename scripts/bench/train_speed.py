#!/usr/bin/env python3
"""Speed and peak memory of our training against plain peft with transformers' Trainer.

The same examples, batches of the same size, the same adapter, the same steps, each in a process
of its own, in turns; the medians and their ratios are told (ours / theirs)::

    scripts/bench/train_speed.py
    scripts/bench/train_speed.py --rounds 5 --steps 12 --json
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

EXAMPLES, BATCH = 32, 4
WORDS = ("the", "model", "answers", "question", "short", "long", "because", "river", "blue")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--json", action="store_true", dest="as_json")
    parser.add_argument("--one", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options.one, options.steps)))
        return 0
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(options.rounds):
        for who in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            command = [sys.executable, __file__, "--one", who, "--steps", str(options.steps)]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[who].append(json.loads(ended.stdout.splitlines()[-1]))
    median = {
        who: {key: statistics.median(one[key] for one in every) for key in every[0]}
        for who, every in found.items()
    }
    ours, theirs = median["ours"], median["theirs"]
    ratios = {
        "speed": ours["tokens_per_second"] / theirs["tokens_per_second"],
        "memory": ours["peak_mb"] / theirs["peak_mb"],
    }
    if options.as_json:
        print(json.dumps(median | {"ratios": ratios}))
    else:
        for who, facts in median.items():
            print(
                f"{who:7} {facts['tokens_per_second']:7.1f} tokens/s, peak "
                f"{facts['peak_mb']:6.0f} MB, loss {facts['loss']:.3f}"
            )
        print(f"ours / theirs: speed {ratios['speed']:.2f}, peak memory {ratios['memory']:.2f}")
    return 0 if ratios["speed"] >= 1 and ratios["memory"] <= 1 else 1


def lesson() -> list[tuple[str, str]]:
    """Questions and answers as long as people's are."""
    chosen = random.Random(3)
    return [
        (
            " ".join(chosen.choices(WORDS, k=chosen.randint(8, 60))),
            " ".join(chosen.choices(WORDS, k=chosen.randint(10, 90))),
        )
        for _ in range(EXAMPLES)
    ]


def run_one(who: str, steps: int) -> dict[str, float]:
    warnings.filterwarnings("ignore")
    from shammah.learning.examples import Example
    from shammah.models.catalogue import LocatedModel, starter_directory
    from workers.environment import prepare_libraries
    from workers.train.base_model import Arithmetic, load_base

    prepare_libraries()
    from workers.train.encoding import ChatEncoder

    located = LocatedModel("starter", starter_directory(), "starter")
    encoder = ChatEncoder.load(located.directory)
    examples = [encoder.encode(Example((("user", p),), r)) for p, r in lesson()]
    base = load_base(located, Arithmetic("cpu", "float32"))
    tokens, seconds, loss = (ours if who == "ours" else theirs)(base, examples, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"tokens_per_second": tokens / seconds, "peak_mb": peak, "loss": loss}


def ours(base: Any, examples: list[Any], steps: int) -> tuple[int, float, float]:
    from workers.train.adapter import LoRAAdapter
    from workers.train.lora_config import LoRAConfig
    from workers.train.schedule import TrainingPlan
    from workers.train.trainer import Trainer

    plan = TrainingPlan(epochs=1, batch=BATCH)
    adapter = LoRAAdapter.new(base, LoRAConfig(), 0)
    trainer = Trainer(adapter, examples[: steps * BATCH], (), plan)
    began = time.monotonic()
    curve = trainer.run()
    return curve.tokens, time.monotonic() - began, statistics.mean(curve.losses)


def theirs(base: Any, examples: list[Any], steps: int) -> tuple[int, float, float]:
    import peft
    import torch
    from transformers import Trainer, TrainingArguments

    wanted = peft.LoraConfig(
        r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(base, wanted)

    def collate(rows: list[Any]) -> dict[str, Any]:
        longest = max(len(row.ids) for row in rows)
        ids, mask, labels = [], [], []
        for row in rows:
            pad = longest - len(row.ids)
            ids.append([*row.ids, *[0] * pad])
            mask.append([1] * len(row.ids) + [0] * pad)
            answer = row.ids[row.prompt_length :]
            labels.append([-100] * row.prompt_length + [*answer] + [-100] * pad)
        return {
            "input_ids": torch.tensor(ids),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor(labels),
        }

    with tempfile.TemporaryDirectory() as directory:
        arguments = TrainingArguments(
            output_dir=str(Path(directory)),
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=3e-4,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        chosen = examples[: steps * BATCH]
        trainer = Trainer(model=model, args=arguments, train_dataset=chosen, data_collator=collate)
        began = time.monotonic()
        result = trainer.train()
        seconds = time.monotonic() - began
    return sum(len(one.ids) for one in chosen), seconds, float(result.training_loss)


if __name__ == "__main__":
    sys.exit(main())
