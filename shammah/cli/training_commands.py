"""``shammah train``: what the train worker is asked for, and how its answers are shown."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from shammah.bus import codec
from shammah.bus.client import Peer, new_request_id
from shammah.bus.messages import Failed
from shammah.bus.training import Train, Trained, Training, TrainingProgress, TrainProgress
from shammah.cli.termination import TerminatedError, raising_terminated
from shammah.cli.training_plot import INSTALL, NAME, can_plot, check_plot, write_plot
from shammah.errors import ExitCode, ShammahError
from shammah.learning.adapters import AdapterStore
from shammah.learning.examples import Example, read_examples, split_examples
from shammah.learning.feedback import Feedback
from shammah.settings.model import Settings
from shammah.supervision.lifecycle import RestartBudget, connect
from shammah.terminal.output import echo
from shammah.terminal.progress import ProgressScreen, TrainingView
from shammah.terminal.wording import describe_duration, describe_training

ROLE = "train"
BACKGROUND = (
    "The training goes on in the background: `shammah status` shows it, `shammah stop train` ends "
    "it."
)
NEXT = "This one begins when that has ended; `shammah stop train` ends both."


def train(settings: Settings, asked: Train, plot: Path | None, *, as_json: bool) -> int:
    """Train and show how far it is. Ctrl-C stops it; what was learnt is kept.

    Raises:
        ShammahError: it failed, or what was asked for is wrong.
    """
    if plot is not None:
        check_plot(plot)
    if asked.name:
        AdapterStore(settings.home).check_new(asked.name)
    examples = _examples(settings, asked.examples)
    split_examples(examples, asked.seed)  # so that what is wrong is told at once
    screen = TrainingView(ProgressScreen(os.environ, sys.stderr, quiet=as_json))
    try:
        with raising_terminated():
            ended = _follow(settings, asked, screen)
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
        print(json.dumps(codec.to_document(ended), ensure_ascii=False), flush=True)
    else:
        echo("\n".join(describe_trained(ended)))
    drawn = _draw(settings, ended, plot)  # last: who presses Ctrl-C now has been told already
    if not as_json:
        echo(drawn)
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
            f"{trained.model} answers with it from the next question on; `shammah adapters "
            "rollback` takes it back."
        )
    else:
        lines.append(f"It does not serve; `shammah adapters show {trained.adapter}` tells more.")
    return lines


def _draw(settings: Settings, trained: Trained, plot: Path | None) -> str:
    """Draw the losses if that can be done; a sentence that says where they are."""
    if plot is None:
        if not can_plot():
            return f"With {INSTALL} the losses are drawn, too."
        plot = AdapterStore(settings.home).get(trained.adapter).directory / NAME
    write_plot(trained, plot)
    return f"The losses are drawn in {plot}."


def _follow(settings: Settings, asked: Train, screen: TrainingView) -> Trained | Failed:
    """One training to its end, also when the worker dies on the way: it goes on from what is
    written down."""
    budget, furthest = RestartBudget(), TrainingProgress(asked.model)
    while True:
        peer = connect(settings, ROLE, "train", os.environ)
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
