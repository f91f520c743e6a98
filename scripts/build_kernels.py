#!/usr/bin/env python3
"""Make the machine code of the native engine's kernels that is carried with the program.

    pip install -e '.[kernels]' && scripts/build_kernels.py

On any machine with x86-64, for all processors of `targets`; it takes minutes. To be run whenever
what the kernels compute has changed: a test says so. If only their comments have, it notes that
in a second. The same sources and versions give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from workers.inference.engines.native import kernels  # noqa: E402
from workers.inference.engines.native.kernels import Manifest  # noqa: E402
from workers.inference.engines.native.machine_code import NEEDED, SYMBOL, kinds_of  # noqa: E402
from workers.inference.engines.native.targets import TARGETS, Target  # noqa: E402

MAKERS = ("numba", "llvmlite", "ziglang")
LINK_ELF = (
    "ld.lld -shared --strip-all --gc-sections --build-id=none -Bsymbolic -z noexecstack -z now"
).split()
LINK_MACH_O = "cc -target aarch64-macos.13.0 -shared -Wl,-dead_strip -Wl,-x".split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", choices=[one.name for one in TARGETS], help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, default=kernels.OBJECTS, help="the folder")
    options = parser.parse_args()
    if options.target:
        (target,) = (one for one in TARGETS if one.name == options.target)
        print(json.dumps(compile_for(target, options.into)))
    else:
        build(options.into)


def build(into: Path) -> None:
    """Bring the folder up to date. What is there stays until all targets are made."""
    made_by = {name: importlib.metadata.version(name) for name in MAKERS}
    text, meaning = kernels.digest_of_text(kernels.HERE), kernels.digest_of_meaning(kernels.HERE)
    old = Manifest.load(into)
    kinds, files = (old.kinds, old.files) if old else ({}, {})
    manifest = Manifest(text, meaning, made_by, kinds, files)
    if old is None or set(old.files) != {manifest.file(target) for target in TARGETS}:
        files.clear()
        with tempfile.TemporaryDirectory() as folder:
            for target in TARGETS:
                path = Path(folder, manifest.file(target))
                kinds.update(make(target, path))
                files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
                print(f"{path.stat().st_size:8,} bytes  {path.name}", flush=True)
            into.mkdir(parents=True, exist_ok=True)
            for path in into.iterdir():
                path.unlink()
            for name in files:
                shutil.copyfile(Path(folder, name), into / name)
    manifest.save(into)


def make(target: Target, library: Path) -> dict[str, str]:
    """Compile and link for a target; return the kinds of the operands."""
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: what is compiled for is set once in each.
        command = [sys.executable, __file__, "--target", target.name, "--into", folder]
        environ = {**os.environ, "PYTHONHASHSEED": "0"}
        told = subprocess.run(command, check=True, env=environ, stdout=subprocess.PIPE, text=True)
        link(target, Path(folder, "kernels.o"), library)
    kinds: dict[str, str] = json.loads(told.stdout)
    return kinds


def compile_for(target: Target, into: Path) -> dict[str, str]:
    """Write the object file; return the kinds of the operands."""
    import llvmlite.binding as llvm

    from workers.inference.engines.native import compiler

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    compile_as_on(target)
    compiler.compiled_for = frozenset(target.needs)
    from workers.inference.engines.native.exports import exports

    machine = llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.cpu_features, opt=3, reloc="pic", codemodel="default"
    )
    every = exports()
    (into / "kernels.o").write_bytes(compiler.emit(every, machine))
    return {name: kinds_of(operands) for name, (_, operands) in every.items()}


def compile_as_on(target: Target) -> None:
    """Have numba take this machine for one of the target's. Before numba is imported.

    numba compiles only for the process that it is in, and asks llvmlite what that is. It also
    links each function into the process, which would fail for another system's and is not needed.
    """
    import llvmlite.binding as llvm

    os.environ["NUMBA_CPU_NAME"] = target.cpu
    os.environ["NUMBA_CPU_FEATURES"] = target.cpu_features
    llvm.get_process_triple = lambda: target.triple
    llvm.ExecutionEngine.finalize_object = lambda self: None
    if target.system == "darwin":
        for name in (*NEEDED, "bzero", "memset_pattern16"):
            llvm.add_symbol(f"_{name}", 4096)  # an address that is never called
        for name in ("NRT_MemInfo_call_dtor", "NRT_incref", "NRT_decref", "NRT_Free"):
            llvm.add_symbol(f"_{name}", 4096)


def link(target: Target, compiled: Path, library: Path) -> None:
    """Make a shared library that offers the functions and hides all else."""
    zig = [sys.executable, "-m", "ziglang"]
    if target.system == "darwin":
        arguments: list[Any] = [*LINK_MACH_O, f"-Wl,-install_name,{library.name}"]
    else:
        script = compiled.with_suffix(".version")
        script.write_text(f"{{ global: {SYMBOL}*; local: *; }};\n")
        arguments = [*LINK_ELF, f"--soname={library.name}", f"--version-script={script}"]
    cache = {"ZIG_GLOBAL_CACHE_DIR": str(compiled.parent / "cache")}
    command = [*zig, *arguments, str(compiled), "-o", str(library)]
    subprocess.run(command, check=True, env={**os.environ, **cache})


if __name__ == "__main__":
    main()
