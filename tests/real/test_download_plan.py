"""What a plan asks of a Hub: the listing and config.json, verified, and never a byte of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shammah.errors import ShammahError
from tests.fakes.sandbox import until
from tests.real.test_download_faults import FILES, LATER, MODEL, TOTAL, WEIGHTS, Setup
from tests.real.test_download_faults import _quiet_library as _quiet_library
from tests.real.test_download_faults import make as make
from tests.real.test_download_faults import setup as setup
from workers.download.config_text import LIMIT_BYTES
from workers.download.downloads import Downloads
from workers.download.limits import Limits
from workers.download.rates import LEAST_BYTES, Rates

pytestmark = pytest.mark.timeout(240)

CONFIG = FILES["config.json"].decode()


def test_only_the_configuration_is_fetched(setup: Setup) -> None:
    plan = setup.downloads().plan(MODEL)
    assert (plan.total, plan.missing, plan.licence) == (TOTAL, TOTAL, "apache-2.0")
    assert plan.config == CONFIG
    until(lambda: setup.hub.sent == {"config.json": len(CONFIG)}, "the server has counted it")
    assert [asked.path for asked in setup.hub.asked] == ["revision", "tree", "config.json"]
    assert not setup.cache.exists()


def test_of_a_whole_model_nobody_is_asked(setup: Setup) -> None:
    setup.arrives()
    asked = len(setup.hub.asked)
    plan = setup.downloads().plan(MODEL)
    assert (plan.missing, plan.licence, plan.config) == (0, "apache-2.0", CONFIG)
    assert len(setup.hub.asked) == asked


def test_unless_to_update(setup: Setup) -> None:
    setup.arrives()
    moved = setup.hub.publish({**FILES, WEIGHTS: FILES[WEIGHTS][::-1]})
    plan = setup.downloads().plan(MODEL, update=True)
    assert (plan.revision, plan.missing) == (moved, len(FILES[WEIGHTS]))
    assert plan.config == CONFIG


def test_a_configuration_that_is_here_is_not_fetched(setup: Setup) -> None:
    setup.arrives()
    setup.hub.publish({**FILES, WEIGHTS: b"other"})
    setup.hub.sent.clear()
    assert setup.downloads().plan(MODEL, update=True).config == CONFIG
    assert setup.hub.sent_bytes == 0


def test_unless_it_is_damaged(setup: Setup) -> None:
    snapshot = setup.arrives()
    (snapshot / "config.json").resolve().write_text(CONFIG.replace("{", "["))
    assert setup.downloads().plan(MODEL).config == CONFIG


def test_what_has_arrived_counts(setup: Setup) -> None:
    # One connection: the small files come first, and all of them before the one that fails.
    setup.hub.fault(WEIGHTS, "status", status=404, times=None)
    setup.fails("hub_error", connections=1)
    setup.hub.heal()
    plan = setup.downloads().plan(MODEL)
    assert plan.missing == len(FILES[WEIGHTS])
    assert {file.path: file.held for file in plan.files}[WEIGHTS] == 0


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("corrupt", {"at": 3}),
        ("length", {"at": 1000}),
        ("length", {"at": -3}),
        ("status", {"status": 404}),
        ("status", {"status": 503}),
        ("reset", {"at": 5}),
        ("truncate", {"at": 5}),
        ("stall", {"at": 5}),
        ("silent", {}),
    ],
)
def test_a_configuration_that_cannot_be_had_is_empty(
    setup: Setup, kind: str, how: dict[str, int]
) -> None:
    setup.hub.fault("config.json", kind, times=None, **how)
    limits = LATER if kind in ("stall", "silent") else {}
    plan = setup.downloads(**limits).plan(MODEL)
    assert (plan.missing, plan.config) == (TOTAL, "")


def test_a_hub_that_falters_is_asked_again(setup: Setup) -> None:
    setup.hub.fault("config.json", "status", status=503)
    assert setup.downloads().plan(MODEL).config == CONFIG


def test_a_very_long_configuration_is_not_fetched(make: Callable[..., Setup]) -> None:
    setup = make({**FILES, "config.json": b" " * (LIMIT_BYTES + 1)})
    assert setup.downloads().plan(MODEL).config == ""
    assert setup.hub.sent_bytes == 0


def test_from_storage_and_without_the_token(make: Callable[..., Setup]) -> None:
    setup = make(redirect=True, large_from=1, token="secret")
    assert setup.downloads(token="secret").plan(MODEL).config == CONFIG
    fetched = [asked for asked in setup.hub.asked if asked.origin == "storage"]
    assert [(asked.path, asked.authorization) for asked in fetched] == [("cdn/config.json", "")]


def test_a_gated_model_is_refused(make: Callable[..., Setup]) -> None:
    setup = make(token="secret")
    with pytest.raises(ShammahError) as refusal:
        setup.downloads().plan(MODEL)
    assert refusal.value.code == "model_gated"


# --- the rate -----------------------------------------------------------------------------


@pytest.fixture
def rates(tmp_path: Path) -> Rates:
    return Rates(tmp_path / "download-rate.json")


def downloads(setup: Setup, rates: Rates) -> Downloads:
    limits = Limits(segment_bytes=65_536, disk_reserve=0)
    made = Downloads(setup.cache, limits, endpoint=setup.hub.endpoint, token=False, rates=rates)
    setup.at_end.append(made.close)
    return made


def test_the_rate_of_a_download_is_remembered(make: Callable[..., Setup], rates: Rates) -> None:
    setup = make({**FILES, WEIGHTS: bytes(LEAST_BYTES + 2**20)}, rate=4e6)
    made = downloads(setup, rates)
    assert made.last_rate == 0.0
    made.fetch(MODEL)
    # Eight connections of 4 MB/s at the most, on a machine that may be busy.
    assert 1e5 < made.last_rate < 64e6
    assert rates.last(setup.hub.endpoint) == made.last_rate


def test_that_of_a_small_one_is_not(setup: Setup, rates: Rates) -> None:
    made = downloads(setup, rates)
    made.fetch(MODEL)
    assert made.last_rate == 0.0
