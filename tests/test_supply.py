"""What is pinned is what was recorded: hashes, bill of materials, advisories."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
SUPPLY = ROOT / "scripts" / "supply"
REFRESH = "run scripts/record_supply.py (docs/DEVELOPING.md)"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


audit = load("audit")
check_supply = load("check_supply")


def pinned(*paths: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in paths:
        found |= audit.pins(path.read_text())
    return found


PINNED = pinned(*audit.PINNED)
LOCKS = {path.stem: path for path in SUPPLY.glob("*.lock")}


def test_every_pinned_package_is_locked_in_its_version_with_hashes() -> None:
    locked = pinned(*LOCKS.values())
    assert {name: locked.get(name) for name in PINNED} == PINNED, REFRESH
    for path in LOCKS.values():
        assert all(check_supply.recorded_hashes(path.read_text()).values()), path


def test_what_pip_cannot_check_is_torch_and_what_only_torch_brings() -> None:
    enforced = pinned(*(path for name, path in LOCKS.items() if name != "torch"))
    assert {name for name in PINNED if name not in enforced} == {"torch"}


def test_the_bill_of_materials_has_what_is_locked() -> None:
    bom = json.loads((SUPPLY / "bom.cdx.json").read_text())
    assert (bom["bomFormat"], bom["specVersion"]) == ("CycloneDX", "1.6")
    listed = {one["name"]: one["version"] for one in bom["components"]}
    assert listed == pinned(*LOCKS.values()), REFRESH
    recorded: dict[tuple[str, str], set[str]] = {}
    for path in LOCKS.values():
        recorded |= check_supply.recorded_hashes(path.read_text())
    for one in bom["components"]:
        name, version = one["name"], one["version"]
        assert one["purl"] == f"pkg:pypi/{name}@{version}"
        assert one["licenses"] or name not in PINNED, name
        [files] = one["externalReferences"]
        assert {each["content"] for each in files["hashes"]} == recorded[name, version], name


def test_no_registry_but_the_public_one_is_named() -> None:
    for path in SUPPLY.iterdir():
        assert set(re.findall(r"https?://([^/\s\"]+)", path.read_text())) <= {
            "pypi.org",
            "cyclonedx.org",
        }, path


def record(*events: dict[str, str], versions: tuple[str, ...] = ()) -> dict[str, Any]:
    affected = {
        "package": {"ecosystem": "PyPI", "name": "jinja2"},
        "versions": list(versions),
        "ranges": [{"type": "ECOSYSTEM", "events": list(events)}],
    }
    one = {"id": "PYSEC-1", "aliases": ["CVE-1"], "summary": "Planted", "affected": [affected]}
    return {
        "recorded": "2026-11-29",
        "source": "",
        "asked": {},
        "accepted": [],
        "advisories": [one],
    }


@pytest.mark.parametrize(
    ("version", "events", "affected"),
    [
        ("3.1.6", [{"introduced": "0"}, {"fixed": "3.1.7"}], True),
        ("3.1.7", [{"introduced": "0"}, {"fixed": "3.1.7"}], False),
        ("3.1.6", [{"introduced": "0"}, {"fixed": "3.1.10"}], True),
        ("3.0", [{"introduced": "3.1"}, {"fixed": "3.2"}], False),
        ("5.2", [{"introduced": "0"}, {"last_affected": "5.2"}], True),
        ("5.3", [{"introduced": "0"}, {"last_affected": "5.2"}], False),
        ("4.1", [{"introduced": "0"}, {"fixed": "3"}, {"introduced": "4"}], True),
        ("3.5", [{"introduced": "0"}, {"fixed": "3"}, {"introduced": "4"}], False),
        ("3.1.6", [{"introduced": "0"}], True),
        ("3.1.6", [], False),
    ],
)
def test_versions_are_compared_as_osv_says(
    version: str, events: list[dict[str, str]], affected: bool
) -> None:
    assert bool(list(audit.findings({"jinja2": version}, record(*events)))) is affected


def test_a_planted_advisory_is_told_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "advisories.json"
    planted.write_text(json.dumps(record({"introduced": "0"}, {"fixed": "3.1.99"})))
    monkeypatch.setattr(audit, "RECORD", planted)
    assert audit.main() == 1
    told = capsys.readouterr().out
    assert f"jinja2 {PINNED['jinja2']}: Planted (PYSEC-1, CVE-1)" in told
    assert "fixed in 3.1.99" in told
    assert "next: pin jinja2==3.1.99 or newer" in told
    assert "1 open" in told


def test_an_accepted_advisory_is_not_told_again() -> None:
    accepted = record(versions=("3.1.6",))
    assert list(audit.findings({"jinja2": "3.1.6"}, accepted))
    accepted["accepted"] = [{"ids": ["PYSEC-1"], "why": "", "looked_at": ""}]
    assert not list(audit.findings({"jinja2": "3.1.6"}, accepted))


def test_nothing_that_is_pinned_has_an_open_advisory() -> None:
    known = json.loads(audit.RECORD.read_text())
    assert list(audit.findings(PINNED, known)) == []
    assert sorted(known["asked"]) == sorted(PINNED), REFRESH


def installed(name: str, version: str, digest: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "version": version},
        "download_info": {"archive_info": {"hashes": {"sha256": digest}}},
    }


def test_another_file_under_a_recorded_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = LOCKS["torch"].read_text()
    [digest, *_] = check_supply.recorded_hashes(torch)["torch", PINNED["torch"]]
    report = tmp_path / "report.json"

    def check(version: str, digest: str) -> int:
        checkout: dict[str, Any] = {"metadata": {"name": "shammah", "version": "0"}}
        checkout["download_info"] = {"dir_info": {}}
        install = [checkout, installed("torch", version, digest)]
        report.write_text(json.dumps({"install": install}))
        result: int = check_supply.main(str(report), [str(LOCKS["torch"])])
        return result

    assert check(PINNED["torch"], digest) == 0
    assert check(PINNED["torch"], "0" * 64) == 1
    assert "another file than the recorded one: torch" in capsys.readouterr().out
    assert check(f"{PINNED['torch']}+cpu", "0" * 64) == 0
    assert "no hash is recorded: torch 2" in capsys.readouterr().out
