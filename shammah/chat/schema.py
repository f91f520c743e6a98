"""JSON schemas that an answer is held to: who can do so, and how one is read.

Only Claude's own API enforces one, while it chooses tokens. The local model could at best be asked
to keep to it, and a program that reads the answer would break on the day when it does not.
"""

from __future__ import annotations

import functools
import json
from typing import Any

from shammah.chat.attachments import read_attachment
from shammah.errors import ExitCode, ShammahError
from shammah.terminal.output import echo

WHO_CAN = "Claude's own API can: set ANTHROPIC_API_KEY, and ask without --local and --private."


def read_schema(path: str | None) -> str:
    """The schema in a file; empty for none.

    Raises:
        ShammahError: ``schema_invalid``, or as `read_attachment`.
    """
    if path is None:
        return ""
    try:
        schema = json.loads(read_attachment(path, functools.partial(echo, err=True)).text)
    except ValueError as error:
        raise _invalid(f"{path} is not JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise _invalid(f"{path} does not hold a JSON object.")
    return json.dumps(schema, ensure_ascii=False)


def load_schema(schema: str) -> dict[str, Any]:
    """What `read_schema` has read."""
    loaded: dict[str, Any] = json.loads(schema)
    return loaded


def not_enforced(who: str) -> ShammahError:
    """``who`` begins a sentence."""
    return ShammahError("schema_not_enforced", f"{who} cannot hold an answer to a schema.", WHO_CAN)


def _invalid(what: str) -> ShammahError:
    hint = 'A schema is like {"type": "object", "properties": ...}; see json-schema.org.'
    return ShammahError("schema_invalid", what, hint, exit_code=ExitCode.USAGE)
