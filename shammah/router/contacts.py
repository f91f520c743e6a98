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

_WORDS = {
    Danger.SELF_HARM: (
        "I'm sorry that you are going through this. You don't have to face it alone, and what "
        "you feel now can change, even if it doesn't seem so. Please talk to somebody: call one "
        "of the numbers shown, or tell a person you trust how you feel, in plain words. If you "
        "might act on these thoughts, move away from anything you could hurt yourself with, and "
        "don't stay alone."
    ),
    Danger.VIOLENCE: (
        "If somebody is hurt, or about to be, please call the emergency number shown now. If you "
        "fear that you might hurt somebody yourself, put distance between you and them, and call "
        "one of the numbers shown: they talk with people who feel that way, too."
    ),
    Danger.ABUSE: (
        "I'm sorry. What is done to you is not your fault. If you are in danger now, go to a "
        "safe place if you can, and call the emergency number shown. The people behind the other "
        "numbers listen, believe you and know what can be done; nobody needs to learn that you "
        "called."
    ),
}
_WRITTEN = (
    "No model that should answer this can be asked now, so these words were written beforehand. "
    "If nobody is in danger, ask again in other words."
)


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


def describe_care(danger: Danger) -> str:
    """What is said where no model should answer, beside `describe_help`."""
    return f"{_WORDS[danger]}\n\n{_WRITTEN}"
