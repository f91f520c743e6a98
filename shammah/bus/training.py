"""The messages of the train worker. Standard library only; see `messages`.

A training is::

    Train -> Accepted -> TrainProgress... -> exactly one of Trained, Failed

and belongs to the worker: it goes on when the frontend that asked has gone, unless it was
cancelled. Losses are in nats a token.
"""

from __future__ import annotations

from shammah.bus.record import record

ALL_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""What is adapted unless somebody asks for less: a small model learns a fact from all of them
in steps in which q_proj and v_proj alone teach it no more than manners."""


@record
class TrainingProgress:
    """One training at one moment.

    ``phase``: ``waiting``, ``loading``, ``training``, ``paused`` (``detail`` says why),
    ``judging`` or ``merging``. ``loss`` is of the last step, ``held_out_loss`` the newest over
    what is kept back; ``None`` while there is none. ``eta_s`` is ``None`` while nobody can know.
    ``adapter`` is the name that it was given; empty: it gets one at its end.
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
    """The state of the train worker: what it trains now, or nothing."""

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
    """Teach a model (``model`` as in the settings). ``examples`` is a JSONL file; empty: the
    feedback in the home. ``name`` of the adapter, empty: one by date. ``epochs`` of 0: as many
    as that many examples ask for. ``serve``: let it serve if the gate accepts it."""

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


@record
class MergeAdapter:
    """Write the base model of an adapter, with the adapter worked in, to a new directory.
    ``model`` says where the base is, if its name does not."""

    request_id: str
    adapter: str
    directory: str
    model: str = ""


@record
class ImportAdapter:
    """Take an adapter of another program's, in PEFT's layout in ``directory``, as ``adapter`` of
    the base ``model`` (as in the settings), and judge it: on ``examples`` (a JSONL file; empty:
    the feedback in the home) and on the general answers."""

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
    """The adapter is there. ``verdict`` is ``accepted`` or ``refused``, ``why`` a sentence;
    ``serves``: it answers from your next question. ``notices`` are sentences that people
    should read."""

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
    """The merged model is whole in ``directory``."""

    request_id: str
    directory: str


@record
class Imported:
    """The adapter is in the home and does not serve yet. ``verdict`` and ``why`` are as in
    `Trained`; a verdict of ``unjudged``: there were no examples to judge it with.
    ``figures.held_out`` is 0 then."""

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
