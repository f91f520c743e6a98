"""For which processors machine code is carried with the program, and which of it fits here. Pure.

Each is a shared library in `objects`, made by ``scripts/build_kernels.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

_V3 = ("AVX2", "FMA", "F16C", "BMI1", "BMI2", "ABM", "MOVBE")
_V4 = ("AVX512F", "AVX512BW", "AVX512CD", "AVX512DQ", "AVX512VL")


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of processor under a system."""

    name: str
    system: str
    """As `sys.platform`."""
    kind: str
    """As `processor.kind`."""
    needs: tuple[str, ...]
    """As `processor.features`."""
    triple: str
    """LLVM's; the next two also."""
    cpu: str
    cpu_features: str = ""

    @property
    def suffix(self) -> str:
        return ".dylib" if self.system == "darwin" else ".so"


TARGETS = (
    Target(
        name="x86-64-v4-vnni",
        system="linux",
        kind="x86_64",
        needs=(*_V3, *_V4, "AVX512_VNNI"),
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v4",
        cpu_features="+avx512vnni",
    ),
    Target(
        name="x86-64-v4",
        system="linux",
        kind="x86_64",
        needs=_V3 + _V4,
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v4",
    ),
    Target(
        name="x86-64-v3",
        system="linux",
        kind="x86_64",
        needs=_V3,
        triple="x86_64-unknown-linux-gnu",
        cpu="x86-64-v3",
    ),
    Target(
        name="aarch64-dotprod",
        system="linux",
        kind="aarch64",
        needs=("ASIMD", "ASIMDDP"),
        triple="aarch64-unknown-linux-gnu",
        cpu="generic",
        cpu_features="+dotprod",
    ),
    Target(
        name="aarch64",
        system="linux",
        kind="aarch64",
        needs=("ASIMD",),
        triple="aarch64-unknown-linux-gnu",
        cpu="generic",
    ),
    Target(
        name="arm64-apple",
        system="darwin",
        kind="aarch64",
        needs=("ASIMD", "ASIMDDP"),
        triple="arm64-apple-macosx13.0.0",
        cpu="apple-m1",
    ),
)
"""The best first."""


def fitting_target(system: str, kind: str, features: frozenset[str]) -> Target | None:
    """The best for this processor; ``None``: there is none."""
    for target in TARGETS:
        if (target.system, target.kind) == (system, kind) and features.issuperset(target.needs):
            return target
    return None
