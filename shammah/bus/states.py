"""How a worker is. Standard library only; see `messages`.

An inference worker goes ``Initializing -> Downloading -> Loading -> Ready``; beside them stand
`NotAvailable` and `Failed`. A download worker is `Transferring`, a train worker
`Training` (what, or nothing).
"""

from __future__ import annotations

from shammah.bus.record import record
from shammah.bus.training import Training
from shammah.bus.transfers import Transferring


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
    """``stage`` names the work in hand; ``done`` of ``total`` stages are finished."""

    model: str
    stage: str
    done: int = 0
    total: int = 0


@record
class Ready:
    """Questions are answered now, with these facts learnt while loading.

    ``context_length`` is in tokens (0: not known, as for the cloud). ``fallback`` marks a
    smaller model that answers in the place of a bigger one; ``successor`` is that one while
    its bytes arrive, ``missing`` names it when it could not be downloaded. ``why`` says how
    device, dtype and quantization were chosen; ``note`` is a sentence that people should read
    (why there is no successor, what was repaired).
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


State = (
    Initializing | Downloading | Loading | Ready | NotAvailable | Failed | Transferring | Training
)

STATES = (Initializing, Downloading, Loading, Ready, NotAvailable, Failed, Transferring, Training)
