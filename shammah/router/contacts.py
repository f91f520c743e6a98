"""Whom a person in danger can call, by country. Pure but for one file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from shammah.router.crisis import Danger

DATA = Path(__file__).with_name("data") / "help.json"

_OPENINGS = {
    Danger.SELF_HARM: "If you or somebody near you may be in danger, people can help right now.",
    Danger.VIOLENCE: "If somebody may be hurt, call for help first.",
    Danger.ABUSE: "Nobody has the right to hurt you, and there are people who can help.",
}


def find_country(environ: Mapping[str, str]) -> str:
    """The country in the locale (``de_AT.UTF-8``: AT); empty if it names none."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environ.get(name):
            found = re.match(r"[a-z]{2,3}_([A-Z]{2})\b", environ[name])
            return found[1] if found else ""
    return ""


def describe_help(danger: Danger, country: str) -> str:
    """The text to show before the answer, whoever gives that."""
    document = json.loads(DATA.read_text("utf-8"))
    here, anywhere = document.get(country, document[""]), document[""]
    lines = [_OPENINGS[danger], f"  In danger now: {here['emergency']}"]
    lines += [f"  {line}" for line in here[danger.value]]
    if here is not anywhere:
        lines += ["  Elsewhere: https://findahelpline.com"]
    return "\n".join(lines)
