"""One GGUF file of a repository that holds many: fetched alone, checked alone, removed alone."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download

from shammah.errors import ShammahError
from tests.real.test_download_faults import FILES, MODEL, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from workers.download import cache as caches
from workers.manifest import is_complete

pytestmark = pytest.mark.timeout(240)

SMALL, LARGE = "tiny.Q4_K_M.gguf", "tiny.Q8_0.gguf"
PARTS = ("F16/tiny-00001-of-00002.gguf", "F16/tiny-00002-of-00002.gguf")
GGUFS = {
    name: random.Random(name).randbytes(70_000 + 1000 * index)
    for index, name in enumerate((SMALL, LARGE, *PARTS))
}


@pytest.fixture
def setup(make: Callable[..., Setup]) -> Setup:
    return make({"README.md": b"many files", **GGUFS})


def test_only_that_file_is_fetched(setup: Setup) -> None:
    path = setup.downloads().fetch(f"{MODEL}:{SMALL}")
    assert path.read_bytes() == GGUFS[SMALL]
    assert {request.path for request in setup.hub.asked} == {"revision", "tree", SMALL}
    assert is_complete(path)
    downloads = setup.downloads()
    assert downloads.complete(f"{MODEL}:{SMALL}") == path
    assert downloads.complete(f"{MODEL}:{LARGE}") is None
    assert downloads.complete(MODEL) is None, "the repository is no model that is whole"
    setup.check_blobs()


@pytest.mark.parametrize("named", PARTS)
def test_with_its_further_parts(setup: Setup, named: str) -> None:
    first = setup.downloads().fetch(f"{MODEL}:{named}")
    assert first.name == Path(PARTS[0]).name
    for part in PARTS:
        assert (first.parent.parent / part).read_bytes() == GGUFS[part]
    assert {request.path for request in setup.hub.asked} == {"revision", "tree", *PARTS}
    assert setup.downloads().complete(f"{MODEL}:{named}") == first


def test_another_one_later(setup: Setup) -> None:
    paths = [setup.downloads().fetch(f"{MODEL}:{name}") for name in (SMALL, LARGE)]
    assert all(map(is_complete, paths))
    os.truncate(paths[1].resolve(), 100)
    assert [is_complete(path) for path in paths] == [True, False]


def test_beside_safetensors(make: Callable[..., Setup]) -> None:
    setup = make({**FILES, SMALL: GGUFS[SMALL]})
    file = setup.downloads().fetch(f"{MODEL}:{SMALL}")
    assert setup.downloads().complete(MODEL) is None
    snapshot = setup.fetch()
    assert snapshot == file.parent
    assert setup.downloads().complete(MODEL) == snapshot
    assert {model.model for model in caches.list_models(setup.cache)[0]} == {
        MODEL,
        f"{MODEL}:{SMALL}",
    }


def test_a_file_that_is_not_there_comes_with_those_that_are(setup: Setup) -> None:
    with pytest.raises(ShammahError) as caught:
        setup.downloads().fetch(f"{MODEL}:gone.gguf")
    assert caught.value.code == "model_not_found"
    assert SMALL in caught.value.hint


def test_a_repository_of_gguf_files_asks_for_one(setup: Setup) -> None:
    error = setup.fails("model_unsupported")
    assert "only GGUF files" in error.message
    assert f"{MODEL}:{PARTS[0]}" in error.hint


def test_the_plan_counts_that_file(setup: Setup) -> None:
    plan = setup.downloads().plan(f"{MODEL}:{SMALL}")
    assert (plan.model, plan.total, plan.config) == (f"{MODEL}:{SMALL}", len(GGUFS[SMALL]), "")
    assert [file.path for file in plan.files] == [SMALL]
    setup.downloads().fetch(f"{MODEL}:{SMALL}")
    assert setup.downloads().plan(f"{MODEL}:{SMALL}").missing == 0


def test_damage_is_mended(setup: Setup) -> None:
    path = setup.downloads().fetch(f"{MODEL}:{SMALL}")
    blob = path.resolve()
    blob.chmod(0o600)
    blob.write_bytes(b"x" + GGUFS[SMALL][1:])
    downloads = setup.downloads()
    (bad,) = downloads.verify(f"{MODEL}:{SMALL}", hashes=True)
    assert (bad.path, bad.reason) == (SMALL, "hash")
    assert downloads.repair(f"{MODEL}:{SMALL}").snapshot == path
    assert path.read_bytes() == GGUFS[SMALL]


def test_what_another_program_has_fetched_is_taken_over(setup: Setup) -> None:
    hf_hub_download(MODEL, SMALL, cache_dir=setup.cache, endpoint=setup.hub.endpoint)
    (found,) = caches.list_models(setup.cache)[0]
    assert (found.model, found.verified) == (f"{MODEL}:{SMALL}", False)
    setup.hub.asked.clear()
    setup.downloads().fetch(f"{MODEL}:{SMALL}")
    assert SMALL not in {request.path for request in setup.hub.asked}
    (found,) = caches.list_models(setup.cache)[0]
    assert (found.size, found.verified) == (len(GGUFS[SMALL]), True)


def test_removing_one_leaves_the_other(setup: Setup) -> None:
    downloads = setup.downloads()
    small, large = (downloads.fetch(f"{MODEL}:{name}") for name in (SMALL, LARGE))
    downloads.close()
    assert caches.remove_model(setup.cache, f"{MODEL}:{SMALL}") == len(GGUFS[SMALL])
    assert not small.exists()
    assert is_complete(large)
    assert [model.model for model in caches.list_models(setup.cache)[0]] == [f"{MODEL}:{LARGE}"]
    with pytest.raises(ShammahError, match="is not in the cache"):
        caches.remove_model(setup.cache, f"{MODEL}:{SMALL}")
    assert caches.remove_model(setup.cache, f"{MODEL}:{LARGE}") == len(GGUFS[LARGE])
    assert not setup.root.exists()


def test_removing_the_repository_removes_its_files(setup: Setup) -> None:
    downloads = setup.downloads()
    downloads.fetch(f"{MODEL}:{SMALL}")
    downloads.close()
    assert caches.remove_model(setup.cache, MODEL) == len(GGUFS[SMALL])
    assert caches.list_models(setup.cache)[0] == ()
