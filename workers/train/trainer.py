"""The loop: steps of weighted examples, with pauses, checkpoints and the best weights kept."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from workers.train.adapter import LoRAAdapter
from workers.train.brake import Brake, CancelledError, braked
from workers.train.checkpoints import Curve, Snapshot, read_snapshot, write_snapshot
from workers.train.encoding import EncodedExample
from workers.train.loss import (
    count_unknown,
    divergence,
    example_losses,
    make_micro_batch,
    target_losses,
    weigh,
)
from workers.train.schedule import (
    UNKNOWN,
    TrainingPlan,
    fill_micro_batches,
    is_learnt,
    learning_rate_at,
    learns_by_heart,
)


@dataclass(frozen=True)
class Report:
    """One moment of a training. ``loss`` is the weighted mean over the examples of the last
    step, ``held_out`` the newest mean over what was kept back, both in nats a token."""

    step: int
    steps: int
    loss: float | None
    held_out: float | None
    tokens_per_second: float
    eta_s: float | None


class Watcher(Protocol):
    """Is told how a training goes."""

    def advance(self) -> None:
        """A part of a step was computed."""

    def prepare(self, detail: str) -> None:
        """Before the first step ``detail`` is done."""

    def report(self, report: Report) -> None:
        """A step is done."""


class NoWatcher:
    """Nobody looks."""

    def advance(self) -> None: ...

    def prepare(self, detail: str) -> None: ...

    def report(self, report: Report) -> None: ...


def accumulate(
    model: Any,
    examples: Sequence[EncodedExample],
    scale: float,
    micro_tokens: int,
    each: Callable[[], object] = lambda: None,
) -> tuple[float, int]:
    """Add the gradient of ``sum(weight * loss) / scale`` to what is learnt; that sum, and how many
    examples are not known yet.

    However the examples are cut into micro-batches, it is the same.
    """
    device = str(next(model.parameters()).device)
    total, unknown = 0.0, 0
    for group in fill_micro_batches([len(one.ids) for one in examples], micro_tokens):
        batch = make_micro_batch([examples[place] for place in group], device)
        losses = target_losses(model, batch)
        loss: Any = weigh(losses, batch) / scale
        loss.backward()
        total += float(loss.detach())
        unknown += count_unknown(losses, batch)
        each()
    return total, unknown


def mean_loss(
    model: Any,
    examples: Sequence[EncodedExample],
    micro_tokens: int,
    each: Callable[[], object] = lambda: None,
) -> float:
    """The weighted mean of the examples' losses, in nats a token."""
    device = str(next(model.parameters()).device)
    total = 0.0
    for group in fill_micro_batches([len(one.ids) for one in examples], micro_tokens):
        chosen = [examples[place] for place in group]
        losses = example_losses(model, make_micro_batch(chosen, device))
        total += sum(one.weight * loss for one, loss in zip(chosen, losses, strict=True))
        each()
    return total / sum(one.weight for one in examples)


@dataclass
class Trainer:
    """One training of one adapter.

    Args:
        adapter: what learns, on its frozen base.
        learnt: the examples.
        held_out: what is only looked at; ``paraphrased``: it is what is learnt, in other words.
        kept: general questions with the base model's answers, which shall stay; ``near``: the
            same of questions that are like those of the examples, but of something else.
        plan: how.
        checkpoint: the file that it goes on from, if that is of the same training; ``None``:
            nothing is written down.
        base: which base model, for the file.
    """

    adapter: LoRAAdapter
    learnt: Sequence[EncodedExample]
    held_out: Sequence[EncodedExample]
    plan: TrainingPlan
    checkpoint: Path | None = None
    kept: Sequence[EncodedExample] = ()
    near: Sequence[EncodedExample] = ()
    paraphrased: bool = False
    base: str = ""
    watcher: Watcher = field(default_factory=NoWatcher)
    brake: Brake = field(default_factory=Brake)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.curve = Curve()
        self.step = 0
        self.steps = self.plan.steps_for(len(self.learnt))
        self._parameters = self.adapter.parameters()
        self._trained = self.adapter.trained()
        self._optimizer = torch.optim.AdamW(
            self._trained.values(),
            lr=self.plan.learning_rate,
            weight_decay=self.plan.weight_decay,
        )
        self._best: dict[str, torch.Tensor] = {}
        self._began = 0.0
        self.earlier_s = 0.0
        """Seconds of work before the training was resumed."""
        weight = sum(one.weight for one in self.learnt)
        # A step's mean weight, not each step's own: one that happens to hold the weighty
        # examples counts for more.
        self._scale = weight / self.plan.steps_of_epoch(len(self.learnt))

    def run(self) -> Curve:
        """Train to the end; the adapter then has the weights with the least held-out loss.

        Raises:
            CancelledError: at the next layer after the brake was cancelled. What was learnt is
                in the checkpoint.
            ShammahError: ``checkpoint_unwritable``.
        """
        model = self.adapter.model
        model.train()
        self._began = self.clock() - self.brake.stood_s
        self._resume()
        try:
            with braked(model, self.brake):
                self._train()
        except CancelledError:
            self.write()
            raise
        finally:
            model.eval()
        self.write()
        if self._best:
            self.adapter.put(self._best)
        return self.curve

    def _train(self) -> None:
        per_epoch = self.plan.steps_of_epoch(len(self.learnt))
        while True:
            looked = self.curve.held_out[-1][0] if self.curve.held_out else -1
            if self.step % per_epoch == 0 and looked != self.step:
                self._look()
                self._report()
            if self.step == self.steps or self._is_over(per_epoch):
                return
            epoch, place = divmod(self.step, per_epoch)
            self._take_step(self.plan.batches(len(self.learnt), epoch)[place])
            self._report()
            if self.step % self.plan.checkpoint_steps == 0:
                self.write()

    def _take_step(self, places: list[int]) -> None:
        chosen = [self.learnt[place] for place in places]
        # Dropout of a step is its own, so that a step that is begun again is the same one.
        torch.manual_seed(self.plan.seed + 1_000_003 * self.step)
        self._optimizer.zero_grad(set_to_none=True)
        rate = learning_rate_at(self.step, self.steps, self.plan.learning_rate)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        loss, unknown = accumulate(
            self.adapter.model, chosen, self._scale, self.plan.micro_tokens, self.watcher.advance
        )
        self._hold_on()
        torch.nn.utils.clip_grad_norm_(self._trained.values(), self.plan.clip_norm)
        self._optimizer.step()
        weight = sum(one.weight for one in chosen)
        self.curve.losses.append(loss * self._scale / weight)
        self.curve.unknown.append(unknown)
        tokens = sum(len(one.ids) for one in chosen)
        self.curve.tokens += tokens
        self.step += 1

    def _hold_on(self) -> None:
        """Add the gradient of the mean divergence from the base model on general questions."""
        picked = [
            *self.plan.sample(self.kept, self.plan.kept_batch, self.step),
            *self.plan.sample(self.near, self.plan.near_batch, self.step),
        ]
        if not picked:
            return
        total = 0.0
        device = str(next(self.adapter.model.parameters()).device)
        lengths = [len(one.ids) for one in picked]
        for group in fill_micro_batches(lengths, self.plan.micro_tokens):
            batch = make_micro_batch([picked[place] for place in group], device)
            far = divergence(self.adapter, batch) / len(picked)
            (self.plan.kept_weight * far).backward()  # type: ignore[no-untyped-call]
            total += float(far.detach())
            self.watcher.advance()
        self.curve.kept.append(total)

    def _look(self) -> None:
        """Measure the held-out loss, and keep the weights if they are the best so far."""
        if not self.held_out:
            return
        model = self.adapter.model
        model.eval()
        loss = mean_loss(model, self.held_out, self.plan.micro_tokens, self.watcher.advance)
        model.train()
        self.curve.held_out.append((self.step, loss))
        loss += self.plan.kept_weight * self._divergence()
        if self.paraphrased:  # an answer that is not known yet is worse than the mean of all says
            loss += self._unknown()
        if loss < self.curve.best_loss:
            self.curve.best_loss, self.curve.best_step = loss, self.step
            self._best = {n: one.detach().clone() for n, one in self._parameters.items()}

    def _is_over(self, per_epoch: int) -> bool:
        held_out = [loss for _, loss in self.curve.held_out]
        unknown = self._unknown()
        if learns_by_heart(held_out) and not (self.paraphrased and unknown):
            return True
        if self.plan.epochs or unknown > UNKNOWN:
            return False
        return is_learnt(self.curve.losses[-per_epoch:], held_out, self._divergence())

    def _unknown(self) -> float:
        """The share of the examples that were not known in the newest epoch."""
        of_epoch = self.curve.unknown[-self.plan.steps_of_epoch(len(self.learnt)) :]
        return sum(of_epoch) / len(self.learnt) if of_epoch else 1.0

    def _divergence(self) -> float:
        """Of the newest epoch's general questions, in nats a token."""
        kept = self.curve.kept[-self.plan.steps_of_epoch(len(self.learnt)) :]
        return sum(kept) / len(kept) if kept else 0.0

    def _report(self) -> None:
        now = self.clock() - self.brake.stood_s
        self.curve.seconds = self.earlier_s + now - self._began
        rate = self.curve.tokens / self.curve.seconds if self.curve.seconds > 0 else 0.0
        left = (self.steps - self.step) * (self.curve.tokens / max(1, self.step))
        self.watcher.report(
            Report(
                self.step,
                self.steps,
                loss=self.curve.losses[-1] if self.curve.losses else None,
                held_out=self.curve.held_out[-1][1] if self.curve.held_out else None,
                tokens_per_second=rate,
                eta_s=left / rate if rate else None,
            )
        )

    # --- written down ---------------------------------------------------------------------

    def write(self) -> None:
        """Write down where it stands."""
        if self.checkpoint is None:
            return
        tensors = {}
        for name, parameter in self._parameters.items():
            tensors[f"weights.{name}"] = parameter.detach()
            state = self._optimizer.state.get(parameter, {})
            if state:
                tensors[f"first.{name}"] = state["exp_avg"]
                tensors[f"second.{name}"] = state["exp_avg_sq"]
        tensors |= {f"best.{name}": one for name, one in self._best.items()}
        tensors = {name: one.cpu() for name, one in tensors.items()}
        write_snapshot(self.checkpoint, Snapshot(self.run_id, self.step, self.curve, tensors))

    @property
    def run_id(self) -> str:
        """Another one when anything is another that the outcome depends on."""
        told = [
            self.base,
            asdict(self.adapter.config),
            asdict(self.plan),
            [asdict(one) for one in (*self.learnt, *self.held_out)],
            self.paraphrased,
            # The questions alone: with other rounding the base model answers some otherwise.
            [one.ids[: one.prompt_length] for one in (*self.kept, *self.near)],
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _resume(self) -> None:
        found = None if self.checkpoint is None else read_snapshot(self.checkpoint, self.run_id)
        if found is None:
            return
        self.step, self.curve = found.step, found.curve
        self.earlier_s = self.curve.seconds
        self.adapter.put(_part(found.tensors, "weights."))
        self._best = _part(found.tensors, "best.")
        first, second = _part(found.tensors, "first."), _part(found.tensors, "second.")
        for name, parameter in self._parameters.items():
            if name in first:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": first[name].to(parameter.device),
                    "exp_avg_sq": second[name].to(parameter.device),
                }
        self._report()


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): one for n, one in tensors.items() if n.startswith(prefix)}
