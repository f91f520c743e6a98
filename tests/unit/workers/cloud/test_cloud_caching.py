"""What the API is asked to cache, what that costs, and that it changes no text."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from shammah.bus.messages import ChatMessage, Done, Generate, Usage
from shammah.privacy.ledger import read_ledger
from shammah.settings.model import CloudSettings
from tests.fakes.caching_api import CachingApi, blocks
from tests.fakes.scripted_api import converse, settings
from workers.cloud.models import model_of
from workers.cloud.request import Call, Peer, build_call

MODEL = "claude-sonnet-5-5"
SETTINGS = CloudSettings(api_key="k", model=MODEL)
REPORT = "The bridge was built in 1932 and painted green twice. " * 400
ASKED = (f"Read this.\n\n{REPORT}", "When was it built?", "And painted?")
ANSWERS = ("It is about a bridge. " * 20, "In 1932. " * 10, "Twice, in green. " * 10)


def chat(turns: int, *, begun: str = "", ongoing: bool = True) -> Generate:
    """A conversation of ``turns`` questions with their answers, but for the last."""
    said = [ChatMessage("system", "Be brief.")]
    for question, answer in zip(ASKED[:turns], ANSWERS, strict=False):
        said += [ChatMessage("user", question), ChatMessage("assistant", answer)]
    said[-1:] = [ChatMessage("assistant", begun)] if begun else []
    return Generate("r1", tuple(said), ongoing=ongoing)


def call(request: Generate, model: str = MODEL) -> Call:
    return build_call(request, replace(SETTINGS, model=model), Peer.of(""))


def marked(one: Call) -> list[int]:
    """Which turns have a mark."""
    return [at for at, turn in enumerate(one.turns) if not isinstance(turn["content"], str)]


def test_three_turns_cost_a_good_deal_less() -> None:
    api = CachingApi(*ANSWERS)
    usages = list[Usage]()
    for turns in (1, 2, 3):
        _, _, ended = converse(api, chat(turns), settings(model=MODEL))
        assert isinstance(ended, Done)
        usages.append(ended.usage)
    first, second, third = usages
    assert first.reused_tokens == 0
    assert first.written_tokens == first.input_tokens
    assert second.reused_tokens == first.written_tokens
    assert third.reused_tokens == second.input_tokens
    model = model_of(replace(SETTINGS, model=MODEL))
    plain = [model.cost(replace(one, reused_tokens=0, written_tokens=0)) or 0 for one in usages]
    costs = [one.cost or 0 for one in usages]
    assert sum(costs) / sum(plain) == pytest.approx(0.51, abs=0.01)
    sent, _ = read_ledger(settings().home)
    assert [(one.reused_tokens, one.written_tokens, one.cost) for one in sent] == [
        (one.reused_tokens, one.written_tokens, one.cost) for one in usages
    ]


def test_a_single_command_pays_nothing_for_a_cache() -> None:
    assert marked(call(chat(1, ongoing=False))) == []
    assert call(chat(1, ongoing=False)).system == "Be brief."


def test_a_conversation_that_went_on_is_cached_whoever_asks() -> None:
    assert marked(call(chat(2, ongoing=False))) == [0, 2]


def test_the_last_two_questions_and_the_system_prompt_are_marked() -> None:
    one = call(chat(3))
    assert marked(one) == [2, 4]
    assert not isinstance(one.system, str)


def test_a_short_conversation_or_one_without_a_price_is_not_marked() -> None:
    short = Generate("r1", (ChatMessage("user", "Hello"),), ongoing=True)
    assert marked(call(short)) == []
    assert marked(call(chat(3), model="claude-unheard-of")) == []


def test_what_asks_to_go_on_is_not_cached() -> None:
    one = call(chat(2, begun="In 19"))
    assert [turn["role"] for turn in one.turns] == ["user", "assistant"] * 2 + ["user"]
    assert marked(one) == [0, 2]


@pytest.mark.parametrize("seed", range(20))
def test_marks_change_no_text(seed: int) -> None:
    chance = random.Random(seed)
    said = tuple(
        ChatMessage(chance.choice(["system", "user", "assistant"]), "word " * chance.randrange(900))
        for _ in range(chance.randrange(1, 12))
    )
    request = Generate("r1", (*said, ChatMessage("user", "And?")), ongoing=True)
    contents = [
        [block for block, _ in blocks({"system": one.system, "messages": one.turns})]
        for one in (call(request), call(request, model="claude-unheard-of"))
    ]
    assert [block for block in contents[0] if "user" in block or "assistant" in block] == [
        block for block in contents[1] if "user" in block or "assistant" in block
    ]
    assert contents[0] == contents[1]


def test_a_beginning_that_was_cut_stays_cut_at_the_same_place() -> None:
    small = replace(SETTINGS, context_length=4000, max_tokens=400)
    said = list[ChatMessage]()
    begins = list[str]()
    for number in range(60):
        said.append(ChatMessage("user", f"{number} " + "word " * 60))
        one = build_call(Generate("r1", tuple(said)), small, Peer.of(""))
        begins.append(str(one.turns[0]["content"]).partition(" word")[0].split("'")[-1])
        said.append(ChatMessage("assistant", "word " * 60))
    assert 3 < len(set(begins)) <= 13  # of 60; each by four turns
