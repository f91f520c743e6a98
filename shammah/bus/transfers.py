"""The messages of the download worker. Standard library only; see `messages`.

A download is::

    Fetch -> Accepted -> FetchProgress... -> exactly one of Fetched, Failed

and belongs to the worker: it continues when its frontend has left, and a second Fetch of the same
model joins it. Sizes are bytes.
"""

from __future__ import annotations

from shammah.bus.record import record


@record
class FileTransfer:
    """One file: ``done`` of ``size`` bytes; ``verified`` once its hash is right."""

    path: str
    size: int
    done: int
    verified: bool


@record
class Transfer:
    """One download at one moment. ``done`` never falls.

    ``phase``: ``waiting`` (nothing is known yet), ``running``, ``verifying`` or ``paused``.
    ``rate`` is the recent one in bytes per second; ``eta_s`` is ``None`` if unknown. ``notices``
    are sentences to show once, the newest last; ``detail`` says what it is waiting for.
    """

    model: str
    revision: str = ""
    phase: str = "waiting"
    done: int = 0
    total: int = 0
    rate: float = 0.0
    eta_s: float | None = None
    files: tuple[FileTransfer, ...] = ()
    notices: tuple[str, ...] = ()
    detail: str = ""


@record
class Transferring:
    """The state of the download worker: its current downloads, if any."""

    transfers: tuple[Transfer, ...] = ()


@record
class CachedModel:
    """A model in the cache. ``size`` counts a blob that revisions share once; ``verified``: the
    manifest matches the disk; ``unfinished``: bytes of downloads that can be resumed."""

    model: str
    revisions: tuple[str, ...]
    size: int
    verified: bool
    unfinished: int = 0


@record
class BadFile:
    """A file of the cache that does not match its manifest."""

    path: str
    reason: str


@record
class PlannedFile:
    """One file of a plan: ``held`` of its ``size`` bytes are on the disk."""

    path: str
    size: int
    held: int


# --- requests -----------------------------------------------------------------------------


@record
class Fetch:
    """Download what is missing of ``model``: owner/name, or owner/name:FILE.gguf. ``urgent``:
    someone is waiting. ``force``: even if the disk looks too small. ``update``: check whether the
    branch has moved."""

    request_id: str
    model: str
    revision: str = "main"
    urgent: bool = False
    force: bool = False
    update: bool = False


@record
class PlanFetch:
    """What would a `Fetch` do? Downloads only the model's description (``config``: and its
    config.json), and for a complete model nothing unless to ``update``."""

    request_id: str
    model: str
    revision: str = "main"
    update: bool = False
    config: bool = True


@record
class SteerFetch:
    """``action``: ``pause``, ``resume`` or ``cancel``. Partial downloads are kept."""

    request_id: str
    model: str
    action: str


@record
class VerifyModel:
    """Which files are bad? ``hashes``: read every byte. ``repair``: download the bad ones again."""

    request_id: str
    model: str
    revision: str = "main"
    hashes: bool = False
    repair: bool = False


@record
class ListModels:
    """What is in the cache?"""

    request_id: str


@record
class RemoveModel:
    """Delete a model from the cache. ``revision``: only this one."""

    request_id: str
    model: str
    revision: str = ""


# --- replies ------------------------------------------------------------------------------


@record
class FetchProgress:
    """How far the download is, at most five times a second."""

    request_id: str
    transfer: Transfer


@record
class Fetched:
    """The model is whole and verified in ``directory``, which is a file if the model is."""

    request_id: str
    model: str
    revision: str
    directory: str


@record
class FetchPlan:
    """What a `Fetch` would do: ``missing`` of ``total`` bytes, to a disk with ``disk_free`` bytes
    of which ``disk_reserve`` should stay free. ``config`` is the text of the model's config.json,
    empty if unavailable or not requested; ``rate`` the last one measured for this Hub in bytes
    per second, or 0."""

    request_id: str
    model: str
    revision: str
    licence: str
    total: int
    missing: int
    disk_free: int
    disk_reserve: int = 0
    files: tuple[PlannedFile, ...] = ()
    config: str = ""
    rate: float = 0.0


@record
class Steered:
    """The download was steered."""

    request_id: str


@record
class Verified:
    """The ``bad`` files that were found, and whether they are ``repaired`` now."""

    request_id: str
    model: str
    bad: tuple[BadFile, ...] = ()
    repaired: bool = False


@record
class ModelList:
    """The cache; ``total_size`` counts what models share once."""

    request_id: str
    models: tuple[CachedModel, ...]
    total_size: int


@record
class Removed:
    """``freed`` bytes are free again."""

    request_id: str
    freed: int


Request = Fetch | PlanFetch | SteerFetch | VerifyModel | ListModels | RemoveModel
Reply = FetchProgress | Fetched | FetchPlan | Steered | Verified | ModelList | Removed
Ended = Fetched | FetchPlan | Steered | Verified | ModelList | Removed
"""The replies that end their request (as Failed does)."""
