"""One training from the command line: what the train worker is asked for, and its answers."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from shammah.cli.options import load_checked_settings
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

BACKGROUND = (
    "Training continues in the background. `shammah status` shows it, `shammah stop train` stops "
    "it."
)
NEXT = "Yours starts when it ends; `shammah stop train` stops both."


def run_training(
    model: str | None,
    examples: str,
    target_modules: Sequence[str],
    *,
    as_json: bool,
    **requested: Any,
) -> int:
    """Train and return the exit status.

    Args:
        model: the base model; ``None``: as set.
        examples: an absolute path; empty: the feedback.
        target_modules: which matrices are adapted; empty: all of them.
        as_json: print one object.
        requested: the other fields of `Train`.

    Raises:
        ShammahError: the request is wrong, or the training failed.
    """
    settings = load_checked_settings(model)
    modules = tuple(target_modules) or ALL_MODULES
    wanted = Train(
        new_request_id(),
        settings.model,
        examples,
        target_modules=modules,
        from_cloud=settings.train.from_cloud,
        **requested,
    )
    if wanted.name:
        AdapterStore(settings.home).check_new(wanted.name)
    # So that wrong examples are reported at once.
    split_examples(_examples(settings, examples), wanted.seed)
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
    """Read the file at ``path``, or, if that is empty, the feedback. What of that is damaged or
    left out is reported.

    Raises:
        ShammahError: they cannot be read.
    """
    if path:
        return read_examples(Path(path))
    feedback = Feedback(settings.home)
    if damage := feedback.describe_damage():
        echo(damage, err=True)
    allowed = feedback.examples(from_cloud=settings.train.from_cloud)
    if left_out := len(feedback.examples(from_cloud=True)) - len(allowed):
        echo(describe_left_out(left_out), err=True)
    return allowed


def describe_left_out(count: int) -> str:
    """Say that so many examples of the feedback are not learnt, and why."""
    answers = "1 answer that is" if count == 1 else f"{count} answers that are"
    return (
        f"Leaving out {answers} Claude's or another server's: terms such as Anthropic's forbid "
        "training on them. `shammah config set train.from_cloud true` learns them, too."
    )


def describe_trained(trained: Trained) -> list[str]:
    """Describe the result in a few sentences."""
    steps = len(trained.curve.losses)
    lines = [
        f"{trained.adapter}: {trained.examples} examples, {steps} steps, "
        f"{describe_duration(trained.seconds)}.",
        f"{trained.verdict.capitalize()}: {trained.why}",
    ]
    lines += trained.notices
    if trained.serves:
        lines.append(
            f"{trained.model} uses it from your next question. To undo: `shammah adapters "
            "rollback`."
        )
    else:
        lines.append("It is not in use.")
    lines.append(f"Details: `shammah adapters show {trained.adapter}`.")
    return lines


def _follow(settings: Settings, wanted: Train, screen: TrainingView) -> Trained | Failed:
    """Follow one training to its end. If the worker dies, the training resumes from its last
    checkpoint."""
    budget, furthest = RestartBudget(), TrainingProgress(wanted.model)
    while True:
        peer = connect(settings, "train", "train", os.environ)
        try:
            if (busy := _other_training(peer)) is not None:
                if wanted.name and busy.adapter == wanted.name:
                    raise _trained_already(busy)
                screen.say(f"Another training is running ({describe_training(busy)}). {NEXT}")
            task = peer.begin(wanted)
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
            wanted = replace(wanted, request_id=new_request_id(), restart=False)
            screen.say("The train worker died. It was restarted and continues from a checkpoint.")
        finally:
            peer.close()


def _other_training(peer: Peer) -> TrainingProgress | None:
    """Return how far another training is; ``None`` if there is none."""
    if peer.welcome is None:
        return None
    state = peer.welcome.event.status.state
    return state.progress if isinstance(state, Training) else None


def _trained_already(busy: TrainingProgress) -> ShammahError:
    return ShammahError(
        "training_under_way",
        f"{busy.adapter} is already being trained ({describe_training(busy)}).",
        "`shammah status` shows its progress. `shammah stop train` stops it; the same command "
        "resumes it.",
    )


def _stopped(progress: TrainingProgress) -> str:
    if not progress.step:
        return "Stopped before the first step."
    return (
        f"Stopped at step {progress.step} of {progress.steps}. What was learnt is kept. The same "
        "command resumes; --restart starts over."
    )
