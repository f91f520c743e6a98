"""Where models are that lie elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.confinement.places import links_from, look, tree


def test_links_out_of_a_cache_are_followed_and_no_others(tmp_path: Path) -> None:
    cache, disk = tmp_path / "hub", tmp_path / "disk"
    snapshot = cache / "models--a--b" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (cache / "models--a--b" / "blobs").mkdir()
    (snapshot / "config.json").symlink_to("../../blobs/0")
    (cache / "models--a--b" / "blobs" / "0").symlink_to(disk / "file")
    (disk / "whole" / "blobs").mkdir(parents=True)
    (disk / "file").touch()
    (cache / "models--c--d").symlink_to(disk / "whole")
    (disk / "whole" / "blobs" / "1").symlink_to("../../far")
    (disk / "far").touch()
    (disk / "whole" / "loop").symlink_to(disk / "whole")
    assert set(links_from(cache)) == {disk / "file", disk / "whole", disk / "far"}
    assert links_from(tmp_path / "none") == []


def test_a_model_on_this_disk_is_a_directory_or_all_parts_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "away").touch()
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").symlink_to(tmp_path / "away")
    assert tree(model) == [model, tmp_path / "away"]
    assert tree(tmp_path / "m-00001-of-00002.gguf") == [
        tmp_path / "m-00001-of-00002.gguf",
        tmp_path / "m-00002-of-00002.gguf",
    ]


@pytest.mark.parametrize("wanted", ["auto", "owner/name", ""])
def test_the_cache_belongs_to_models_of_the_hub(wanted: str, tmp_path: Path) -> None:
    environ = {"HF_HUB_CACHE": str(tmp_path)}
    assert look(wanted, environ).hub == (tmp_path,)
    assert look("starter", environ).hub == ()
    assert look(str(tmp_path), environ).hub == ()


def test_models_of_other_programs_are_read_where_they_lie(tmp_path: Path) -> None:
    found = look("ollama:qwen", {"OLLAMA_MODELS": str(tmp_path)})
    assert tmp_path in found.model
    assert look("lmstudio:a/b", {}).model
