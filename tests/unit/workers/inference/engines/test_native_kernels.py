"""Which machine code is taken: what is carried, or what was compiled here and kept."""

from __future__ import annotations

import ast
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from shammah.errors import ShammahError
from workers.inference.engines.native import kernels, processor, runner
from workers.inference.engines.native.kernels import (
    HERE,
    OBJECTS,
    SOURCES,
    Manifest,
    carried_library,
    digest_of_meaning,
    digest_of_text,
    prepare_kernels,
)
from workers.inference.engines.native.machine_code import MachineCode
from workers.inference.engines.native.packing import pack
from workers.inference.engines.native.runner import NativeRunner
from workers.inference.engines.native.targets import TARGETS, Target, fitting_target

MAKE = "pip install -e '.[kernels]' && scripts/build_kernels.py"
VNNI, V4, V3 = (frozenset(target.needs) for target in TARGETS[:3])


# --- what is carried ----------------------------------------------------------------------


def test_what_is_carried_was_made_of_these_sources() -> None:
    manifest = Manifest.load(OBJECTS)
    assert manifest, f"no machine code is carried. Run: {MAKE}"
    meaning = digest_of_meaning(HERE)
    assert meaning == manifest.meaning, f"kernels have changed since it was made. Run: {MAKE}"
    assert set(manifest.files) == {manifest.file(target) for target in TARGETS}
    assert {path.name for path in OBJECTS.iterdir()} == {*manifest.files, "manifest.json"}


def test_every_module_that_is_compiled_is_among_the_sources() -> None:
    for path in HERE.glob("*.py"):
        imported = [
            one.module or ""
            for one in ast.parse(path.read_text()).body
            if isinstance(one, ast.ImportFrom)
        ]
        if any(name.startswith("numba") or name.endswith("native.compiler") for name in imported):
            assert path.stem in SOURCES


@pytest.mark.parametrize(
    ("system", "kind", "features", "name"),
    [
        ("linux", "x86_64", V3, "x86-64-v3"),
        ("linux", "x86_64", VNNI, "x86-64-v4-vnni"),
        ("linux", "x86_64", V4, "x86-64-v4"),
        ("linux", "x86_64", VNNI - {"AVX512VL"}, "x86-64-v3"),
        ("linux", "x86_64", V3 - {"FMA"}, ""),
        ("linux", "aarch64", {"ASIMD"}, "aarch64"),
        ("linux", "aarch64", {"ASIMD", "ASIMDDP"}, "aarch64-dotprod"),
        ("linux", "riscv64", (), ""),
        ("darwin", "aarch64", {"ASIMD", "ASIMDDP"}, "arm64-apple"),
        ("darwin", "x86_64", V4, ""),
    ],
)
def test_the_best_that_the_processor_can_run_is_taken(
    system: str, kind: str, features: frozenset[str], name: str
) -> None:
    found = fitting_target(system, kind, frozenset(features))
    assert (found.name if found else "") == name


_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_every_library_is_for_its_processor(target: Target) -> None:
    manifest = Manifest.load(OBJECTS)
    assert manifest
    content = (OBJECTS / manifest.file(target)).read_bytes()
    if target.system == "darwin":  # a 64-bit dynamic library for ARM (mach-o/loader.h)
        assert struct.unpack_from("<4I", content)[:2] == (0xFEEDFACF, 0x0100000C)
    else:  # a shared object (elf.h)
        assert content[:4] == b"\x7fELF"
        assert struct.unpack_from("<2H", content, 16) == (3, _ELF_MACHINES[target.kind])
    assert all(f"shammah_{name}\0".encode() in content for name in manifest.kinds)


def test_what_is_carried_for_another_processor_is_not_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "features", lambda: frozenset({"SSE2"}))
    assert carried_library() is None


def test_every_library_for_this_system_computes_the_same() -> None:
    """Those of the processors that this one can stand for."""
    manifest, features = Manifest.load(OBJECTS), processor.features()
    matrix = np.random.default_rng(0).normal(size=(33, 70)).astype(np.float32)
    found = []
    for target in TARGETS:
        if fitting_target(sys.platform, processor.kind(), features & set(target.needs)) is target:
            assert manifest
            code = MachineCode.of_library(OBJECTS / manifest.file(target), manifest.kinds)
            found.append([part.tobytes() for part in pack(matrix, code)])
    assert found
    assert all(one == found[0] for one in found)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """A copy of what is carried."""
    return Path(shutil.copytree(OBJECTS, tmp_path / "objects"))


def test_the_copy_is_as_good(objects: Path) -> None:
    carried = carried_library(objects)
    assert carried
    assert carried[0].parent == objects
    assert prepare_kernels(objects / "none", objects)["step"]


@pytest.mark.parametrize("harm", ["cut", "gone", "other", "no manifest", "half a manifest"])
def test_what_is_damaged_is_never_run(objects: Path, harm: str) -> None:
    carried, manifest = carried_library(objects), objects / "manifest.json"
    assert carried
    path = carried[0]
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "gone":
        path.unlink()
    elif harm == "other":
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text()[:100])
    assert carried_library(objects) is None


# --- the sources --------------------------------------------------------------------------


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of them."""
    for name in SOURCES:
        shutil.copy(HERE / f"{name}.py", tmp_path)
    return tmp_path


def test_comments_are_not_what_code_is_made_of(sources: Path) -> None:
    manifest = Manifest.load(OBJECTS)
    step = sources / "step.py"
    step.write_text(step.read_text().replace('"""One step', '# Remarks.\n"""Another step', 1))
    assert digest_of_text(sources) != digest_of_text(HERE)
    assert digest_of_meaning(sources) == digest_of_meaning(HERE)
    assert manifest
    assert manifest.is_of(sources)


def test_another_number_is_other_code(sources: Path) -> None:
    manifest = Manifest.load(OBJECTS)
    products = sources / "products.py"
    products.write_text(products.read_text().replace("_PANELS = 4", "_PANELS = 5"))
    assert manifest
    assert not manifest.is_of(sources)


# --- what is compiled here ----------------------------------------------------------------


def test_without_numba_what_is_not_carried_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    with pytest.raises(ShammahError, match="no machine code for this processor") as raised:
        prepare_kernels(tmp_path, tmp_path)
    assert "shammah[kernels]" in raised.value.hint


def test_what_is_compiled_is_found_by_every_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def note(directory: Path) -> None:
        asked.append(directory)
        raise InterruptedError

    monkeypatch.setattr(runner, "prepare_kernels", note)
    native = NativeRunner()
    for home in (None, tmp_path / "one", tmp_path / "other"):
        with pytest.raises(InterruptedError):
            native.prepare(home)
    native.close()
    assert set(asked) == {Path(sys.prefix, "share", "shammah", "kernels")}


def test_an_installation_that_is_not_ours_keeps_it_in_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert kernels.kernel_directory(tmp_path) == tmp_path / "kernels"


def test_the_kept_file_is_of_this_processor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A home may be used from two machines."""
    import llvmlite.binding as llvm

    here = kernels.kept_path(tmp_path)
    monkeypatch.setattr(llvm, "get_host_cpu_name", lambda: "another")
    assert kernels.kept_path(tmp_path) != here
