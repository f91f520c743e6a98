"""``shammah train`` as it is declared; `shammah.cli.training` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from shammah.cli.options import Command, json_option

EXAMPLES = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.option("--examples", type=EXAMPLES, help="A JSONL file instead of the feedback.")
@click.option("--model", "-m", metavar="MODEL", help="The base model; default: as set.")
@click.option("--name", default="", help="Name of the adapter; default: the date and time.")
@click.option(
    "--epochs", type=click.IntRange(0, 100), default=0, help="0: by the number of examples."
)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--rank", type=int, default=16, show_default=True, help="The adapter's rank.")
@click.option("--alpha", type=float, default=None, help="Its scale; default: twice the rank.")
@click.option("--dropout", type=float, default=0.0, show_default=True)
@click.option(
    "--target-modules", default="all", show_default=True, help="Or a list: q_proj,v_proj."
)
@click.option("--batch", type=click.IntRange(1, 256), default=4, help="Examples per step.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Order and initial weights."
)
@click.option("--qlora", is_flag=True, help="Base weights in 4 bits (CUDA and bitsandbytes).")
@click.option("--on-battery", is_flag=True, help="Train on battery, too.")
@click.option("--no-serve", is_flag=True, help="Store the adapter without using it.")
@click.option("--restart", is_flag=True, help="Start over instead of resuming.")
@json_option("One object with figures and curve.")
def train(
    examples: Path | None,
    model: str | None,
    rank: int,
    alpha: float | None,
    target_modules: str,
    no_serve: bool,
    as_json: bool,
    **requested: Any,
) -> int:
    """Teach the local model from feedback or a file, by a LoRA adapter.

    The adapter is used only if it helps on held-out examples and does no harm to general answers.
    Training yields to questions and pauses while the machine runs on battery.

    Examples:
      shammah train                     from what /good, /fix and /feedback stored
      shammah train --examples house-style.jsonl
      shammah train --epochs 5 --learning-rate 3e-4 --rank 8
      shammah train --target-modules q_proj,k_proj,v_proj,o_proj
      shammah train --json | jq .figures
    A line of the file: {"prompt": "...", "response": "...", "weight": 1}
    Ctrl-C stops and keeps what was learnt; the same command resumes.
    Exit status: 0 accepted, 1 failed or refused, 2 wrong usage, 130 Ctrl-C.
    """
    from shammah.cli.training import run_training

    return run_training(
        model,
        str(examples.absolute()) if examples else "",
        [] if target_modules == "all" else [one.strip() for one in target_modules.split(",")],
        as_json=as_json,
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        serve=not no_serve,
        **requested,
    )
