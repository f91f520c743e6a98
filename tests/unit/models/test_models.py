"""Which model for which memory, and where it lies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import NotAvailable
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import (
    CATALOGUE,
    FETCH_AGAIN,
    GIB,
    QWEN2_5,
    QWEN3,
    CatalogueModel,
    LocatedModel,
    MissingModel,
    cached_snapshot,
    catalogue_model,
    check_local,
    check_model_name,
    followable_hints,
    hub_model,
    locate_model,
    model_id_of,
    select_model,
    starter_directory,
    total_memory,
)
from shammah.storage.paths import hub_cache
from tests.fakes.sandbox import Sandbox

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
        assert select_model(3 * GIB) is QWEN2_5[0]

    def test_more_memory_never_chooses_less(self) -> None:
        chosen = [select_model(gib * GIB) for gib in range(3, 64)]
        sizes = [model.parameters for model in chosen if model]
        assert sizes == sorted(sizes)

    def test_the_catalogue_is_sorted_and_has_what_auto_chooses_from(self) -> None:
        assert [model.memory_from for model in QWEN2_5] == [3, 6, 12, 24, 48]
        assert sorted(CATALOGUE, key=lambda model: model.parameters) == list(CATALOGUE)
        assert {*CATALOGUE} == {*QWEN2_5, *QWEN3}
        for model in CATALOGUE:
            size = model.size.removeprefix("qwen3-").upper()
            assert model.model_id in (f"Qwen/Qwen2.5-{size}-Instruct", f"Qwen/Qwen3-{size}")
            assert float(size.removesuffix("B")) == pytest.approx(model.parameters / 1e9, rel=0.1)

    @pytest.mark.parametrize(
        ("gib", "size"),
        [(6, "1.5B"), (11.99, "1.5B"), (12, "qwen3-4b"), (23.99, "qwen3-4b"), (24, "7B")],
    )
    def test_a_permissive_choice_has_another_for_what_is_not_for_commercial_use(
        self, gib: float, size: str
    ) -> None:
        selected = select_model(int(gib * GIB), permissive=True)
        assert selected is not None
        assert (selected.size, selected.licence) == (size, "apache-2.0")

    def test_no_other_of_qwen3_is_chosen_by_memory(self) -> None:
        for permissive in (False, True):
            chosen = [select_model(gib * GIB, permissive=permissive) for gib in range(3, 99)]
            assert {model.size for model in chosen if model in QWEN3} == (
                {"qwen3-4b"} if permissive else set()
            )

    @pytest.mark.parametrize(
        ("gib", "gpu_gib", "size"),
        [
            (16, 0, "3B"),
            # 2 x 7,615,616,512 B + 2 GiB = 16.19 GiB
            (16, 16, "3B"),
            (16, 16.2, "7B"),
            (16, 80, "14B"),
            (64, 8, "14B"),  # a small GPU never makes the choice smaller
            (2, 4, "0.5B"),
            (2, 2.9, None),  # 0.92 + 2 GiB
        ],
    )
    def test_a_gpu_can_make_the_choice_larger(
        self, gib: float, gpu_gib: float, size: str | None
    ) -> None:
        selected = select_model(int(gib * GIB), gpu_memory=int(gpu_gib * GIB))
        assert (selected.size if selected else None) == size

    @pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.size)
    def test_the_parameters_follow_from_the_shape(self, model: CatalogueModel) -> None:
        shape = model.shape
        attention, kept = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        # Qwen2 has biases on query, key and value, Qwen3 a norm for the heads of two of them.
        extra = 2 * shape.head_dim if model in QWEN3 else attention + 2 * kept
        layer = (
            shape.hidden * attention  # query
            + 2 * shape.hidden * kept  # key and value
            + attention * shape.hidden  # output
            + extra
            + 3 * shape.hidden * shape.intermediate  # gate, up and down
            + 2 * shape.hidden  # two norms
        )
        tables = 1 if shape.tied else 2  # embeddings, and the head if it is another one
        final_norm = shape.hidden
        total = tables * shape.vocabulary * shape.hidden + shape.layers * layer + final_norm
        assert model.parameters == total

    @pytest.mark.parametrize("model", CATALOGUE, ids=lambda model: model.size)
    def test_a_shape_is_of_one_piece(self, model: CatalogueModel) -> None:
        shape = model.shape
        assert shape.heads % shape.kv_heads == 0
        if model in QWEN3:
            assert (shape.head_dim, shape.kv_heads, shape.context_length) == (128, 8, 40_960)
            assert shape.tied is (model.size in ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b"))
        else:
            assert shape.hidden == shape.heads * shape.head_dim
            assert shape.context_length == 32_768
            assert shape.tied is (model.size in ("0.5B", "1.5B", "3B"))

    @pytest.mark.parametrize(
        ("size", "on_the_hub"),
        [
            ("0.5B", 988_097_824),
            ("1.5B", 3_087_467_144),
            ("qwen3-0.6b", 1_503_300_328),  # its head is there, though it is tied
            ("qwen3-4b", 8_044_982_000),
            ("qwen3-8b", 16_381_516_776),
        ],
    )
    def test_a_download_is_as_large_as_the_hubs_files_but_for_their_headers(
        self, size: str, on_the_hub: int
    ) -> None:
        model = catalogue_model(model_id_of(size))
        assert model is not None
        assert 0 < on_the_hub - model.download_bytes < 100_000

    def test_only_3b_is_not_for_commercial_use(self) -> None:
        assert {m.size: m.licence for m in CATALOGUE if not m.permissive} == {"3B": "qwen-research"}


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

    def test_the_least_limit_of_our_group_and_those_above_it_counts(self, sandbox: Sandbox) -> None:
        limits = {"": "max", "user.slice": "900", "user.slice/app": "max", "other": "1"}
        assert self.within(sandbox, "0::/user.slice/app\n", "memory.max", limits) == 900
        limits["user.slice/app"] = "700"
        assert self.within(sandbox, "0::/user.slice/app\n", "memory.max", limits) == 700

    def test_of_v1_too(self, sandbox: Sandbox) -> None:
        unlimited = str(0x7FFF_FFFF_FFFF_F000)
        limits = {"memory": unlimited, "memory/docker": "900", "memory/docker/id": unlimited}
        groups = "12:cpu,cpuacct:/docker/other\n4:memory:/docker/id\n0::/\n"
        found = self.within(sandbox, groups, "memory.limit_in_bytes", limits)
        assert found == 900

    def test_of_v2_beside_v1(self, sandbox: Sandbox) -> None:
        limits = {"unified": "max", "unified/a": "800"}
        groups = "4:memory:/b\n0::/a\n"
        assert self.within(sandbox, groups, "memory.max", limits) == 800

    def test_a_limit_that_slows_down_counts(self, sandbox: Sandbox) -> None:
        assert self.within(sandbox, "0::/a\n", "memory.high", {"a": "600"}) == 600

    @pytest.mark.parametrize(
        "groups",
        [
            "4:memory:/docker/id\n0::/docker/id\n",  # the container sees its own as the root
            "0::/../../outside\n",
            "",
            "nonsense\n:::\n0:\n",
            "0::/gone (deleted)\n",
            "0::/\x00\n",
        ],
    )
    def test_a_group_that_cannot_be_seen_has_the_roots_limit(
        self, sandbox: Sandbox, groups: str
    ) -> None:
        assert self.within(sandbox, groups, "memory.max", {"": "500", "docker": "max"}) == 500

    @staticmethod
    def within(sandbox: Sandbox, groups: str, file: str, limits: dict[str, str]) -> int:
        """The memory of a machine with 1000 bytes and these groups (path to limit)."""
        root, membership = sandbox.root / "cgroup", sandbox.root / "groups"
        membership.write_text(groups)
        for path, limit in limits.items():
            (root / path).mkdir(parents=True, exist_ok=True)
            (root / path / file).write_text(f"{limit}\n")
        return total_memory(1000, root, membership)

    def test_no_cgroups_at_all(self) -> None:
        assert total_memory(1000, Path("/nonexistent")) == 1000
        assert total_memory(1000, Path("/nonexistent"), Path("/nonexistent")) == 1000

    def test_this_machines(self) -> None:
        assert 0 < total_memory(2**50) <= 2**50


class TestNames:
    @pytest.mark.parametrize(
        ("named", "meant"),
        [
            ("3B", "Qwen/Qwen2.5-3B-Instruct"),
            ("3b", "Qwen/Qwen2.5-3B-Instruct"),
            ("0.5B", CACHED),
            ("qwen3-4b", "Qwen/Qwen3-4B"),
            ("Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
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
        assert "0.5B, 1.5B, 3B, 7B, 14B, qwen3-0.6b" in refusal.value.hint

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
        self, wanted: str, cache: Path, starter: Path, gib: float = 4, fallback: bool = False
    ) -> LocatedModel | MissingModel | NotAvailable:
        return locate_model(
            wanted,
            int(gib * GIB),
            cache,
            starter,
            fallback=fallback,
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
        assert "shammah models pull starter" in missing.value.hint

    def test_a_directory(self, sandbox: Sandbox, cache: Path, starter: Path) -> None:
        found = self.locate(str(sandbox.home), cache, starter)
        assert found == LocatedModel("home", sandbox.home, str(sandbox.home))

    def test_a_directory_that_is_not_there(self, cache: Path, starter: Path) -> None:
        with pytest.raises(ShammahError, match="No model directory /nonexistent"):
            self.locate("/nonexistent", cache, starter)

    def test_a_file_is_no_directory(self, cache: Path, starter: Path) -> None:
        file = starter / "model.safetensors"
        file.write_text("")
        with pytest.raises(ShammahError, match="No model directory"):
            self.locate(str(file), cache, starter)

    def test_a_name_that_means_nothing(self, cache: Path, starter: Path) -> None:
        with pytest.raises(ShammahError) as refusal:
            self.locate("gpt", cache, starter)
        assert refusal.value.code == "model_unknown"

    @pytest.mark.parametrize("wanted", ["0.5B", "0.5b", CACHED])
    @pytest.mark.parametrize("fallback", [False, True])
    def test_what_is_cached(self, cache: Path, starter: Path, wanted: str, fallback: bool) -> None:
        found = self.locate(wanted, cache, starter, fallback=fallback)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.wanted, found.fallback) == (CACHED, CACHED, False)
        assert found.directory == cached_snapshot(cache, CACHED)

    @pytest.mark.parametrize("wanted", ["7B", "acme/tiny"])
    @pytest.mark.parametrize("fallback", [False, True])
    def test_nothing_stands_in_for_what_was_named(
        self, cache: Path, starter: Path, wanted: str, fallback: bool
    ) -> None:
        found = self.locate(wanted, cache, starter, fallback=fallback)
        assert found == MissingModel(model_id_of(wanted))

    def test_a_half_snapshot_is_named_but_not_trusted(self, cache: Path, starter: Path) -> None:
        found = locate_model(
            "auto", 4 * GIB, cache, starter, fallback=True, is_whole=lambda snapshot: False
        )
        starting = LocatedModel("starter", starter, CACHED, fallback=True)
        assert found == MissingModel(CACHED, cached_snapshot(cache, CACHED), starting)

    def test_the_automatic_choice_where_it_is_cached(self, cache: Path, starter: Path) -> None:
        found = self.locate("auto", cache, starter, gib=4, fallback=True)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.fallback) == (CACHED, False)

    def test_the_starter_stands_in_for_a_choice_that_is_not_here(
        self, cache: Path, starter: Path
    ) -> None:
        chosen = "Qwen/Qwen2.5-3B-Instruct"
        found = self.locate("auto", cache.parent / "none", starter, gib=16, fallback=True)
        assert found == MissingModel(chosen, None, LocatedModel("starter", starter, chosen, True))

    def test_or_a_larger_one_that_is(self, cache: Path, starter: Path) -> None:
        chosen, snapshot = "Qwen/Qwen2.5-3B-Instruct", cached_snapshot(cache, CACHED)
        assert snapshot is not None
        found = self.locate("auto", cache, starter, gib=16, fallback=True)
        assert found == MissingModel(chosen, None, LocatedModel(CACHED, snapshot, chosen, True))

    @pytest.mark.parametrize(
        ("options", "chosen"),
        [({"permissive": True}, "qwen3-4b"), ({"gpu_memory": 24 * GIB}, "7B")],
    )
    def test_licence_and_gpu_count_where_memory_chooses(
        self, cache: Path, starter: Path, options: dict[str, Any], chosen: str
    ) -> None:
        def located(wanted: str) -> LocatedModel | MissingModel | NotAvailable:
            return locate_model(
                *(wanted, 16 * GIB, cache, starter),
                fallback=False,
                is_whole=lambda snapshot: True,
                **options,
            )

        assert located("auto") == MissingModel(model_id_of(chosen))
        assert located("3B") == MissingModel(model_id_of("3B"))
        assert hub_model("auto", 16 * GIB, **options) == model_id_of(chosen)
        assert hub_model("3B", 16 * GIB, **options) == model_id_of("3B")

    def test_and_where_memory_is_too_little_for_any(self, cache: Path, starter: Path) -> None:
        found = self.locate("auto", cache, starter, gib=1, fallback=True)
        assert isinstance(found, LocatedModel)
        assert (found.name, found.fallback) == ("starter", True)

    def test_it_does_not_where_it_may_not_or_is_not_there(self, cache: Path, starter: Path) -> None:
        missing = MissingModel("Qwen/Qwen2.5-3B-Instruct")
        assert self.locate("auto", cache, starter, gib=16) == missing
        starter.rmdir()
        empty = cache.parent / "none"
        assert self.locate("auto", empty, starter, gib=16, fallback=True) == missing

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


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShammahError, match=r"no config\.json"):
        check_local(str(tmp_path), {})
    with pytest.raises(ShammahError, match="no such directory"):
        check_local(str(tmp_path / "nowhere"), {})
    (tmp_path / "config.json").write_text("{}")
    check_local(str(tmp_path), {})
    for named in ("auto", "starter", "3B", "owner/name"):
        check_local(named, {})


def test_what_is_ones_own_is_not_to_be_fetched_again(tmp_path: Path) -> None:
    for wanted, hint in ((str(tmp_path), f"Correct it in {tmp_path}, "), (CACHED, FETCH_AGAIN)):
        with (
            pytest.raises(ShammahError) as told,
            followable_hints(LocatedModel("m", tmp_path, wanted)),
        ):
            raise ShammahError("model_corrupt", "It is damaged.", FETCH_AGAIN)
        assert told.value.hint.startswith(hint)
