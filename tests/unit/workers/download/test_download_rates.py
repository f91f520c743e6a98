"""The rate of the last download: measured without pauses, remembered for each Hub."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from shammah.bus.transfers import Transfer
from tests.unit.workers.download.test_download_progress import FILES, Clock
from workers.download.progress import Meter
from workers.download.rates import LEAST_BYTES, Rates

HUB, MIRROR = "https://huggingface.co", "http://127.0.0.1:8080"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "download-rate.json"


class TestWhatIsRemembered:
    def test_the_last_rate_of_each_hub(self, path: Path) -> None:
        rates = Rates(path)
        assert rates.last(HUB) == 0.0
        rates.record(HUB, 2 * LEAST_BYTES, 4.0)
        rates.record(MIRROR, LEAST_BYTES, 1.0)
        rates.record(HUB, LEAST_BYTES, 4.0)
        assert Rates(path).last(HUB) == LEAST_BYTES / 4
        assert Rates(path).last(MIRROR) == LEAST_BYTES

    def test_the_file_is_for_its_owner_alone(self, path: Path) -> None:
        Rates(path).record(HUB, LEAST_BYTES, 1.0)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.parametrize(("received", "seconds"), [(LEAST_BYTES - 1, 1.0), (LEAST_BYTES, 0.0)])
    def test_what_tells_nothing_is_not_kept(
        self, path: Path, received: int, seconds: float
    ) -> None:
        Rates(path).record(HUB, received, seconds)
        assert not path.exists()

    def test_a_hub_is_known_by_its_origin_and_no_secret_is_written(self, path: Path) -> None:
        Rates(path).record("https://user:secret@hub.example/path", LEAST_BYTES, 1.0)
        assert "secret" not in path.read_text()
        assert Rates(path).last("https://hub.example") == LEAST_BYTES

    @pytest.mark.parametrize(
        "text", ["", "[]", "3", "{", '{"https://huggingface.co": "fast"}', "[" * 100_000, "\0"]
    )
    def test_a_file_that_makes_no_sense_is_written_anew(self, path: Path, text: str) -> None:
        path.parent.mkdir()
        path.write_text(text)
        assert Rates(path).last(HUB) == 0.0
        Rates(path).record(HUB, LEAST_BYTES, 2.0)
        assert json.loads(path.read_text()) == {HUB: LEAST_BYTES / 2}

    @pytest.mark.parametrize("rate", ["NaN", "Infinity", "-1.0", "0.0", "true", "1e999"])
    def test_a_rate_that_is_none(self, path: Path, rate: str) -> None:
        path.parent.mkdir()
        path.write_text(f'{{"{HUB}": {rate}}}')
        assert Rates(path).last(HUB) == 0.0

    def test_a_home_that_cannot_be_written_is_no_failure(self, path: Path) -> None:
        path.parent.write_text("a file where the home should be")
        Rates(path).record(HUB, LEAST_BYTES, 1.0)
        assert Rates(path).last(HUB) == 0.0


class Watched:
    """A meter of a download that is expected to bring 10 bytes a second."""

    def __init__(self, expected: float = 10.0) -> None:
        self.clock = Clock()
        self.seen: list[Transfer] = []
        self.meter = Meter(
            "acme/tiny", "c" * 40, FILES, self.seen.append, self.clock, expected=expected
        )

    def receive(self, count: int, after_s: float) -> None:
        self.clock.now_s += after_s
        self.meter.add("a", count, count)


class TestWhatIsMeasured:
    def test_from_the_first_bytes_to_the_last(self) -> None:
        watched = Watched()
        watched.receive(100, after_s=30.0)  # hashing what was here, waiting for the first
        watched.receive(200, after_s=1.0)
        watched.receive(300, after_s=1.5)
        assert watched.meter.flow() == (500, 2.5)

    def test_a_pause_does_not_count(self) -> None:
        watched = Watched()
        watched.receive(100, after_s=1.0)
        watched.receive(200, after_s=1.0)
        watched.clock.now_s += 3600
        watched.meter.resumed()
        watched.receive(300, after_s=5.0)
        watched.receive(50, after_s=0.5)
        assert watched.meter.flow() == (250, 1.5)

    def test_what_was_here_already_does_not_count(self) -> None:
        watched = Watched()
        watched.meter.add("a", 500)
        watched.clock.now_s += 1.0
        watched.meter.add("a", 100)
        assert watched.meter.flow() == (0, 0.0)


class TestTheFirstEstimate:
    def test_reckons_with_the_last_rate_until_bytes_arrive(self) -> None:
        watched = Watched()
        watched.meter.tick()
        assert watched.seen[-1].eta_s == 105.0  # 1,050 bytes
        assert watched.seen[-1].rate == 0.0
        watched.receive(50, after_s=1.0)
        assert watched.seen[-1].eta_s == 20.0

    def test_is_none_without_one(self) -> None:
        watched = Watched(expected=0.0)
        watched.meter.tick()
        assert watched.seen[-1].eta_s is None
