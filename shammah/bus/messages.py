"""Every message that crosses a process boundary. Standard library only.

Those of the download and the train worker have modules of their own, `transfers` and `training`;
the unions at the end are all that may be sent.

On the wire a message is one MessagePack map: its fields, plus ``type`` = the class name (`codec`).
A field can be added with a default without breaking an older peer; unknown fields are ignored.

Direction: requests go from a frontend to a worker (DEALER to ROUTER), replies come back on
the same pair, events go out to every listener (XPUB to SUB). Every reply names the
``request_id`` that caused it. A generation is::

    Generate -> Accepted -> PromptProgress... or Retrying... -> Token... -> one of Done, Failed

All times are seconds.
"""

from __future__ import annotations

import os
from types import UnionType

from shammah.bus import training, transfers
from shammah.bus.record import record
from shammah.bus.training import Training
from shammah.bus.transfers import Transferring

PROTOCOL = 5
"""Compared on both sides in Hello/Welcome. Raised when an older peer would misunderstand a newer
one, not when a field with a default is added."""


def new_request_id() -> str:
    return os.urandom(8).hex()


# --- how a worker is ------------------------------------------------------------------------
#
# An inference worker goes ``Initializing -> Downloading -> Loading -> Ready``; besides there are
# `NotAvailable` and `Failed`. A download worker is `Transferring`, a train worker `Training`
# (what, or nothing), a gateway `Serving`.


@record
class Initializing:
    """The process is up; nothing is decided yet."""


@record
class Downloading:
    """Bytes are arriving, ``rate`` a second. ``total`` is 0 and ``eta_s`` ``None`` while they
    are not known."""

    model: str
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta_s: float | None = None


@record
class Loading:
    """``stage`` names the current work; ``done`` of ``total`` stages are finished."""

    model: str
    stage: str
    done: int = 0
    total: int = 0


@record
class Neighbour:
    """A server beside the local model; ``context_length`` in tokens (0: unknown). ``why`` it cannot
    be reached, in a sentence; empty: it can."""

    name: str
    model: str = ""
    context_length: int = 0
    why: str = ""


@record
class Ready:
    """Questions are answered now, with these facts learnt while loading.

    ``context_length`` is in tokens (0: unknown, as for the cloud). ``fallback`` marks a smaller
    model that answers in place of a bigger one; ``successor`` is that one while it is downloading,
    ``missing`` names it when it could not be. ``why`` says how device, dtype and quantization were
    chosen; ``note`` is a sentence for people (why there is no successor, what was repaired).
    ``servers``: how each is, of the worker that asks them.
    """

    model: str
    revision: str = ""
    device: str = ""
    dtype: str = ""
    quantization: str = ""
    context_length: int = 0
    engine: str = ""
    fallback: bool = False
    successor: Downloading | None = None
    note: str = ""
    why: str = ""
    missing: str = ""
    servers: tuple[Neighbour, ...] = ()


@record
class NotAvailable:
    """Nothing is broken, but this worker cannot answer (no key; no model, no network)."""

    reason: str
    hint: str = ""


@record
class Failed:
    """Something broke: the end of a request, or (with no ``request_id``) a worker's state."""

    code: str
    message: str
    hint: str = ""
    request_id: str = ""


@record
class Serving:
    """Other programs are answered at ``address``, a URL or the path of a socket. ``requests`` of
    theirs are being answered, ``waiting`` more wait."""

    address: str
    requests: int = 0
    waiting: int = 0


State = (
    Initializing
    | Downloading
    | Loading
    | Ready
    | NotAvailable
    | Failed
    | Transferring
    | Training
    | Serving
)


# --- values inside messages ---------------------------------------------------------------


@record
class Tool:
    """A function that a client offers the model. ``parameters``: the JSON schema of its arguments,
    an object, as JSON."""

    name: str
    description: str = ""
    parameters: str = '{"type": "object"}'


@record
class ToolCall:
    """A call of a tool. ``id`` is unique in its conversation; ``arguments``: an object, as JSON."""

    id: str
    name: str
    arguments: str


@record
class ChatMessage:
    """One message of a conversation. ``role`` is ``system``, ``user``, ``assistant`` or ``tool``;
    ``private``: it must not leave this machine, and the cloud worker refuses it.

    An assistant's message may end with ``tool_calls``. Each of them is followed by a message of the
    role ``tool`` whose ``content`` is what the call named ``tool_call_id`` returned, or why it
    ``failed``; these come before anything else is said.
    """

    role: str
    content: str
    private: bool = False
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    failed: bool = False


@record
class Sampling:
    """How to choose tokens. ``None`` means the model's own ``generation_config``; ``stop`` are
    texts that end the answer, and are not part of it. ``schema``: a JSON schema, as JSON, that the
    answer is held to; a backend that cannot do so refuses (``schema_not_enforced``).

    ``tools`` may be called as ``tool_choice`` says: ``auto`` (or not), ``any`` (at least one),
    ``none``, or the name of the one that is to be. ``parallel``: several in one answer. The text of
    the answer comes as `Token`, its calls in `Done`.

    ``effort`` (``low`` to ``max``; empty: its default) and ``adaptive`` thinking, as much as it
    sees fit, are Claude's own; a local model knows neither.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    schema: str = ""
    tools: tuple[Tool, ...] = ()
    tool_choice: str = "auto"
    parallel: bool = True
    effort: str = ""
    adaptive: bool = False


@record
class Usage:
    """Tokens of one generation. ``reused_tokens`` of the input needed no computing, or were read
    from the cloud's cache, and ``written_tokens`` were written to that; ``restored_tokens`` of them
    were read from this disk. ``cost`` is in US dollars, ``None`` where no price is known. The first
    ``unseen`` of the conversation's ``messages`` did not fit into the context; both are 0 where all
    did."""

    input_tokens: int = 0
    output_tokens: int = 0
    reused_tokens: int = 0
    cost: float | None = None
    written_tokens: int = 0
    unseen: int = 0
    messages: int = 0
    restored_tokens: int = 0


@record
class Timings:
    """Measured by the worker. ``queue_s`` is from arrival to the first step, ``ttft_s`` from
    arrival to the first token; a rate is 0 when there was nothing to measure."""

    queue_s: float = 0.0
    ttft_s: float = 0.0
    total_s: float = 0.0
    prefill_tokens_per_second: float = 0.0
    decode_tokens_per_second: float = 0.0


@record
class Provenance:
    """Who gave an answer, with the name of the adapter, empty for none. ``dtype`` is that of the
    computation; ``quantization`` that of the weights, empty for none."""

    role: str
    model: str
    revision: str = ""
    engine: str = ""
    device: str = ""
    dtype: str = ""
    fallback: bool = False
    adapter: str = ""
    quantization: str = ""


@record
class Identity:
    """What a worker was started with; two equal ``digest`` may share one worker.

    ``model`` is as the person named it (``auto``, ``starter``, a Hub id, a directory, a Claude
    model); of a download worker, the Hub's address. ``digest`` covers everything that would make
    answers differ, secrets only as a hash; ``settings`` names these things, as ``NAME:HASH``.
    """

    role: str
    model: str
    digest: str
    settings: tuple[str, ...] = ()


@record
class ClientInfo:
    """A frontend, described for people: ``program`` is ``repl``, ``ask`` or ``status``."""

    program: str
    pid: int
    terminal: str = ""


@record
class Status:
    """A whole worker at one moment. Events carry this, never a difference.

    ``clients`` hold a lease, ``active`` requests are accepted and not ended, ``tokens`` were
    generated by the answers that have ended. ``held``: where the kernel holds the worker to what
    its role needs (``files``, ``network``, ``programs``, ``processes``).
    """

    state: State
    clients: int = 0
    active: int = 0
    tokens: int = 0
    held: tuple[str, ...] = ()


@record
class Trial:
    """What a worker has tried, and what the kernel ``answered``: the name of an error, or
    ``allowed``. ``refused``: it came from the kernel's rules for this worker. ``due``: it should
    have, since the role does not need it."""

    what: str
    answered: str
    refused: bool
    due: bool


# --- requests -----------------------------------------------------------------------------


@record
class Hello:
    """Attach. The lease it begins is renewed by pings and by requests for work."""

    request_id: str
    protocol: int
    client: ClientInfo


@record
class Ping:
    """Renews the lease."""

    request_id: str


@record
class Detach:
    """Gives the lease back at once."""

    request_id: str


@record
class GetStatus:
    """Requests the current snapshot, without attaching."""

    request_id: str


@record
class Replay:
    """Requests the stored events with ``seq > since_seq``, without attaching."""

    request_id: str
    since_seq: int = 0


@record
class Prove:
    """Requests that the worker try what its role does not need, without attaching: it opens
    ``file``, which is the person's, connects to ``port`` of this machine, and looks into the
    process ``pid``; all three are the asker's. Nothing is read or written."""

    request_id: str
    file: str
    port: int
    pid: int


@record
class Generate:
    """Requests an answer. If the last message is the assistant's, it is the beginning of the
    answer, and the tokens continue it. ``max_new_tokens`` of ``None``: as many as the setting
    allows. After ``timeout_s`` seconds it ends with what there is (``finish_reason``
    ``timeout``). ``adapter``: the name of one in the home; empty: the model alone. ``whole``:
    fail (``context_too_long``) rather than leave earlier turns out. ``think``: let the model think
    before it answers, where it has the choice; ``max_new_tokens`` do not count that. ``ongoing``:
    the conversation probably goes on, so it is worth having the cloud cache it. ``conversation``: a
    name of it, under which what was computed of it may be kept on this disk; empty: it may not.
    ``model``: which of the cloud's; empty: the one that is set. ``server``: which of those beside
    the local model."""

    request_id: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling = Sampling()
    max_new_tokens: int | None = None
    timeout_s: float | None = None
    adapter: str = ""
    whole: bool = False
    think: bool = False
    ongoing: bool = False
    conversation: str = ""
    model: str = ""
    server: str = ""


@record
class Prefill:
    """Warms the model up: it reads a conversation of whole turns before the next question.
    Questions go first: it waits for those in hand, and one of the same frontend ends it
    (``cancelled``). ``adapter``: as the question will have it."""

    request_id: str
    messages: tuple[ChatMessage, ...]
    adapter: str = ""


@record
class Cancel:
    """Ends the generation ``request_id`` with ``Done(finish_reason="cancelled")``."""

    request_id: str


@record
class Stop:
    """Ends the worker."""

    request_id: str


# --- replies ------------------------------------------------------------------------------


@record
class Event:
    """A snapshot with a sequence number that has no gaps within one ``run_id``.

    ``what`` says why it was sent (``started``, ``state``, ``attached``, ``accepted``, ...);
    ``monotonic_s`` orders events of one machine, ``wall_s`` is for people.
    """

    role: str
    run_id: str
    seq: int
    monotonic_s: float
    wall_s: float
    what: str
    status: Status
    request_id: str = ""


@record
class Welcome:
    """Attached. ``others`` are the other frontends that hold a lease."""

    request_id: str
    protocol: int
    version: str
    run_id: str
    pid: int
    identity: Identity
    event: Event
    others: tuple[ClientInfo, ...] = ()


@record
class Pong:
    """``attached`` is false when the worker does not know this frontend (any more).

    ``progress`` counts units of work (load stages, decode steps): a worker that answers but
    whose counter stands still is stuck. ``event`` is the latest one, since events can get lost.
    """

    request_id: str
    run_id: str
    attached: bool
    progress: int
    event: Event | None = None


@record
class Detached:
    """The lease was given back."""

    request_id: str


@record
class Replayed:
    """Stored events in order; ``complete`` is false if older ones were already dropped."""

    request_id: str
    events: tuple[Event, ...]
    complete: bool = True


@record
class Proved:
    """What was tried, where the kernel holds this worker, and why not elsewhere, in sentences."""

    request_id: str
    trials: tuple[Trial, ...]
    held: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@record
class Stopping:
    """The worker ends now."""

    request_id: str
    pid: int


@record
class Accepted:
    """The request will be worked on; ``ahead`` others come first."""

    request_id: str
    ahead: int = 0


@record
class Token:
    """New text of the answer, always whole characters. ``index`` counts the tokens generated so
    far. ``reasoning``: the model is thinking; that is not part of the answer."""

    request_id: str
    index: int
    text: str
    reasoning: bool = False


@record
class PromptProgress:
    """A long prompt is being computed: ``done`` of its ``total`` tokens."""

    request_id: str
    done: int
    total: int


@record
class Retrying:
    """No answer yet, because of ``why`` (the beginning of a sentence). Attempt number ``attempt``
    (from 1) of ``attempts`` begins in ``wait_s``."""

    request_id: str
    why: str
    wait_s: float
    attempt: int
    attempts: int


@record
class Done:
    """The answer is complete. ``finish_reason``: ``stop``, ``length``, ``timeout``,
    ``cancelled``, ``refusal``, ``repetition`` (of itself, endlessly), ``tool_call`` or ``other``.
    ``notices`` are sentences that the user should see; ``left_out``: private turns that the
    frontend did not send; ``tool_calls``: those that the client is to make now, where
    ``finish_reason`` is ``tool_call``; ``stop``: the text of `Sampling.stop` that ended it; empty:
    none did, or nobody knows which."""

    request_id: str
    finish_reason: str
    usage: Usage
    timings: Timings
    provenance: Provenance
    notices: tuple[str, ...] = ()
    left_out: int = 0
    tool_calls: tuple[ToolCall, ...] = ()
    stop: str = ""


Control = Hello | Ping | Detach | GetStatus | Replay | Prove | Cancel | Stop
Work = Generate | Prefill | transfers.Request | training.Request
Request = Control | Work
GenerationReply = Accepted | Token | PromptProgress | Retrying | Done | Failed
WorkReply = GenerationReply | transfers.Reply | training.Reply
Reply = Welcome | Pong | Detached | Event | Replayed | Proved | Stopping | WorkReply
Message = Request | Reply

Ended = Done | Failed | transfers.Ended | training.Ended
"""The replies that end a request for work."""

WORK: dict[str, type | UnionType] = {
    "inference": Generate | Prefill,
    "servers": Generate,
    "cloud": Generate,
    "download": transfers.Request,
    "train": training.Request,
    "gateway": type(None),
}
"""The requests that are a role's work; every role answers the others. A gateway's come by HTTP."""
