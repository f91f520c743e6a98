"""One grammar of points in time, for every command that takes one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shammah.cli.since import parse_since
from shammah.errors import ShammahError
from shammah.privacy.ledger import Ledger
from tests.fakes.command import run
from tests.unit.cli.test_egress import sent

NOW = datetime(2026, 11, 24, 12, 0, 30, tzinfo=UTC).timestamp()


@pytest.fixture(autouse=True)
def in_bangkok(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seven hours before UTC, all year."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "XXX-7")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "ago"),
    [("90s", 90), ("10m", 600), ("2h", 7200), ("7d", 604_800), ("2w", 1_209_600), ("0s", 0)],
)
@pytest.mark.parametrize("utc", [False, True])
def test_a_span(text: str, ago: int, utc: bool) -> None:
    assert parse_since(text, NOW, utc=utc) == NOW - ago


@pytest.mark.parametrize(
    ("text", "in_utc", "local"),
    [
        ("12:00", "2026-11-24T12:00", "2026-11-24T05:00"),
        ("12:00:30", "2026-11-24T12:00:30", "2026-11-24T05:00:30"),
        ("12:01", "2026-11-23T12:01", "2026-11-24T05:01"),  # no time of day lies ahead
        ("19:30", "2026-11-23T19:30", "2026-11-23T12:30"),
        ("2026-11-01", "2026-11-01", "2026-10-31T17:00"),
        ("2026-11-01T08:30", "2026-11-01T08:30", "2026-11-01T01:30"),
        ("2026-11-01 08:30", "2026-11-01T08:30", "2026-11-01T01:30"),
        ("2026-11-01T08:30Z", "2026-11-01T08:30", "2026-11-01T08:30"),
        ("999999w", "1970-01-01", "1970-01-01"),
    ],
)
def test_a_clock_and_a_date(text: str, in_utc: str, local: str) -> None:
    for utc, wanted in ((True, in_utc), (False, local)):
        found = datetime.fromtimestamp(parse_since(text, NOW, utc=utc), UTC)
        assert found == datetime.fromisoformat(wanted).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "7", "d", "10 m", "-5m", "-1d", "25:00", "12:60", "2026-13-01", "yesterday"]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ShammahError) as refused:
        parse_since(text, NOW)
    assert refused.value.code == "usage"


@pytest.mark.parametrize(
    "command",
    [("status", "--once", "--since"), ("egress", "--since"), ("history", "rm", "--before")],
)
def test_every_command_takes_every_form(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path))
    for form in ("90s", "10m", "2h", "7d", "2w", "14:30", "2026-11-24"):
        assert run(*command, form).code == 0, form
    refused = run(*command, "soon")
    assert (refused.code, "90s, 10m, 2h, 7d, 2w" in refused.err) == (2, True)


def test_the_ledger_has_the_days_and_the_clock_of_utc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path))
    Ledger(tmp_path, lambda: NOW).write_sent(sent("a"))
    shown = run("egress", "--json", "--since", "2026-11-24").out.splitlines()
    assert json.loads(shown[0])["time"].startswith("2026-11-24T12:00:30")
    assert not run("egress", "--json", "--since", "2026-11-24T12:01").out
