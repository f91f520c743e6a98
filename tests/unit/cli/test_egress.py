"""The ledger: whole lines in any case, and money that adds up."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shammah.cli import egress
from shammah.cli.egress import describe_ledger, describe_sent
from shammah.cli.main import run as shammah
from shammah.errors import ExitCode, ShammahError
from shammah.privacy.ledger import (
    UNKNOWN,
    Ledger,
    Outcome,
    Reader,
    Sent,
    day_totals,
    read_ledger,
    verify_ledger,
)
from tests.fakes.command import run

DAY_S = 86400.0
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()


class Wall:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def wall() -> Wall:
    return Wall()


@pytest.fixture
def ledger(tmp_path: Path, wall: Wall) -> Ledger:
    return Ledger(tmp_path / "home", wall)


def sent(record_id: str = "a", **fields: Any) -> Sent:
    values: dict[str, Any] = {
        "time": "",
        "request_id": "r1",
        "attempt": 1,
        "scheme": "https",
        "model": "m",
        "host": "api.example",
        "path": "/v1/messages",
        "bytes": 1234,
        "sha256": "ab" * 32,
        "most": 0.5,
        **fields,
    }
    return Sent(record_id, **values)


ANSWERED = Outcome("answered", 200, 100, 20, 0.25)


def test_a_request_and_its_outcome_are_one_entry(ledger: Ledger) -> None:
    ledger.write_sent(sent())
    ((one,), damaged) = read_ledger(ledger.path.parent)
    assert (one.outcome, one.time, damaged) == (UNKNOWN, "2026-11-24T12:00:00.000Z", 0)
    ledger.write_outcome("a", ANSWERED)
    ((one,), _) = read_ledger(ledger.path.parent)
    assert (one.outcome, one.status, one.input_tokens, one.cost) == ("answered", 200, 100, 0.25)
    assert one.bytes == 1234


def test_nobody_else_can_read_it(ledger: Ledger) -> None:
    before = os.umask(0)
    try:
        ledger.write_sent(sent())
    finally:
        os.umask(before)
    assert stat.S_IMODE(ledger.path.stat().st_mode) == 0o600


def test_without_a_file_nothing_was_sent(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) == ([], 0)
    assert Ledger(tmp_path).spent_today() == 0.0


def _full(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))


def _directory(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.path.mkdir(parents=True)


def _link(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.path.parent.mkdir()
    ledger.path.symlink_to(ledger.path.with_name("elsewhere"))


@pytest.mark.parametrize("spoil", [_full, _directory, _link])
def test_what_cannot_be_written_is_refused_with_a_reason(
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Ledger, pytest.MonkeyPatch], None],
) -> None:
    spoil(ledger, monkeypatch)
    with pytest.raises(ShammahError, match="nothing was sent") as refused:
        ledger.write_sent(sent())
    assert refused.value.code == "egress_unwritable"


def test_a_full_disk_leaves_no_half_line(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.write_sent(sent("a"))
    with monkeypatch.context() as patch:
        _full(ledger, patch)
        with pytest.raises(ShammahError):
            ledger.write_sent(sent("b"))
    ledger.write_sent(sent("c"))
    entries, damaged = read_ledger(ledger.path.parent)
    assert ([one.id for one in entries], damaged) == (["a", "c"], 0)


def test_a_torn_line_harms_no_other(ledger: Ledger) -> None:
    """A crash of the machine in the midst of a line."""
    ledger.write_sent(sent("a"))
    with open(ledger.path, "ab") as file:
        file.write(b'{"type": "request", "id": "b", "ti')
    assert [one.id for one in read_ledger(ledger.path.parent)[0]] == ["a"]
    ledger.write_sent(sent("c"))
    entries, damaged = read_ledger(ledger.path.parent)
    assert ([one.id for one in entries], damaged) == (["a", "c"], 1)


@pytest.mark.parametrize(
    "line",
    [
        *("5", "null", "[]", "{}", "\xff", '{"type": "request"}', "{"),
        *('{"type": "outcome", "id": "zzz"}', '{"type": 1}', '{"type": "request", "bytes": "x"}'),
        json.dumps({"type": "outcome", "id": "a", "outcome": 5, "status": "x"}),
    ],
)
def test_a_line_that_is_none_of_ours(ledger: Ledger, line: str) -> None:
    ledger.write_sent(sent("a"))
    with open(ledger.path, "ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    entries, damaged = read_ledger(ledger.path.parent)
    assert ([(one.id, one.outcome) for one in entries], damaged) == ([("a", UNKNOWN)], 1)


def test_many_processes_write_whole_lines(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.unit.cli.test_egress import *\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for n in range(15): ledger.write_sent(sent(f'{sys.argv[2]}-{n}', path='/' + 'x' * 3000))"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    running = [subprocess.Popen([*command, str(number)]) for number in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    entries, damaged = read_ledger(tmp_path)
    assert damaged == 0
    assert {one.id for one in entries} == {f"{p}-{n}" for p in range(4) for n in range(15)}
    report = verify_ledger(tmp_path).report
    assert (report.damage, report.links, report.behind) == ((), 60, 0)


def test_following_reads_only_what_is_new_and_half_lines_later(ledger: Ledger) -> None:
    ledger.write_sent(sent("a"))
    reader = Reader(ledger.path)
    assert [one.id for one in reader.read()] == ["a"]
    assert list(reader.read()) == []
    ledger.write_outcome("a", ANSWERED)
    with open(ledger.path, "rb+") as file:
        whole = file.read()
        file.truncate(len(whole) - 5)
    assert list(reader.read()) == []
    ledger.path.write_bytes(whole)
    assert [one.outcome for one in reader.read()] == ["answered"]


# --- money ----------------------------------------------------------------------------------


def test_what_is_not_known_counts_with_the_most_it_can_be(ledger: Ledger) -> None:
    ledger.write_sent(sent("a"))
    assert ledger.spent_today() == 0.5
    ledger.write_outcome("a", ANSWERED)
    assert ledger.spent_today() == 0.25
    ledger.write_sent(sent("b", most=None))
    ledger.write_outcome("b", Outcome("cloud_overloaded", 529))
    assert ledger.spent_today() == 0.25


def test_every_day_has_its_own_money(ledger: Ledger, wall: Wall) -> None:
    ledger.write_sent(sent("a"))
    wall.now += DAY_S
    assert ledger.spent_today() == 0.0
    ledger.write_outcome("a", ANSWERED)  # it counts for the day on which it was asked
    assert ledger.spent_today() == 0.0
    ledger.write_sent(sent("b"))
    assert ledger.spent_today() == 0.5


def test_others_spend_too(ledger: Ledger, wall: Wall) -> None:
    ledger.write_sent(sent("a"))
    other = Ledger(ledger.path.parent, wall)
    other.write_sent(sent("b"))
    assert ledger.spent_today() == other.spent_today() == 1.0


def test_a_ledger_that_was_thrown_away_does_not_give_the_money_back(ledger: Ledger) -> None:
    ledger.write_sent(sent("a"))
    assert ledger.spent_today() == 0.5
    ledger.path.unlink()
    assert ledger.spent_today() == 0.5
    ledger.write_sent(sent("b"))
    assert ledger.spent_today() >= 0.5


# --- shown ----------------------------------------------------------------------------------


def entries() -> list[Sent]:
    first = sent("a", time="2026-11-23T09:15:02.123Z", outcome="answered", input_tokens=1100)
    return [
        sent("x", time="2026-11-23T09:15:00.123Z", outcome="cloud_overloaded", cost=0.0),
        Sent(**{**_fields(first), "attempt": 2, "output_tokens": 20, "cost": 0.0021}),
        sent("b", time="2026-11-24T00:00:00.000Z", outcome="answered", input_tokens=5),
    ]


def _fields(one: Sent) -> dict[str, Any]:
    return {name: getattr(one, name) for name in Sent.__slots__}


def test_lines_and_totals_by_day() -> None:
    assert list(describe_ledger(entries())) == [
        "2026-11-23 09:15:00  https://api.example/v1/messages  m  1,234 bytes  "
        "sha256 abababababab  cloud_overloaded  $0.00",
        "2026-11-23 09:15:02  https://api.example/v1/messages  m  1,234 bytes  "
        "sha256 abababababab  answered (attempt 2)  1,100 + 20 tokens  $0.0021",
        "2026-11-23 total: 2 requests, 2,468 bytes, 1,100 + 20 tokens, $0.0021",
        "2026-11-24 00:00:00  https://api.example/v1/messages  m  1,234 bytes  "
        "sha256 abababababab  answered  5 + 0 tokens",
        "2026-11-24 total: 1 request, 1,234 bytes, 5 + 0 tokens, $0.00 and 1 of unknown price",
    ]


def test_escape_sequences_of_a_server_are_not_shown() -> None:
    assert "\x1b" not in describe_sent(sent(time="2026-11-24T00:00:00Z", path="/\x1b[31m"))


def test_a_server_of_ones_own_is_named() -> None:
    assert "box: m" in describe_sent(sent(time="2026-11-24T00:00:00Z", server="box"))


def test_a_line_of_before_there_were_servers_is_read(ledger: Ledger) -> None:
    ledger.write_sent(sent())
    line = json.loads(ledger.path.read_text())
    del line["server"]
    ledger.path.write_text(json.dumps(line) + "\n")
    ((one,), damaged) = read_ledger(ledger.path.parent)
    assert (one.server, damaged) == ("", 0)


def test_totals_keep_days_apart() -> None:
    assert [(total.day, total.requests) for total in day_totals(entries())] == [
        ("2026-11-23", 2),
        ("2026-11-24", 1),
    ]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path))
    assert run("egress").out == "Nothing you wrote has left this machine.\n"
    ledger = Ledger(tmp_path, lambda: NOON)
    ledger.write_sent(sent("a"))
    ledger.write_outcome("a", ANSWERED)
    shown = run("egress").out.splitlines()
    assert shown[0].startswith("2026-11-24 12:00:00  https://api.example/v1/messages")
    assert shown[1].startswith("2026-11-24 total: 1 request")
    assert run("egress", "--since", "2026-11-25").out == (
        "Nothing you wrote has left this machine in this period.\n"
    )
    documents = [json.loads(line) for line in run("egress", "--json").out.splitlines()]
    assert [document["type"] for document in documents] == ["request", "day"]
    assert documents[0]["sha256"] == "ab" * 32
    assert documents[1]["cost"] == 0.25
    refused = run("egress", "--since", "soon")
    assert (refused.code, "Use an age" in refused.err) == (2, True)


def test_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path))
    ledger = Ledger(tmp_path, lambda: NOON)
    steps = [lambda: ledger.write_sent(sent("a")), lambda: ledger.write_outcome("a", ANSWERED)]

    def sleep(_seconds: float) -> None:
        if not steps:
            raise KeyboardInterrupt
        steps.pop(0)()

    monkeypatch.setattr(egress.time, "sleep", sleep)
    assert shammah(["egress", "--follow"]) == ExitCode.INTERRUPTED
    first, second = capsys.readouterr().out.splitlines()
    assert UNKNOWN in first
    assert "answered" in second


def test_tokens_of_the_cache_are_shown_and_summed(ledger: Ledger) -> None:
    ledger.write_sent(sent())
    ledger.write_outcome("a", replace(ANSWERED, reused_tokens=60, written_tokens=30))
    one, total = describe_ledger(read_ledger(ledger.path.parent)[0])
    assert "100 + 20 tokens (60 read from the cache, 30 written)" in one
    assert "100 + 20 tokens (60 read from the cache, 30 written)" in total


def test_a_line_of_before_the_cache_can_be_read(ledger: Ledger) -> None:
    ledger.write_sent(sent())
    ledger.write_outcome("a", ANSWERED)
    old = ledger.path.read_text().replace(', "reused_tokens": 0, "written_tokens": 0', "")
    ledger.path.write_text(old)
    ((one,), damaged) = read_ledger(ledger.path.parent)
    assert (one.outcome, one.reused_tokens, damaged) == ("answered", 0, 0)


# --- verified -------------------------------------------------------------------------------


@pytest.fixture
def verify(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[str]]]:
    """Run the command; its status and what it prints."""
    monkeypatch.setenv("SHAMMAH_HOME", str(ledger.path.parent))

    def run_command(*arguments: str) -> tuple[int, list[str]]:
        code = shammah(["egress", "--verify", *arguments])
        return code, "".join(capsys.readouterr()).splitlines()

    return run_command


def test_a_whole_ledger(ledger: Ledger, verify: Callable[..., tuple[int, list[str]]]) -> None:
    assert verify() == (0, ["Nothing was sent to the cloud."])
    ledger.write_sent(sent("a"))
    ledger.write_outcome("a", ANSWERED)
    digest = hashlib.sha256(ledger.path.read_bytes().splitlines(keepends=True)[1]).hexdigest()
    whole = ["The ledger is whole: 2 lines.", f"Head: line 2 of the chain, {digest}"]
    assert verify() == (0, whole)
    ledger.write_sent(sent("b"))
    assert verify("--head", digest)[0] == verify("--head", digest[:16].upper())[0] == 0
    code, lines = verify("--head", "0" * 16)
    assert (code, lines[1].strip()) == (
        1,
        "No line has the hash that was given: that line was changed or removed.",
    )
    for arguments in (["--head", "x"], ["--follow"], ["--since", "7d"]):
        assert verify(*arguments)[0] == ExitCode.USAGE


def test_an_altered_ledger_is_read_all_the_same(
    ledger: Ledger, verify: Callable[..., tuple[int, list[str]]]
) -> None:
    for name in "abcd":
        ledger.write_sent(sent(name))
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b"1234", b"1")
    ledger.path.write_bytes(b"".join(lines[:3]))
    code, said = verify()
    assert code == ExitCode.FAILED
    assert said[:3] == [
        "The ledger is not as it was written:",
        "  Line 2 was changed.",
        "  1 line was removed at the end.",
    ]
    code, [document] = verify("--json")
    found = json.loads(document)
    assert (code, found["whole"], found["lines"]) == (1, False, 3)
    assert found["damage"] == [
        {"kind": "changed", "file": "egress.jsonl", "line": 2, "count": 1},
        {"kind": "removed", "file": "egress.jsonl", "line": 3, "count": 1},
    ]
    assert [one.bytes for one in read_ledger(ledger.path.parent)[0]] == [1234, 1, 1234]
    assert ledger.spent_today() == 1.5
    ledger.write_sent(sent("e"))
    code, said = verify()
    assert said[1:4] == [
        "  Line 2 was changed.",
        "  1 line was removed behind line 3.",
        "What stands from line 4 on is proven by the head; what stands before is not.",
    ]


def test_a_rotated_ledger_is_whole_with_its_parts(
    ledger: Ledger, verify: Callable[..., tuple[int, list[str]]]
) -> None:
    ledger.write_sent(sent("a"))
    ledger.write_sent(sent("b"))
    rotated = ledger.path.rename(ledger.path.with_name("egress.jsonl.1"))
    ledger.write_sent(sent("c"))
    code, said = verify()
    assert (code, said[0]) == (0, "The ledger is whole: 3 lines.")
    rotated.write_bytes(rotated.read_bytes().replace(b"1234", b"1235", 1))
    assert "  Line 1 of egress.jsonl.1 was changed." in verify()[1]
    rotated.unlink()
    code, said = verify()
    assert (code, said[1][:44]) == (1, "  The first 2 lines of the chain were remove")
