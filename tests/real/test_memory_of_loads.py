"""What a load takes at most, and what stays of one model after another.

``scripts/bench/memory.py`` measures; a whole run of it, by hand, has twenty changes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real.models import starter

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells the peak"),
]

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench" / "memory.py"
MIB = 2**20
CHANGES = 4


def measured(*arguments: str) -> Any:
    command = [sys.executable, str(SCRIPT), *arguments]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=800, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def test_a_load_of_the_native_engine_has_no_second_copy() -> None:
    loads = measured("--forms", "native:int8", "--switches", "0", "--json")["loads"]
    assert loads["native:int8"]["ratio"] < 1.15


def test_a_load_of_transformers_has_no_second_copy(tmp_path: Path) -> None:
    """It turns 16 bits into 32 here, and what it has read of the file goes back meanwhile."""
    where = ("--model", str(starter()), "--home", str(tmp_path))
    found = measured("--load", "transformers:float32", *where)
    kept = found["anonymous"] + found["mapped"]
    assert found["weights"] < kept
    assert found["peak"] < 1.1 * kept


def test_models_come_and_go_without_growth() -> None:
    changes = measured("--forms", "--switches", str(CHANGES), "--json")["changes"]
    assert len(changes) == CHANGES + 1
    assert {change["workers"] for change in changes} == {1}
    assert {change["overlap"] for change in changes} == {0}
    settled, last = changes[2], changes[-1]
    assert last["frontend_threads"] == settled["frontend_threads"]
    assert last["frontend_descriptors"] == settled["frontend_descriptors"]
    assert last["frontend_bytes"] - settled["frontend_bytes"] < MIB
