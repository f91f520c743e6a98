"""The messages of the train worker. Standard library only; see `messages`.

A training is::

    Train -> Accepted -> TrainProgress... -> exactly one of Trained, Failed

and belongs to the worker: it continues when its frontend has left. Losses are in nats per token.
"""

from __future__ import annotations

from shammah.bus.record import record

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The default: with q_proj and v_proj alone a small model learns manners but no facts."""


@record
class TrainingProgress:
    """One training at one moment.

    ``phase``: ``waiting``, ``loading``, ``training``, ``paused`` (``detail`` says why),
    ``judging`` or ``merging``. ``loss`` is that of the last step, ``held_out_loss`` the newest over
    the held-out examples; ``None`` if there is none. ``eta_s`` is ``None`` if unknown. ``adapter``
    is its name; empty: it gets one at the end.
    """

    model: str
    phase: str = "waiting"
    detail: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    held_out_loss: float | None = None
    tokens_per_second: float = 0.0
    eta_s: float | None = None
    adapter: str = ""


@record
class Training:
    """The state of the train worker: its current training, if any."""

    progress: TrainingProgress | None = None


@record
class GateFigures:
    """What an adapter was judged by.

    The losses on what was held out, before and after; ``paraphrased``: on paraphrases of what was
    learnt, because there was too little to hold any out. Then what became of ``general`` answers:
    the shares of them that have the ``first`` token as before and all ``texts``, and the share
    of the base model's ``sure`` choices that are kept; ``worst`` is by how many nats one of these
    has become less likely, in the answer to ``worst_question``. ``strays`` are names of the
    examples in general answers, each with its question. ``scale`` is the share that is left of
    what was learnt. Of the questions ``taught`` with an answer, ``learnt`` are answered so and
    ``missed`` are the others; 0: none was asked. Of the general questions ``facts`` are answered
    right by the base model, and ``lost`` are those of them that no longer are.
    """

    held_out_before: float
    held_out_after: float
    held_out: int
    paraphrased: bool
    general: int
    first: float
    texts: float
    sure: float
    worst: float
    worst_question: str = ""
    strays: tuple[str, ...] = ()
    scale: float = 1.0
    taught: int = 0
    learnt: int = 0
    missed: tuple[str, ...] = ()
    facts: int = 0
    lost: tuple[str, ...] = ()


@record
class LossCurve:
    """``losses`` of each step, and the held-out losses with the steps after which they were
    measured."""

    losses: tuple[float, ...]
    held_out_steps: tuple[int, ...]
    held_out_losses: tuple[float, ...]


# --- requests -----------------------------------------------------------------------------


@record
class Train:
    """Train an adapter for ``model`` (as in the settings). ``examples`` is a JSONL file; empty: the
    feedback in the home. ``name`` of the adapter, empty: by date. ``epochs`` of 0: by the number
    of examples. ``serve``: activate it if the gate accepts it. ``from_cloud``: learn also answers
    in the feedback of other models than this machine's own."""

    request_id: str
    model: str
    examples: str = ""
    name: str = ""
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: tuple[str, ...] = ALL_MODULES
    epochs: int = 0
    learning_rate: float = 1e-3
    batch: int = 4
    seed: int = 0
    qlora: bool = False
    on_battery: bool = False
    serve: bool = True
    restart: bool = False
    from_cloud: bool = False


@record
class MergeAdapter:
    """Write an adapter merged into its base model to a new directory. ``model`` says where the base
    is, if its name does not."""

    request_id: str
    adapter: str
    directory: str
    model: str = ""


@record
class ImportAdapter:
    """Import an adapter in PEFT's layout from ``directory`` as ``adapter`` of the base ``model``
    (as in the settings), and judge it: on ``examples`` (a JSONL file; empty: the feedback in the
    home) and on the general answers."""

    request_id: str
    adapter: str
    directory: str
    model: str
    examples: str = ""


# --- replies ------------------------------------------------------------------------------


@record
class TrainProgress:
    """How far the training is, after each step and when its phase changes."""

    request_id: str
    progress: TrainingProgress


@record
class Trained:
    """The adapter is done. ``verdict`` is ``accepted`` or ``refused``, ``why`` a sentence;
    ``serves``: it answers from your next question. ``notices`` are sentences for people."""

    request_id: str
    adapter: str
    model: str
    verdict: str
    why: str
    figures: GateFigures
    curve: LossCurve
    examples: int
    held_out: int
    seconds: float
    tokens_per_second: float
    serves: bool = False
    notices: tuple[str, ...] = ()


@record
class Merged:
    """The merged model is complete in ``directory``."""

    request_id: str
    directory: str


@record
class Imported:
    """The adapter is in the home, not active yet. ``verdict`` and ``why`` are as in `Trained`, or
    ``unjudged``: there were no examples to judge it with, and ``figures.held_out`` is 0."""

    request_id: str
    adapter: str
    model: str
    verdict: str
    why: str
    figures: GateFigures


Request = Train | MergeAdapter | ImportAdapter
Reply = TrainProgress | Trained | Merged | Imported
Ended = Trained | Merged | Imported
"""The replies that end their request (as Failed does)."""
