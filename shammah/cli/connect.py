"""``shammah connect``: point other programs at the gateway."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shammah.cli.options import Command, json_option, load_checked_settings
from shammah.errors import ShammahError, UsageError
from shammah.terminal.output import echo, print_json

if TYPE_CHECKING:
    from shammah.cli.connect_clients import Client, Use
    from shammah.settings.model import Settings

BACKUPS = "connected"
"""Directory in Shammah's home: per file what it was, for the person's eyes alone."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is about to happen to a file. ``after`` is ``None``: it goes. ``left``: keys that
    somebody has changed since they were written."""

    before: str | None
    after: str | None
    record: dict[str, Any] | None
    left: Sequence[str] = ()


@click.command(cls=Command)
@click.argument("name", required=False)
@click.option("--undo", is_flag=True, help="Put back what was there.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option("One JSON object per client.")
def connect(name: str | None, undo: bool, yes: bool, as_json: bool) -> int:
    """Point another program at `shammah serve`, or say what to set there.

    Only the program's own settings are changed, after you have seen the change and agreed. They
    get no token, but what reads it. Without NAME: the programs that are known.

    Examples:
      shammah connect                 which there are, and which are connected
      shammah connect opencode        show the change, ask, write
      shammah connect opencode --undo
      shammah connect codex --yes     for scripts
    """
    from shammah.cli.connect_clients import CLIENTS, Use, describe_words
    from shammah.supervision.gateway_use import NAME, read_token

    settings = load_checked_settings()
    use = Use(f"http://127.0.0.1:{settings.gateway.port}", str(settings.home / NAME))
    if name is None:
        if undo or yes:
            raise UsageError("Which program?", "For example: shammah connect opencode")
        return _list(use, as_json)
    client = CLIENTS.get(name)
    if client is None:
        raise _unknown(name, list(CLIENTS))
    if not undo:
        if settings.gateway.socket or not settings.gateway.port:
            why = "Other programs need a port, and gateway.socket or gateway.port gives them none."
            raise UsageError(why, "Set a port in the settings.")
        read_token(settings.home)  # made now, since the program may read it first
    if client.sets is None:
        said = "Nothing was written for it: unset what you have set." if undo else ""
        return _say({"client": name, "set": said or describe_words(client, use)}, as_json)
    file = _file(client)
    step = _plan(settings, name, use, undo=undo)
    done = {"client": name, "file": str(file), "left": list(step.left)}
    if step.before == step.after:
        said = "nothing to undo" if undo else "connected already"
        said = "" if step.left else f"{client.title}: {said}."
        return _say({**done, "written": False, "said": said}, as_json)
    changed = _diff(file, step)
    if not as_json:
        echo(changed)
    if not (yes or _agree(file)):
        return _say({**done, "written": False, "diff": changed, "said": "No change."}, as_json, 1)
    _do(_backup(settings.home, file), file, step)
    said = f"Written: {file}." if step.after is not None else f"Removed: {file}."
    if not undo:
        said += f"\n{describe_words(client, use)}\n`shammah connect {name} --undo` takes it back."
    return _say({**done, "written": True, "diff": changed, "said": said}, as_json)


def _say(done: dict[str, Any], as_json: bool, code: int = 0) -> int:
    if as_json:
        print_json(done)
        return code
    if done.get("left"):
        echo(f"Left, because it was changed since: {', '.join(done['left'])}.")
    if said := done.get("said") or done.get("set"):
        echo(said)
    return code


def _unknown(name: str, names: list[str]) -> UsageError:
    import difflib

    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(names)}."
    return UsageError(f"There is no program {name!r}.", hint)


def _list(use: Use, as_json: bool) -> int:
    import shutil

    from shammah.cli.connect_clients import CLIENTS, is_connected

    for name, client in CLIENTS.items():
        file, connected = _file(client), False
        found = bool(shutil.which(client.program)) or (client.sets is not None and file.exists())
        if client.sets is not None:
            try:
                connected = is_connected(client.kind, _read(file) or "", client.sets(use))
            except ShammahError:
                connected = False
        if as_json:
            row = {"client": name, "title": client.title, "found": found, "connected": connected}
            print_json({**row, "file": str(file) if client.sets else None})
            continue
        how = "connected" if connected else "not connected" if client.sets else "by hand"
        echo(f"{name:11} {client.title:12} {'found' if found else 'not found':10} {how}")
    return 0


def _file(client: Client) -> Path:
    variable, usual, rest = client.place
    return Path(os.environ.get(variable) or os.path.expanduser(usual), rest)


def _backup(home: Path, file: Path) -> Path:
    import hashlib

    return home / BACKUPS / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:16]}.json"


def _error(file: Path, error: Exception, hint: str) -> ShammahError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ShammahError("connect_file", f"Can't use {file}, which is unchanged: {why}.", hint)


def _read(file: Path) -> str | None:
    """Return its text, ``None`` if there is no such file.

    Raises:
        ShammahError: ``connect_file``.
    """
    try:
        return file.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _error(file, error, "Mend it first.") from error


def _plan(settings: Settings, name: str, use: Use, *, undo: bool) -> Step:
    """What connecting, or its ``undo``, would do. To connect again is to undo and to connect.

    Raises:
        ShammahError: ``connect_file``.
    """
    import json

    from shammah.cli.connect_clients import CLIENTS, Change, apply, nest, revert

    client = CLIENTS[name]
    file, sets = _file(client), client.sets
    assert sets is not None
    stored = _read(_backup(settings.home, file))
    before = _read(file)
    base: str | None = before
    left: list[str] = []
    try:
        record = json.loads(stored) if stored else None
        if record and before is not None:
            if before == record["after"]:
                base = record["before"]
            else:
                changes = [Change(**change) for change in record["changes"]]
                base, left = revert(client.kind, before, changes)
        if undo:
            return Step(before, base, None, left)
        after, changes = apply(client.kind, base or "", sets(use))
    except (ValueError, KeyError, TypeError) as error:
        hint = "Mend it first." if undo else f"Or add this to it yourself:\n{nest(sets(use))}"
        raise _error(file, error, hint) from error
    record = {"before": base, "after": after, "changes": [asdict(one) for one in changes]}
    return Step(before, after, record)


def _diff(file: Path, step: Step) -> str:
    import difflib

    old, new = ((text or "").splitlines() for text in (step.before, step.after))
    return "\n".join(difflib.unified_diff(old, new, str(file), str(file), n=2, lineterm=""))


def _agree(file: Path) -> bool:
    """Ask.

    Raises:
        UsageError: there is no terminal to ask on.
    """
    from shammah.terminal.confirm import confirm

    if not sys.stdin.isatty():
        raise UsageError("Nothing was written: no terminal to ask on.", "To write anyway: --yes.")
    return confirm(f"Write {file}?")


def _do(backup: Path, file: Path, step: Step) -> None:
    """Write the file, with what takes it back stored before.

    Raises:
        ShammahError: ``connect_file``.
    """
    import json

    from shammah.storage.files import new_file, replace_file

    if _read(file) != step.before:
        raise ShammahError("connect_file", f"{file} has changed meanwhile.", "Try again.")
    former = _read(backup)
    try:
        if step.record is not None:
            replace_file(backup, json.dumps(step.record).encode())
        if step.after is None:
            file.unlink()
        else:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with new_file(file) as draft:
                draft.write_bytes(step.after.encode())
                if step.before is not None:
                    draft.chmod(stat.S_IMODE(file.stat().st_mode))
        if step.record is None:
            backup.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        with contextlib.suppress(OSError):
            replace_file(backup, former.encode()) if former else backup.unlink(missing_ok=True)
        raise _error(file, error, "Look at who owns it.") from error
