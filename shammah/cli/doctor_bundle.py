"""``shammah doctor --bundle``: what to attach to a bug report, and nothing private in it.

What is not known to be harmless stays out: no conversation, no history, no file of settings
(whose comments may say anything), of a log only lines in our own form and the places in a
traceback. Everything is then searched for secrets and for what the privacy rules cover.
"""

from __future__ import annotations

import io
import json
import os
import re
import socket
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from shammah.bus import codec
from shammah.bus.endpoints import ROLES, lock_holder, open_endpoints
from shammah.bus.probe import ask_events
from shammah.errors import ShammahError
from shammah.privacy import Rules
from shammah.settings.model import SECRET, Settings, value_of
from shammah.storage.files import replace_file
from shammah.supervision.secrets import SECRETS

LINES = 400
"""Of each log, the last."""

EVENTS = 200
"""Of each worker, the last."""

LOG_BYTES = 512 * 1024
WITHHELD = "[withheld]"

_LOGGED = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ [a-z]+\[\d+\] [\w.]+: .*", re.ASCII
)
_PLACE = re.compile(r'  File "[^"]*", line \d+, in [\w<>.]+|Traceback \(most recent call last\):')
_RAISED = re.compile(r"([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit|Warning))(?::.*)?")

README = """\
Collected by `shammah doctor --bundle`. Check what is in it before you share it.

report.json   the output of `shammah doctor --json`
logs/         the last lines of the workers' logs; [withheld] replaces what may be private
events.jsonl  the last events of the running workers

Not included: keys, questions and answers, the history, the text of config.toml.
"""


class Redaction:
    """Removes what may be private.

    Args:
        settings: their secrets and privacy rules; ``None``: they cannot be read, so only what we
            wrote ourselves passes.
        environ: secrets, and the names of the person and the machine.
    """

    def __init__(self, settings: Settings | None, environ: Mapping[str, str]) -> None:
        home = environ.get("HOME", "")
        self._rules = Rules(settings.privacy, home) if settings else None
        secrets = [environ.get(name, "") for name in SECRETS]
        if settings:
            secrets += [value_of(settings, SECRET), settings.system]
            secrets += [server.key for server in settings.servers.values()]
        self._secrets = [secret for secret in secrets if len(secret) >= 4]
        names = [(home.rstrip("/"), "~")]
        names += [(environ.get(name, ""), "user") for name in ("USER", "LOGNAME")]
        names.append((socket.gethostname(), "host"))
        self._names = [(own, other) for own, other in names if len(own) >= 3]

    def text(self, text: str) -> str:
        """``text``, or `WITHHELD`."""
        if any(secret in text for secret in self._secrets):
            return WITHHELD
        if self._rules is not None and self._rules.mark(text).private:
            return WITHHELD
        for own, other in self._names:
            text = re.sub(rf"(?<!\w){re.escape(own)}(?!\w)", other, text)
        return text

    def document(self, value: Any) -> Any:
        """Return a JSON value with every text in it redacted."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            # A message about settings that cannot be read quotes them.
            unknown = ("message", "hint") if self._rules is None else ()
            return {
                key: WITHHELD if key in unknown else self.document(inner)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.document(inner) for inner in value]
        return value

    def log(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield what may be shown of a log. The source lines of a traceback and the message of an
        exception may quote anything."""
        for line in lines:
            raised = _RAISED.fullmatch(line)
            if self._rules is None:
                yield WITHHELD
            elif _LOGGED.fullmatch(line) or _PLACE.fullmatch(line):
                yield self.text(line)
            elif raised:
                yield raised[1]
            else:
                yield WITHHELD


def write_bundle(
    file: Path,
    document: Mapping[str, Any],
    settings: Settings | None,
    *,
    home: Path,
    environ: Mapping[str, str],
) -> list[str]:
    """Write the zip and return the names of what is in it.

    Raises:
        ShammahError: ``bundle_unwritable``.
    """
    redaction = Redaction(settings, environ)
    parts = {
        "README.txt": README,
        "report.json": json.dumps(redaction.document(document), indent=2, ensure_ascii=False),
        "events.jsonl": "".join(_events(environ, redaction)),
    }
    for log in sorted((home / "logs").glob("*.log")):
        kept = redaction.log(_tail(log))
        parts[f"logs/{log.name}"] = "\n".join(_squeezed(kept)) + "\n"
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in parts.items():
            archive.writestr(f"shammah-report/{name}", text)
    try:
        replace_file(file, packed.getvalue())
    except OSError as error:
        raise _unwritable(file, error.strerror or str(error)) from error
    return list(parts)


def check_place(file: Path) -> None:
    """Refuse a place without a directory before anything is examined.

    Raises:
        ShammahError: ``bundle_unwritable``.
    """
    if not file.absolute().parent.is_dir():
        raise _unwritable(file, f"no directory {file.parent}")


def _unwritable(file: Path, why: str) -> ShammahError:
    what = f"Cannot write {file}: {why}."
    return ShammahError("bundle_unwritable", what, "Choose a file in a directory you own.")


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - LOG_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-LINES:]
    except OSError as error:
        return [f"OSError: {error.strerror}"]


def _squeezed(lines: Iterable[str]) -> Iterator[str]:
    """Merge consecutive withheld lines."""
    before = ""
    for line in lines:
        if line != WITHHELD or before != WITHHELD:
            yield line
        before = line


def _events(environ: Mapping[str, str], redaction: Redaction) -> Iterator[str]:
    try:
        endpoints = open_endpoints(environ)
    except ShammahError:
        return  # reported already
    for role in ROLES:
        if lock_holder(endpoints.lock(role)) is None:
            continue
        try:
            events = ask_events(endpoints, role).events
        except ShammahError:
            continue  # reported already
        for event in events[-EVENTS:]:
            yield json.dumps(redaction.document(codec.to_document(event))) + "\n"
