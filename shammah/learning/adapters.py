"""The adapters in the home: which there are, and which is active for each base model.

``adapters/NAME/`` is a PEFT directory (``adapter_config.json``, ``adapter_model.safetensors``),
which any other program can load, with our `shammah.json` next to them. ``adapters/service.json``
records the active adapter of each base model, and the one before. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from shammah.errors import ExitCode, ShammahError
from shammah.storage.files import new_directory, replace_file, sync_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
FACTS = "shammah.json"
SERVICE = "service.json"
BASE = "base"
"""Stands for no adapter."""

RESERVED = frozenset({BASE, SERVICE, "auto", "off"})
"""What no adapter can be called: the words that stand for something else where an adapter is named
(see `shammah.router.route.Override`), and a file of ours."""

ACCEPTED, REFUSED, UNJUDGED = "accepted", "refused", "unjudged"
"""What the gate says of an adapter; of one that another program has made it has said nothing."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_KEPT = 20
"""Steps that can be gone back."""


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter.

    ``base_model`` and ``base_revision`` are as in `shammah.bus.messages.Ready`; ``created`` is UTC
    (ISO 8601), ``digest`` the SHA-256 of its weights. ``training`` says how it was made,
    ``gate`` with which figures it was judged, ``verdict`` what came out.
    """

    name: str
    directory: Path
    base_model: str
    base_revision: str = ""
    created: str = ""
    digest: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    gate: dict[str, Any] = field(default_factory=dict)
    verdict: str = UNJUDGED


class AdapterStore:
    """The adapters of one home. Several processes may use it at once."""

    def __init__(self, home: Path) -> None:
        self.directory = home / "adapters"

    # --- which there are ------------------------------------------------------------------

    def entries(self) -> tuple[AdapterEntry, ...]:
        """Every adapter that is whole, the oldest first."""
        try:
            names = sorted(path.name for path in self.directory.iterdir())
        except OSError:
            return ()
        found = [self._read(name) for name in names if _NAME.fullmatch(name)]
        return tuple(sorted(filter(None, found), key=lambda entry: entry.created))

    def get(self, name: str) -> AdapterEntry:
        """The adapter of this name.

        Raises:
            ShammahError: ``adapter_not_found``.
        """
        entry = self._read(name) if _NAME.fullmatch(name) else None
        if entry is None:
            raise ShammahError(
                "adapter_not_found",
                f"There is no adapter {name!r:.70}.",
                self.known(),
                exit_code=ExitCode.USAGE,
            )
        return entry

    def known(self) -> str:
        """A sentence with the names of all."""
        names = ", ".join(one.name for one in self.entries())
        return f"Known are: {names}." if names else "There are none yet; `shammah train` makes one."

    def add(self, entry: AdapterEntry, fill: Callable[[Path], None]) -> AdapterEntry:
        """A new adapter, in one step: it is there whole or not at all.

        Args:
            entry: its facts; ``directory`` and ``digest`` are found here.
            fill: writes the PEFT files into the empty directory that it is given.

        Raises:
            ShammahError: ``adapter_name`` (it cannot be one, or is taken), ``adapter_invalid``
                (the files are not there), ``adapter_unwritable``.
        """
        self.check_new(entry.name)
        target = self.directory / entry.name
        try:
            with new_directory(target) as made:
                fill(made)
                facts = {"name": entry.name, **_facts(entry), "digest": _sealed(made)}
                replace_file(made / FACTS, _as_json(facts))
        except OSError as error:
            raise _unwritable(error, target) from error
        return self.get(entry.name)

    def check_new(self, name: str) -> None:
        """Refuse a name for a new adapter that cannot be one, or is taken.

        Raises:
            ShammahError: ``adapter_name``.
        """
        if not _NAME.fullmatch(name) or name in RESERVED:
            why = f"{name!r:.70} cannot be the name of an adapter."
            hint = "Use lower-case letters, digits, dots and dashes."
            if name in RESERVED:
                hint = f"{name} is reserved; choose another name."
        elif (self.directory / name).exists():
            why = f"There is an adapter {name} already{self._describe(name)}."
            hint = (
                f"`shammah adapters use {name}` uses it, `shammah adapters rm {name}` removes it; "
                "or take another name."
            )
        else:
            return
        raise ShammahError("adapter_name", why, hint, exit_code=ExitCode.USAGE)

    def _describe(self, name: str) -> str:
        """When it was made and how it was judged, as the end of a sentence."""
        entry = self._read(name)
        if entry is None:  # the rest of one
            return ""
        try:
            made = datetime.fromisoformat(entry.created).astimezone()
        except ValueError:
            return f" ({entry.verdict})"
        return f", made {made:%Y-%m-%d %H:%M} ({entry.verdict})"

    def remove(self, name: str) -> None:
        """Delete an adapter.

        Raises:
            ShammahError: ``adapter_not_found``, or ``adapter_in_use``: it serves its base model.
        """
        entry = self.get(name)
        with self._service() as service:
            current = service.get(entry.base_model, [BASE])
            if current[-1] == name:
                raise ShammahError(
                    "adapter_in_use",
                    f"{name} serves {entry.base_model}.",
                    "Run `shammah adapters rollback` or `shammah adapters use base` first.",
                )
            service[entry.base_model] = [one for one in current if one != name]
        doomed = self.directory / f".old-{name}-{os.getpid()}"
        entry.directory.rename(doomed)  # so that nobody meets half of it
        shutil.rmtree(doomed, ignore_errors=True)

    # --- which one serves -----------------------------------------------------------------

    def active(self, base_model: str, revision: str = "") -> AdapterEntry | None:
        """The adapter with which questions to ``base_model`` are answered; ``None``: with none.

        With a ``revision``, one that was made for other weights of that name counts as none.
        """
        names = _read_service(self.directory / SERVICE).get(base_model, [BASE])
        entry = None if names[-1] == BASE else self._read(names[-1])
        if entry is None or entry.base_model != base_model:
            return None
        differs = revision and entry.base_revision and revision != entry.base_revision
        return None if differs else entry

    def use(self, name: str, *, force: bool = False) -> AdapterEntry:
        """Let an adapter serve its base model from your next question.

        Raises:
            ShammahError: ``adapter_not_found``; ``adapter_refused``: the gate has not accepted
                it, and it was not asked for with ``force``.
        """
        entry = self.get(name)
        if entry.verdict != ACCEPTED and not force:
            judged = "was refused" if entry.verdict == REFUSED else "has not been judged"
            raise ShammahError(
                "adapter_refused",
                f"{name} {judged}, so it does not serve.",
                f"`shammah adapters show {name}` tells the figures; --force uses it all the same.",
            )
        self._put(entry.base_model, name)
        return entry

    def use_base(self, base_model: str) -> None:
        """Let the base model answer by itself."""
        self._put(base_model, BASE)

    def rollback(self, base_model: str) -> AdapterEntry | None:
        """Go back to what served before; ``None``: that was the base model by itself.

        Raises:
            ShammahError: ``no_earlier_adapter``.
        """
        with self._service() as service:
            names = service.get(base_model, [BASE])
            if len(names) < 2:
                raise ShammahError(
                    "no_earlier_adapter",
                    f"Nothing served {base_model} before.",
                    "`shammah adapters list` shows what there is.",
                )
            service[base_model] = names[:-1]
        return self.active(base_model)

    def served_models(self) -> tuple[str, ...]:
        """The base models of which `service.json` knows something."""
        return tuple(_read_service(self.directory / SERVICE))

    # --- files ----------------------------------------------------------------------------

    def _put(self, base_model: str, name: str) -> None:
        with self._service() as service:
            names = service.get(base_model, [BASE])
            if names[-1] != name:
                service[base_model] = [*names, name][-_KEPT:]

    @contextlib.contextmanager
    def _service(self) -> Iterator[dict[str, list[str]]]:
        """The table of what serves, to be changed by one process at a time."""
        path = self.directory / SERVICE
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                service = _read_service(path)
                yield service
                replace_file(path, _as_json({"models": service}))
            finally:
                os.close(fd)
        except OSError as error:
            raise _unwritable(error, path) from error

    def _read(self, name: str) -> AdapterEntry | None:
        directory = self.directory / name
        if not (directory / CONFIG).is_file() or not (directory / WEIGHTS).is_file():
            return None
        try:
            document = json.loads((directory / FACTS).read_bytes())
            facts = {one: document[one] for one in _FACTS}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        if any(type(facts[one]) is not kind for one, kind in _FACTS.items()):
            return None
        return AdapterEntry(name=name, directory=directory, **facts)


_FACTS: dict[str, type] = {
    one.name: dict if one.name in ("training", "gate") else str
    for one in fields(AdapterEntry)
    if one.name not in ("name", "directory")
}


def _unwritable(error: OSError, path: Path) -> ShammahError:
    return ShammahError(
        "adapter_unwritable",
        f"The adapter cannot be written ({error.strerror}: {path}).",
        "Free some space, or fix the permissions of the directory.",
    )


def _facts(entry: AdapterEntry) -> dict[str, Any]:
    return {one: getattr(entry, one) for one in _FACTS}


def _as_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, indent=2).encode() + b"\n"


def _sealed(directory: Path) -> str:
    """Make the files their owner's alone and have them on the disk; the digest of the weights.

    Raises:
        ShammahError: ``adapter_invalid``.
    """
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            raise ShammahError(
                "adapter_invalid",
                f"There is no {name}.",
                "A PEFT directory holds adapter_config.json and adapter_model.safetensors.",
            )
    for path in directory.iterdir():
        path.chmod(0o600)
        sync_file(path)
    return digest_of(directory / WEIGHTS)


def digest_of(weights: Path) -> str:
    """The SHA-256 of a file."""
    with open(weights, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_service(path: Path) -> dict[str, list[str]]:
    """Base model to the names that served it, the present one last. A damaged file: nothing
    serves, which is what can be answered for."""
    try:
        models = json.loads(path.read_bytes())["models"]
        return {
            str(model): names
            for model, names in models.items()
            if isinstance(names, list) and names and all(isinstance(one, str) for one in names)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
