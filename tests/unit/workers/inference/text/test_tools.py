"""What a local model is told of tools, and the calls in its answer."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.messages import ChatMessage, Tool, ToolCall
from workers.inference.text.tools import CallSplitter, as_text, as_turns, writes_calls

TOOL = Tool("weather", "Says how the weather is.", '{"type": "object"}')
CALL = ToolCall("c1", "weather", '{"city": "Paris"}')
MESSAGES = (
    ChatMessage("user", "Weather?"),
    ChatMessage("assistant", "I'll look.", tool_calls=(CALL,)),
    ChatMessage("tool", "Rain.", tool_call_id="c1"),
    ChatMessage("user", "And now?"),
)
WRITTEN = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'


def test_calls_and_results_become_text_in_turns() -> None:
    system, *turns = as_text(MESSAGES, (TOOL,))
    assert system.role == "system"
    assert '"name": "weather", "description": "Says how the weather is."' in system.content
    assert [(one.role, one.content) for one in turns] == [
        ("user", "Weather?"),
        ("assistant", f"I'll look.\n{WRITTEN}"),
        ("user", "<tool_response>\nRain.\n</tool_response>\nAnd now?"),
    ]


def test_the_system_prompt_stays_first() -> None:
    said = as_text((ChatMessage("system", "Be brief."), *MESSAGES), (TOOL,))
    assert said[0].content.startswith("Be brief.\n\n")
    assert [one.role for one in said] == ["system", "user", "assistant", "user"]


def test_a_template_gets_them_as_it_knows_them() -> None:
    _, called, result, _ = as_turns(MESSAGES)
    assert called["tool_calls"][0]["function"] == {
        "name": "weather",
        "arguments": {"city": "Paris"},
    }
    assert (result["role"], result["tool_call_id"]) == ("tool", "c1")


def test_only_a_template_of_this_form_writes_them_itself() -> None:
    assert writes_calls("{% for t in tools %}<tool_call>{{ call.arguments }}")
    assert not writes_calls("{% for t in tools %}<tool_call><function={{ arguments }}")
    assert not writes_calls("{{ messages }}")


@given(st.lists(st.integers(1, 9), max_size=60), st.text(alphabet="ab <\n", max_size=20))
def test_calls_are_kept_apart_however_they_come(cuts: list[int], said: str) -> None:
    other = WRITTEN.replace("Paris", "Rome")
    whole, splitter, shown, at = said + WRITTEN + other, CallSplitter(expected=True), "", 0
    for cut in [*cuts, len(whole)]:
        shown += splitter.add(whole[at : at + cut])
        at += cut
    assert shown + splitter.finish() == said
    assert [(one.name, json.loads(one.arguments)) for one in splitter.calls()] == [
        ("weather", {"city": "Paris"}),
        ("weather", {"city": "Rome"}),
    ]
    assert len({one.id for one in splitter.calls()}) == 2


def test_the_same_call_again_is_none() -> None:
    splitter = CallSplitter(expected=True)
    splitter.add("\n".join([WRITTEN] * 5))
    assert len(splitter.calls()) == 1


def test_what_is_half_a_call_is_none() -> None:
    for written in ("<tool_call>\n{", "<tool_call>[1]</tool_call>", '<tool_call>{"name": 1}'):
        splitter = CallSplitter(expected=True)
        assert splitter.add(written) == ""
        assert splitter.calls() == ()


def test_where_none_is_expected_everything_is_text() -> None:
    splitter = CallSplitter(expected=False)
    assert splitter.add(WRITTEN) == WRITTEN
    assert splitter.calls() == ()
