"""What must stay here: the rules, the marks, and the two gates."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from shammah import privacy
from shammah.bus.messages import ChatMessage
from shammah.config import PrivacySettings
from shammah.errors import ShammahError
from shammah.privacy import UNCHECKED, Mark, Rules, check_door, split_prefix, withhold

NOTHING = PrivacySettings(
    **{f.name: False for f in fields(PrivacySettings) if f.default is True}  # type: ignore[arg-type]
)


def rules(directory: str = "", **settings: Any) -> Rules:
    return Rules(replace(NOTHING, **settings), "/home/me", directory)


EXAMPLES = {
    "api_keys": [
        "sk-ant-api03-" + "aB3" * 10,
        "key=AKIAIOSFODNN7EXAMPLE",
        "ghp_" + "a1" * 18,
        "hf_" + "Ab" * 17,
        "xoxb-123456789012-abcdef",
        "AIza" + "a" * 35,
        "sk_live_" + "4e" * 12,
        "Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N",
    ],
    "private_keys": [
        "-----BEGIN PRIVATE KEY-----\nMIIE",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "-----BEGIN RSA PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----",
        "PuTTY-User-Key-File-3: ssh-ed25519",
    ],
    "emails": ["write to jo.doe+x@acme.co.uk.", "<a@b.io>", "JO@ACME.DE"],
    "cards": [
        "4111 1111 1111 1111",
        "4111-1111-1111-1111 12/27",
        "room 12 4111 1111 1111 1111",
        "378282246310005",
        "5555555555554444",
    ],
    "ibans": [
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "IBAN NO9386011117947 OK",
        "FR1420041010050500013M02606 BIC",
    ],
}
HARMLESS = {
    "api_keys": ["sk-learn is a library", "AKIA is a prefix", "eyJ begins a token", "task-" * 9],
    "private_keys": ["-----BEGIN PUBLIC KEY-----", "-----BEGIN CERTIFICATE-----"],
    "emails": ["git@github.com:a/b.git", "me@example.com", "a @ b", "x@localhost", "@decorator"],
    "cards": ["4111 1111 1111 1112", "1700000000000", "3.14159265358979", "0000 0000 0000 0000"],
    "ibans": ["DE89 3704 0044 0532 0130 01", "XX89 3704 0044 0532 0130 00", "AB12"],
}


@pytest.mark.parametrize("rule", EXAMPLES)
def test_a_built_in_rule_finds_what_it_is_for_and_can_be_switched_off(rule: str) -> None:
    for text in EXAMPLES[rule]:
        for around in ("{}", "Look: {}", "a\n{}\nb"):
            mark = rules(**{rule: True}).mark(around.format(text))
            assert mark.private, text
            assert mark.why.startswith("it holds a")
        assert not rules().mark(text).private


@pytest.mark.parametrize("rule", HARMLESS)
def test_a_built_in_rule_leaves_the_rest_alone(rule: str) -> None:
    for text in HARMLESS[rule]:
        assert not rules(**{rule: True}).mark(text).private, text


def test_every_built_in_rule_is_a_setting_and_is_on() -> None:
    switches = {f.name for f in fields(PrivacySettings) if f.default is True}
    assert switches == set(privacy._BUILT_IN) == set(EXAMPLES) == set(HARMLESS)


@pytest.mark.parametrize(
    "text", ["ACME is here", "acme", "(Acme)", "Blue  \n Moon", "\uff41\uff43\uff4d\uff45"]
)
def test_own_words(text: str) -> None:
    assert rules(words=("Acme", "blue moon")).mark(text).private


@pytest.mark.parametrize("text", ["acmes", "placme", "blue", "bluemoon", ""])
def test_own_words_are_whole_words(text: str) -> None:
    assert not rules(words=("Acme", "blue moon")).mark(text).private


def test_a_word_of_signs() -> None:
    assert rules(words=("C++", "$$")).mark("I write C++ code").private
    assert rules(words=("$$",)).mark("a$$b").private


def test_own_patterns() -> None:
    assert rules(patterns=("PROJ-[0-9]+",)).mark("see PROJ-17").private
    assert not rules(patterns=("PROJ-[0-9]+",)).mark("see PROJ-x").private


@pytest.mark.parametrize(
    "text",
    [
        "what is in ~/secret/plan.md?",
        "look at /home/me/secret",
        "the file secret/a.txt",
        "/home/me/work/../secret/x: why?",
        "open ./report.key, please",
        "/srv/my files/a",
    ],
)
def test_a_text_that_names_a_path(text: str) -> None:
    paths = ("~/secret", "/home/me/*.key", "/srv/my files")
    assert rules("/home/me", paths=paths).mark(text).private


@pytest.mark.parametrize("text", ["~/secrets/a", "a secret", "/home/you/secret", "and/or", "a.b"])
def test_a_text_that_names_other_paths(text: str) -> None:
    assert not rules("/home/me", paths=("~/secret", "~/*.key")).mark(text).private


def test_where_a_text_comes_from() -> None:
    own = rules(paths=("~/secret",))
    assert own.mark("hello", ["/home/me/secret/a/b.txt"]).private
    assert not own.mark("hello", ["/home/me/public.txt"]).private
    assert rules("/home/me/secret/deep", paths=("~/secret",)).mark("hello").private


def test_a_rule_that_breaks_closes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_text: str) -> bool:
        raise RecursionError

    monkeypatch.setitem(privacy._BUILT_IN, "emails", (broken, "nothing"))
    assert rules(emails=True).mark("hello") == Mark(True, UNCHECKED)


def test_long_texts_cost_little_and_are_searched_to_the_end() -> None:
    """A quadratic expression would run into the limit of the test."""
    everything = rules("/home/me", **dict.fromkeys(EXAMPLES, True), paths=("~/x",), words=("w",))
    for unit in ("a", "1", "1 ", "AB12", "a@", "a.", "eyJ", "sk-.", "-----BEGIN A ", "/", "z/"):
        assert not everything.mark(unit * 50_000).private, unit
    assert everything.mark("a " * 50_000 + "jo@acme.de").private


@pytest.mark.parametrize(
    ("line", "question", "private"),
    [
        ("!private what is this?", "what is this?", True),
        ("  !PRIVATE  a b", "a b", True),
        ("!private", "", True),
        ("!private\n    def f():\n        pass\n", "    def f():\n        pass", True),
        ("!private   \n\n\tx", "\tx", True),
        ("    if x:\n  y", "    if x:\n  y", False),
        ("!privately asked", "!privately asked", False),
        ("is it !private ?", "is it !private ?", False),
    ],
)
def test_the_prefix(line: str, question: str, private: bool) -> None:
    assert split_prefix(line) == (question, private)


# --- the gates ------------------------------------------------------------------------------

SYSTEM = ChatMessage("system", "Be brief.")


def pair(text: str, *, private: bool = False) -> tuple[ChatMessage, ChatMessage]:
    return (
        ChatMessage("user", f"{text}?", private),
        ChatMessage("assistant", f"{text}!", private),
    )


def test_private_turns_stay() -> None:
    asked = ChatMessage("user", "now")
    outgoing = withhold((SYSTEM, *pair("a"), *pair("b", private=True), *pair("c"), asked))
    assert outgoing.messages == (SYSTEM, *pair("a"), *pair("c"), asked)
    assert (outgoing.left_out, outgoing.system_left_out) == (1, False)


def test_a_private_system_prompt_stays() -> None:
    outgoing = withhold((replace(SYSTEM, private=True), ChatMessage("user", "now")))
    assert outgoing.messages == (ChatMessage("user", "now"),)
    assert (outgoing.left_out, outgoing.system_left_out) == (0, True)


@pytest.mark.parametrize("messages", [(), (ChatMessage("user", "now", True),)])
def test_a_private_question_never_goes(messages: tuple[ChatMessage, ...]) -> None:
    with pytest.raises(ShammahError, match="Nothing was sent"):
        withhold(messages)


def test_rules_mark_what_is_said_and_its_answer() -> None:
    messages = (
        ChatMessage("system", "ask jo@acme.de"),
        *pair("a"),
        ChatMessage("user", "mail jo@acme.de"),
        ChatMessage("assistant", "done"),
        ChatMessage("user", "now"),
    )
    marked = rules(emails=True).mark_messages(messages)
    assert [message.private for message in marked] == [True, False, False, True, True, False]
    assert [replace(message, private=False) for message in marked] == list(messages)


def test_marks_are_never_taken_back() -> None:
    messages = (*pair("a", private=True), ChatMessage("user", "now", True))
    assert rules().mark_messages(messages) == messages


@pytest.mark.parametrize(
    "messages",
    [
        (ChatMessage("user", "hi", True),),
        (*pair("a", private=True), ChatMessage("user", "now")),
        (replace(SYSTEM, private=True), ChatMessage("user", "now")),
        (ChatMessage("user", "mail jo@acme.de"),),
        (ChatMessage("system", "ask jo@acme.de"), ChatMessage("user", "now")),
    ],
)
def test_the_door_of_the_worker_trusts_nobody(messages: tuple[ChatMessage, ...]) -> None:
    with pytest.raises(ShammahError) as refused:
        check_door(messages, rules(emails=True))
    assert refused.value.code == "private"
    assert "acme" not in str(refused.value)


def test_the_door_lets_through_what_it_may() -> None:
    told = ChatMessage("assistant", "mail jo@acme.de")  # the cloud's own words
    check_door(
        (SYSTEM, ChatMessage("user", "a"), told, ChatMessage("user", "b")), rules(emails=True)
    )


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\n\n", "\xa0"])
def test_the_prefix_counts_whatever_blank_follows(blank: str) -> None:
    assert split_prefix(f"!Private{blank}my door code") == ("my door code", True)
    assert split_prefix(f"  !private{blank}") == ("", True)
