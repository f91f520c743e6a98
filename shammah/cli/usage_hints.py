"""What to say to a command line of which click says only that it is wrong. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from shammah.chat.options import FLAGS, VALUES


def hint_at(arguments: list[str], commands: Collection[str]) -> str:
    """A sentence; empty: there is nothing to add."""
    if not arguments:
        return ""
    first, last = arguments[0], arguments[-1]
    if not first.startswith("-"):
        known = first in commands or difflib.get_close_matches(first, commands, n=1)
        return "" if known else 'To ask something: shammah ask "What is a monad?"'
    if first.partition("=")[0] not in {*VALUES, *FLAGS}:
        return ""
    command = next((one for one in arguments if one in commands), "")
    if command:
        return f"Options come after the command: shammah {command} {first} ..."
    if last in VALUES:
        return f"{last} needs a value: {VALUE_EXAMPLES[VALUES[last]]}"
    return ""


VALUE_EXAMPLES = {
    "model": "shammah --model starter",
    "licence": "shammah --licence permissive",
    "system": 'shammah --system "Answer in French."',
    "resume": "shammah --resume 12",
}
