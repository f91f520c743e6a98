#!/usr/bin/env python3
"""Make the pictures in docs/images of what Shammah looks like, from the real program.

Every process is real, and so is the starter. What stands in is the world outside: a hub on
loopback (`tests/fakes/hub.py`), which serves 3B's size without its weights and SmolLM2 with
them, and llmock in Claude's place (``.venv-servers``, made by ``scripts/test``). Drawn with
`screens` (pyte and Pillow, the ``screens`` extra).

    .venv/bin/python scripts/scenes.py
    .venv/bin/python scripts/scenes.py why hand-over --output /tmp/pictures
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from screens import FONT, SIZE, Program, draw

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from shammah.models.catalogue import CATALOGUE, starter_directory  # noqa: E402
from tests.real.servers import llmock_server  # noqa: E402

PYTHON = str(Path(sys.prefix, "bin", "python"))
SHAMMAH = str(Path(sys.prefix, "bin", "shammah"))
COLUMNS = 120

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""What the starter is, so that its weights are served under no other name than their own."""

CLAUDE_SAYS = """\
A **monad** is a way to chain steps whose results come *wrapped* in something: in a value that
may be missing, in a list, in work that is still to be done.

```python
def half(n: int) -> int | None:
    return n // 2 if n % 2 == 0 else None
```

Two such steps do not fit together by themselves, because `half` takes a number and gives back
*perhaps* a number. A monad is the rule that joins them:

1. `unit` wraps a plain value,
2. `bind` unwraps it for the next step, or stops.
"""


@dataclass
class World:
    """A home, a cache and a runtime directory of somebody who has just installed Shammah."""

    directory: Path
    environ: dict[str, str]

    @classmethod
    def make(cls, directory: Path, **more: str) -> World:
        for name in ("home", "run", "hf"):
            (directory / name).mkdir(mode=0o700, parents=True)
        environ = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            "HOME": str(directory / "home"),
            "SHAMMAH_HOME": str(directory / "home" / ".shammah"),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "HF_HOME": str(directory / "hf"),
            **more,
        }
        return cls(directory, environ)

    def open(self, *arguments: str, rows: int) -> Program:
        return Program([SHAMMAH, *arguments], COLUMNS, rows, self.environ)

    def run(self, *arguments: str) -> None:
        command = [SHAMMAH, *arguments]
        subprocess.run(command, env=self.environ, check=True, capture_output=True, timeout=120)

    def end(self) -> None:
        self.run("stop")


@contextmanager
def hub(content: Path, model: str, *, bytes_a_second: int) -> Iterator[str]:
    """A hub that has ``model`` and so much for each connection."""
    command = [PYTHON, "-P", str(ROOT / "tests" / "fakes" / "hub.py"), str(content)]
    command += ["--model-id", model, "--rate", str(bytes_a_second)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as served:
        assert served.stdout is not None
        assert served.stdin is not None
        try:
            yield served.stdout.readline().strip()
        finally:
            served.stdin.close()


def copy_starter(directory: Path, *, weights: bool) -> None:
    directory.mkdir()
    for path in starter_directory().iterdir():
        if "manifest" not in path.name and (weights or path.suffix == ".json"):
            shutil.copy(path, directory)


# --- scenes -------------------------------------------------------------------------------


Keep = Callable[[str, Program], None]


def without_cloud(scratch: Path, keep: Keep) -> None:
    """The starter answers, and the download is seen from both sides."""
    content = scratch / "content"
    copy_starter(content, weights=False)
    chosen = next(model for model in CATALOGUE if model.size == "3B")
    for shard in (1, 2):
        with (content / f"model-0000{shard}-of-00002.safetensors").open("wb") as weights:
            weights.truncate(chosen.download_bytes // 2)
    with hub(content, chosen.model_id, bytes_a_second=2_000_000) as endpoint:
        world = World.make(scratch / "world", HF_ENDPOINT=endpoint)
        try:
            program = world.open(rows=12)
            program.wait("Ctrl-D exits")
            program.wait("fetching .* left")
            program.pause(3)
            keep("first-run", program)
            program.end()
            program = world.open(rows=12)
            program.wait("fetching .* left")
            program.type("What is the capital of France?\\r")
            program.wait("tok/s")
            program.wait("fetching")
            program.pause(2)
            keep("download", program)
            status = world.open("status", rows=18)
            status.wait("left")
            program.type("Tell me about the sea.\\r")
            status.wait("accepted")
            status.pause(4)
            keep("status", status)
            status.end()
            program.end()
        finally:
            world.end()


def with_cloud(scratch: Path, keep: Keep) -> None:
    """Claude answers until SmolLM2 has come; then that does."""
    content = scratch / "content"
    copy_starter(content, weights=True)
    os.environ["LLMOCK_STREAM_CHUNK_DELAY_MS"] = "12"
    with (
        llmock_server() as claude,
        hub(content, SMOLLM2, bytes_a_second=3_000_000) as endpoint,
    ):
        world = World.make(
            scratch / "world",
            HF_ENDPOINT=endpoint,
            ANTHROPIC_API_KEY="sk-ant-nobody",
            ANTHROPIC_BASE_URL=claude.base_url,
        )
        (world.directory / "home" / ".shammah").mkdir(mode=0o700)
        told = f"settings {SMOLLM2} any auto\n"  # what the welcome says of such settings
        (world.directory / "home" / ".shammah" / "welcomed").write_text(told)
        claude.script({"type": "reply", "text": CLAUDE_SAYS})
        try:
            program = world.open("--model", SMOLLM2, rows=25)
            program.wait("fetching|Downloading")
            program.type("What is a monad?\\r")
            program.wait("cloud: ")
            program.wait("is ready, and has")
            program.pause(1)
            program.type("What is the capital of France?\\r")
            program.wait("local: ")
            program.pause(1)
            keep("hand-over", program)
            program.end()
            program = world.open("--model", SMOLLM2, rows=19)
            program.wait("next: local")
            program.type("What is the capital of France?\\r")
            program.wait("local: ")
            program.pause(1)
            program.type("/why\\r")
            program.wait("Kind of question")
            program.pause(1)
            keep("why", program)
            program.end()
        finally:
            world.end()


SCENES: dict[str, Callable[[Path, Keep], None]] = {
    "without-cloud": without_cloud,
    "with-cloud": with_cloud,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--text", action="store_true", help="print the screens as text, too")
    parser.add_argument("scenes", nargs="*", choices=[[], *SCENES], metavar="SCENE")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    def keep(name: str, program: Program) -> None:
        program.settle()
        path = options.output / f"{name}.png"
        draw(program.screen, FONT, SIZE).save(path, optimize=True)
        print(f"{path}: {path.stat().st_size:,} bytes")
        if options.text:
            print("\n".join(line.rstrip() for line in program.screen.display))

    for name in options.scenes or SCENES:
        with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as scratch:
            SCENES[name](Path(scratch), keep)


if __name__ == "__main__":
    main()
