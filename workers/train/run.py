"""One training from what was asked for to an adapter in the home."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.bus.training import (
    GateFigures,
    LossCurve,
    Train,
    Trained,
    TrainingProgress,
)
from shammah.errors import ShammahError
from shammah.learning.adapters import ACCEPTED, AdapterEntry, AdapterStore
from shammah.learning.examples import (
    NORMAL,
    Example,
    count_sources,
    paraphrase,
    read_examples,
    split_examples,
)
from shammah.learning.feedback import Feedback
from shammah.models.catalogue import LocatedModel, followable_hints
from shammah.settings.model import Settings
from workers.environment import prepare_libraries
from workers.train.base_model import (
    choose_arithmetic,
    load_base,
    locate,
    parameters_of,
    revision_of,
    shape_of,
)
from workers.train.brake import Brake, braked
from workers.train.gate import Gate, describe_strength, judge, weaken
from workers.train.lora_config import LoRAConfig
from workers.train.memory import MOST_AIMED, choose_checkpointing, estimate, free_memory
from workers.train.names import names_in, rename
from workers.train.schedule import TrainingPlan

if TYPE_CHECKING:
    from workers.train.encoding import ChatEncoder, EncodedExample
    from workers.train.trainer import Report, Trainer

log = logging.getLogger(__name__)

CHECKPOINTS = "training"
"""In the home: where interrupted trainings are, until they are resumed."""

KEPT_CHECKPOINTS = 3


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is asked for, checked: nothing heavy is imported for it.

    ``source`` says where the examples came from. ``held_out`` judges; ``paraphrased``: it is what
    is learnt, in other words."""

    located: LocatedModel
    learnt: tuple[Example, ...]
    held_out: tuple[Example, ...]
    config: LoRAConfig
    plan: TrainingPlan
    source: str
    paraphrased: bool

    @property
    def given(self) -> tuple[Example, ...]:
        """All examples, as they came."""
        return self.learnt if self.paraphrased else (*self.learnt, *self.held_out)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a lesson needs in memory. ``version`` tells one base model from any other;
    ``frugal``: its layers are computed twice, because memory is short."""

    base: Any
    encoder: ChatEncoder
    version: str
    learnt: Sequence[EncodedExample]
    held_out: Sequence[EncodedExample]
    frugal: bool


def prepare_lesson(train: Train, settings: Settings, environ: Mapping[str, str]) -> Lesson:
    """Check everything that can be checked before the libraries are imported.

    Raises:
        ShammahError: what is wrong with the request, its examples or its model.
    """
    config = LoRAConfig(train.rank, train.alpha, train.dropout, train.target_modules)
    plan = TrainingPlan(train.epochs, train.learning_rate, train.batch, seed=train.seed)
    if train.name:
        AdapterStore(settings.home).check_new(train.name)
    located = locate(train.model, settings, environ)
    if train.examples:
        examples, source = read_examples(Path(train.examples)), "file"
    else:
        examples, source = Feedback(settings.home).examples(from_cloud=train.from_cloud), "feedback"
    learnt, held_out = split_examples(examples, train.seed)
    paraphrased = not held_out
    held_out = held_out or paraphrase(learnt)
    return Lesson(
        located,
        learnt,
        held_out=held_out,
        config=config,
        plan=plan,
        source=source,
        paraphrased=paraphrased,
    )


class TrainingRun:
    """One training. `execute` takes minutes; the brake stops and ends it.

    Args:
        train: what is asked for.
        settings: whose.
        environ: of this process.
        brake: where it stands still.
        report: called with the progress, whenever that has changed.
        advance: a part of a step was computed.
    """

    def __init__(
        self,
        train: Train,
        settings: Settings,
        environ: Mapping[str, str],
        brake: Brake,
        report: Callable[[TrainingProgress], None],
        advance: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._train = train
        self._settings = settings
        self._environ = environ
        self._brake = brake
        brake.on_wait = self.on_wait
        self._report = report
        self._clock = clock
        self.advance = advance
        self.progress = TrainingProgress(train.model)
        self.notices: list[str] = []
        self._before_pause = ("", "")

    def execute(self) -> Trained:
        """Teach, judge and keep.

        Raises:
            CancelledError: see `Trainer.run`.
            ShammahError: whatever kept it from being done.
        """
        began = self._clock()
        lesson = prepare_lesson(self._train, self._settings, self._environ)
        self._show(model=lesson.located.name, phase="loading", detail="libraries")
        self._brake.check()
        with followable_hints(lesson.located):
            loaded = self._load(lesson)
        self._brake.check()
        trainer = self._teach(lesson, loaded)
        curve = trainer.curve
        figures = self._judge(lesson, loaded, trainer)
        verdict, why = judge(figures)
        # Without what was waited, with what earlier goes have taken.
        seconds = self._clock() - began - self._brake.stood_s + trainer.earlier_s
        entry = self._keep(lesson, trainer, figures, verdict, seconds)
        serves = verdict == ACCEPTED and self._train.serve
        store = AdapterStore(self._settings.home)
        if serves:
            store.use(entry.name)
        if trainer.checkpoint is not None:
            trainer.checkpoint.unlink(missing_ok=True)
        return Trained(
            self._train.request_id,
            entry.name,
            model=lesson.located.name,
            verdict=verdict,
            why=why,
            figures=figures,
            curve=LossCurve(
                tuple(curve.losses),
                tuple(step for step, _ in curve.held_out),
                tuple(loss for _, loss in curve.held_out),
            ),
            examples=len(lesson.learnt),
            held_out=0 if lesson.paraphrased else len(lesson.held_out),
            seconds=seconds,
            tokens_per_second=self.progress.tokens_per_second,
            serves=serves,
            notices=tuple(self.notices),
        )

    def report(self, report: Report) -> None:
        """See `workers.train.trainer.Watcher`."""
        self._show(
            phase="training",
            detail="",
            step=report.step,
            steps=report.steps,
            loss=report.loss,
            held_out_loss=report.held_out,
            tokens_per_second=report.tokens_per_second,
            eta_s=report.eta_s,
        )

    def prepare(self, detail: str) -> None:
        """See `workers.train.trainer.Watcher`."""
        self._show(detail=detail)
        self.advance()

    def on_wait(self, why: str | None) -> None:
        """See `workers.train.brake.Brake`."""
        if why is None:
            self.advance()
        elif why:
            self._before_pause = (self.progress.phase, self.progress.detail)
            self._show(phase="paused", detail=why, eta_s=None)
        else:
            phase, detail = self._before_pause
            self._show(phase=phase, detail=detail)

    def _between(self) -> None:
        self.advance()
        self._brake.check()

    def _looked(self, detail: str) -> None:
        self._show(detail=detail)
        self._between()

    def _show(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self._report(self.progress)

    def _load(self, lesson: Lesson) -> Loaded:
        """Everything in its place: base model, encoded examples."""
        prepare_libraries()
        from workers.train.encoding import ChatEncoder, encode_all

        located, plan = lesson.located, lesson.plan
        arithmetic = choose_arithmetic(four_bit=self._train.qlora)
        frugal = False
        if arithmetic.device != "cuda":  # a GPU that is full says so itself
            frugal = self._choose_frugal(lesson, 4 if arithmetic.dtype == "float32" else 2)
        encoder = ChatEncoder.load(located.directory)
        learnt, longer = encode_all(encoder, lesson.learnt, plan.max_tokens)
        held_out, longer_too = encode_all(encoder, lesson.held_out, plan.max_tokens)
        if longer + longer_too:
            self.notices.append(
                f"{longer + longer_too} examples are longer than {plan.max_tokens:,} tokens and "
                "were left out."
            )
        if not learnt or not held_out:
            raise ShammahError(
                "too_few_examples",
                "No example is short enough.",
                "Shorten their prompts.",
            )
        self._show(detail="weights")
        base = load_base(located, arithmetic, self._between)
        if frugal:
            self.notices.append("Activations were recomputed, because memory is short.")
        version = f"{located.name} {revision_of(located.directory)} {arithmetic}"
        return Loaded(
            base, encoder, version=version, learnt=learnt, held_out=held_out, frugal=frugal
        )

    def _teach(self, lesson: Lesson, loaded: Loaded) -> Trainer:
        from workers.train.fine_tuning import fine_tune
        from workers.train.general import answer, mixed_questions

        general = mixed_questions()
        names = names_in(lesson.given, loaded.encoder.is_word)
        near = rename(lesson.learnt, names, lesson.plan.seed)
        questions = (*general, *near)
        with braked(loaded.base, self._brake):
            answers = answer(
                loaded.base,
                loaded.encoder,
                questions,
                lambda count: self._looked(f"general answers, {count} of {len(questions)}"),
            )
        return fine_tune(
            loaded.learnt,
            lesson.config,
            lesson.plan.epochs,
            lesson.plan.learning_rate,
            base=loaded.base,
            held_out=loaded.held_out,
            kept=answers[: len(general)],
            near=answers[len(general) :],
            paraphrased=lesson.paraphrased,
            plan=lesson.plan,
            base_name=lesson.located.name,
            base_version=loaded.version,
            frugal=loaded.frugal,
            checkpoint=self._checkpoint,
            watcher=self,
            brake=self._brake,
        )

    def _judge(self, lesson: Lesson, loaded: Loaded, trainer: Trainer) -> GateFigures:
        from workers.train.general import gate_facts, gate_questions

        # An answer that `/good` kept is the model's own: it need not say it to the letter.
        least = 0.0 if lesson.source == "file" else NORMAL
        encoder, learnt = loaded.encoder, {one.ids for one in loaded.learnt}
        taught = [
            one for one in lesson.learnt if one.weight > least and encoder.encode(one).ids in learnt
        ]
        self._show(phase="judging", eta_s=None)
        with braked(loaded.base, self._brake):
            gate = Gate(
                trainer.adapter,
                loaded.encoder,
                questions=gate_questions(),
                held_out=trainer.held_out,
                names=names_in(lesson.given, loaded.encoder.is_word),
                micro_tokens=trainer.plan.micro_tokens,
                report=self._looked,
                paraphrased=lesson.paraphrased,
                taught=taught,
                facts=gate_facts(),
            )
            figures = weaken(gate, trainer.adapter)
        self.notices += describe_strength(figures)
        return figures

    def _choose_frugal(self, lesson: Lesson, width: int) -> bool:
        directory = lesson.located.directory
        shape = shape_of(directory)
        wide = max(shape.hidden, shape.intermediate)
        adapter = shape.layers * len(lesson.config.target_modules) * lesson.config.rank * 2 * wide
        tokens = lesson.plan.micro_tokens
        needs = estimate(
            shape,
            parameters_of(directory),
            adapter,
            tokens,
            width,
            aimed=MOST_AIMED,
        )
        return choose_checkpointing(needs, free_memory())

    def _checkpoint(self, run_id: str) -> Path:
        directory = self._settings.home / CHECKPOINTS
        path = directory / f"{run_id[:16]}.safetensors"
        if self._train.restart:
            path.unlink(missing_ok=True)
        others = [one for one in directory.glob("*.safetensors") if one != path]
        others.sort(key=lambda one: one.stat().st_mtime)
        for old in others[: -KEPT_CHECKPOINTS or None]:
            with suppress(FileNotFoundError):
                old.unlink()
        return path

    def _keep(
        self, lesson: Lesson, trainer: Trainer, figures: GateFigures, verdict: str, seconds: float
    ) -> AdapterEntry:
        from workers.train.adapter import save_lora

        located, config, curve = lesson.located, lesson.config, trainer.curve
        now = time.gmtime()
        entry = AdapterEntry(
            self._train.name or time.strftime("%Y%m%d-%H%M%S", now),
            Path(),
            located.name,
            revision_of(located.directory),
            time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
            training={
                "source": lesson.source,
                "examples": len(lesson.learnt),
                "held_out": 0 if lesson.paraphrased else len(lesson.held_out),
                "sources": count_sources(lesson.given),
                "private_examples": sum(one.private for one in lesson.given),
                "rank": config.rank,
                "alpha": config.alpha,
                "dropout": config.dropout,
                "target_modules": list(config.target_modules),
                "learning_rate": trainer.plan.learning_rate,
                "steps": trainer.step,
                "best_step": curve.best_step,
                "seed": trainer.plan.seed,
                "tokens": curve.tokens,
                "seconds": round(seconds, 1),
                "held_out_curve": [list(one) for one in curve.held_out],
            },
            gate=asdict(figures) | {"why": judge(figures)[1]},
            verdict=verdict,
        )
        store = AdapterStore(self._settings.home)
        return store.add(entry, lambda directory: save_lora(trainer.adapter, directory))
