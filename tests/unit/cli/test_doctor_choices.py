"""Why auto takes what it does, and what else there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from shammah.cli.doctor_choices import describe_choices, list_choices
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import Settings

SETTINGS = Settings(Path("/h"))


def told(machine: Machine, licence: str = "any") -> list[str]:
    choices = list_choices(replace(SETTINGS, licence=licence), machine)
    return list(describe_choices(choices, machine.memory))


def test_what_fits_in_8_bits_and_is_not_taken_is_named() -> None:
    first, *sizes, take = told(Machine(int(23.5 * GIB)))
    assert first == (
        "3B: the largest that leaves room for other programs in 23.5 GiB of memory "
        "(from 12 GiB; 7B: 24 GiB)"
    )
    assert [line.partition(" ")[0] for line in sizes] == [
        *("0.5B", "qwen3-0.6b", "1.5B", "qwen3-1.7b", "3B"),
        *("qwen3-4b", "7B", "qwen3-8b", "qwen3-14b", "14B"),
    ]
    assert "7B fits (8-bit weights, 7.6 GiB)" in sizes
    assert take == "to change it: `shammah models use SIZE`"


def test_what_does_not_fit_is_said() -> None:
    first, *sizes = told(Machine(GIB))
    assert first.startswith("none: 1.0 GiB of memory, and the smallest model needs 3 GiB")
    assert "14B does not fit" in sizes


def test_a_licence_that_is_not_wanted() -> None:
    first, *sizes = told(Machine(16 * GIB), licence="permissive")
    assert first.startswith("qwen3-4b: ")
    assert "(from 12 GiB; 7B: 24 GiB)" in first
    assert any(line.startswith("3B fits") and "ruled out" in line for line in sizes)
