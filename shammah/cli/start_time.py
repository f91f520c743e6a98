"""How long this installation takes from exec to its prompt, beside a bare interpreter."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAIRS = 5
LIMIT_S = 10.0
BUDGET = 2.0
"""The prompt in at most so many times what the bare interpreter takes."""

PROMPT = b"> "


@dataclass(frozen=True, slots=True)
class StartTime:
    """Seconds, the least of several; the least is what nothing else has disturbed."""

    prompt_s: float
    bare_s: float

    @property
    def ratio(self) -> float:
        """How many times the bare interpreter the prompt takes."""
        return self.prompt_s / self.bare_s


def measure_start(environ: Mapping[str, str], pairs: int = PAIRS) -> StartTime:
    """Start both in turn on terminals of their own.

    What is started finds settings that are wrong, and so ends after its prompt and starts no
    worker.

    Raises:
        OSError: there are no terminals, or nothing can be started.
        TimeoutError: no prompt came within `LIMIT_S`.
    """
    script = Path(sys.executable).with_name("shammah")
    shammah = [str(script)] if script.exists() else [sys.executable, "-m", "shammah"]
    with tempfile.TemporaryDirectory() as home:
        Path(home, "config.toml").write_text("started_to_be_timed = true\n")
        variables = {**environ, "SHAMMAH_HOME": home}
        prompts, bare = [], []
        for _ in range(pairs):
            prompts.append(_time(shammah, variables, PROMPT))
            bare.append(_time([sys.executable, "-c", "pass"], variables, b""))
    return StartTime(min(prompts), min(bare))


def _time(command: list[str], environ: Mapping[str, str], until: bytes) -> float:
    """Seconds until ``command`` has written ``until``; without it, until it has ended."""
    main, side = pty.openpty()
    began = time.perf_counter()
    try:
        with subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            env=dict(environ),
            start_new_session=True,
        ) as child:
            try:
                if until:
                    _read_until(main, until)
                else:
                    child.wait(LIMIT_S)
                return time.perf_counter() - began
            finally:
                child.kill()
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} did not end") from error
    finally:
        os.close(side)
        os.close(main)


def _read_until(fd: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        if not select.select([fd], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"no prompt within {LIMIT_S:.0f} s")
        seen += os.read(fd, 4096)
