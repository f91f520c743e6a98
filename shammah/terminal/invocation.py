"""How this program was called, so that a hint works when it is typed."""

from __future__ import annotations

import functools
import os
import re
import sys

NAME = "shammah"
VARIABLE = "SHAMMAH_PROGRAM"
"""The name of a script that starts this program (``scripts/run``)."""

_QUOTED = re.compile(rf"(?<=`){NAME}(?=[ `])")


def as_invoked(text: str) -> str:
    """Return ``text`` with the commands in backticks as they work here."""
    return _QUOTED.sub(lambda found: program(), text)


@functools.cache
def program() -> str:
    """Return ``shammah`` if a shell finds it by that name, else what was typed to start this."""
    if named := os.environ.get(VARIABLE):
        import shlex

        return shlex.quote(named)
    called = sys.argv[0]
    if os.path.basename(called) != NAME:
        return NAME
    import shlex
    import shutil

    found = shutil.which(NAME)
    if found is not None and os.path.realpath(found) == os.path.realpath(called):
        return NAME
    return shlex.quote(called)
