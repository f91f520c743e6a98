"""What must stay here: the rules, the marks, and the two gates."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Sampling, Tool, ToolCall
from shammah.errors import ShammahError
from shammah.privacy import RULES, UNCHECKED, Mark, Rules, check_outgoing, split_prefix, split_word
from shammah.privacy.gate import PRIVATE, Outgoing, withhold
from shammah.settings.model import PrivacySettings

NOTHING = PrivacySettings(**dict.fromkeys(RULES, False))  # type: ignore[arg-type]


def rules(directory: str = "", **settings: Any) -> Rules:
    return Rules(replace(NOTHING, **settings), "/home/me", directory)


EVERYTHING = dict.fromkeys(RULES, True)


def _sent(messages: tuple[ChatMessage, ...]) -> Outgoing:
    outgoing = withhold(messages)
    assert isinstance(outgoing, Outgoing)
    return outgoing


def test_a_built_in_rule_can_be_switched_off() -> None:
    text = "jo@acme.de"
    assert rules(emails=True).mark(text) == Mark(
        True, "it contains an e-mail address (privacy.emails)"
    )
    assert not rules().mark(text).private


def test_every_built_in_rule_but_one_is_on() -> None:
    assert {name for name in RULES if getattr(PrivacySettings(), name)} == {*RULES} - {
        "ip_addresses"
    }


@pytest.mark.parametrize(
    "text",
    [
        *("ACME is here", "acme", "(Acme)", "Blue  \n Moon", "\uff41\uff43\uff4d\uff45"),
        *(
            "ac\u00adme",
            "a\u200bcme",
            "blue\u00a0moon",
            "Blue\u2009Mo\u2060on",
            "\x1b[1mac\x1b[0mme",
        ),
    ],
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

    monkeypatch.setitem(RULES, "emails", (broken, "nothing"))
    assert rules(emails=True).mark("hello") == Mark(True, UNCHECKED)


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


@pytest.mark.parametrize(
    ("line", "head", "rest"),
    [
        ("fix\n    def f():\n        pass\n", "fix", "    def f():\n        pass"),
        (" fix   better  ", "fix", "better"),
        ("help", "help", ""),
        ("", "", ""),
    ],
)
def test_a_text_on_its_own_lines_keeps_its_indentation(line: str, head: str, rest: str) -> None:
    assert split_word(line) == (head, rest)


# --- the gates ------------------------------------------------------------------------------

SYSTEM = ChatMessage("system", "Be brief.")


def pair(text: str, *, private: bool = False) -> tuple[ChatMessage, ChatMessage]:
    return (
        ChatMessage("user", f"{text}?", private),
        ChatMessage("assistant", f"{text}!", private),
    )


def test_private_turns_stay() -> None:
    asked = ChatMessage("user", "now")
    outgoing = _sent((SYSTEM, *pair("a"), *pair("b", private=True), *pair("c"), asked))
    assert outgoing.messages == (SYSTEM, *pair("a"), *pair("c"), asked)
    assert (outgoing.left_out, outgoing.system_left_out) == (1, False)


def test_a_private_system_prompt_stays() -> None:
    outgoing = _sent((replace(SYSTEM, private=True), ChatMessage("user", "now")))
    assert outgoing.messages == (ChatMessage("user", "now"),)
    assert (outgoing.left_out, outgoing.system_left_out) == (0, True)


@pytest.mark.parametrize("messages", [(), (ChatMessage("user", "now", True),)])
def test_a_private_question_never_goes(messages: tuple[ChatMessage, ...]) -> None:
    assert withhold(messages) == PRIVATE


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
        check_outgoing(messages, rules(emails=True))
    assert refused.value.code == "private"
    assert "acme" not in str(refused.value)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(tools=(Tool("read", "mail jo@acme.de"),)),
        Sampling(stop=("jo@acme.de",)),
        Sampling(schema='{"const": "jo@acme.de"}'),
    ],
)
def test_what_is_told_beside_the_messages_is_judged_as_well(sampling: Sampling) -> None:
    with pytest.raises(ShammahError, match="e-mail"):
        check_outgoing((ChatMessage("user", "hi"),), rules(emails=True), sampling)


def test_a_word_at_the_beginning_of_a_line_in_json_is_found() -> None:
    for text in ('{"a": "see:\\nforbidden"}', "C:\\notes\\forbidden"):
        assert rules(words=("forbidden",)).mark(text).private
    assert rules(paths=("/secret",)).mark('{"a": "see:\\n/secret/b"}').private


def test_the_door_lets_through_what_it_may() -> None:
    told = ChatMessage("assistant", "mail jo@acme.de")  # the cloud's own words
    check_outgoing(
        (SYSTEM, ChatMessage("user", "a"), told, ChatMessage("user", "b")), rules(emails=True)
    )


@pytest.mark.parametrize("blank", [" ", "\t", "\n", "\n\n", "\xa0"])
def test_the_prefix_counts_whatever_blank_follows(blank: str) -> None:
    assert split_prefix(f"!Private{blank}my door code") == ("my door code", True)
    assert split_prefix(f"  !private{blank}") == ("", True)


def test_a_source_that_the_system_does_not_tell_may_be_one_of_the_paths() -> None:
    assert rules(paths=("/secret",)).mark("hello", (None,)) == Mark(True, UNCHECKED)
    assert not rules(paths=("/secret",)).mark("hello", ("/open",)).private
    assert not rules().mark("hello", (None,)).private


def _spoken(*names: str) -> tuple[ChatMessage, ...]:
    calls = (ToolCall("a", "t", "{}"), ToolCall("b", "t", "{}"))
    every = {
        "asked": ChatMessage("user", "q"),
        "called": ChatMessage("assistant", "", tool_calls=calls),
        "first": ChatMessage("tool", "1", tool_call_id="a"),
        "second": ChatMessage("tool", "2", tool_call_id="b"),
        "again": ChatMessage("user", "and?"),
    }
    return tuple(replace(one, private=name in names) for name, one in every.items())


@pytest.mark.parametrize("private", ["called", "first", "second"])
def test_a_call_and_its_results_are_withheld_together(private: str) -> None:
    kept = _sent(_spoken(private)).messages
    assert [message.content for message in kept] == ["q", "and?"]


def test_results_of_a_private_call_are_no_question_for_the_cloud() -> None:
    assert withhold(_spoken("called")[:-1]) == PRIVATE
