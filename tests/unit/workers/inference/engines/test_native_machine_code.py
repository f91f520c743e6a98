"""Machine code that is kept in a file and called without numba."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from workers.inference.engines.native import compiler
from workers.inference.engines.native.kernels import kept_path, prepare_kernels
from workers.inference.engines.native.machine_code import (
    Compiled,
    MachineCode,
    address_of,
    keep,
    kinds_of,
    load,
    words_of,
)


class Inner(NamedTuple):
    factor: float
    adds: bool
    matrix: NDArray[np.int16]


class Outer(NamedTuple):
    yes: bool
    inner: Inner
    count: int
    pair: tuple[NDArray[np.float32], NDArray[np.float32]]
    out: NDArray[np.float64]


def some_operands(adds: bool = True) -> Outer:
    matrix = np.arange(6, dtype=np.int16).reshape(2, 3)
    matrix.setflags(write=False)
    pair = (np.full(2, 0.5, np.float32), np.zeros(0, np.float32))
    return Outer(True, Inner(-2.5, adds, matrix), 7, pair, np.zeros((3, 8)))


def write_all(member: int, operands: Any) -> None:
    """Everything that is in the operands, into row ``member`` of ``out``."""
    yes, inner, count, pair, out = operands
    out[member, 0] = 1 if yes else 0
    out[member, 1] = inner.factor
    out[member, 2] = 1 if inner.adds else 0
    out[member, 3] = inner.matrix[1, 2]
    out[member, 4] = inner.matrix.shape[1]
    out[member, 5] = count
    out[member, 6] = pair[0][1]
    out[member, 7] = pair[1].shape[0]


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    import numba

    operands = some_operands()
    every = {"write": (numba.njit(write_all), operands)}
    return Compiled({"write": kinds_of(operands)}, compiler.emit(every))


def test_every_kind_of_operand_arrives(compiled: Compiled) -> None:
    """The layout is numba's, which may change with its version."""
    code = MachineCode.of_object(compiled)["write"]
    for adds in (True, False):
        operands = some_operands(adds)
        code.check(operands)
        words = np.array(words_of(operands), np.int64)
        code(1, address_of(words))
        assert operands.out[1].tolist() == [1, -2.5, adds, 5, 3, 7, 0.5, 0]
        assert not operands.out[[0, 2]].any()


def test_operands_of_another_kind_are_refused(compiled: Compiled) -> None:
    code, good = MachineCode.of_object(compiled)["write"], some_operands()
    for other in (
        good._replace(count=7.0),
        good._replace(out=good.out.astype(np.float32)),
        good._replace(out=good.out[:, ::2]),
        good._replace(pair=(good.pair[0], np.zeros((0, 1), np.float32))),
    ):
        with pytest.raises(TypeError, match="the kernels are for"):
            code.check(other)


def test_what_would_need_numba_to_run_is_not_kept() -> None:
    import numba

    def reshape(member: int, operands: Any) -> None:
        operands.out.reshape(-1)[member] = 1

    with pytest.raises(RuntimeError, match="numba_attempt_nocopy_reshape"):
        compiler.emit({"reshape": (numba.njit(reshape), some_operands())})


def test_code_comes_back_from_its_file(compiled: Compiled, tmp_path: Path) -> None:
    path = tmp_path / "kernels" / "step.code"
    assert load(path) is None
    keep(path, compiled)
    assert load(path) == compiled
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_was_compiled_here_before_is_taken(compiled: Compiled, tmp_path: Path) -> None:
    keep(kept_path(tmp_path), compiled)
    code = prepare_kernels(tmp_path, objects=tmp_path / "none")
    operands = some_operands()
    code["write"].run(operands)
    assert operands.out[0].tolist() == [1, -2.5, 1, 5, 3, 7, 0.5, 0]


@pytest.mark.parametrize("damage", ["cut", "changed", "empty"])
def test_damaged_code_is_never_run(compiled: Compiled, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "step.code"
    keep(path, compiled)
    content = bytearray(path.read_bytes())
    if damage == "changed":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-100], "changed": content, "empty": b""}[damage])
    assert load(path) is None
    keep(path, compiled)
    assert load(path) == compiled


def test_a_disk_that_cannot_keep_it_costs_only_time(
    compiled: Compiled, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    keep(tmp_path / "file" / "step.code", compiled)
    assert "cannot cache the compiled kernels" in caplog.text
