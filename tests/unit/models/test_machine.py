"""What the machine has: the GPU is asked through nvidia-smi, which is a script here."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.models.machine import gpu_memory, look
from tests.fakes.sandbox import LIMIT_S, Sandbox

MIB = 1024**2


@pytest.fixture
def torch(sandbox: Sandbox) -> Path:
    """The libraries of a torch that computes with CUDA."""
    libraries = sandbox.root / "torch"
    libraries.mkdir()
    (libraries / "libtorch_cuda.so").touch()
    return libraries


class Machine:
    """One with an ``nvidia-smi`` that does what a test says."""

    def __init__(self, sandbox: Sandbox, torch: Path) -> None:
        self.tools = sandbox.root / "bin"
        self.tools.mkdir()
        self.torch = torch
        self.patience = LIMIT_S

    def says(self, script: str, **environ: str) -> int:
        program = self.tools / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return self.gpu_memory(**environ)

    def gpu_memory(self, **environ: str) -> int:
        path = f"{self.tools}:/usr/bin:/bin"
        return gpu_memory({"PATH": path, **environ}, self.torch, self.patience)


@pytest.fixture
def machine(sandbox: Sandbox, torch: Path) -> Machine:
    return Machine(sandbox, torch)


@pytest.mark.parametrize(
    ("script", "mib"),
    [
        ("echo 24564", 24_564),
        ("echo ' 24564 '; echo 8188", 8188),
        ("echo '[N/A]'", 0),
        ("echo '[N/A]'; echo 8188", 8188),
        ("echo No devices were found", 0),
        ("echo 24564; exit 9", 0),
        ("printf '\\377\\376'", 0),
        ("", 0),
    ],
)
def test_what_the_tool_says(machine: Machine, script: str, mib: int) -> None:
    assert machine.says(script) == mib * MIB


def test_it_is_asked_for_the_memory_in_mib(machine: Machine) -> None:
    asked = "--query-gpu=memory.total --format=csv,noheader,nounits"
    assert machine.says(f'[ "$*" = "{asked}" ] && echo 7') == 7 * MIB


def test_only_what_cuda_may_see_counts(machine: Machine) -> None:
    assert machine.says('echo "$1" | tr -dc 0-9', CUDA_VISIBLE_DEVICES="3") == 3 * MIB
    assert machine.says("echo 7", CUDA_VISIBLE_DEVICES="") == 0
    assert machine.says("echo 7", CUDA_VISIBLE_DEVICES="-1") == 0


@pytest.mark.parametrize(
    "script", ["sleep 1000", "sleep 1000 & echo 7", "trap '' TERM; sleep 1000"]
)
def test_a_tool_that_hangs_is_left(machine: Machine, script: str) -> None:
    """For longer than the test may take."""
    machine.patience = 0.3
    assert machine.says(script) == 0


def test_no_tool(machine: Machine) -> None:
    assert machine.gpu_memory() == 0


def test_a_torch_for_the_cpu_alone_asks_nobody(machine: Machine, sandbox: Sandbox) -> None:
    (machine.torch / "libtorch_cuda.so").unlink()
    assert machine.says(f"touch {sandbox.root}/asked; echo 7") == 0
    assert not (sandbox.root / "asked").exists()


def test_this_one() -> None:
    here = look({"PATH": "/usr/bin:/bin"})
    assert here.memory > 0
    assert here.gpu_memory >= 0
