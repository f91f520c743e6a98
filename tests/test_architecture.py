"""Who may import whom, and how big a part may grow (DESIGN, sections 2 and 5).

`violations` reads the source of a tree, so that the last tests can show, on a copy with one
line added, that it finds what it is for. What a module really loads is then looked at in
`sys.modules` of a fresh interpreter.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shammah.bus import endpoints
from shammah.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {
    *("torch", "transformers", "huggingface_hub", "anthropic", "peft", "safetensors"),
    *("starlette", "uvicorn"),
}
"""What only workers may load."""

EDITOR = {"prompt_toolkit", "rich", "markdown_it", "pygments", "click", "asyncio"}
"""What comes after the prompt, or only with a sub-command."""

IMPURE = {
    "asyncio",
    "multiprocessing",
    "psutil",
    "socket",
    "subprocess",
    "threading",
    "time",
    "zmq",
}

FLOORS: dict[str, set[str]] = {
    "shammah.errors": set(),
    "shammah.bus": {"errors"},
    "shammah.storage": {"errors"},
    "shammah.terminal": {"errors", "bus"},
    "shammah.models": {"errors", "bus", "storage", "terminal"},
    "shammah.settings": {"errors", "bus", "storage", "models"},
    "shammah.privacy": {"errors", "bus", "storage", "terminal", "settings"},
    "shammah.router": {"errors", "bus", "storage", "models", "settings"},
    "shammah.supervision": {"errors", "bus", "storage", "terminal", "models", "settings"},
    "shammah.learning": {"errors", "bus", "storage", "settings", "router", "supervision"},
    "shammah.chat": {
        *("errors", "bus", "terminal", "models", "settings"),
        *("privacy", "router", "supervision", "learning"),
    },
    "shammah.history": {
        *("errors", "bus", "storage", "terminal", "settings"),
        *("privacy", "router", "chat"),
    },
    "shammah.repl": {
        *("errors", "bus", "storage", "terminal", "models", "settings"),
        *("privacy", "router", "supervision", "learning", "chat", "history"),
    },
    "shammah.cli": {
        *("errors", "bus", "storage", "terminal", "models", "settings"),
        *("privacy", "router", "supervision", "learning", "chat", "history"),
    },
    "shammah.__main__": {"chat", "cli", "repl", "settings"},
}
"""Package of `shammah` to those of it that it may import, from the ground up. `errors` is a module;
the lists name no package that comes later, so there is no circle."""

FOR_WORKERS = {
    *("errors", "bus", "storage", "models", "settings"),
    *("privacy", "learning", "supervision"),
}
"""What of `shammah` the workers may use (and its version)."""

FOR_ROLES = {"gateway": {"chat", "history", "router", "terminal"}}
"""What else a role may: the gateway asks the others as a frontend does, with the same turn runner
behind the same gate, and says on its page what a terminal says."""

INFERENCE: dict[str, set[str]] = {
    "workers.inference.packages": set(),
    "workers.inference.text": {"scheduling"},
    "workers.inference.scheduling": {"packages"},
    "workers.inference.engines": {"packages", "scheduling"},
    "workers.inference.startup": {"packages", "scheduling", "text", "engines"},
}
"""Room of the inference worker to the other rooms that it may import. What stands outside of the
rooms (`engine`, `runner`, `memory`, the service) may be used by all of them."""

ENGINES = "workers.inference.engines"
TABLE = f"{ENGINES}.table"
"""What alone names the engines; they do not know each other."""

FORBIDDEN: dict[str, set[str]] = {
    "shammah": HEAVY | {"workers", "importlib"},
    "shammah.bus.record": IMPURE,
    "shammah.storage.paths": IMPURE,
    "shammah.settings": IMPURE,
    "shammah.models": IMPURE - {"psutil"},
    "shammah.models.footprint": IMPURE,
    "shammah.models.hub_config": IMPURE,
    "shammah.privacy": IMPURE - {"time"},
    "shammah.privacy.gate": IMPURE,
    "shammah.router": IMPURE,
    "shammah.chat": IMPURE,
    "shammah.learning.examples": IMPURE,
    "shammah.supervision.oom_record": IMPURE,
    "shammah.supervision.secrets": IMPURE,
    "shammah.terminal.markdown": IMPURE,
    "shammah.terminal.wording": IMPURE,
    "shammah.terminal.text": IMPURE,
    "shammah.repl.toolbar": IMPURE,
    "shammah.repl.input.completion": IMPURE,
    "workers": set(),
    "workers.host": HEAVY,
    "workers.journal": HEAVY | IMPURE - {"time"},
    "workers.lease": HEAVY | IMPURE,
    "workers.logs": HEAVY,
    "workers.__main__": HEAVY,
    "workers.confinement": HEAVY,
    "workers.confinement.filter": IMPURE,
    "workers.confinement.policy": IMPURE,
    "workers.download": HEAVY - {"huggingface_hub"},
    "workers.cloud": HEAVY - {"anthropic"},
    "workers.gateway": HEAVY - {"starlette", "uvicorn"},
    "workers.outgoing": HEAVY,
    "workers.openai": HEAVY,
    "workers.servers": HEAVY,
    "workers.text": HEAVY,
    "workers.inference": {"anthropic"},
    "workers.inference.text": {"anthropic"} | IMPURE,
    "workers.inference.scheduling": {"anthropic"} | IMPURE,
    "workers.train": {"anthropic"},
}
"""Package or module to what neither it nor anything inside it imports, anywhere."""

EXCEPTIONS: dict[str, set[str]] = {
    "shammah.chat.attachments": {"threading"},
    "shammah.chat.conversation": {"time"},
    "shammah.chat.session": {"threading"},
    "shammah.cli.main": {"importlib"},  # it names modules beside it, which are all looked at
    "shammah.chat.warmup": {"threading"},
    "shammah.models.machine": {"subprocess", "threading"},
    "shammah.router.service": {"threading", "time"},
    "workers.inference.scheduling.batched_engine": {"time"},
}
"""Modules of a pure package that meet the world, and by what."""

STDLIB_ONLY = (
    "shammah.bus.record",
    *("shammah.bus.messages", "shammah.bus.training"),
    "shammah.bus.transfers",
)

ROLES = ("download", "inference", "servers", "cloud", "train", "gateway")
BAGS = {"utils", "util", "common", "helpers", "helper", "misc", "shared"}
FILE_LINES, FUNCTION_LINES = 400, 50
"""Lines of code: no docstring, comment or blank line counts."""


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, and the absolute names of what it imports."""

    name: str
    path: Path
    tree: ast.Module
    lines: frozenset[int]

    @property
    def imports(self) -> Iterator[str]:
        """`a.b` for ``import a.b``; `a.b.c` for ``from a.b import c``, which may be a module."""
        package = self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, base] if base else parents)
                yield from (f"{base}.{alias.name}" for alias in node.names)
            elif isinstance(node, ast.Name) and node.id == "__import__":
                yield "importlib"

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node


def modules(root: Path) -> Iterator[Module]:
    for path in sorted([*root.glob("shammah/**/*.py"), *root.glob("workers/**/*.py")]):
        yield read_module(root, path)


def read_module(root: Path, path: Path) -> Module:
    parts = path.relative_to(root).with_suffix("").parts
    name = ".".join(part for part in parts if part != "__init__")
    text = path.read_text("utf-8")
    return Module(name, path, ast.parse(text), code_lines(text))


def code_lines(text: str) -> frozenset[int]:
    """The numbers of the lines that hold code."""
    docstrings = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node.value.value, str)
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return frozenset(
        number
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.lstrip().startswith("#") and number not in docstrings
    )


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def violations(root: Path) -> list[str]:
    """Every breach of the rules in the tree below ``root``, as a sentence."""
    return [breach for module in modules(root) for breach in breaches(module)]


def breaches(module: Module) -> Iterator[str]:
    yield from (f"{module.name} imports {name}" for name in _wrong_imports(module))
    if len(module.lines) > FILE_LINES:
        yield f"{module.name} has {len(module.lines)} lines"
    if BAGS & set(module.name.split(".")):
        yield f"{module.name} is named after nothing"
    for function in module.functions:
        inner = range(function.lineno, (function.end_lineno or 0) + 1)
        length = len(module.lines & frozenset(inner))
        if length > FUNCTION_LINES:
            yield f"{module.name}.{function.name} has {length} lines"


def _wrong_imports(module: Module) -> Iterator[str]:
    forbidden = set().union(*(n for p, n in FORBIDDEN.items() if inside(module.name, p)))
    forbidden -= EXCEPTIONS.get(module.name, set())
    role = _role(module.name)
    for name in module.imports:
        if (
            name.partition(".")[0] in forbidden
            or (module.name in STDLIB_ONLY and not _is_stdlib_or_message(name))
            or (role and _role(name) not in ("", role))
        ):
            yield name
    packages = {_package(name) for name in module.imports}
    yield from sorted(name for name in packages if not _allowed(module.name, name))


def _allowed(importer: str, package: str) -> bool:
    """Whether the tables of packages let ``importer`` have ``package``."""
    home = _package(importer)
    top, _, name = package.partition(".")
    if package in ("", home) or importer == "shammah":
        return True
    if inside(importer, "workers"):
        if top == "shammah":
            return name in FOR_WORKERS | FOR_ROLES.get(_role(importer), set())
        own = next((room for room in INFERENCE if inside(importer, room)), None)
        other = next((room for room in INFERENCE if inside(package, room)), None)
        if other == ENGINES and TABLE not in (importer, package):
            return False
        if own is None or other is None or own == other:
            return True
        return other.rpartition(".")[2] in INFERENCE[own]
    return name in FLOORS.get(home, set())


def _package(name: str) -> str:
    """The package of the tables that a module or name is in; empty for what is in none."""
    parts = name.split(".")
    if parts[:3] == ["workers", "inference", "engines"]:
        return ".".join(parts[:4])
    if parts[:2] == ["workers", "inference"]:
        room = ".".join(parts[:3])
        return room if room in INFERENCE else "workers.inference"
    if parts[0] == "shammah" and len(parts) > 1 and parts[1] != "__version__":
        return ".".join(parts[:2])
    return "workers" if parts[0] == "workers" else ""


def _role(name: str) -> str:
    """The role whose package ``name`` is in; empty for what all workers share."""
    top, _, rest = name.partition(".")
    role = rest.partition(".")[0]
    return role if top == "workers" and role in ROLES else ""


def _is_stdlib_or_message(name: str) -> bool:
    top = name.partition(".")[0]
    return top in sys.stdlib_module_names or any(inside(name, own) for own in STDLIB_ONLY)


def test_everybody_keeps_to_the_rules() -> None:
    assert violations(ROOT) == []


def test_the_tables_have_no_circle_and_know_every_package() -> None:
    floors = list(FLOORS)
    for number, (package, below) in enumerate(FLOORS.items()):
        assert {f"shammah.{name}" for name in below} <= set(floors[:number]), package
    found = {_package(module.name) for module in modules(ROOT)}
    assert {name for name in found if inside(name, "shammah")} == set(floors)


def test_nothing_but_the_entry_and_the_errors_lies_at_the_top() -> None:
    top = {path.stem for path in (ROOT / "shammah").glob("*.py")}
    assert top <= {"__init__", "__main__", "errors", "api"}


def test_every_role_of_the_rules_is_a_role() -> None:
    assert set(ROLES) == set(endpoints.ROLES)


# --- what is really loaded ----------------------------------------------------------------


def loaded(statement: str, root: Path = ROOT) -> set[str]:
    """The modules that ``statement`` loads beyond those of a bare interpreter."""
    code = (
        "import sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(*sorted(set(sys.modules) - before), sep='\\n')"
    )
    environ = {**os.environ, "PYTHONPATH": str(root)}
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    return set(ended.stdout.split())


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


PROMPT_MODULES = {"shammah", "shammah.__main__"}


def test_nothing_is_loaded_before_the_prompt() -> None:
    assert loaded("import shammah.__main__") == PROMPT_MODULES


def test_no_editor_is_loaded_between_the_prompt_and_the_editor() -> None:
    assert not tops(loaded("import shammah.repl.loop")) & (EDITOR | HEAVY)


def test_the_frontend_loads_nothing_heavy() -> None:
    names = [m.name for m in modules(ROOT) if inside(m.name, "shammah")]
    found = tops(loaded(f"import {', '.join(names)}"))
    assert not found & (HEAVY | {"workers"})


def test_help_loads_neither_settings_nor_messages() -> None:
    found = loaded("import shammah.cli.main")
    assert not found & {"shammah.settings.model", "shammah.bus.messages", "shammah.storage.paths"}
    assert not found & {"dataclasses", "json", "shlex"}
    assert not tops(found) & ({"zmq", "msgpack"} | EDITOR - {"click"} | HEAVY)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_only_its_declaration(command: str) -> None:
    found = loaded(f"import shammah.cli.main as cli; cli.main.get_command(None, {command!r})")
    assert not tops(found) & ({"zmq", "msgpack", "psutil", "sqlite3"} | EDITOR - {"click"} | HEAVY)


def test_no_set_of_unicode_ranges_is_compiled_before_a_text_needs_it() -> None:
    """Each takes ten times as long as another pattern, and every start would wait for it."""
    recorded = """if True:
        import re
        compiled, compile = [], re.compile
        re.compile = lambda pattern, flags=0: compiled.append(pattern) or compile(pattern, flags)
        import shammah.cli.main, shammah.repl.loop
        texts = [pattern for pattern in compiled if isinstance(pattern, str)]
        print(len(texts) > 5, *(ascii(text) for text in texts if not text.isascii()))
    """
    ended = subprocess.run(
        [sys.executable, "-P", "-c", recorded], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "True"


def test_a_status_without_a_worker_loads_neither_click_nor_the_bus() -> None:
    found = loaded("import shammah.settings.environment, shammah.cli.status_once")
    assert not tops(found) & ({"zmq", "msgpack"} | EDITOR)
    assert not found & {"shammah.storage.paths", "shammah.bus.messages", "shammah.terminal.text"}


def test_one_status_loads_no_router_and_no_thread_of_a_connection() -> None:
    found = loaded("import shammah.cli.status_tail")
    assert not {name for name in found if inside(name, "shammah.router")}
    assert not found & {"shammah.bus.client", "shammah.settings.model"}
    assert not tops(found) & (EDITOR | HEAVY)


def test_messages_load_the_standard_library_alone() -> None:
    found = tops(loaded("import shammah.bus.messages"))
    assert found - set(sys.stdlib_module_names) == {"shammah"}


def test_what_workers_share_loads_nothing_heavy() -> None:
    assert not tops(loaded("import workers.host, workers.logs, workers.__main__")) & HEAVY


# --- the checks find what they are for ----------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("shammah", "workers"):
        shutil.copytree(ROOT / package, tmp_path / package)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "breach"),
    [
        ("shammah/chat/session.py", "import torch", "session imports torch"),
        ("shammah/cli/ask.py", "from transformers import x", "ask imports transformers.x"),
        ("shammah/cli/main.py", "def f():\n    import anthropic", "main imports anthropic"),
        ("shammah/models/machine.py", "from huggingface_hub.a import x", "huggingface_hub"),
        ("shammah/bus/client.py", "from workers import host", "imports workers.host"),
        ("shammah/cli/status.py", "import importlib", "status imports importlib"),
        ("shammah/cli/status.py", "__import__('torch')", "status imports importlib"),
        ("shammah/bus/messages.py", "import msgpack", "messages imports msgpack"),
        ("shammah/bus/messages.py", "from . import codec", "imports shammah.bus.codec"),
        ("shammah/router/decision.py", "import time", "decision imports time"),
        ("shammah/router/__init__.py", "import subprocess", "router imports subprocess"),
        ("shammah/settings/model.py", "from socket import socket", "model imports socket"),
        ("shammah/chat/conversation.py", "import zmq", "conversation imports zmq"),
        ("shammah/models/catalogue.py", "import threading", "catalogue imports threading"),
        ("shammah/models/footprint.py", "import psutil", "footprint imports psutil"),
        ("shammah/errors.py", "from shammah.bus import codec", "errors imports shammah.bus"),
        ("shammah/bus/codec.py", "from shammah.chat import x", "codec imports shammah.chat"),
        ("shammah/chat/turns.py", "from shammah.repl.loop import x", "imports shammah.repl"),
        ("shammah/repl/loop.py", "from shammah.elsewhere import x", "imports shammah.elsewhere"),
        ("shammah/cli/ask.py", "from shammah.repl.loop import x", "ask imports shammah.repl"),
        ("workers/cloud/service.py", "import torch", "workers.cloud.service imports torch"),
        ("workers/inference/service.py", "import anthropic", "imports anthropic"),
        ("workers/cloud/service.py", "from workers.inference import service", "workers.inference"),
        ("workers/inference/service.py", "from ..cloud import claude", "workers.cloud.claude"),
        ("workers/host.py", "import torch", "workers.host imports torch"),
        ("workers/host.py", "from shammah.chat.session import x", "imports shammah.chat"),
        ("workers/host.py", "from shammah import repl", "imports shammah.repl"),
        (
            "workers/inference/engines/native/step.py",
            "from workers.inference.engines.transformers import runner",
            "step imports workers.inference.engines.transformers",
        ),
        (
            "workers/inference/text/chat.py",
            "from workers.inference.engines.native import step",
            "chat imports workers.inference.engines.native",
        ),
        ("workers/utils.py", "", "workers.utils is named after nothing"),
        ("shammah/common/__init__.py", "", "shammah.common is named after nothing"),
        ("shammah/errors.py", "x = 1\n" * FILE_LINES, "shammah.errors has"),
        ("shammah/errors.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES, "errors.f has 51"),
    ],
)
def test_a_breach_is_found(copy: Path, file: str, line: str, breach: str) -> None:
    path = copy / file
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as source:
        source.write(f"\n{line}\n")
    assert any(breach in said for said in breaches(read_module(copy, path)))


def test_an_import_before_the_prompt_is_found(copy: Path) -> None:
    with (copy / "shammah" / "__main__.py").open("a") as source:
        source.write("\nimport json\n")
    assert loaded("import shammah.__main__", copy) >= PROMPT_MODULES | {"json"}


def test_an_editor_before_its_time_is_found(copy: Path) -> None:
    with (copy / "shammah" / "terminal" / "wording.py").open("a") as source:
        source.write("\nimport rich\n")
    assert "rich" in tops(loaded("import shammah.repl.loop", copy))


# --- how calls are written ----------------------------------------------------------------

MOST_POSITIONAL = 5

KERNELS = {
    f"workers.inference.engines.native.{name}"
    for name in "adaptation attention int4_rounding lanes pairs products step".split()
}
"""What is compiled: a call in it becomes machine code, and knows positions alone."""


def crowded(module: Module) -> int:
    """Calls with more bare positional arguments than anybody can tell apart, and literals that are
    unpacked where they stand, which saves a line and hides what each argument is."""
    return sum(_is_crowded(node) for node in ast.walk(module.tree))


def _is_crowded(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        inner = node.args
        bare = [each for each in inner if not isinstance(each, ast.Starred)]
        if len(bare) > MOST_POSITIONAL:
            return True
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        inner = node.elts
    else:
        return False
    return any(
        isinstance(each, ast.Starred) and isinstance(each.value, ast.Tuple | ast.List)
        for each in inner
    )


def test_no_call_is_crowded() -> None:
    found = {m.name: crowded(m) for m in modules(ROOT) if m.name not in KERNELS}
    assert not {name: count for name, count in found.items() if count}, "name the arguments"


@pytest.mark.parametrize("call", ["f(1, 2, 3, 4, 5, 6)", "f(*(1, 2), 3)", "x = (*(1, 2), 3)"])
def test_a_crowded_call_is_found(call: str) -> None:
    assert crowded(Module("m", Path("m.py"), ast.parse(call), frozenset())) == 1
    fine = ast.parse("f(1, 2, 3, 4, 5, b=6), g(*x), (*x, 1)")
    assert crowded(Module("m", Path("m.py"), fine, frozenset())) == 0


# --- tests go through doors ---------------------------------------------------------------

TOUCHES: dict[str, int] = {}
"""Files of tests that still reach into something private, and how often. Only ever gets shorter."""

PUBLIC_THOUGH_MARKED = {"_exit", "_replace", "_asdict", "_fields", "_make"}
"""Of `os` and of named tuples."""


def touches(tree: ast.Module) -> int:
    """How often private names of others are read, replaced or imported: each is something that a
    test cannot pass in or see, and breaks when only the inside changes."""
    return sum(_is_touch(node) for node in ast.walk(tree))


def _is_touch(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute):
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return _is_private(node.attr) and not own
    if isinstance(node, ast.Call):
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        named = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
        return name in ("setattr", "getattr", "delattr", "patch", "object") and any(
            isinstance(one, str) and _is_private(one.rpartition(".")[2]) for one in named
        )
    if isinstance(node, ast.ImportFrom):
        ours = (node.module or "").partition(".")[0] in ("shammah", "workers")
        return ours and any(_is_private(alias.name) for alias in node.names)
    return False


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC_THOUGH_MARKED


def test_no_test_reaches_into_what_is_private() -> None:
    files = {path.relative_to(ROOT).as_posix(): path for path in ROOT.glob("tests/**/*.py")}
    found = {name: touches(ast.parse(path.read_text("utf-8"))) for name, path in files.items()}
    assert {name: count for name, count in found.items() if count} == TOUCHES


@pytest.mark.parametrize(
    "touch",
    [
        "peer._told",
        "patch.setattr(doctor, '_run', f)",
        "patch.setattr('workers.network._refused', {})",
        "getattr(runner, '_model')",
        "from workers.network import _refused",
    ],
)
def test_a_touch_is_found(touch: str) -> None:
    assert touches(ast.parse(touch)) == 1
    fine = "self._x, os._exit(1), turn._replace(a=1), a.__dict__, patch.setattr(a, 'b', f)"
    assert touches(ast.parse(fine)) == 0
