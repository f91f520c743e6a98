"""A memory control group (v1) for one test: a machine with little memory."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.sandbox import until

_ROOT = Path("/sys/fs/cgroup/memory")


def can_make_groups() -> bool:
    """Whether this is a machine, and we a user, that has them."""
    return (_ROOT / "memory.limit_in_bytes").exists() and os.access(_ROOT, os.W_OK)


@dataclass(frozen=True)
class MemoryGroup:
    """One group, and what is put into it."""

    directory: Path

    @classmethod
    @contextlib.contextmanager
    def make(cls, limit: int) -> Iterator[MemoryGroup]:
        """A group of ``limit`` bytes; what is left in it at the end is killed."""
        group = cls(_ROOT / f"shammah-{uuid.uuid4().hex[:12]}")
        group.directory.mkdir()
        try:
            group.limit(limit)
            yield group
        finally:
            group.limit(-1)
            for pid in group.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until(lambda: not group.processes(), "the group is empty")
            group.directory.rmdir()

    def limit(self, size: int) -> None:
        """Allow ``size`` bytes from now on; -1: as many as there are."""
        (self.directory / "memory.limit_in_bytes").write_text(str(size))

    def processes(self) -> list[int]:
        return [int(pid) for pid in (self.directory / "cgroup.procs").read_text().split()]

    @property
    def peak(self) -> int:
        """The most bytes that were ever used, cached files included."""
        return int((self.directory / "memory.max_usage_in_bytes").read_text())

    def command(self, command: Sequence[str]) -> tuple[str, ...]:
        """``command``, inside the group from its first moment on."""
        inside = f'echo $$ > {shlex.quote(str(self.directory / "cgroup.procs"))}; exec "$@"'
        return ("sh", "-c", inside, "sh", *command)

    def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        return subprocess.run(
            self.command(command), capture_output=True, text=True, timeout=240, check=False
        )
