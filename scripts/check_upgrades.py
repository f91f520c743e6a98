#!/usr/bin/env python3
"""Open homes and meet workers of earlier versions, and have them open and meet ours.

    scripts/check_upgrades.py [COMMIT...] [--fixtures DIRECTORY]

For each commit (without any: of `VERSIONS`) its tree is checked out beside this one and run by this
environment. It and this tree each make a home by the same questions, verdicts and settings, each
opens a copy of the other's, and each meets a worker that the other has started. What is in a home
must be read as its maker reads it, or be refused in a sentence without a byte changed; a worker
must answer, or be refused with the command that replaces it.

It needs the history, which a shallow clone lacks, so it is run by hand before a release.
``--fixtures`` keeps the homes for `tests/process/test_home_of_before.py`, which runs everywhere.
The workers of the local model are stand-ins (the versions' own `tests/.../frontend.py`); the one of
the cloud is real, and asks a recorder on this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fakes.sandbox import Sandbox  # noqa: E402
from tests.fakes.terminal import Terminal  # noqa: E402
from tests.real.recorder import Recorder  # noqa: E402

VERSIONS = ("642b62c", "4669a20", "2d29fe2")
"""How the turns of work before this one ended, with some spread."""

KEPT = {
    *("config.toml", "egress.jsonl", "egress.head", "feedback.jsonl", "prompt_history.jsonl"),
    *("history.db", "router.db", "adapters"),
}
CONFIG = '# mine\nmodel = "starter"\n\n[inference]\nkeep_alive = 60.0\nmax_new_tokens = 24\n'
TYPED = (
    *("What is a tide?", "/good", "Who made Orrin?", "/fix Orrin was made by Ada Vey."),
    *("/private on", "Is an orchid a flower?", "/bad", "/quit"),
)
READS = (
    ("history", "show", "1", "--json"),
    ("history", "list", "--json"),
    ("egress", "--json"),
    ("adapters", "list", "--json"),
    ("config", "get", "inference.max_new_tokens"),
)
COMPARED = {
    *("turns", "question", "answer", "private", "undone", "title", "sha256", "outcome", "bytes"),
    *("name", "serves", "verdict", "model"),
}
LIMIT_S = 120.0


@dataclass(frozen=True)
class Version:
    """A tree, and what of it runs."""

    name: str
    tree: Path

    @property
    def frontend(self) -> tuple[str, ...]:
        [path] = self.tree.glob("tests/*/frontend.py")
        return (sys.executable, "-P", str(path))

    def environ(self, world: Sandbox, **more: str) -> dict[str, str]:
        return {**os.environ, **world.variables(), "PYTHONPATH": str(self.tree), **more}

    def run(self, world: Sandbox, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """A command to its end; with a key also the real cloud worker."""
        command = (sys.executable, "-P", "-m", "shammah") if more else self.frontend
        return subprocess.run(
            [*command, *arguments],
            env=self.environ(world, **more),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def ask(self, world: Sandbox) -> subprocess.CompletedProcess[str]:
        return self.run(world, "ask", "--local", "What is the capital of Spain?")

    def make_home(self, world: Sandbox) -> None:
        """Ask, judge and correct at the prompt, and ask the cloud once."""
        (world.shammah_home / "config.toml").write_text(CONFIG)
        terminal = Terminal(command=self.frontend, environ=self.environ(world))
        try:
            for line in TYPED:
                terminal.wait_editor()
                terminal.ask(line)
                if not line.startswith("/"):
                    terminal.wait_answer()
            assert terminal.end() == 0
        finally:
            terminal.destroy()
        recorder = Recorder(world)
        try:
            key = {"ANTHROPIC_API_KEY": "sk-none", "ANTHROPIC_BASE_URL": recorder.url}
            asked = self.run(world, "ask", "--cloud", "How do tides come about?", **key)
            assert asked.returncode == 0, asked.stderr
            self.run(world, "stop")
        finally:
            recorder.close()
        add = (
            "import sys; from pathlib import Path\n"
            "from shammah.learning.adapters import *\n"
            "def fill(d): (d / CONFIG).write_text('{}'); (d / WEIGHTS).write_text('w')\n"
            "s = AdapterStore(Path(sys.argv[1]))\n"
            "e = AdapterEntry('mine', Path(), 'starter', verdict=ACCEPTED)\n"
            "s.add(e, fill); s.use('mine')\n"
        )
        if self.name == VERSIONS[0]:  # its packages were others
            add = add.replace("shammah.learning.adapters", "shammah.adapters")
        subprocess.run(
            [sys.executable, "-P", "-c", add, str(world.shammah_home)],
            env=self.environ(world),
            check=True,
        )

    def read(self, world: Sandbox) -> tuple[list[Any], str]:
        """What the commands say is in a home; and the error of one that refuses."""
        found = []
        for arguments in READS:
            ended = self.run(world, *arguments)
            if ended.returncode:
                return found, ended.stderr.strip()
            found.append([_compared(json.loads(line)) for line in ended.stdout.splitlines()])
        return found, ""


def _compared(value: Any) -> Any:
    """Only what every version knows of it."""
    if isinstance(value, dict):
        return {name: _compared(one) for name, one in value.items() if name in COMPARED}
    return [_compared(one) for one in value] if isinstance(value, list) else value


def _agree(one: Any, other: Any) -> bool:
    """Whether both are the same in what both have."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[name], other[name]) for name in one.keys() & other.keys())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


@contextmanager
def new_world(home: Path | None = None) -> Iterator[Sandbox]:
    world = Sandbox.make()
    try:
        if home is not None:
            shutil.copytree(home, world.shammah_home, dirs_exist_ok=True)
        yield world
    finally:
        for process in world.processes():
            process.kill()
        shutil.rmtree(world.root, ignore_errors=True)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.relative_to(directory).parts[0] in KEPT
    }


def check_home(maker: Version, opener: Version, home: Path) -> str:
    """What becomes of a home of ``maker`` when ``opener`` opens it; begins with ``WRONG`` if that
    is not what should."""
    with new_world(home) as world:
        expected, _ = maker.read(world)
    with new_world(home) as world:
        before = bytes_of(world.shammah_home)
        found, refusal = opener.read(world)
        if refusal:
            changed = bytes_of(world.shammah_home) != before
            return f"{'WRONG, changed and ' if changed else ''}refused: {refusal}"
        if not _agree(found, expected):
            return f"WRONG: it reads {found}, not {expected}"
        asked = opener.ask(world)
        if asked.returncode:
            return f"WRONG: a question fails: {asked.stderr.strip()}"
        again, refusal = maker.read(world)  # and back
        if refusal or not _agree(again[0], expected[0]):
            return f"WRONG: its maker then reads {refusal or again[0]}"
    return "opens, and again in its maker"


def check_worker(starter: Version, asker: Version) -> str:
    with new_world() as world:
        (world.shammah_home / "config.toml").write_text(CONFIG)
        if starter.ask(world).returncode:
            return "WRONG: it does not start"
        asked = asker.ask(world)
        if not asked.returncode:
            return "answers"
        sentence = asked.stderr.strip().splitlines()[-1]
        if "shammah stop" not in sentence:
            return f"WRONG: {asked.stderr.strip()}"
        asker.run(world, "stop", "inference")
        again = asker.ask(world)
        return f"{'WRONG, for good ' if again.returncode else ''}refused: {sentence}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("commits", nargs="*", default=VERSIONS, metavar="COMMIT")
    parser.add_argument("--fixtures", type=Path, metavar="DIRECTORY")
    chosen = parser.parse_args()
    here, wrong = Version("this", ROOT), False
    with tempfile.TemporaryDirectory(prefix="sh-up-") as scratch:
        trees = Path(scratch)
        own = make(here, trees)
        for commit in chosen.commits:
            tree = trees / commit
            git("worktree", "add", "--detach", str(tree), commit)
            try:
                old = Version(commit, tree)
                home = make(old, trees)
                if chosen.fixtures:
                    keep_fixture(home, chosen.fixtures / f"home_{commit}.tar.xz")
                for what, said in (
                    (f"home of {commit}, opened here", check_home(old, here, home)),
                    (f"home of ours, opened by {commit}", check_home(here, old, own)),
                    (f"worker of {commit}, asked from here", check_worker(old, here)),
                    (f"worker of ours, asked by {commit}", check_worker(here, old)),
                ):
                    print(f"{what}: {said}", flush=True)
                    wrong = wrong or "WRONG" in said
            finally:
                git("worktree", "remove", "--force", str(tree))
    return int(wrong)


def make(version: Version, trees: Path) -> Path:
    """A home that ``version`` has made."""
    home = trees / f"home-{version.name}"
    with new_world() as world:
        version.make_home(world)
        home.mkdir()
        for name in KEPT:
            path = world.shammah_home / name
            if path.is_dir():
                shutil.copytree(path, home / name)
            elif path.exists():
                shutil.copy(path, home / name)
    return home


def keep_fixture(home: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz", preset=9) as archive:
        for one in sorted(home.rglob("*")):
            archive.add(one, str(one.relative_to(home)), recursive=False, filter=_anonymous)


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def git(*arguments: str) -> None:
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
