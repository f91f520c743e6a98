"""``shammah`` as a command that runs to its end."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fakes import frontend
from tests.fakes.sandbox import LIMIT_S

SHAMMAH = (str(Path(sys.prefix, "bin", "shammah")),)

WITH_STAND_INS = (sys.executable, "-P", str(frontend.__file__))
"""The same, but the workers that it starts are echoes, and it waits for others for long."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def run(
    *arguments: str,
    stdin: str | bytes = "",
    command: tuple[str, ...] = SHAMMAH,
    limit: float = LIMIT_S,
) -> Ran:
    """Run ``shammah ARGUMENTS`` to its end."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    ended = subprocess.run(
        [*command, *arguments], input=given, capture_output=True, timeout=limit, check=False
    )
    return Ran(ended.returncode, ended.stdout.decode(), ended.stderr.decode())
