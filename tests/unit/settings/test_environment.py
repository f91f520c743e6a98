"""Paths in the environment are absolute from where a program begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.settings.environment import make_absolute
from shammah.settings.load import home_directory
from shammah.storage.paths import hub_cache


def test_relative_paths_begin_at_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {
        "HF_HOME": "./hf",
        "HF_HUB_CACHE": "cache",
        "SHAMMAH_HOME": "~/own",
        "SSL_CERT_FILE": "ca.pem",
        "XDG_CACHE_HOME": "",
        "OTHER": "./left",
        "TMPDIR": "/tmp",
    }
    make_absolute(environ)
    assert environ == {
        "HF_HOME": f"{tmp_path}/hf",
        "HF_HUB_CACHE": f"{tmp_path}/cache",
        "SHAMMAH_HOME": str(Path("~/own").expanduser()),
        "XDG_CACHE_HOME": "",
        "SSL_CERT_FILE": f"{tmp_path}/ca.pem",
        "OTHER": "./left",
        "TMPDIR": "/tmp",
    }


@pytest.mark.parametrize(
    ("environ", "cache"),
    [
        ({"HF_HOME": "./hf"}, "hf/hub"),
        ({"HF_HUB_CACHE": "hf"}, "hf"),
        ({"HUGGINGFACE_HUB_CACHE": "../hf"}, "../hf"),
        ({"XDG_CACHE_HOME": "c"}, "c/huggingface/hub"),
    ],
)
def test_the_cache_and_the_home_are_absolute_where_they_are_read(
    environ: dict[str, str], cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_cache(environ) == tmp_path / cache
    assert home_directory({"SHAMMAH_HOME": "own"}) == tmp_path / "own"
    assert home_directory({"SHAMMAH_HOME": "~/own"}) == Path("~/own").expanduser()


def test_a_working_directory_that_is_gone_leaves_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    environ = {"HF_HOME": "hf"}
    make_absolute(environ)
    assert environ == {"HF_HOME": "hf"}
    for read in (hub_cache, lambda environ: home_directory({"SHAMMAH_HOME": "own"})):
        with pytest.raises(ShammahError, match="working directory, which no longer exists"):
            read(environ)
