"""What a model needs, beside what there is."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from shammah.errors import ShammahError
from shammah.models.catalogue import CATALOGUE, GIB, CatalogueModel
from shammah.models.footprint import kv_bytes
from tests.real.models import write_checkpoint
from workers.inference import memory
from workers.inference.engine import Placement
from workers.inference.memory import (
    HEADROOM_BYTES,
    LEAST_CONTEXT,
    check_context,
    conversation_bytes,
    free_main_memory,
    kv_budget,
    shortage,
)
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.runner import Runner


@pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.size)
def test_a_conversation_is_counted_as_the_plan_does(tmp_path: Path, model: CatalogueModel) -> None:
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path))
    assert conversation_bytes(checkpoint) > 0
    checkpoint = replace(checkpoint, shape=model.shape)
    assert conversation_bytes(checkpoint) == kv_bytes(model.shape, LEAST_CONTEXT, 2)


@pytest.mark.parametrize(
    ("weights", "conversation", "needed"),
    [
        (4 * GIB, 0, 4 * GIB + HEADROOM_BYTES),
        (4 * GIB, GIB // 8, 4 * GIB + HEADROOM_BYTES),
        (4 * GIB, GIB, 6 * GIB),  # half of what is left is for conversations
    ],
)
def test_a_refusal_has_both_numbers(
    weights: int, conversation: int, needed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoint = inspect_checkpoint(write_checkpoint(tmp_path))
    monkeypatch.setattr(memory, "conversation_bytes", lambda checkpoint: conversation)
    enough = Placement("cpu", "float32", "int8", why="", needed=weights, free=needed)
    assert shortage(enough, checkpoint) is None
    refusal = shortage(replace(enough, free=needed - 1), checkpoint)
    assert refusal is not None
    assert refusal.code == "out_of_memory"
    assert f"needs {needed / GIB:.1f} GiB in 8-bit weights on cpu" in refusal.message
    assert f"only {(needed - 1) / GIB:.1f} GiB of memory is free" in refusal.message


def test_a_share_that_a_person_has_set_is_named_where_it_is_too_small() -> None:
    runner = cast(
        Runner, SimpleNamespace(kv_bytes_per_token=lambda: 1024**2, free_bytes=lambda: 8 * GIB)
    )
    with pytest.raises(ShammahError, match=r"kv_memory is 0\.5 GiB, .* 2,048 tokens needs 2\.00"):
        check_context(kv_budget(runner, 0.5), 8192, runner, 0.5)
    check_context(kv_budget(runner, 2), 8192, runner, 2)
    check_context(kv_budget(runner, 1e300), 8192, runner, 1e300)


@pytest.mark.parametrize(
    ("available", "left", "mapped", "expected"),
    [
        (1000, [], 0, 1000),
        (1000, [700, 900], 0, 700),
        (1000, [5000], 100, 900),
        (1000, [50], 100, 0),
        (1000, [700], None, 700),  # as on a Mac
    ],
)
def test_free_is_what_every_limit_leaves_and_we_have_not_mapped(
    monkeypatch: pytest.MonkeyPatch,
    available: int,
    left: list[int],
    mapped: int | None,
    expected: int,
    tmp_path: Path,
) -> None:
    """In KiB, and pages of a KiB."""
    if mapped is None:
        told = SimpleNamespace(available=1024 * available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: told)
    else:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/statm").write_text(f"9000 8000 {mapped} 1 0 7 0\n")
        (tmp_path / "meminfo").write_text(f"MemFree: 7 kB\nMemAvailable:   {available} kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 1024)
    monkeypatch.setattr(memory, "memory_left", lambda: [1024 * one for one in left])
    assert free_main_memory() == 1024 * expected


@pytest.mark.skipif(sys.platform != "linux", reason="psutil is asked elsewhere")
def test_the_kernel_is_read_as_psutil_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_left", list)
    shared = psutil.Process().memory_info().shared
    expected = psutil.virtual_memory().available - shared
    assert free_main_memory() == pytest.approx(expected, rel=0.1)
