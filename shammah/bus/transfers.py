"""The messages of the download worker. Standard library only; see `messages`.

A download is::

    Fetch -> Accepted -> FetchProgress... -> exactly one of Fetched, Failed

and belongs to the worker: it goes on when the frontend that asked has gone, and a second Fetch
of the same model joins it. Sizes are bytes.
"""

from __future__ import annotations

from shammah.bus.record import record


@record
class FileTransfer:
    """One file: ``done`` of ``size`` bytes are here; ``verified`` once its hash is right."""

    path: str
    size: int
    done: int
    verified: bool


@record
class Transfer:
    """One download at one moment. ``done`` never falls.

    ``phase``: ``waiting`` (nothing is known yet), ``running``, ``verifying`` (every byte is
    here) or ``paused``. ``rate`` is bytes per second of late;
    ``eta_s`` is ``None`` while nobody can know. ``notices`` are sentences that people should
    read once, the newest last; ``detail`` says what it waits for just now.
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
    """The state of the download worker: what it fetches now, or nothing."""

    transfers: tuple[Transfer, ...] = ()


@record
class CachedModel:
    """A model in the cache. ``size`` counts a blob that revisions share once; ``verified``:
    the manifest matches the disk; ``unfinished``: bytes of downloads that can go on."""

    model: str
    revisions: tuple[str, ...]
    size: int
    verified: bool
    unfinished: int = 0


@record
class BadFile:
    """A file of the cache that is not as its manifest says."""

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
    """Make ``model`` whole on this disk. ``urgent``: somebody waits for it. ``force``: begin
    even if the disk looks too small. ``update``: look whether the branch has moved."""

    request_id: str
    model: str
    revision: str = "main"
    urgent: bool = False
    force: bool = False
    update: bool = False


@record
class PlanFetch:
    """What would a `Fetch` do? Nothing is fetched but what describes the model (``config``:
    its config.json, too); for one that is whole on this disk nobody is asked, unless to
    ``update``."""

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
    """Which files are bad? ``hashes``: read every byte. ``repair``: fetch the bad ones anew."""

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
    """The model is whole and verified in ``directory``."""

    request_id: str
    model: str
    revision: str
    directory: str


@record
class FetchPlan:
    """What a `Fetch` would do: ``missing`` of ``total`` bytes, onto a disk where ``disk_free``
    are free and ``disk_reserve`` should stay so. ``config`` is the text of the model's
    config.json, empty if it cannot be had or was not asked for; ``rate`` the last measured one
    of this Hub in bytes per second, 0 if there is none."""

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
    """The download does as it was told."""

    request_id: str


@record
class Verified:
    """``bad`` is what was found; ``repaired`` whether it is right now."""

    request_id: str
    model: str
    bad: tuple[BadFile, ...] = ()
    repaired: bool = False


@record
class ModelList:
    """The cache. ``total_size`` counts what models share once."""

    request_id: str
    models: tuple[CachedModel, ...]
    total_size: int


@record
class Removed:
    """So many bytes are free again."""

    request_id: str
    freed: int


Request = Fetch | PlanFetch | SteerFetch | VerifyModel | ListModels | RemoveModel
Reply = FetchProgress | Fetched | FetchPlan | Steered | Verified | ModelList | Removed
Ended = Fetched | FetchPlan | Steered | Verified | ModelList | Removed
"""The replies that end their request (as Failed does)."""
