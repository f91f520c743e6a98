"""A base model and examples in, an adapter that has learnt them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from workers.train.adapter import LoRAAdapter
from workers.train.aiming import aim
from workers.train.brake import Brake, braked
from workers.train.encoding import EncodedExample
from workers.train.lora_config import LoRAConfig
from workers.train.loss import keeps_apart
from workers.train.schedule import TrainingPlan
from workers.train.trainer import NoWatcher, Trainer, Watcher


def fine_tune(
    examples: Sequence[EncodedExample],
    config: LoRAConfig,
    epochs: int,
    learning_rate: float,
    *,
    base: Any,
    held_out: Sequence[EncodedExample] = (),
    kept: Sequence[EncodedExample] = (),
    near: Sequence[EncodedExample] = (),
    paraphrased: bool = False,
    plan: TrainingPlan | None = None,
    base_name: str = "",
    base_version: str = "",
    frugal: bool = False,
    checkpoint: Callable[[str], Path | None] = lambda run_id: None,
    watcher: Watcher | None = None,
    brake: Brake | None = None,
) -> Trainer:
    """Teach ``base``, whose weights stay as they are, with a new adapter on it.

    Args:
        examples: what is learnt.
        epochs: 0: as many as that many examples ask for.
        base: as `workers.train.base_model.load_base` returns it.
        held_out: what is only looked at; the weights that do best at it are kept.
        kept, near, paraphrased: see `Trainer`.
        plan: everything else about how; its epochs and learning rate are not looked at.
        base_name, base_version: see `LoRAAdapter.new` and `Trainer`.
        frugal: compute layers twice rather than keep what they have computed.
        checkpoint: where the training of that name is written down.

    Returns:
        The trainer, at its end: ``adapter`` is switched on, ``curve`` how it went.

    Raises:
        ShammahError: ``lora_config_invalid`` and those of `Trainer.run`.
        CancelledError: see `Trainer.run`.
    """
    plan = replace(plan or TrainingPlan(), epochs=epochs, learning_rate=learning_rate)
    watcher, brake = watcher or NoWatcher(), brake or Brake()
    if not keeps_apart(base, examples[:2]):
        plan = replace(plan, micro_tokens=1)
    adapter = LoRAAdapter.new(base, config, plan.seed, base_name)
    if kept:
        with braked(adapter.model, brake):
            aim(adapter, examples, kept, watcher.prepare)
    if frugal:
        base.activation_checkpointing_enable({"use_reentrant": False})
    trainer = Trainer(
        adapter,
        examples,
        held_out,
        plan,
        kept=kept,
        near=near,
        paraphrased=paraphrased,
        base=base_version,
        watcher=watcher,
        brake=brake,
    )
    trainer.checkpoint = checkpoint(trainer.run_id)
    trainer.run()
    return trainer
