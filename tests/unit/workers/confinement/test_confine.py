"""A kernel that cannot hold everything is told from one that can, and the worker goes on."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest

from shammah.settings.model import InferenceSettings, Settings
from workers import confinement
from workers.confinement import confine, kernel


@pytest.fixture(autouse=True)
def _own_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", "/tmp")


def refuse(*arguments: object) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def test_a_kernel_without_both_is_named_and_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "landlock_version", lambda: 0)
    monkeypatch.setattr(kernel, "filter_calls", refuse)
    held = confine("cloud", Settings(tmp_path), {}, tmp_path)
    assert held.holds == ()
    assert held.missing == (
        confinement.NO_LANDLOCK,
        f"{confinement.NO_FILTER} (Invalid argument).",
    )


def test_an_old_landlock_holds_files_and_says_that_ports_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[kernel.Rules] = []
    monkeypatch.setattr(kernel, "landlock_version", lambda: 1)
    monkeypatch.setattr(kernel, "restrict", lambda version, rules: asked.append(rules))
    monkeypatch.setattr(kernel, "filter_calls", lambda program: None)
    monkeypatch.setattr(confinement, "note_compiled", lambda note: None)
    held = confine("cloud", Settings(tmp_path), {}, tmp_path)
    assert held.holds == ("files", "programs", "processes")
    assert [why.partition(" (")[0] for why in held.missing] == [
        "This kernel's Landlock knows no ports",
        "This kernel's Landlock lets signals through",
    ]
    assert (tmp_path / "egress.jsonl", kernel.CHANGE) in asked[0].paths


def test_what_is_switched_off_or_starts_processes_itself_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "restrict", refuse)
    monkeypatch.setattr(kernel, "filter_calls", refuse)
    held = confine("inference", Settings(tmp_path, confine="off"), {}, tmp_path)
    assert (held.holds, held.missing) == ((), (confinement.OFF,))
    monkeypatch.setattr(confinement, "find_spec", lambda name: name == "vllm")
    held = confine("inference", Settings(tmp_path), {}, tmp_path)
    assert held.missing == (confinement.VLLM,)
    native = Settings(tmp_path, inference=InferenceSettings(engine="native"))
    assert confine("inference", native, {}, tmp_path).missing != (confinement.VLLM,)
