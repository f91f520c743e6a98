"""What this machine has for a model: memory, and a GPU if there is one. Never imports torch."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from shammah.models.catalogue import Machine, total_memory

PROBE_S = 5.0
"""A driver that is broken can make nvidia-smi hang; a good one answers in 0.1 to 2 s."""

_MIB = 1024**2
_ASKING = threading.Lock()
_asked: dict[tuple[str, ...], subprocess.Popen[bytes] | str] = {}
"""What was asked ahead: who answers, then the answer."""

_QUERY = ("--query-gpu=memory.total", "--format=csv,noheader,nounits")


def look(environ: Mapping[str, str]) -> Machine:
    """This machine, as a worker of this installation finds it."""
    return Machine(
        total_memory(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")),
        gpu_memory(environ),
        mps=sys.platform == "darwin" and platform.machine() == "arm64",
    )


def processor_name() -> str:
    """Return it as the system reports it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_memory(
    environ: Mapping[str, str], libraries: Path | None = None, timeout: float = PROBE_S
) -> int:
    """Bytes of the CUDA GPU that torch can use; 0: there is none, or nobody knows.

    Of several GPUs the smallest counts: torch and nvidia-smi number them differently.

    Args:
        environ: ``PATH`` and ``CUDA_VISIBLE_DEVICES`` are looked at.
        libraries: torch's own, found on ``sys.path`` by default: most installations for the
            CPU alone have none for CUDA.
        timeout: seconds, whatever happens.
    """
    command = _query(environ, libraries or _torch_libraries())
    said = _told(command, environ, timeout) if command else ""
    # In MiB, one line for each; a GPU that shares the main memory says [N/A].
    sizes = [int(line) for line in map(str.strip, said.splitlines()) if line.isdecimal()]
    return min(sizes, default=0) * _MIB


def ask_ahead(environ: Mapping[str, str]) -> None:
    """Begin to ask for the GPU's memory, in a process that soon may start no program any more:
    `gpu_memory` then waits for this answer, and remembers it."""
    command = _query(environ, _torch_libraries())
    if command:
        with contextlib.suppress(OSError):
            _asked[command] = _start(command, environ)


def _query(environ: Mapping[str, str], libraries: Path | None) -> tuple[str, ...] | None:
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or libraries is None:
        return None
    if not (libraries / "libtorch_cuda.so").exists():
        return None
    chosen = (f"--id={visible}",) if visible else ()
    return ("nvidia-smi", *chosen, *_QUERY)


def _torch_libraries() -> Path | None:
    places = (Path(entry, "torch", "lib") for entry in sys.path)
    return next((place for place in places if place.is_dir()), None)


def _told(command: tuple[str, ...], environ: Mapping[str, str], timeout: float) -> str:
    """The output of ``command``; empty if it fails, is missing or takes too long."""
    with _ASKING:
        if command not in _asked:
            with contextlib.suppress(OSError):
                return _hear(_start(command, environ), timeout)
            return ""
        found = _asked[command]
        if not isinstance(found, str):
            found = _asked[command] = _hear(found, timeout)
        return found


def _start(command: tuple[str, ...], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environ),
        start_new_session=True,
    )


def _hear(process: subprocess.Popen[bytes], timeout: float) -> str:
    assert process.stdout is not None
    try:
        said, _ = process.communicate(timeout=timeout)
        return said.decode("ascii", "replace") if process.returncode == 0 else ""
    except subprocess.TimeoutExpired:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        # Not subprocess.run, which would wait for its end: inside a driver nothing is killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        return ""
    finally:
        process.stdout.close()
