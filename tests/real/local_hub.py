"""``shammah`` with a Hub on loopback: models to serve, and what its workers tell.

Nothing here imports torch: the tiny model is written byte by byte.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import random
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

from shammah.bus.client import Peer
from shammah.bus.endpoints import Endpoints
from shammah.bus.messages import Event, State
from shammah.bus.probe import ask_events, ask_status
from shammah.errors import ShammahError
from tests.fakes.command import SHAMMAH
from tests.fakes.hub import Content, StandInHub
from tests.fakes.sandbox import Sandbox, online, until
from tests.real.models import CONFIG, HIDDEN, LAYERS, VOCABULARY, make_tokenizer, starter

Kind = TypeVar("Kind", bound=State)
Answer = TypeVar("Answer")

MIB = 1024**2
QWEN = "Qwen/Qwen2.5-1.5B-Instruct"
WEIGHTS = "model.safetensors"

LOAD_S = 90.0
"""Importing torch and loading take 10 s on an idle machine with two cores."""

PARIS = "The capital of France is Paris.\n"
ASK_PARIS = "What is the capital of France?"


# --- models -------------------------------------------------------------------------------


def files_of(directory: Path) -> dict[str, Content]:
    """What a Hub would serve of a model directory."""
    found: dict[str, Content] = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            found[path.name] = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    return found


def starter_files() -> dict[str, Content]:
    """The starter, without the manifest that belongs to this installation."""
    files = files_of(starter())
    del files["shammah-manifest.json"]
    return files


def tiny_files(directory: Path, padding: int = 0) -> dict[str, Content]:
    """A Qwen2 that loads and whose every answer is empty.

    ``padding``: so many random bytes lie beside its tensors, for a transfer that takes a while.
    """
    make_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / WEIGHTS).write_bytes(_weights(random.Random(padding).randbytes(padding)))
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def _weights(padding: bytes) -> bytes:
    inner, heads = CONFIG["intermediate_size"], CONFIG["num_attention_heads"]
    narrow = HIDDEN // heads * CONFIG["num_key_value_heads"]
    layer = {
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
        "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        "mlp.gate_proj.weight": (inner, HIDDEN),
        "mlp.up_proj.weight": (inner, HIDDEN),
        "mlp.down_proj.weight": (HIDDEN, inner),
    }
    for name, width in (("q", HIDDEN), ("k", narrow), ("v", narrow)):
        layer[f"self_attn.{name}_proj.weight"] = (width, HIDDEN)
        layer[f"self_attn.{name}_proj.bias"] = (width,)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for number in range(LAYERS):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    offsets = [end, end + len(padding)]
    header["padding"] = {"dtype": "U8", "shape": [len(padding)], "data_offsets": offsets}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end) + padding


def split_weights(directory: Path, shards: int) -> None:
    """Put the weights of the starter into ``shards`` files with an index in ``directory``."""
    with (starter() / WEIGHTS).open("rb") as whole:
        (length,) = struct.unpack("<Q", whole.read(8))
        header = json.loads(whole.read(length))
        metadata = header.pop("__metadata__")
        names = sorted(header, key=lambda name: header[name]["data_offsets"])
        places: dict[str, str] = {}
        for number in range(shards):
            shard = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            own = names[number * len(names) // shards : (number + 1) * len(names) // shards]
            first = header[own[0]]["data_offsets"][0]
            last = header[own[-1]]["data_offsets"][1]
            described = {"__metadata__": metadata}
            for name in own:
                begin, end = header[name]["data_offsets"]
                described[name] = {**header[name], "data_offsets": [begin - first, end - first]}
                places[name] = shard
            text = json.dumps(described).encode()
            whole.seek(8 + length + first)
            content = struct.pack("<Q", len(text)) + text + whole.read(last - first)
            (directory / shard).write_bytes(content)
    index = {"metadata": {"total_size": last}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


# --- the program --------------------------------------------------------------------------


@contextlib.contextmanager
def hubs(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., StandInHub]]:
    """Makes Hubs, the newest of which is the only one that the program knows."""
    made: list[StandInHub] = []

    def start(files: dict[str, Content], **options: Any) -> StandInHub:
        made.append(StandInHub(files, **options))
        online(monkeypatch, made[-1].endpoint)
        return made[-1]

    yield start
    kill_workers(sandbox)
    for hub in made:
        hub.close()


@contextlib.contextmanager
def begun(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``shammah ARGUMENTS``, ended at the end if it still runs."""
    with subprocess.Popen(
        [*SHAMMAH, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def kill_workers(sandbox: Sandbox) -> None:
    """End the workers of this world; these outlive their starters on purpose."""
    kill(sandbox, _is_worker)


def kill(sandbox: Sandbox, wanted: Callable[[psutil.Process], bool] = lambda process: True) -> None:
    """End the processes of this world."""

    def look() -> bool:
        found = [process for process in sandbox.processes() if wanted(process)]
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return not found and not sandbox.holders()

    # Again and again: one of them may have been about to start another.
    until(look, "the workers have ended")


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "workers" in process.cmdline()
    except psutil.Error:
        return False


def logs(sandbox: Sandbox) -> str:
    """Everything that was logged in this world."""
    return "".join(path.read_text() for path in (sandbox.shammah_home / "logs").glob("*"))


class Watch:
    """The states that the workers of one role tell, over all their lives."""

    def __init__(self, sandbox: Sandbox, role: str = "inference") -> None:
        self.states: list[State] = []
        self._role = role
        self._endpoints = sandbox.endpoints
        self._peer = Peer(sandbox.endpoints, role, None, self._heard)

    def _heard(self, event: Event | None) -> None:
        if event is not None:
            self.states.append(event.status.state)

    def wait(self, kind: type[Kind], limit: float = LOAD_S) -> Kind:
        """The worker's state, as soon as it is of this kind."""

        def look() -> Kind | None:
            return next((s for s in self.states[-1:] if isinstance(s, kind)), None)

        return until(look, f"the {self._role} worker is {kind.__name__}", limit)

    def told(self) -> list[State]:
        """Every state that the worker of now has told since its start."""
        reply = until(lambda: self._ask(ask_events), "a replay")
        assert reply.complete
        return [event.status.state for event in reply.events]

    def now(self) -> Event:
        """What it says of itself now."""
        return until(lambda: self._ask(ask_status), "a status")

    def _ask(self, ask: Callable[[Endpoints, str], Answer]) -> Answer | None:
        try:
            return ask(self._endpoints, self._role)
        except ShammahError:
            return None

    def close(self) -> None:
        self._peer.close()


# --- connections --------------------------------------------------------------------------

_SITECUSTOMIZE = """
import os, socket, sys
log = os.open(os.environ["SHAMMAH_TEST_CONNECTIONS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
def tell(what):
    os.write(log, f"{os.getpid()} {what} {' '.join(sys.orig_argv)}\\n".encode())
def heard(event, arguments):
    if event in ("socket.connect", "socket.sendto") and arguments[0].family != socket.AF_UNIX:
        tell(f"{event} {arguments[1]!r}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        tell(f"{event} {arguments[:2]!r}")
sys.addaudithook(heard)
tell("begun")
"""
"""Has every Python process tell of its beginning and of each attempt to reach an address."""


class Connections:
    """What the processes of this world have tried to connect to.

    ``variables`` makes a process, and all that it starts, tell.
    """

    def __init__(self, directory: Path) -> None:
        site = directory / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(_SITECUSTOMIZE)
        self._log = directory / "connections"
        path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
        self.variables = {"PYTHONPATH": path, "SHAMMAH_TEST_CONNECTIONS": str(self._log)}

    def begun(self, role: str) -> int:
        """How many workers of ``role`` have begun."""
        lines = [line for line in self._lines() if " begun " in line]
        return sum(f"-m workers {role}" in line for line in lines)

    def attempts(self) -> list[str]:
        return [line for line in self._lines() if " begun " not in line]

    def forget(self) -> None:
        os.truncate(self._log, 0)

    def _lines(self) -> list[str]:
        return self._log.read_text().splitlines()


class NoNetwork:
    """``shammah`` in a network of its own with no way out, where the kernel counts attempts.

    Unlike `Connections` it sees libraries that are not written in Python. Where no such
    network can be made, ``command`` is the plain program, and `attempts` is ``None``.
    """

    def __init__(self, directory: Path) -> None:
        self._counters = directory / "snmp"
        script = '"$@"; code=$?; cat /proc/net/snmp > "$0"; exit $code'
        inside = ("unshare", "--map-root-user", "--net")
        self.command: tuple[str, ...] = SHAMMAH
        if shutil.which("unshare") and not subprocess.run([*inside, "true"]).returncode:
            self.command = (*inside, "sh", "-c", script, str(self._counters), *SHAMMAH)

    def attempts(self) -> int | None:
        """Packets that were to be sent, and connections that were to be opened."""
        if self.command == SHAMMAH:
            return None
        lines = [line.split() for line in self._counters.read_text().splitlines()]
        found = Counter[str]()
        for names, numbers in zip(lines[::2], lines[1::2], strict=True):
            table = names[0]
            found.update({table + n: int(v) for n, v in zip(names[1:], numbers[1:], strict=True)})
        return found["Ip:OutRequests"] + found["Ip:OutNoRoutes"] + found["Tcp:ActiveOpens"]
