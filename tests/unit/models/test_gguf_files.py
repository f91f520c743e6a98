"""GGUF files of other programs: what they are called, and where they lie."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import (
    FETCH_AGAIN,
    LocatedModel,
    MissingModel,
    check_local,
    check_model_name,
    followable_hints,
    hub_model,
    is_of_hub,
    locate_model,
    model_names,
)
from shammah.models.gguf_files import list_gguf, part_names
from tests.fakes.sandbox import Sandbox

HUB_FILE = "acme/tiny-GGUF:tiny.Q4_K_M.gguf"


def put(path: Path, content: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def pull(store: Path, name: str, content: str) -> Path:
    """A model as ollama stores it; ``name``: HOST/OWNER/NAME/TAG."""
    digest = hashlib.sha256(content.encode()).hexdigest()
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:" + "0" * 64},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}"},
    ]
    put(store / "manifests" / name, json.dumps({"schemaVersion": 2, "layers": layers}))
    return put(store / "blobs" / f"sha256-{digest}", content)


def locate(wanted: str, environ: dict[str, str], cache: Path = Path("/nonexistent")) -> object:
    found = locate_model(
        wanted,
        2**34,
        cache,
        Path("/nonexistent"),
        fallback=True,
        is_whole=lambda path: True,
        environ=environ,
    )
    return found.directory if isinstance(found, LocatedModel) else found


def refusal(wanted: str, environ: dict[str, str]) -> ShammahError:
    with pytest.raises(ShammahError) as caught:
        locate(wanted, environ)
    return caught.value


class TestNames:
    @pytest.mark.parametrize(
        "named",
        [
            *("ollama:llama3.2", "ollama:llama3.2:1b", "ollama:me/mine:latest"),
            "ollama:hf.co/acme/tiny-GGUF:Q4_K_M",
            *("lmstudio:acme/tiny", "lmstudio:acme/tiny/a b.gguf"),
            *(HUB_FILE, "acme/tiny:Q4/a-00001-of-00002.gguf"),
        ],
    )
    def test_what_can_mean_something_passes(self, named: str) -> None:
        check_model_name(named)

    @pytest.mark.parametrize(
        "named",
        [
            *("ollama:", "ollama:a/b/c/d", "ollama:..", "ollama:../../etc:passwd", "ollama:a:"),
            *("ollama:a:..", "ollama:a b", "lmstudio:", "lmstudio:acme", "lmstudio:acme/.."),
            *("lmstudio:acme/tiny/../x.gguf", "lmstudio:acme/tiny/a.bin", "lmstudio:../x"),
            *("acme/tiny:", "acme/tiny:Q4_K_M", "acme/tiny:../a.gguf", "acme/tiny:/a.gguf"),
            *("acme/tiny:a/b/c.gguf", "acme:a.gguf", "x:acme/tiny"),
        ],
    )
    def test_what_can_mean_nothing_is_refused(self, named: str) -> None:
        with pytest.raises(ShammahError) as caught:
            check_model_name(named)
        assert (caught.value.code, caught.value.exit_code) == ("model_unknown", ExitCode.USAGE)
        assert caught.value.hint

    def test_which_are_of_the_hub(self) -> None:
        assert is_of_hub(HUB_FILE)
        assert hub_model(HUB_FILE, 2**34) == HUB_FILE
        for named in ("ollama:acme/tiny", "lmstudio:acme/tiny", "/a.gguf", "starter"):
            assert not is_of_hub(named)
            assert hub_model(named, 2**34) is None

    def test_parts(self) -> None:
        assert part_names("a.gguf") == ["a.gguf"]
        assert part_names("a-00002-of-00002.gguf") == [
            "a-00001-of-00002.gguf",
            "a-00002-of-00002.gguf",
        ]
        for odd in ("a-00000-of-00002.gguf", "a-00003-of-00002.gguf", "a-00001-of-99999.gguf"):
            assert part_names(odd) == [odd]


class TestFilesAndDirectories:
    @pytest.mark.parametrize("name", ["tiny.gguf", "TINY.GGUF"])
    def test_a_file(self, tmp_path: Path, name: str) -> None:
        path = put(tmp_path / name)
        assert locate(str(path), {}) == path
        check_local(str(path), {})

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        error = refusal(str(tmp_path / "a.gguf"), {})
        assert (error.code, "No model file" in error.message) == ("model_not_found", True)

    def test_the_only_one_in_a_directory(self, tmp_path: Path) -> None:
        path = put(tmp_path / "tiny.gguf")
        put(tmp_path / "mmproj-tiny.gguf")
        put(tmp_path / "README.md")
        assert locate(str(tmp_path), {}) == path
        check_local(str(tmp_path), {})

    def test_in_parts(self, tmp_path: Path) -> None:
        first, _ = (put(tmp_path / name) for name in part_names("a-00001-of-00002.gguf"))
        assert locate(str(tmp_path), {}) == first

    def test_safetensors_come_first(self, tmp_path: Path) -> None:
        put(tmp_path / "tiny.gguf")
        put(tmp_path / "model.safetensors")
        assert locate(str(tmp_path), {}) == tmp_path

    def test_several_are_listed(self, tmp_path: Path) -> None:
        put(tmp_path / "a.gguf")
        put(tmp_path / "b.gguf")
        error = refusal(str(tmp_path), {})
        assert error.code == "model_unclear"
        assert "a.gguf, b.gguf" in error.message
        assert f"{tmp_path}/a.gguf" in error.hint


class TestOllama:
    @pytest.fixture
    def store(self, sandbox: Sandbox) -> Path:
        store = sandbox.home / ".ollama" / "models"
        self.small = pull(store, "registry.ollama.ai/library/llama3.2/1b", "small")
        self.latest = pull(store, "registry.ollama.ai/library/llama3.2/latest", "latest")
        pull(store, "registry.ollama.ai/me/mine/latest", "mine")
        self.hub = pull(store, "hf.co/acme/tiny-GGUF/Q4_K_M", "hub")
        return store

    def test_by_name_and_tag(self, store: Path) -> None:
        assert locate("ollama:llama3.2:1b", {}) == self.small
        assert locate("ollama:llama3.2", {}) == self.latest
        assert locate("ollama:hf.co/acme/tiny-GGUF:Q4_K_M", {}) == self.hub
        check_local("ollama:llama3.2", {})

    def test_every_listed_name_leads_to_its_file(self, store: Path) -> None:
        listed = list_gguf({})
        assert [file.name for file in listed] == [
            *("ollama:hf.co/acme/tiny-GGUF:Q4_K_M", "ollama:llama3.2:1b"),
            *("ollama:llama3.2:latest", "ollama:me/mine:latest"),
        ]
        assert {file.origin for file in listed} == {"ollama"}
        assert listed[1].size == len("small")
        assert [locate(file.name, {}) for file in listed] == [file.path for file in listed]
        assert set(model_names({})) > {file.name for file in listed}

    def test_what_is_not_there_comes_with_what_is(self, store: Path) -> None:
        for named in ("ollama:gemma3", "ollama:llama3.2:7b"):
            error = refusal(named, {})
            assert error.code == "model_not_found"
            assert str(store) in error.message
            assert "ollama:llama3.2:1b, ollama:llama3.2:latest" in error.hint

    @pytest.mark.parametrize("kind", ["ollama", "file"])
    def test_what_lies_behind_a_closed_door_is_said_to(
        self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = {"OLLAMA_MODELS": str(tmp_path)}
        closed = pull(tmp_path, "registry.ollama.ai/library/tiny/latest", "GGUF")
        wanted = "ollama:tiny"
        if kind == "file":
            closed = put(tmp_path / "a.gguf")
            wanted = str(closed)

        stat = Path.stat

        def look(path: Path, **options: bool) -> os.stat_result:
            if path == closed:  # nothing is closed to root, as whom tests may run
                raise PermissionError(13, "Permission denied", str(path))
            return stat(path, **options)

        monkeypatch.setattr(Path, "stat", look)
        refused = refusal(wanted, store)
        assert refused.code == "model_not_found"
        assert f"{closed} cannot be read (Permission denied)." in refused.message
        assert refused.hint == "Let your user read it."

    def test_no_ollama_at_all(self, sandbox: Sandbox) -> None:
        assert "It has none there." in refusal("ollama:gemma3", {}).hint
        assert list_gguf({}) == []

    def test_another_store(self, store: Path, sandbox: Sandbox) -> None:
        elsewhere = sandbox.root / "elsewhere"
        blob = pull(elsewhere, "registry.ollama.ai/library/gemma3/latest", "other")
        environ = {"OLLAMA_MODELS": str(elsewhere)}
        assert locate("ollama:gemma3", environ) == blob
        assert refusal("ollama:llama3.2", environ).code == "model_not_found"

    def test_half_a_model(self, store: Path) -> None:
        self.small.unlink()
        error = refusal("ollama:llama3.2:1b", {})
        assert error.code == "model_incomplete"
        assert "ollama pull llama3.2:1b" in error.hint
        assert "ollama:llama3.2:1b" not in [file.name for file in list_gguf({})]

    @pytest.mark.parametrize(
        "manifest",
        [
            *("", "[]", "{}", '{"layers": 3}', '{"layers": [3]}', "[" * 100_000),
            '{"layers": []}',
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../x"}]}',
            '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": 3}]}',
        ],
        ids=range(9),
    )
    def test_a_manifest_that_is_none(self, store: Path, manifest: str) -> None:
        put(store / "manifests" / "registry.ollama.ai/library/llama3.2/1b", manifest)
        error = refusal("ollama:llama3.2:1b", {})
        assert (error.code, "cannot be used" in error.message) == ("model_not_found", True)
        assert "ollama:llama3.2:1b" not in [file.name for file in list_gguf({})]

    def test_damage_is_not_repaired_here(self, store: Path) -> None:
        located = LocatedModel("ollama:llama3.2", self.latest, "ollama:llama3.2")
        with pytest.raises(ShammahError) as caught, followable_hints(located):
            raise ShammahError("model_corrupt", "It is damaged.", FETCH_AGAIN)
        assert caught.value.hint.startswith("Download it again with ollama,")


class TestLmStudio:
    @pytest.fixture
    def folder(self, sandbox: Sandbox) -> Path:
        folder = sandbox.home / ".lmstudio" / "models"
        put(folder / "acme" / "one" / "one.Q4.gguf")
        put(folder / "acme" / "one" / "mmproj-one.gguf")
        put(folder / "acme" / "two" / "two.Q4.gguf")
        put(folder / "acme" / "two" / "two.Q8.gguf")
        put(sandbox.home / ".cache/lm-studio/models/old/tiny/tiny.gguf")
        return folder

    def test_by_name(self, folder: Path) -> None:
        assert locate("lmstudio:acme/one", {}) == folder / "acme/one/one.Q4.gguf"
        assert locate("lmstudio:acme/two/two.Q8.gguf", {}) == folder / "acme/two/two.Q8.gguf"
        assert isinstance(locate("lmstudio:old/tiny", {}), Path)

    def test_several_are_listed(self, folder: Path) -> None:
        error = refusal("lmstudio:acme/two", {})
        assert (error.code, "two.Q4.gguf, two.Q8.gguf" in error.message) == ("model_unclear", True)
        assert "lmstudio:acme/two/two.Q4.gguf" in error.hint

    def test_what_is_not_there_comes_with_what_is(self, folder: Path) -> None:
        for named in ("lmstudio:acme/three", "lmstudio:acme/one/gone.gguf"):
            error = refusal(named, {})
            assert (error.code, str(folder) in error.message) == ("model_not_found", True)
            assert "lmstudio:acme/one" in error.hint

    def test_every_listed_name_leads_to_its_file(self, folder: Path) -> None:
        listed = list_gguf({})
        assert [file.name for file in listed] == [
            *("lmstudio:acme/one", "lmstudio:acme/two/two.Q4.gguf"),
            *("lmstudio:acme/two/two.Q8.gguf", "lmstudio:old/tiny"),
        ]
        assert [locate(file.name, {}) for file in listed] == [file.path for file in listed]


class TestTheHubCache:
    @pytest.fixture
    def cache(self, sandbox: Sandbox) -> Path:
        cache = sandbox.home / ".cache" / "huggingface" / "hub"
        repository = cache / "models--acme--tiny-GGUF"
        put(repository / "refs" / "main", "abc123")
        put(repository / "snapshots" / "abc123" / "tiny.Q4_K_M.gguf")
        for name in part_names("big-00001-of-00002.gguf"):
            put(repository / "snapshots" / "abc123" / "Q8" / name)
        return cache

    def test_a_file_of_a_repository(self, cache: Path) -> None:
        path = cache / "models--acme--tiny-GGUF/snapshots/abc123/tiny.Q4_K_M.gguf"
        assert locate(HUB_FILE, {}, cache) == path

    def test_one_that_is_not_here(self, cache: Path) -> None:
        missing = "acme/tiny-GGUF:tiny.Q8_0.gguf"
        assert locate(missing, {}, cache) == MissingModel(missing)

    def test_every_listed_name_leads_to_its_file(self, cache: Path) -> None:
        listed = list_gguf({})
        assert [(file.name, file.origin, file.size) for file in listed] == [
            ("acme/tiny-GGUF:Q8/big-00001-of-00002.gguf", "Hub", 8),
            (HUB_FILE, "Hub", 4),
        ]
        assert "acme/tiny-GGUF" not in model_names({}), "one of its files must be named"
        assert [locate(file.name, {}, cache) for file in listed] == [file.path for file in listed]
