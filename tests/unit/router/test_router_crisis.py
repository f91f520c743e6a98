"""The crisis detector, on labelled sentences (tests/data/crisis_sentences.tsv), and its help."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from shammah.bus.messages import ChatMessage
from shammah.router import crisis
from shammah.router.crisis import Danger, Language, describe_help, detect_danger, find_country
from shammah.router.question import examine
from tests.data import DATA

SENTENCES = [
    tuple(line.split("\t"))
    for line in (DATA / "crisis_sentences.tsv").read_text("utf-8").splitlines()
    if line[0] != "#"
]


def quality(*splits: str) -> tuple[float, float]:
    """Precision and recall."""
    asked = [(kind, detect_danger(text)) for split, kind, text in SENTENCES if split in splits]
    hits = sum(found is not None for kind, found in asked if kind != "none")
    alarms = sum(found is not None for _, found in asked)
    crises = sum(kind != "none" for kind, _ in asked)
    print(f"{splits}: {hits} of {crises} found, {alarms - hits} false alarms of {len(asked)}")
    return hits / alarms, hits / crises


def test_the_set_is_large_and_half_of_it_are_traps() -> None:
    traps = sum(kind == "none" for _, kind, _ in SENTENCES)
    assert len(SENTENCES) >= 240
    assert 0.45 <= traps / len(SENTENCES) <= 0.55
    assert {kind for _, kind, _ in SENTENCES} == {"none", *Danger}


def test_what_the_rules_were_made_with_is_found() -> None:
    precision, recall = quality("tuning")
    assert precision >= 0.98
    assert recall >= 0.99


def test_what_they_were_not_made_with_is_mostly_found() -> None:
    precision, recall = quality("held-out")
    assert precision >= 0.8
    assert recall >= 0.85


def test_the_kind_is_mostly_right() -> None:
    found = [(kind, detect_danger(text)) for _, kind, text in SENTENCES if kind != "none"]
    told = [kind == danger for kind, danger in found if danger]
    assert sum(told) >= 0.9 * len(told)


@pytest.mark.parametrize(
    "text",
    [
        "Why do prices shoot up when it rains?",
        "What is an overdose in pharmacology?",
        "How do I kill a process?",
        "this bug makes me want to kill myself lol",
        "My sister always beats me at chess.",
        'Translate "I want to die" into French.',
        # Control tokens and identifiers: im_end is one word, not "I'm" and "end".
        *("<|im_end|>", "<|im_start|>user\nhello<|im_end|>", "<|endoftext|>", "[INST] I'm </s>"),
        *("kill_my_children(pid)", "im_end", "IM_END", "im end"),
        # "I am" and one word of danger: by itself that is how anybody begins a sentence.
        *("I'm end user", "I am an end-user", "I'm the end user of this", "I'm end to end tested"),
        *("I'm dead tired", "I'm afraid not", "I'm afraid I don't understand", "I exist"),
        *("I am cutting the grass", "I'm cutting vegetables", "I am shooting a film", "I cut it"),
        *("I'm jumping in", "I'm hanging out", "I am touched", "I'm locked out", "I hit enter"),
        *("I hurt my knee", "I'm living in Berlin", "I'm scared of spiders", "I wake up at six"),
        *("I'm killing time", "I am forced to use Java", "I want to cut costs", "I'm beating eggs"),
        *("I am touching the file", "I am hopeless at maths", "I'm jumping to conclusions"),
    ],
)
def test_traps(text: str) -> None:
    assert detect_danger(text) is None


@pytest.mark.parametrize(
    ("text", "danger"),
    [
        ("I want to kill myself lol", Danger.SELF_HARM),
        ("I don\u2019t want to live anymore.", Danger.SELF_HARM),
        ("I WANT TO DIE", Danger.SELF_HARM),
        ("_I want to die_", Danger.SELF_HARM),
        ("<|im_start|>user\nI want to die<|im_end|>", Danger.SELF_HARM),
        ("Hello. How are you? I want to kill my boss. Bye.", Danger.VIOLENCE),
        ("my husband hits me and I want to die", Danger.SELF_HARM),
        ("My husband hits me", Danger.ABUSE),
    ],
)
def test_the_first_list_that_has_it_names_it(text: str, danger: Danger) -> None:
    assert detect_danger(text) is danger


def test_a_figure_of_speech_takes_back_its_own_sentence_alone() -> None:
    assert detect_danger("This bug makes me want to die lol. I want to die.") is Danger.SELF_HARM


def test_a_long_text_is_read_at_both_ends_and_quickly_enough_to_end() -> None:
    filler = "The quick brown fox jumps over the lazy dog. " * 4000
    assert detect_danger(filler) is None
    assert detect_danger(f"{filler} I want to kill myself.") is Danger.SELF_HARM
    assert detect_danger(f"I want to kill myself. {filler}") is Danger.SELF_HARM


def test_nothing_is_too_strange() -> None:
    for text in ("", "\0", "$ ^ & .. !", "a" * 100_000, "i " * 10_000, "\U0001f602"):
        assert detect_danger(text) is None


def test_only_the_question_itself_is_looked_at() -> None:
    conversation = (ChatMessage("user", "I want to die."), ChatMessage("assistant", "Oh."))
    assert examine((*conversation, ChatMessage("user", "Thanks."))).danger is None
    assert examine((ChatMessage("user", "I want to die."),)).danger is Danger.SELF_HARM


# --- the language of the phrases ------------------------------------------------------------

LANGUAGE = Language({"PET": ["cat", "big dog"], "MINE": ["my PET", "it"]})


@pytest.mark.parametrize(
    ("phrase", "sentence", "fits"),
    [
        ("feed MINE", " feed my cat ", True),
        ("feed MINE", " feed my big dog now ", True),
        ("feed MINE", " feed the cat ", False),
        ("feed MINE", " i feed it ", True),
        ("feed MINE", " unfeed it ", False),
        ("(a|b c|) d", " d ", True),
        ("(a|b c|) d", " b c d ", True),
        ("a .. b", " a 1 2 3 4 b ", True),
        ("a .. b", " a 1 2 3 4 5 b ", False),
        ("a !(b|c)", " a c ", False),
        ("a !(b|c)", " a d ", True),
        ("a $", " a ", True),
        ("a $", " a b ", False),
        ("^ a", " b a ", False),
        ("^ a", " a ", True),
    ],
)
def test_the_language_of_the_phrases(phrase: str, sentence: str, fits: bool) -> None:
    assert bool(LANGUAGE.compile(phrase).search(sentence)) is fits


def test_a_phrase_is_filed_under_words_that_it_cannot_do_without() -> None:
    assert LANGUAGE.needed("i feed .. (MINE|)") == {"feed"}
    assert LANGUAGE.needed("i (eat|drink) .. MINE") == {"eat", "drink"}
    assert LANGUAGE.needed("to feed MINE $") == {"feed"}


def test_every_phrase_of_the_data_can_be_read() -> None:
    document = json.loads(crisis.DATA.read_text("utf-8"))
    language = Language(document["words"])
    phrases = [one for danger in Danger for one in document[danger]]
    phrases += [one for some in document["figures"].values() for one in some]
    names = set(document["words"])
    for phrase in phrases:
        for part in phrase.split(" & "):
            language.compile(part)
            assert set(re.findall(r"\b[A-Z]{2,}\b", part)) <= names, part
        assert language.needed(phrase)


def test_the_weights_are_those_of_the_sentences() -> None:
    script = DATA.parents[1] / "scripts" / "train_crisis.py"
    checked = subprocess.run([sys.executable, str(script), "--check"], timeout=100)
    assert checked.returncode == 0, f"run {script}"


# --- help -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "country"),
    [
        ({"LANG": "en_US.UTF-8"}, "US"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "de_AT"}, "AT"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "fr_CH@euro"}, "CH"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C.UTF-8"}, ""),
        ({"LANG": "", "LC_ALL": ""}, ""),
        ({}, ""),
    ],
)
def test_the_country_is_that_of_the_locale(environ: dict[str, str], country: str) -> None:
    assert find_country(environ) == country


def test_help_is_that_of_the_country_or_of_everywhere() -> None:
    assert "988" in describe_help(Danger.SELF_HARM, "US")
    assert "911" in describe_help(Danger.ABUSE, "US")
    assert "116 123" in describe_help(Danger.SELF_HARM, "GB")
    for country in ("", "XX"):
        words = describe_help(Danger.SELF_HARM, country)
        assert "112" in words
        assert "https://findahelpline.com" in words


def test_every_country_has_help_of_every_kind() -> None:
    document = json.loads(crisis.HELP.read_text("utf-8"))
    document.pop("about")
    for country, help_there in document.items():
        assert set(help_there) == {"emergency", *Danger}, country
        assert all(help_there[danger] for danger in Danger)
