"""Which model for which memory, and where it lies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.bus.messages import NotAvailable
from shammah.errors import ExitCode, ShammahError
from shammah.models import (
    CATALOGUE,
    GIB,
    LocatedModel,
    MissingModel,
    cached_snapshot,
    check_model_name,
    hub_cache,
    locate_model,
    model_id_of,
    select_model,
    starter_directory,
    total_memory,
)
from tests.standins.sandbox import Sandbox

CACHED = "Qwen/Qwen2.5-0.5B-Instruct"

Ask = Callable[[], str]


class TestTheChoiceByMemory:
    @pytest.mark.parametrize(
        ("gib", "size"),
        [
            (0, None),
            (2.99, None),
            (3, "0.5B"),
            (5.99, "0.5B"),
            (6, "1.5B"),
            (11.99, "1.5B"),
            (12, "3B"),
            (23.99, "3B"),
            (24, "7B"),
            (47.99, "7B"),
            (48, "14B"),
            (4096, "14B"),
        ],
    )
    def test_cut_points(self, gib: float, size: str | None) -> None:
        selected = select_model(int(gib * GIB))
        assert (selected.size if selected else None) == size

    def test_one_byte_below_a_cut_point_is_below_it(self) -> None:
        assert select_model(3 * GIB - 1) is None
        assert select_model(3 * GIB) is CATALOGUE[0]

    def test_more_memory_never_chooses_less(self) -> None:
        chosen = [select_model(gib * GIB) for gib in range(3, 64)]
        sizes = [model.parameters for model in chosen if model]
        assert sizes == sorted(sizes)

    def test_the_catalogue_is_sorted_and_says_what_a_download_costs(self) -> None:
        assert [model.memory_from for model in CATALOGUE] == [3, 6, 12, 24, 48]
        for model in CATALOGUE:
            assert model.model_id.startswith("Qwen/Qwen2.5-")
            assert model.size in model.model_id
            assert model.download_bytes == 2 * model.parameters
            assert float(model.size.removesuffix("B")) == pytest.approx(
                model.parameters / 1e9, rel=0.1
            )


class TestMemory:
    def limits(self, root: Path, v2: str | None = None, v1: str | None = None) -> Path:
        if v2 is not None:
            (root / "memory.max").write_text(v2)
        if v1 is not None:
            (root / "memory").mkdir()
            (root / "memory" / "memory.limit_in_bytes").write_text(v1)
        return root

    @pytest.mark.parametrize(
        ("v2", "v1", "expected"),
        [
            (None, None, 1000),
            ("max\n", None, 1000),
            ("400\n", None, 400),
            ("4000\n", None, 1000),
            (None, "300\n", 300),
            (None, "9223372036854771712\n", 1000),
            ("500", "300", 300),
            ("", None, 1000),
            ("nonsense", "-1", 1000),
        ],
    )
    def test_a_containers_limit_counts_where_it_is_lower(
        self, sandbox: Sandbox, v2: str | None, v1: str | None, expected: int
    ) -> None:
        assert total_memory(1000, self.limits(sandbox.root, v2, v1)) == expected

    def test_no_cgroups_at_all(self) -> None:
        assert total_memory(1000, Path("/nonexistent")) == 1000

    def test_this_machines(self) -> None:
        assert 0 < total_memory(2**50) <= 2**50


class TestNames:
    @pytest.mark.parametrize(
        ("named", "meant"),
        [
            ("3B", "Qwen/Qwen2.5-3B-Instruct"),
            ("3b", "Qwen/Qwen2.5-3B-Instruct"),
            ("0.5B", CACHED),
            ("acme/tiny", "acme/tiny"),
            ("auto", "auto"),
            ("3BB", "3BB"),
        ],
    )
    def test_a_size_stands_for_a_hub_id(self, named: str, meant: str) -> None:
        assert model_id_of(named) == meant

    @pytest.mark.parametrize(
        "named", ["auto", "starter", "14B", "acme/tiny", "a/b.c-d_e", "/", "/models/mine"]
    )
    def test_what_can_mean_something_passes(self, named: str) -> None:
        check_model_name(named)

    @pytest.mark.parametrize(
        "named",
        ["", "gpt", "2B", "a/b/c", "a/", "a/..", "../b", "..", "a b", "AUTO", "Starter"],
    )
    def test_what_can_mean_nothing_is_refused_with_the_choices(self, named: str) -> None:
        with pytest.raises(ShammahError) as refusal:
            check_model_name(named)
        assert refusal.value.code == "model_unknown"
        assert refusal.value.exit_code == ExitCode.USAGE
        assert "0.5B, 1.5B, 3B, 7B, 14B" in refusal.value.hint

    @pytest.mark.parametrize("named", ["a/b\0", "a/b\nc", "a/\x1b[31m", "a/b c", "a\\b/c", "-a/b"])
    def test_a_hub_id_with_characters_that_no_hub_id_has_is_refused(self, named: str) -> None:
        with pytest.raises(ShammahError):
            check_model_name(named)


class TestTheHubCache:
    @pytest.mark.parametrize(
        "environ",
        [
            {},
            {"HF_HOME": "/a"},
            {"HF_HUB_CACHE": "/b"},
            {"HF_HUB_CACHE": "/b", "HF_HOME": "/a", "XDG_CACHE_HOME": "/c"},
            {"XDG_CACHE_HOME": "/c"},
            {"XDG_CACHE_HOME": "/c", "HF_HOME": "/a"},
            {"HF_HOME": "~/x"},
            {"HF_HUB_CACHE": "~/x"},
            {"XDG_CACHE_HOME": "~/x"},
            {"HF_HOME": "$HOME/x"},
            {"HF_HUB_CACHE": "${HOME}/x"},
            {"HUGGINGFACE_HUB_CACHE": "/legacy"},
        ],
        ids=lambda environ: " ".join(f"{k}={v}" for k, v in environ.items()) or "nothing",
    )
    def test_is_where_the_library_looks(
        self, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch, library_cache: Ask
    ) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        assert str(hub_cache(environ)) == library_cache()

    def test_an_empty_variable_is_none(self, sandbox: Sandbox) -> None:
        empty = {"HF_HUB_CACHE": "", "HF_HOME": "", "XDG_CACHE_HOME": ""}
        assert hub_cache(empty) == sandbox.home / ".cache" / "huggingface" / "hub"

    @pytest.fixture
    def library_cache(self) -> Ask:
        """What huggingface_hub itself says, in a process of its own: it reads only once."""

        def ask() -> str:
            code = "from huggingface_hub.constants import HF_HUB_CACHE as c; print(c)"
            said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
            return said.stdout.decode().strip()

        return ask


class TestWhereAModelLies:
    @pytest.fixture
    def cache(self, sandbox: Sandbox) -> Path:
        """With the smallest of the catalogue in it."""
        repository = sandbox.root / "hub" / "models--Qwen--Qwen2.5-0.5B-Instruct"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("abc123")
        (repository / "snapshots" / "abc123").mkdir(parents=True)
        (repository / "snapshots" / "abc123" / "config.json").write_text("{}")
        return sandbox.root / "hub"

    @pytest.fixture
    def starter(self, sandbox: Sandbox) -> Path:
        directory = sandbox.root / "starter"
        directory.mkdir()
        return directory

    def locate(
        self, wanted: str, cache: Path, starter: Path, gib: float = 4, stand_in: bool = False
    ) -> LocatedModel | MissingModel | NotAvailable:
        return locate_model(
            wanted,
            int(gib * GIB),
            cache,
            starter,
            stand_in=stand_in,
            is_whole=lambda snapshot: (snapshot / "config.json").exists(),
        )

    def test_the_starter(self, cache: Path, starter: Path) -> None:
        found = self.locate("starter", cache, starter)
        assert found == LocatedModel("starter", starter, "starter")

    def test_no_starter(self, cache: Path, starter: Path) -> None:
        starter.rmdir()
        with pytest.raises(ShammahError, match="not installed") as missing:
            self.locate("starter", cache, starter)
        assert missing.value.code == "model_not_found"
        assert "scripts/" in missing.value.hint

    def test_a_directory(self, sandbox: Sandbox, cache: Path, starter: Path) -> None:
        found = self.locate(str(sandbox.home), cache, starter)
        assert found == LocatedModel("home", sandbox.home, str(sandbox.home))

    def test_a_directory_that_is_not_there(self, cache: Path, starter: Path) -> None:
        with pytest.raises(ShammahError, match="no model directory /nonexistent"):
            self.locate("/nonexistent", cache, starter)

    def test_a_file_is_no_directory(self, cache: Path, starter: Path) -> None:
        file = starter / "model.safetensors"
        file.write_text("")
        with pytest.raises(ShammahError, match="no model directory"):
            self.locate(str(file), cache, starter)

    def test_a_name_that_means_nothing(self, cache: Path, starter: Path) -> None:
        with pytest.raises(ShammahError) as refusal:
            self.locate("gpt", cache, starter)
        assert refusal.value.code == "model_unknown"

    @pytest.mark.parametrize("wanted", ["0.5B", "0.5b", CACHED])
    @pytest.mark.parametrize("stand_in", [False, True])
    def test_what_is_cached(self, cache: Path, starter: Path, wanted: str, stand_in: bool) -> None:
        found = self.locate(wanted, cache, starter, stand_in=stand_in)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.wanted, found.stand_in) == (CACHED, CACHED, False)
        assert found.directory == cached_snapshot(cache, CACHED)

    @pytest.mark.parametrize("wanted", ["7B", "acme/tiny"])
    @pytest.mark.parametrize("stand_in", [False, True])
    def test_nothing_stands_in_for_what_was_named(
        self, cache: Path, starter: Path, wanted: str, stand_in: bool
    ) -> None:
        found = self.locate(wanted, cache, starter, stand_in=stand_in)
        assert found == MissingModel(model_id_of(wanted))

    def test_a_half_snapshot_is_named_but_not_trusted(self, cache: Path, starter: Path) -> None:
        found = locate_model(
            "auto", 4 * GIB, cache, starter, stand_in=True, is_whole=lambda snapshot: False
        )
        starting = LocatedModel("starter", starter, CACHED, stand_in=True)
        assert found == MissingModel(CACHED, cached_snapshot(cache, CACHED), starting)

    def test_the_automatic_choice_where_it_is_cached(self, cache: Path, starter: Path) -> None:
        found = self.locate("auto", cache, starter, gib=4, stand_in=True)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.stand_in) == (CACHED, False)

    def test_the_starter_stands_in_for_a_choice_that_is_not_here(
        self, cache: Path, starter: Path
    ) -> None:
        found = self.locate("auto", cache, starter, gib=16, stand_in=True)
        chosen = "Qwen/Qwen2.5-3B-Instruct"
        assert found == MissingModel(chosen, None, LocatedModel("starter", starter, chosen, True))

    def test_and_where_memory_is_too_little_for_any(self, cache: Path, starter: Path) -> None:
        found = self.locate("auto", cache, starter, gib=1, stand_in=True)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.stand_in) == ("starter", True)

    def test_it_does_not_where_it_may_not_or_is_not_there(self, cache: Path, starter: Path) -> None:
        missing = MissingModel("Qwen/Qwen2.5-3B-Instruct")
        assert self.locate("auto", cache, starter, gib=16) == missing
        starter.rmdir()
        assert self.locate("auto", cache, starter, gib=16, stand_in=True) == missing

    def test_too_little_memory_is_said_in_gib(self, cache: Path, starter: Path) -> None:
        found = self.locate("auto", cache, starter, gib=1.5)
        assert isinstance(found, NotAvailable)
        assert "1.5 GiB" in found.reason

    def test_no_cache_at_all(self, starter: Path) -> None:
        assert cached_snapshot(Path("/nonexistent"), CACHED) is None

    @pytest.mark.parametrize("revision", [b"", b"\n", b"gone", b"\xff\xfe", b"\0", b"x" * 5000])
    def test_a_reference_to_nothing_is_no_snapshot(self, cache: Path, revision: bytes) -> None:
        reference = cache / "models--Qwen--Qwen2.5-0.5B-Instruct" / "refs" / "main"
        reference.write_bytes(revision)
        assert cached_snapshot(cache, CACHED) is None

    def test_a_snapshot_without_a_configuration_is_none(self, cache: Path) -> None:
        snapshot = cached_snapshot(cache, CACHED)
        assert snapshot is not None
        (snapshot / "config.json").unlink()
        assert cached_snapshot(cache, CACHED) is None

    def test_a_reference_may_end_with_a_newline(self, cache: Path) -> None:
        reference = cache / "models--Qwen--Qwen2.5-0.5B-Instruct" / "refs" / "main"
        reference.write_text("abc123\n")
        assert cached_snapshot(cache, CACHED) is not None


def test_the_starter_of_this_installation_is_inside_it() -> None:
    assert starter_directory().is_relative_to(sys.prefix)
