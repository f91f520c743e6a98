"""The gate of the frontend: marks, the setting ``cloud.use``, and the person's consent."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Provenance, Timings, Usage
from shammah.privacy import Mark
from shammah.privacy.gate import (
    DECLINED,
    NEVER,
    NOBODY_TO_ASK,
    SYSTEM_LEFT_OUT,
    Gate,
    Outgoing,
    consent_question,
    report_left_out,
)
from shammah.settings.load import home_directory
from shammah.settings.model import CloudSettings, PrivacySettings, Settings

QUESTION = (ChatMessage("user", "hello"),)
DONE = Done("r", "stop", Usage(), Timings(), Provenance("cloud", "m"), ("One.",))


def gate(use: str = "auto", **privacy: object) -> Gate:
    settings = Settings(home_directory(os.environ), cloud=CloudSettings(api_key="k", use=use))
    rules = replace(PrivacySettings(), **privacy)  # type: ignore[arg-type]
    return Gate(replace(settings, privacy=rules), {"HOME": "/home/me"})


def test_a_question_is_private_by_word_by_switch_or_by_rule() -> None:
    own = gate()
    assert own.judge("hello") == Mark()
    assert own.judge("hello", private=True) == Mark(True)
    assert own.judge("mail jo@acme.de").why == "it contains an e-mail address (privacy.emails)"
    assert gate(paths=("~/x",)).judge("hello", sources=("/home/me/x/y",)).private
    own.private = True
    assert own.judge("hello") == Mark(True)


def test_why_a_question_stays_is_told_where_that_is_no_matter_of_course() -> None:
    own = gate()
    assert own.explain(Mark(), cloud=True) == own.explain(Mark(True), cloud=False) == ""
    assert own.explain(Mark(True, "it is so"), cloud=True) == (
        "Private, because it is so. It stays on this machine."
    )
    assert own.explain(Mark(True), cloud=True).startswith("Not sent to Claude: you said that")
    own.private = True
    assert own.explain(Mark(True), cloud=True).startswith("Not sent to Claude: /private is on.")


def test_a_local_answer_falls_under_the_rules_and_a_cloud_answer_does_not() -> None:
    assert gate().answer_is_private("jo@acme.de", local=True)
    assert not gate().answer_is_private("jo@acme.de", local=False)
    assert not gate().answer_is_private("hello", local=True)


def test_auto_sends_what_may_go() -> None:
    assert gate().open(QUESTION) == Outgoing(QUESTION)


@pytest.mark.parametrize("use", ["auto", "ask", "never"])
def test_a_private_question_is_refused_before_anybody_is_asked(use: str) -> None:
    own = gate(use)
    own.ask = lambda _: pytest.fail("asked")
    refused = own.open((ChatMessage("user", "hello", True),))
    assert isinstance(refused, Failed)
    assert refused.code == ("cloud_switched_off" if use == "never" else "private")


def test_never_sends_nothing() -> None:
    assert gate("never").open(QUESTION) is NEVER


def test_ask_without_anybody_to_ask_names_the_setting() -> None:
    assert gate("ask").open(QUESTION) is NOBODY_TO_ASK
    assert 'use = "auto"' in NOBODY_TO_ASK.hint


def test_each_forwarding_is_asked_about_until_always() -> None:
    own = gate("ask")
    answers = ["no", "y", "", "always"]
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return answers.pop(0)

    own.ask = ask
    opened = [own.open(QUESTION) for _ in range(6)]
    sent = Outgoing(QUESTION)
    assert opened == [DECLINED, sent, DECLINED, sent, sent, sent]
    assert asked == [consent_question(sent, "Claude")] * 4


def test_what_a_person_is_asked() -> None:
    assert consent_question(Outgoing(QUESTION), "Claude").startswith(
        "Send this question to Claude? [y]es"
    )
    earlier = (ChatMessage("user", "a"), ChatMessage("assistant", "b"), *QUESTION)
    told = consent_question(Outgoing(earlier, left_out=2), "Claude")
    assert told.startswith(
        "Send this question and 1 earlier turn to Claude (2 private turns left out)? "
    )


@pytest.mark.parametrize(
    ("line", "opened", "again"),
    [
        *((yes, True, False) for yes in ("y", "Yes", " YES ")),
        *((always, True, True) for always in ("a", "Always")),
        *((no, False, False) for no in ("", None, "n", "no", "yeah", "yes please", "1")),
    ],
)
def test_only_a_clear_yes_is_one(line: str | None, opened: bool, again: bool) -> None:
    own = gate("ask")
    own.ask = lambda question: line
    assert (own.open(QUESTION) is not DECLINED) is opened
    own.ask = lambda question: None
    assert (own.open(QUESTION) is not DECLINED) is again


def test_what_was_left_out_is_told() -> None:
    told = report_left_out(DONE, Outgoing(QUESTION, 2, system_left_out=True))
    assert (told.left_out, told.notices) == (2, ("One.", SYSTEM_LEFT_OUT))
    assert report_left_out(DONE, Outgoing(QUESTION)) == DONE


def test_where_nobody_can_be_asked_the_gate_cannot_be_opened() -> None:
    gate = Gate(Settings(home_directory({}), cloud=CloudSettings(use="ask")), {})
    assert not gate.openable
    gate.ask = lambda question: "y"
    assert gate.openable
    assert not Gate(Settings(home_directory({}), cloud=CloudSettings(use="never")), {}).openable
