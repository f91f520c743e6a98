"""The store of adapters: what is there, what serves, what served before."""

from __future__ import annotations

import json
import stat
import threading
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from shammah.learning.adapters import (
    ACCEPTED,
    CONFIG,
    REFUSED,
    WEIGHTS,
    AdapterEntry,
    AdapterStore,
    digest_of,
)


def fill(directory: Path, text: str = "weights") -> None:
    (directory / CONFIG).write_text("{}")
    (directory / WEIGHTS).write_text(text)


def add(
    store: AdapterStore, name: str, base: str = "starter", verdict: str = ACCEPTED
) -> AdapterEntry:
    entry = AdapterEntry(
        name,
        Path(),
        base,
        "r1",
        f"2026-11-25T10:00:{len(store.entries()):02}Z",
        training={"rank": 16},
        gate={"loss": [2.0, 1.0]},
        verdict=verdict,
    )
    return store.add(entry, lambda directory: fill(directory, name))


@pytest.fixture
def store(tmp_path: Path) -> AdapterStore:
    return AdapterStore(tmp_path / "home")


def test_an_empty_home_has_no_adapters(store: AdapterStore) -> None:
    assert store.entries() == ()
    assert store.active("starter") is None
    assert not store.directory.exists()


def test_what_was_added_is_read_again(store: AdapterStore) -> None:
    made = add(store, "tidy")
    assert store.get("tidy") == made == store.entries()[0]
    assert made.training == {"rank": 16}
    assert made.gate == {"loss": [2.0, 1.0]}
    assert made.digest == digest_of(made.directory / WEIGHTS)
    assert json.loads((made.directory / "shammah.json").read_text())["name"] == "tidy"


def test_everything_is_the_owners_alone(store: AdapterStore) -> None:
    made = add(store, "tidy")
    store.use("tidy")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in store.directory.rglob("*")}
    assert modes.pop(made.directory) == 0o700
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(store.directory.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "name", ["base", "auto", "off", "service.json", "", "../x", "Ä", ".new", "a/b", "a" * 65]
)
def test_a_name_that_cannot_be_one_is_refused(store: AdapterStore, name: str) -> None:
    with pytest.raises(ShammahError, match="cannot be the name"):
        add(store, name)


def test_a_name_is_not_given_twice(store: AdapterStore) -> None:
    add(store, "tidy")
    with pytest.raises(ShammahError, match="There is an adapter tidy already") as told:
        add(store, "tidy")
    assert "`shammah adapters use tidy` uses it" in told.value.hint


def test_half_an_adapter_is_none(store: AdapterStore) -> None:
    with pytest.raises(ShammahError, match="adapter_model"):
        store.add(AdapterEntry("half", Path(), "starter"), lambda d: fill_half(d))
    assert store.entries() == ()
    assert list(store.directory.iterdir()) == []


def fill_half(directory: Path) -> None:
    (directory / CONFIG).write_text("{}")


def test_a_failure_while_it_is_written_leaves_nothing(store: AdapterStore) -> None:
    def fail(directory: Path) -> None:
        fill(directory)
        raise OSError(28, "No space left on device")

    with pytest.raises(ShammahError, match="No space left"):
        store.add(AdapterEntry("full", Path(), "starter"), fail)
    assert list(store.directory.iterdir()) == []


def test_the_one_in_service_is_of_its_base_model_alone(store: AdapterStore) -> None:
    add(store, "tidy")
    store.use("tidy")
    found = store.active("starter")
    assert found is not None
    assert found.name == "tidy"
    assert store.active("other/model") is None
    assert store.active("starter", "r1") == found
    assert store.active("starter", "r2") is None


@pytest.mark.parametrize("verdict", [REFUSED, "unjudged"])
def test_only_what_was_accepted_serves_unless_forced(store: AdapterStore, verdict: str) -> None:
    add(store, "poison", verdict=verdict)
    with pytest.raises(ShammahError, match="so it does not serve"):
        store.use("poison")
    assert store.active("starter") is None
    store.use("poison", force=True)
    assert store.active("starter") is not None


def test_rollback_goes_back_step_by_step(store: AdapterStore) -> None:
    add(store, "one")
    add(store, "two")
    for name in ("one", "two", "two"):
        store.use(name)
    store.use_base("starter")
    assert store.active("starter") is None
    served = [store.rollback("starter") for _ in range(3)]
    assert [entry and entry.name for entry in served] == ["two", "one", None]
    with pytest.raises(ShammahError, match="Nothing served"):
        store.rollback("starter")


def test_one_that_serves_is_not_removed(store: AdapterStore) -> None:
    add(store, "one")
    add(store, "two")
    store.use("one")
    store.use("two")
    with pytest.raises(ShammahError, match="serves starter"):
        store.remove("two")
    store.remove("one")
    assert [entry.name for entry in store.entries()] == ["two"]
    assert store.rollback("starter") is None
    assert [p.name for p in store.directory.iterdir() if "old" in p.name] == []


def test_a_damaged_table_means_that_nothing_serves(store: AdapterStore) -> None:
    add(store, "one")
    store.use("one")
    for text in ("", "[]", '{"models": {"starter": []}}', '{"models": {"starter": [1]}}', "\xff"):
        (store.directory / "service.json").write_text(text, "latin-1")
        assert store.active("starter") is None
    store.use("one")
    assert store.active("starter") is not None


def test_damaged_facts_make_no_entry(store: AdapterStore) -> None:
    made = add(store, "one")
    (made.directory / "shammah.json").write_text('{"base_model": 1}')
    assert store.entries() == ()
    with pytest.raises(ShammahError, match=r"There is no adapter 'one'\. There are none yet"):
        store.get("one")


def test_several_writers_lose_nothing(store: AdapterStore) -> None:
    for number in range(8):
        add(store, f"a{number}", base=f"model{number}")
    threads = [threading.Thread(target=store.use, args=(f"a{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.served_models()) == 8
