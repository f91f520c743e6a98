"""Where the machine code of the kernels is kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from workers.inference.engines.native import compiler, computation
from workers.inference.engines.native.runner import NativeRunner


def test_the_set_up_compiles_for_every_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``scripts/run`` has compiled is found by a worker with another home."""
    asked: list[Path] = []

    def note(directory: Path) -> None:
        asked.append(directory)
        raise InterruptedError

    monkeypatch.setattr(computation, "prepare_kernels", note)
    runner = NativeRunner()
    for home in (None, tmp_path / "one", tmp_path / "other"):
        with pytest.raises(InterruptedError):
            runner.prepare(home)
    runner.close()
    assert set(asked) == {Path(sys.prefix, "share", "shammah", "kernels")}


def test_an_installation_that_is_not_ours_keeps_it_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert compiler.kernel_directory(tmp_path) == tmp_path / "kernels"
