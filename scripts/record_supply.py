"""Record the supply: hashes, bill of materials and advisories of every pinned package.

Run it after a change of constraints.txt or servers-requirements.txt, and for each look at the
advisories (docs/DEVELOPING.md). It needs the network and an environment of its own:

    python3 -m venv /tmp/supply
    /tmp/supply/bin/pip install -r scripts/supply/requirements.txt
    /tmp/supply/bin/python scripts/record_supply.py

What it writes, into scripts/supply:
    *.lock            what scripts/lib/environment.sh has pip check before it installs
    bom.cdx.json      CycloneDX: names, versions, licences, and the hashes of all files
    advisories.json   which versions PyPI was asked about, and what it said
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[1]
SUPPLY = ROOT / "scripts" / "supply"
CONSTRAINTS = ROOT / "constraints.txt"
SERVERS = ROOT / "scripts" / "servers-requirements.txt"
BUILD = ["pip", "hatchling", "editables"]
SEVERAL_BUILDS = "torch"
"""Indexes have builds of it for each accelerator under one version, so pip could not check it."""

EXTRAS: dict[str, list[str]] = {
    "run": [],
    "rest": ["train", "llamacpp"],
    "mlx": ["mlx"],
    "test": ["int4", "dev"],
    "tools": ["screens", "kernels"],
}
"""Each lock has what these extras add to the locks before it."""

HEADER = "# Made by scripts/record_supply.py. pip refuses a file with any other hash.\n"


@dataclass(frozen=True)
class Locked:
    name: str
    version: str
    text: str  # as pip reads it: with marker and hashes

    @property
    def hashes(self) -> list[str]:
        return re.findall(r"--hash=sha256:(\w+)", self.text)


def compile_lock(requirements: list[str], *arguments: str) -> dict[str, Locked]:
    """What they bring on any platform with Python 3.11 or newer, in PyPI's files."""
    with tempfile.NamedTemporaryFile("w", suffix=".in") as file:
        file.write("\n".join(requirements))
        file.flush()
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"]
        command += ["--generate-hashes", "--no-annotate", "--no-header", "--no-config"]
        command += ["--python-version", "3.11", *arguments, file.name]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    entries = re.findall(r"^(\S+?)==(\S+)(.*(?:\n    .*)*)$", text, re.M)
    return {
        name: Locked(name, version, f"{name}=={version}{rest}") for name, version, rest in entries
    }


def make_locks() -> dict[str, list[Locked]]:
    """The packages of each lock. `torch` has what is recorded only: torch and what it brings."""
    pinned = pins(CONSTRAINTS)
    locks: dict[str, list[Locked]] = {}
    before: dict[str, Locked] = {}
    extras: list[str] = []
    for lock, more in EXTRAS.items():
        extras += more
        chosen = [word for extra in extras for word in ("--extra", extra)]
        constraint = ["--constraint", str(CONSTRAINTS), str(ROOT / "pyproject.toml")]
        found = compile_lock(BUILD, *constraint, *chosen)
        new = [one for name, one in found.items() if before.get(name) != one]
        locks[lock] = [one for one in new if one.name in pinned and one.name != SEVERAL_BUILDS]
        before = found
    brought = compile_lock([SEVERAL_BUILDS], "--constraint", str(CONSTRAINTS))
    locks["torch"] = [
        one for one in brought.values() if one.name not in pinned or one.name == SEVERAL_BUILDS
    ]
    locks["pip"] = [one for one in locks["run"] if one.name == "pip"]
    locks["servers"] = list(compile_lock([], "--no-deps", str(SERVERS)).values())
    return locks


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    found = re.findall(r"^([\w.-]+)==(\S+)$", path.read_text(), re.M)
    return {canonical(name): version for name, version in found}


def ask_index(name: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"https://pypi.org/pypi/{name}/json", timeout=60) as answer:
        return dict(json.load(answer))


def licence(name: str, index: dict[str, Any]) -> str:
    """Its own metadata's word if it is installed here, else the index's."""
    places = ROOT.glob(".venv*/lib/python*/site-packages")
    for found in importlib.metadata.distributions(name=name, path=[str(place) for place in places]):
        fields = found.metadata
        told = fields.get("License-Expression") or fields.get("License") or ""
        classifiers = fields.get_all("Classifier") or []
        break
    else:
        told = index["info"].get("license_expression") or index["info"].get("license") or ""
        classifiers = index["info"].get("classifiers") or []
    if told and "\n" not in told and len(told) < 80:
        return str(told)
    named = [one.split(" :: ")[-1] for one in classifiers if one.startswith("License :: ")]
    return (named or ["NOASSERTION"])[0]


def component(one: Locked, lock: str, index: dict[str, Any]) -> Component:
    scopes = {"run": ComponentScope.REQUIRED, "rest": ComponentScope.OPTIONAL}
    scopes |= {"mlx": ComponentScope.OPTIONAL, "torch": ComponentScope.OPTIONAL}
    files = ExternalReference(
        type=ExternalReferenceType.DISTRIBUTION,
        url=XsUri(f"https://pypi.org/simple/{one.name}/"),
        comment="every file of this version",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=each) for each in one.hashes],
    )
    return Component(
        name=one.name,
        version=one.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pkg:pypi/{one.name}@{one.version}",
        purl=PackageURL("pypi", name=one.name, version=one.version),
        scope=scopes.get(lock, ComponentScope.EXCLUDED),
        licenses=[LicenseFactory().make_from_string(licence(one.name, index))],
        external_references=[files],
    )


def make_bom(locks: dict[str, list[Locked]], indexes: dict[str, dict[str, Any]]) -> str:
    """CycloneDX 1.6 as JSON: the same for the same packages, but for the date."""
    parts: dict[str, Component] = {}
    for lock, packages in locks.items():
        for one in packages:
            parts.setdefault(one.name, component(one, lock, indexes.get(one.name, EMPTY)))
    version = re.search(r'__version__ = "(.+)"', (ROOT / "shammah/__init__.py").read_text())
    bom = Bom(components=parts.values())
    bom.metadata.component = Component(
        name="shammah",
        bom_ref="shammah",
        version=version[1] if version else None,
        type=ComponentType.APPLICATION,
    )
    bom.metadata.timestamp = datetime.datetime.combine(
        datetime.datetime.now(datetime.UTC).date(), datetime.time(), datetime.UTC
    )
    named = "\n".join(sorted(str(part.bom_ref) for part in parts.values()))
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, named)
    bom.register_dependency(bom.metadata.component, parts.values())
    made = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6)
    return made.output_as_string(indent=1)


EMPTY: dict[str, Any] = {"info": {}}


def advisory(name: str, version: str, told: dict[str, Any]) -> dict[str, Any]:
    """PyPI's word on one version, as an OSV record."""
    fixes = [{"fixed": each} for each in told["fixed_in"]]
    return {
        "id": told["id"],
        "aliases": told["aliases"],
        "summary": told["summary"] or told["details"].split(". ")[0],
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": name},
                "versions": [version],
                "ranges": [{"type": "ECOSYSTEM", "events": fixes}] if fixes else [],
            }
        ],
    }


def record_advisories(indexes: dict[str, dict[str, Any]]) -> None:
    """PyPI tells of each package's newest version alone; older records stay."""
    path = SUPPLY / "advisories.json"
    record = json.loads(path.read_text())
    known = {one["id"] for one in record["advisories"]}
    record["recorded"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    record["asked"] = {name: told["info"]["version"] for name, told in sorted(indexes.items())}
    for name, version in record["asked"].items():
        for told in indexes[name]["vulnerabilities"]:
            if told["id"] not in known and not told["withdrawn"]:
                record["advisories"].append(advisory(name, version, told))
    path.write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    locks = make_locks()
    for lock, packages in locks.items():
        text = "".join(f"{one.text}\n" for one in packages)
        (SUPPLY / f"{lock}.lock").write_text(HEADER + text)
    names = sorted({*pins(CONSTRAINTS), *pins(SERVERS)})
    with ThreadPoolExecutor(4) as threads:
        indexes = dict(zip(names, threads.map(ask_index, names), strict=True))
    (SUPPLY / "bom.cdx.json").write_text(make_bom(locks, indexes) + "\n")
    record_advisories(indexes)


if __name__ == "__main__":
    main()
