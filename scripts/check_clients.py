#!/usr/bin/env python3
"""Ask through the gateway with programs that others wrote, as `shammah connect` sets them up.

In a home of its own, without a network (Linux, `unshare`), with a recording Messages API in
Claude's place, which answers with a sentence, or first calls the program's own shell if it offers
one. Not part of ``scripts/test``: the programs are hundreds of megabytes. Those that are on the
``PATH`` are tried.

    npm i --prefix DIR @anthropic-ai/claude-code opencode-ai @openai/codex @continuedev/cli
    python3 -m venv DIR/aider && DIR/aider/bin/pip install aider-chat
    export PATH=DIR/node_modules/.bin:DIR/aider/bin:$PATH
    .venv/bin/python scripts/check_clients.py [NAME...]

``--requests DIRECTORY`` keeps what was sent in Claude's place, ``--model`` is of Shammah.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.fakes.calling_api import PROOF, TASK, CallingApi  # noqa: E402

SHAMMAH = [sys.executable, "-P", "-m", "shammah"]
LIMIT_S = 180.0
QUESTION = "What is the capital of France?"
OFFLINE = "SHAMMAH_CHECK_OFFLINE"


@dataclass(frozen=True, slots=True)
class Program:
    """How a client is asked without a person: ``{}`` is the question. ``cloud`` and ``local`` are
    what makes it ask that model, ``calls`` whether it has tools. ``set_up``: commands that do what
    `shammah connect` says of a client whose settings it does not write."""

    command: Sequence[str]
    cloud: Sequence[str] = ()
    local: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)
    calls: bool = True
    set_up: str = ""


PROGRAMS = {
    "claude": Program(
        ["claude", "--print", "--allowedTools", "Bash", "--", "{}"],
        local=["--model", "local"],
        environ={"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"},
    ),
    "opencode": Program(
        ["opencode", "run", "--", "{}"],
        cloud=["--model", "shammah/cloud"],
        local=["--model", "shammah/local"],
        environ={"OPENCODE_DISABLE_AUTOUPDATE": "1"},
    ),
    "codex": Program(
        ["codex", "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        + ["--", "{}"],
        cloud=["--model", "cloud"],
        local=["--model", "local"],
    ),
    "aider": Program(
        ["aider", "--no-pretty", "--yes-always", "--no-check-update", "--analytics-disable"]
        + ["--no-show-model-warnings", "--message", "{}"],
        cloud=["--model", "openai/cloud"],
        local=["--model", "openai/local"],
        calls=False,
        set_up="""
cat > ~/.aider.conf.yml <<END
openai-api-base: $ADDRESS/v1
openai-api-key: $TOKEN
END
""",
    ),
    "continue": Program(
        ["cn", "--allow", "Bash", "--print", "{}"],
        cloud=["--config", "cloud.yaml"],
        local=["--config", "local.yaml"],
        set_up="""
mkdir ~/.continue
echo "SHAMMAH_API_KEY=$TOKEN" > ~/.continue/.env
for model in local cloud
do
    cat > ~/$model.yaml <<END
name: Mine
version: 0.0.1
schema: v1
models:
  - name: Shammah
    provider: openai
    model: $model
    apiBase: $ADDRESS/v1
    apiKey: \\${{ secrets.SHAMMAH_API_KEY }}
END
done
""",
    ),
}


class Home:
    """A person's home, in which Shammah serves, and a cloud beside it."""

    def __init__(self, model: str, cloud: CallingApi) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="clients-"))
        (self.root / "run").mkdir(mode=0o700)
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TERM") if name in os.environ}
        self.environ = kept | {"HOME": str(self.root), "XDG_RUNTIME_DIR": str(self.root / "run")}
        self._cloud = {"ANTHROPIC_API_KEY": "sk-test", "ANTHROPIC_BASE_URL": cloud.url}
        self.shammah("serve", "--background", "--model", model)
        address = {"ADDRESS": "http://127.0.0.1:11611"}  # the usual port: nobody else is here
        self._gateway = {**address, "TOKEN": self.shammah("serve", "--token").strip()}

    def shammah(self, *words: str) -> str:
        """What a command of Shammah prints."""
        done = subprocess.run(
            [*SHAMMAH, *words],
            env=self.environ | self._cloud,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"shammah {' '.join(words)}: {done.stdout}{done.stderr}")
        return done.stdout

    def connect(self, name: str, program: Program) -> None:
        """Point it here."""
        words = ["--yes"] if not program.set_up else []
        self.shammah("connect", name, *words)
        environ = self.environ | self._gateway
        subprocess.run(["sh", "-ec", program.set_up], env=environ, check=True)

    def run(self, program: Program, options: Sequence[str], question: str) -> tuple[str, Path]:
        """What a program says to ``question``, and the directory in which it ran."""
        place = Path(tempfile.mkdtemp(prefix="work-", dir=self.root))
        subprocess.run(["git", "init", "--quiet"], cwd=place, env=self.environ, check=True)
        first, *rest = program.command
        words = [question if word == "{}" else word for word in rest]
        options = [str(self.root / one) if one.endswith(".yaml") else one for one in options]
        at = words.index("--") if "--" in words else 0
        command = [first, *words[:at], *options, *words[at:]]
        with subprocess.Popen(
            command,
            cwd=place,
            env=self.environ | program.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                said, _ = process.communicate(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                said = f"(nothing within {LIMIT_S:g} s)"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it has left behind
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said).strip(), place

    def close(self) -> None:
        self.shammah("stop")
        shutil.rmtree(self.root)


def check(home: Home, name: str, cloud: CallingApi) -> bool:
    """Ask the cloud, have a tool called, ask the local model; print what came."""
    program = PROGRAMS[name]
    home.connect(name, program)
    passed = True
    tries = {"cloud": (program.cloud, QUESTION), "local": (program.local, QUESTION)}
    if program.calls:
        tries["tool"] = (program.cloud, TASK)
    for what, (options, question) in tries.items():
        before = len(cloud.bodies)
        said, place = home.run(program, options, question)
        sent = cloud.bodies[before:]
        proof = place / "proof.txt"
        good = {
            "cloud": "Paris" in said and bool(sent),
            "tool": proof.exists() and PROOF in proof.read_text(),
            "local": bool(said) and not re.search("nothing within|Traceback", said) and not sent,
        }[what]
        passed &= good
        sizes = " ".join(f"{len(body):,}" for body in sent) or "nothing"
        print(f"--- {name}, {what}: {'passed' if good else 'FAILED'}; sent: {sizes}\n{said}\n")
    return passed


def isolate() -> None:
    """Go on without a network, but for loopback."""
    if OFFLINE not in os.environ:
        owner = [] if os.geteuid() == 0 else ["--map-root-user"]
        os.environ[OFFLINE] = "yes"
        os.execvp("unshare", ["unshare", "--net", *owner, sys.executable, *sys.argv])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        up = struct.pack("16sh", b"lo", 0x1)  # SIOCSIFFLAGS, IFF_UP
        fcntl.ioctl(control, 0x8914, up)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[[], *PROGRAMS], default=[], metavar="NAME")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--requests", type=Path)
    chosen = parser.parse_args()
    isolate()
    found = [name for name, one in PROGRAMS.items() if shutil.which(one.command[0])]
    cloud = CallingApi()
    home = Home(chosen.model, cloud)
    failed = []
    try:
        for name in chosen.names or found:
            if not check(home, name, cloud):
                failed.append(name)
        print(home.shammah("egress"))
    finally:
        home.close()
        if chosen.requests is not None:
            chosen.requests.mkdir(exist_ok=True)
            for number, body in enumerate(cloud.bodies, 1):
                (chosen.requests / f"{number}.json").write_bytes(body)
    print(f"failed: {', '.join(failed)}" if failed else "all passed")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
