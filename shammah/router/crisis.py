"""Whether someone may be in danger, judged by whole words in their sentence. Pure but for
its files: the phrases are data (``data/crisis.json``, which says how they are written).

The original looked for 27 phrases as substrings: prices that "shoot up" and an "overdose" in a
question about pharmacology were crises. Here a phrase has a person in it, a figure of speech in
the same sentence takes it back, and what no phrase finds is weighed. What a
person says about ending their own life is believed, "lol" or not.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

from shammah.bus.record import record

DATA = Path(__file__).with_name("data") / "crisis.json"
HELP = DATA.with_name("help.json")
"""Whom to call, by country."""
WEIGHTS = DATA.with_name("crisis_weights.json")
"""Made by ``scripts/train_crisis.py`` from labelled sentences. The phrases are sure but find
only what somebody thought of; the weights find two thirds of the rest."""

NONE = "none"
LEAST = 0.6
"""How sure that it is not nothing. Ordinary text never came near it (docs/ROUTING.md)."""

SPOKEN = 100
"""What the words with a meaning of their own must add up to, in hundredths: "I am", which most
cries for help begin with, says nothing by itself."""

CLASSES = ("PERSON", "PILLS", "WEAPON", "MACHINE", "GAME", "HIT", "SEXUAL", "THEMSELF", "CLOSE")
"""The names of ``crisis.json`` whose words count as one."""

GAP = r"(?:\S+ ){0,4}?"
READ = 32_000
"""Characters that are looked at, at the beginning and at the end of a longer question."""

_COMMON = frozenset(
    """a i me my am is are was be been to the of for in it on at not do does did no any will want
    going just with he she they him her his their this that and or if have has had would how who
    what when so you get up we us them by all off out can""".split()
)
"""Words that say nothing about whether a phrase may fit."""
_EDGES = frozenset("^$_")

_SENTENCE = re.compile(r"[.!?;:\n]+")
_WORD = re.compile(r"[^\W_]+(?:['_][^\W_]+)*|[\U0001F300-\U0001FAFF]")


class Danger(StrEnum):
    """The three lists of the original, in the order in which it looked."""

    SELF_HARM = "self_harm"
    VIOLENCE = "violence"
    ABUSE = "abuse"


def detect_danger(text: str) -> Danger | None:
    """What somebody may be in danger of, by the first list that has a phrase of the text."""
    if len(text) > 2 * READ:
        text = f"{text[:READ]}\n{text[-READ:]}"
    lists = _lists()
    found = {danger for one in _sentences(text, lists) for danger in lists.judge(one)}
    return next((danger for danger in Danger if danger in found), None)


@record
class _Lists:
    """The phrases, each under the words without one of which it cannot fit.

    A pattern is compiled when such a word is met: all of them take a second.
    """

    spellings: dict[str, str]
    language: Language
    phrases: dict[str, list[tuple[Danger, str]]]
    figures: dict[str, list[str]]
    classes: dict[str, str]
    danger: frozenset[str]
    people: frozenset[str]

    def judge(self, sentence: str) -> Iterator[Danger]:
        words = sentence.split()
        for word in set(words) & self.phrases.keys():
            for danger, phrase in self.phrases[word]:
                if self._fits(phrase, sentence) and not self._is_figure(danger, sentence):
                    yield danger
        if not (self.danger.isdisjoint(words) or self.people.isdisjoint(words)):
            weighed = weigh(read_features(words, self.classes), _COMMON | _EDGES)
            if weighed != NONE and not self._is_figure(weighed, sentence):
                yield Danger(weighed)

    def _is_figure(self, danger: str, sentence: str) -> bool:
        return any(self._fits(figure, sentence) for figure in self.figures[danger])

    def _fits(self, phrase: str, sentence: str) -> bool:
        parts = phrase.split(" & ")
        return all(self.language.compile(part).search(sentence) for part in parts)


@functools.cache
def _lists() -> _Lists:
    document = json.loads(DATA.read_text("utf-8"))
    words = document["words"]
    language = Language(words)
    phrases: dict[str, list[tuple[Danger, str]]] = {}
    for danger in Danger:
        for phrase in document[danger.value]:
            for word in language.needed(phrase):
                phrases.setdefault(word, []).append((danger, phrase))
    classes: dict[str, str] = {}
    for name in CLASSES:
        for word in words[name]:
            classes.setdefault(word, f"<{name}>")
    people = {each for one in document["people"].split() for each in words.get(one, [one])}
    return _Lists(
        document["spellings"],
        language,
        phrases=phrases,
        figures=document["figures"],
        classes=classes,
        danger=frozenset(document["danger"].split()),
        people=frozenset(people),
    )


def list_features(text: str) -> set[str]:
    """What ``scripts/train_crisis.py`` learns from."""
    lists = _lists()
    sentences = (one.split() for one in _sentences(text, lists))
    return {each for one in sentences for each in read_features(one, lists.classes)}


def _sentences(text: str, lists: _Lists) -> Iterator[str]:
    """Each as its words, with one space before and after every one."""
    lowered = text.casefold().replace("\u2019", "'")
    for sentence in _SENTENCE.split(lowered):
        words = (lists.spellings.get(word, word) for word in _WORD.findall(sentence))
        joined = " ".join(words)
        if joined:
            yield f" {joined} "


class Language:
    """How phrases are written: see ``about`` in the data.

    Args:
        words: names and what each stands for; these may use names that come before.
    """

    def __init__(self, words: dict[str, list[str]]) -> None:
        self._words = words
        self._groups: dict[str, str] = {}
        self._rare: dict[str, frozenset[str]] = {}
        self._compiled: dict[str, re.Pattern[str]] = {}
        for name, some in words.items():
            rare = frozenset[str]().union(*map(self._rarest, some))
            self._groups[name] = self._group(some)
            self._rare[name] = rare

    def compile(self, phrase: str) -> re.Pattern[str]:
        """The pattern that finds it in a sentence as `_sentences` makes them."""
        if phrase not in self._compiled:
            pattern = "(?<= )" + "".join(map(self._pattern, _elements(phrase)))
            self._compiled[phrase] = re.compile(pattern)
        return self._compiled[phrase]

    def needed(self, phrase: str) -> frozenset[str]:
        """Words of which a sentence has at least one if the phrase fits: the rarest such set."""
        sets = []
        for element in _elements(phrase):
            some = _alternatives(element)
            if element not in ("..", "^", "&") and element[0] != "!" and not {"", "$"} & set(some):
                sets.append(frozenset[str]().union(*map(self._rarest, some)))
        return min(sets, key=lambda some: (len(some & _COMMON), len(some)))

    def _rarest(self, words: str) -> frozenset[str]:
        """One word of ``words`` (of each reading, if that is a name): the least common."""
        sets = [self._rare.get(word, frozenset((word,))) for word in words.split() if word != "$"]
        return min(sets, key=lambda some: (len(some & _COMMON), len(some), -len(min(some))))

    def _pattern(self, element: str) -> str:
        match element:
            case "..":
                return GAP
            case "^":
                return "(?<=^ )"
        if element.startswith("!"):
            return "(?!" + self._group(_alternatives(element[1:])) + ")"
        return self._group(_alternatives(element))

    def _group(self, some: list[str]) -> str:
        return f"(?:{'|'.join(map(self._reading, some))})"

    def _reading(self, words: str) -> str:
        """``words`` as they stand in a sentence, each with the space after it; ``$``: its end."""
        return "".join(
            "$" if word == "$" else self._groups.get(word, f"{re.escape(word)} ")
            for word in words.split()
        )


def _alternatives(element: str) -> list[str]:
    return element[1:-1].split("|") if element.startswith("(") else [element]


def _elements(phrase: str) -> list[str]:
    """``(a|b c) .. d``: three elements."""
    return re.findall(r"!?\([^)]*\)|\S+", phrase)


def read_features(words: list[str], classes: Mapping[str, str]) -> set[str]:
    """Words, pairs, and pairs with one word between them; of a class, its name.

    Args:
        words: of one sentence.
        classes: word to the name of its class.
    """
    named = ["^", *(classes.get(word, word) for word in words), "$"]
    pairs = {f"{one} {other}" for one, other in pairwise(named)}
    gaps = {f"{one} _ {other}" for one, other in zip(named, named[2:], strict=False)}
    return set(named[1:-1]) | pairs | gaps


def weigh(features: set[str], common: frozenset[str]) -> str:
    """The name of the likeliest danger, or `NONE`.

    Softmax over the sums of the known features' weights, divided by the root of their number.

    Args:
        features: of one sentence.
        common: words that speak for no danger, alone or with each other.
    """
    names, bias, weights = _weights()
    known = [weights[one] for one in features if one in weights]
    scale = 100.0 * math.sqrt(max(len(known), 1))
    sums = [
        bias[each] / 100.0 + sum(one[each] for one in known) / scale for each in range(len(names))
    ]
    highest = max(sums)
    odds = [math.exp(one - highest) for one in sums]
    if 1.0 - odds[0] / sum(odds) < LEAST:
        return NONE
    likeliest = max(range(1, len(names)), key=odds.__getitem__)
    telling = [one for one in features & weights.keys() if not common.issuperset(one.split())]
    spoken = sum(weights[one][likeliest] - weights[one][0] for one in telling)
    return names[likeliest] if spoken > SPOKEN else NONE


@functools.cache
def _weights() -> tuple[list[str], list[int], dict[str, list[int]]]:
    document = json.loads(WEIGHTS.read_text("utf-8"))
    return document["names"], document["bias"], document["weights"]


# --- whom a person in danger can call, and what to say where no model should ----------------------

_OPENINGS = {
    Danger.SELF_HARM: "If you or someone near you may be in danger, people can help right now.",
    Danger.VIOLENCE: "If someone may get hurt, call for help first.",
    Danger.ABUSE: "No one has the right to hurt you, and there are people who can help.",
}

_WORDS = {
    Danger.SELF_HARM: (
        "I'm sorry that you are going through this. You don't have to face it alone, and what "
        "you feel now can change, even if it doesn't seem so. Please talk to someone: call one "
        "of the numbers shown, or tell a person you trust how you feel, in plain words. If you "
        "might act on these thoughts, move away from anything you could hurt yourself with, and "
        "don't stay alone."
    ),
    Danger.VIOLENCE: (
        "If someone is hurt, or about to be, please call the emergency number shown now. If you "
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
    "No model fit to answer this is available, so this text was written in advance. If nobody is "
    "in danger, rephrase your question."
)


def find_country(environ: Mapping[str, str]) -> str:
    """The country in the locale (``de_AT.UTF-8``: AT); empty if it names none."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if environ.get(name):
            found = re.match(r"[a-z]{2,3}_([A-Z]{2})\b", environ[name])
            return found[1] if found else ""
    return ""


def describe_help(danger: Danger, country: str) -> str:
    """Return the text to show before the answer of any backend."""
    document = json.loads(HELP.read_text("utf-8"))
    here, anywhere = document.get(country, document[""]), document[""]
    lines = [_OPENINGS[danger], f"  In danger now: {here['emergency']}"]
    lines += [f"  {line}" for line in here[danger.value]]
    if here is not anywhere:
        lines += ["  Elsewhere: https://findahelpline.com"]
    return "\n".join(lines)


def describe_care(danger: Danger) -> str:
    """Return the text, in addition to `describe_help`, where no model should answer."""
    return f"{_WORDS[danger]}\n\n{_WRITTEN}"
