"""``shammah train``: what the train worker is asked for, and how its answers are shown."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Failed
from shammah.bus.training import (
    ALL_MODULES,
    Train,
    Trained,
    Training,
    TrainingProgress,
    TrainProgress,
)
from shammah.cli.options import Command, json_option, load_checked_settings
from shammah.cli.termination import TerminatedError, raising_terminated
from shammah.errors import ExitCode, ShammahError
from shammah.learning.adapters import AdapterStore
from shammah.learning.examples import Example, read_examples, split_examples
from shammah.learning.feedback import Feedback
from shammah.settings.model import Settings
from shammah.supervision.lifecycle import RestartBudget, connect
from shammah.terminal.output import echo, print_json
from shammah.terminal.progress import ProgressScreen, TrainingView
from shammah.terminal.wording import describe_duration, describe_training

EXAMPLES = click.Path(exists=True, dir_okay=False, path_type=Path)
BACKGROUND = (
    "The training goes on in the background: `shammah status` shows it, `shammah stop train` ends "
    "it."
)
NEXT = "This one begins when that has ended; `shammah stop train` ends both."


@click.command(cls=Command)
@click.option("--examples", type=EXAMPLES, help="A JSONL file instead of the feedback.")
@click.option("--model", "-m", metavar="MODEL", help="Which base model; default: as set.")
@click.option("--name", default="", help="Of the adapter; default: the date and time.")
@click.option("--epochs", type=click.IntRange(0, 100), default=0, help="0: by the examples.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--rank", type=int, default=16, show_default=True, help="Of the adapter.")
@click.option("--alpha", type=float, default=None, help="Its scale; default: twice the rank.")
@click.option("--dropout", type=float, default=0.0, show_default=True)
@click.option(
    "--target-modules", default="all", show_default=True, help="Or a list: q_proj,v_proj."
)
@click.option("--batch", type=click.IntRange(1, 256), default=4, help="Examples of one step.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of order and start.")
@click.option("--qlora", is_flag=True, help="Base weights in 4 bits (CUDA and bitsandbytes).")
@click.option("--on-battery", is_flag=True, help="Do not wait for the plug.")
@click.option("--no-serve", is_flag=True, help="Keep the adapter, but let nothing change.")
@click.option("--restart", is_flag=True, help="Do not go on from where it was stopped.")
@json_option("One object with figures and curve.")
def train(
    examples: Path | None,
    model: str | None,
    rank: int,
    alpha: float | None,
    target_modules: str,
    no_serve: bool,
    as_json: bool,
    **asked: Any,
) -> int:
    """Teach the local model from feedback or a file, by a LoRA adapter.

    The adapter serves only if it helps on examples that were held back, and harms no general
    answers. Training gives way to questions and waits while the machine runs on battery.

    Examples:
      shammah train                     from what /good, /fix and /feedback noted
      shammah train --examples house-style.jsonl
      shammah train --epochs 5 --learning-rate 3e-4 --rank 8
      shammah train --target-modules q_proj,k_proj,v_proj,o_proj
      shammah train --json | jq .figures
    A line of the file: {"prompt": "...", "response": "...", "weight": 1}
    Ctrl-C stops and keeps what was learnt: the same command goes on from there.
    Exit status: 0 it serves or could, 1 failed or refused, 2 wrong usage,
    130 Ctrl-C.
    """
    settings = load_checked_settings(model)
    modules = tuple(one.strip() for one in target_modules.split(","))
    if target_modules == "all":
        modules = ALL_MODULES
    wanted = Train(
        new_request_id(),
        settings.model,
        str(examples.absolute()) if examples else "",
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        target_modules=modules,
        serve=not no_serve,
        **asked,
    )
    if wanted.name:
        AdapterStore(settings.home).check_new(wanted.name)

    split_examples(
        _examples(settings, wanted.examples), wanted.seed
    )  # so that what is wrong is told at once
    screen = TrainingView(ProgressScreen(os.environ, sys.stderr, quiet=as_json))
    try:
        with raising_terminated():
            ended = _follow(settings, wanted, screen)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except TerminatedError as terminated:
        with contextlib.suppress(OSError):  # the terminal may be gone
            screen.end()
            screen.say(BACKGROUND)
        return terminated.status
    finally:
        screen.end()
    if isinstance(ended, Failed):
        raise ShammahError(ended.code, ended.message, ended.hint)
    if as_json:
        print_json(codec.to_document(ended))
    else:
        echo("\n".join(describe_trained(ended)))
    return ExitCode.OK if ended.verdict == "accepted" else ExitCode.FAILED


def _examples(settings: Settings, path: str) -> tuple[Example, ...]:
    """Those of the file at ``path``; empty: the feedback, of which is told what is damaged.

    Raises:
        ShammahError: they cannot be read.
    """
    if path:
        return read_examples(Path(path))
    feedback = Feedback(settings.home)
    if damage := feedback.describe_damage():
        echo(damage, err=True)
    return feedback.examples()


def describe_trained(trained: Trained) -> list[str]:
    """What has come out, in a few sentences."""
    steps = len(trained.curve.losses)
    lines = [
        f"{trained.adapter}: {trained.examples} examples, {steps} steps, "
        f"{describe_duration(trained.seconds)}.",
        f"{trained.verdict.capitalize()}: {trained.why}",
    ]
    lines += trained.notices
    if trained.serves:
        lines.append(
            f"{trained.model} answers with it from your next question; `shammah adapters "
            "rollback` takes it back."
        )
    else:
        lines.append("It does not serve.")
    lines.append(f"`shammah adapters show {trained.adapter}` shows how it was learnt.")
    return lines


def _follow(settings: Settings, asked: Train, screen: TrainingView) -> Trained | Failed:
    """One training to its end, also when the worker dies on the way: it goes on from what is
    written down."""
    budget, furthest = RestartBudget(), TrainingProgress(asked.model)
    while True:
        peer = connect(settings, "train", "train", os.environ)
        try:
            if (busy := _other_training(peer)) is not None:
                if asked.name and busy.adapter == asked.name:
                    raise _trained_already(busy)
                screen.say(f"Another training is under way ({describe_training(busy)}). {NEXT}")
            task = peer.begin(asked)
            try:
                for reply in task:
                    if isinstance(reply, TrainProgress):
                        furthest = reply.progress
                        screen.show(furthest)
                    elif isinstance(reply, Trained | Failed):
                        ended = reply
            except KeyboardInterrupt:
                task.cancel()
                screen.end()
                screen.say(_stopped(furthest))
                raise
            died = isinstance(ended, Failed) and ended.code == "worker_died"
            if not died or peer.stopped or not budget.spend():
                return ended
            asked = replace(asked, request_id=new_request_id(), restart=False)
            screen.say("The train worker died. It was restarted and continues from a checkpoint.")
        finally:
            peer.close()


def _other_training(peer: Peer) -> TrainingProgress | None:
    """How far what the worker does already is."""
    if peer.welcome is None:
        return None
    state = peer.welcome.event.status.state
    return state.progress if isinstance(state, Training) else None


def _trained_already(busy: TrainingProgress) -> ShammahError:
    return ShammahError(
        "training_under_way",
        f"{busy.adapter} is being trained already ({describe_training(busy)}).",
        "`shammah status` shows how far it is, `shammah stop train` stops it: the same command "
        "goes on from there.",
    )


def _stopped(progress: TrainingProgress) -> str:
    if not progress.step:
        return "Stopped before the first step."
    return (
        f"Stopped at step {progress.step} of {progress.steps}. What was learnt is kept: the same "
        "command goes on from there, --restart starts over."
    )
