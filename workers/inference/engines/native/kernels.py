"""Which machine code a process calls: what is carried with the program, or what was compiled here.

What is carried is taken if it is for this processor and was made of the kernels' present sources.
Else (a developer has changed them) they are compiled, for this processor alone, and kept in a
directory that is named after the sources.
"""

from __future__ import annotations

import ast
import hashlib
import json
import logging
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from shammah.bus.record import record
from shammah.errors import ShammahError
from workers.inference.engines.native import machine_code, processor
from workers.inference.engines.native.machine_code import Compiled, MachineCode, kinds_of
from workers.inference.engines.native.targets import Target, fitting_target

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
OBJECTS = HERE / "objects"

SOURCES = (
    "adaptation attention compiler dot_products exports int4_rounding int8_rounding lanes layout "
    "operands pairs phases products step targets"
).split()
"""The modules that the machine code is made of."""

_DIGITS = 12
_MANIFEST = "manifest.json"


@record
class Manifest:
    """What is carried."""

    text: str
    """`digest_of_text` of the sources."""
    meaning: str
    """`digest_of_meaning` of the sources."""
    made_by: dict[str, str]
    """The versions of what made it."""
    kinds: dict[str, str]
    """As `Compiled.kinds`: the same for all targets."""
    files: dict[str, str]
    """The SHA-256 of each, by its name."""

    @staticmethod
    def load(objects: Path) -> Manifest | None:
        """``None`` if there is none, or it is damaged."""
        try:
            return Manifest(**json.loads((objects / _MANIFEST).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def save(self, objects: Path) -> None:
        text = json.dumps(asdict(self), indent=1, sort_keys=True)
        (objects / _MANIFEST).write_text(f"{text}\n")

    def file(self, target: Target) -> str:
        """The name of the target's library: of the kind of processor, and of what made it."""
        made_by = json.dumps([self.meaning, self.made_by], sort_keys=True)
        return (
            f"{target.name}-{hashlib.sha256(made_by.encode()).hexdigest()[:_DIGITS]}{target.suffix}"
        )

    def is_of(self, sources: Path) -> bool:
        """Whether these sources mean what the machine code was made of."""
        # To understand them takes 40 ms; to read them, less than one.
        return self.text == digest_of_text(sources) or self.meaning == digest_of_meaning(sources)


def prepare_kernels(directory: Path, objects: Path = OBJECTS) -> MachineCode:
    """The machine code for this processor, compiled below ``directory`` if it is not carried.

    Raises:
        ShammahError: ``model_unsupported``: it would have to be compiled, and numba is missing.
    """
    if carried := carried_library(objects):
        path, kinds = carried
        try:
            return MachineCode.of_library(path, kinds)
        except OSError as error:
            log.warning("cannot load %s: %s", path, error)
    if find_spec("numba") is None:
        raise ShammahError(
            "model_unsupported",
            "The native engine has no machine code for this processor, and numba, which makes it, "
            "is not installed.",
            "Install it: pip install 'shammah[kernels]'. Or set inference.engine to auto.",
        )
    path = kept_path(directory)
    found = machine_code.load(path)
    if found is None:
        found = _compile()
        machine_code.keep(path, found)
    return MachineCode.of_object(found)


def carried_library(objects: Path = OBJECTS) -> tuple[Path, dict[str, str]] | None:
    """The library that is carried for this processor, if there is one, and it is whole and of the
    sources that are here; with the kinds of its operands."""
    target = fitting_target(sys.platform, processor.kind(), processor.features())
    manifest = Manifest.load(objects)
    if target is None or manifest is None or not manifest.is_of(HERE):
        return None
    path = objects / manifest.file(target)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
    if manifest.files.get(path.name) != digest:
        log.warning("the carried kernels in %s are damaged", path)
        return None
    return path, manifest.kinds


def _compile() -> Compiled:
    from workers.inference.engines.native.compiler import emit
    from workers.inference.engines.native.exports import exports

    every = exports()
    return Compiled(
        {name: kinds_of(operands) for name, (_, operands) in every.items()}, emit(every)
    )


# --- where compiled code is kept ----------------------------------------------------------


def kernel_directory(home: Path) -> Path:
    """Where machine code is kept: with this installation if it may be written, so that it is
    compiled once for all homes; else in ``home``."""
    shared = Path(sys.prefix, "share", "shammah")
    return (shared if os.access(shared, os.W_OK) else home) / "kernels"


def own_directory(directory: Path) -> Path:
    """Where below ``directory`` the machine code of these sources is."""
    return directory / digest_of_text(HERE)[:_DIGITS]


def kept_path(directory: Path) -> Path:
    """The file below ``directory`` for this processor and this LLVM."""
    import llvmlite.binding as llvm  # type: ignore[import-untyped]

    features = llvm.get_host_cpu_features().flatten()
    machine = "\n".join((llvm.get_host_cpu_name(), features, *map(str, llvm.llvm_version_info)))
    digest = hashlib.sha256(machine.encode()).hexdigest()[:_DIGITS]
    return own_directory(directory) / f"step-{digest}.code"


# --- the sources --------------------------------------------------------------------------


def digest_of_text(sources: Path) -> str:
    """Of the sources in a directory, to the letter."""
    digest = hashlib.sha256()
    for name in SOURCES:
        digest.update((sources / f"{name}.py").read_bytes())
    return digest.hexdigest()


def digest_of_meaning(sources: Path) -> str:
    """Of the sources in a directory, without their comments and docstrings."""
    digest = hashlib.sha256()
    for name in SOURCES:
        tree = ast.parse((sources / f"{name}.py").read_bytes())
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(body, list):
                node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()


def _is_text(node: ast.AST) -> bool:
    """Whether it is a string that stands for itself: a docstring."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
