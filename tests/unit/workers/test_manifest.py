"""Whole or not: answered from the manifest and file sizes, with the standard library alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from workers import manifest as manifests
from workers.listing import RemoteFile, RepositoryListing
from workers.manifest import (
    Manifest,
    dump_manifest,
    is_complete,
    manifest_path,
    read_manifest,
)

COMMIT = "c" * 40
FILES = (
    RemoteFile("config.json", 2, None, "a" * 40),
    RemoteFile("sub/model.safetensors", 5, "b" * 64, "d" * 40),
)
LISTING = RepositoryListing("acme/tiny", COMMIT, "mit", FILES)


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A whole one."""
    directory = tmp_path / "models--acme--tiny" / "snapshots" / COMMIT
    for file in FILES:
        path = directory / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * file.size)
    write(directory, Manifest(LISTING))
    return directory


def write(snapshot: Path, manifest: Manifest) -> None:
    path = manifest_path(snapshot)
    path.parent.mkdir(exist_ok=True)
    path.write_text(dump_manifest(manifest))


def test_a_manifest_is_read_as_it_was_written(snapshot: Path) -> None:
    assert read_manifest(snapshot) == Manifest(LISTING)
    document = json.loads(manifest_path(snapshot).read_text())
    assert document["files"]["config.json"] == {"size": 2, "git_sha1": "a" * 40}
    assert (document["format"], document["model"], document["revision"], document["licence"]) == (
        *(1, "acme/tiny", COMMIT, "mit"),
    )


def test_a_file_has_a_manifest_of_its_own(snapshot: Path) -> None:
    file = snapshot / "sub" / "tiny.gguf"
    file.write_bytes(b"GGUF")
    assert not is_complete(file)
    listing = (RemoteFile("sub/tiny.gguf", 4, "b" * 64, None),)
    write(file, Manifest(RepositoryListing("acme/tiny:sub/tiny.gguf", COMMIT, "mit", listing)))
    assert is_complete(file)
    assert manifest_path(file).parent == manifest_path(snapshot).parent
    assert manifest_path(snapshot / "sub%2Ftiny.gguf") != manifest_path(file)
    file.write_bytes(b"GGUF2")
    assert not is_complete(file)
    assert is_complete(snapshot)


def test_complete_means_that_every_size_is_right(snapshot: Path) -> None:
    assert is_complete(snapshot)
    path = snapshot / "sub" / "model.safetensors"
    path.write_bytes(b"four")
    assert not is_complete(snapshot)
    path.unlink()
    assert not is_complete(snapshot)
    path.symlink_to("nowhere")
    assert not is_complete(snapshot)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1, "files": 3}', "null", "[" * 9000]
)
def test_a_manifest_that_makes_no_sense_is_none(snapshot: Path, text: str) -> None:
    manifest_path(snapshot).write_text(text)
    assert read_manifest(snapshot) is None
    assert not is_complete(snapshot)


def test_files_not_yet_on_the_disk_count_until_the_system_stops(
    snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifests, "boot_id", lambda: "now")
    write(snapshot, Manifest(LISTING, "now"))
    assert is_complete(snapshot)
    monkeypatch.setattr(manifests, "boot_id", lambda: "after the power failure")
    assert not is_complete(snapshot)


def test_no_library_is_needed(snapshot: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from workers.manifest import is_complete\n"
        "assert is_complete(Path(sys.argv[1]))\n"
        "heavy = {'huggingface_hub', 'httpx2', 'torch', 'transformers', 'zmq'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(snapshot)], check=True, timeout=60)


def test_the_worker_never_imports_torch() -> None:
    program = (
        "import sys\n"
        "import workers.download.downloads, workers.download.cache\n"
        "heavy = {'torch', 'transformers', 'zmq', 'hf_xet'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "from huggingface_hub import constants\n"
        "assert constants.HF_HUB_DISABLE_XET\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
