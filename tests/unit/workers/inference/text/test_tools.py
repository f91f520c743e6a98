"""What a local model is told of tools, and the calls in its answer."""

from __future__ import annotations

import json
import sys

import pytest
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
    assert shown + splitter.finish(cut=False) == said
    assert [(one.name, json.loads(one.arguments)) for one in splitter.calls()] == [
        ("weather", {"city": "Paris"}),
        ("weather", {"city": "Rome"}),
    ]
    assert len({one.id for one in splitter.calls()}) == 2


def test_the_same_call_again_is_none() -> None:
    splitter = CallSplitter(expected=True)
    splitter.add("\n".join([WRITTEN] * 5))
    assert len(splitter.calls()) == 1


def read(written: str) -> list[tuple[str, str]]:
    splitter = CallSplitter(expected=True)
    assert splitter.add(written) == ""
    return [(one.name, one.arguments) for one in splitter.calls()]


@pytest.mark.parametrize("odd", ["</tool_call>", "<tool_call>", "}}\n</tool_call>\n", '"\\', "é\n"])
def test_tags_and_signs_in_strings_end_no_call(odd: str) -> None:
    arguments = json.dumps({odd: {"a": odd}, "b": [odd]}, ensure_ascii=False)
    written = f'<tool_call>\n{{"name": {json.dumps(odd)}, "arguments": {arguments}}}\n</tool_call>'
    assert read(f"{written}\n{WRITTEN}") == [(odd, arguments), ("weather", CALL.arguments)]


@pytest.mark.parametrize(
    ("written", "arguments"),
    [
        ('"arguments": {}', "{}"),
        ('"arguments": null', "{}"),
        ('"x": 1', "{}"),
        (r'"arguments": "{\"a\": 1}"', '{"a": 1}'),
        ('"arguments": {"a": 1e999}', f'{{"a": {sys.float_info.max}}}'),
        (r'"arguments": {"a": "\ud83d"}', '{"a": "\ufffd"}'),
        ('"arguments": [1]', None),
        ('"arguments": "[1]"', None),
        ('"arguments": {"a": NaN}', None),
        ('"arguments": ' + '{"a":' * 9999, None),
    ],
)
def test_arguments_are_an_object_that_others_can_read(written: str, arguments: str | None) -> None:
    found = read(f'<tool_call>{{"name": "t", {written}}}</tool_call>')
    assert found == ([] if arguments is None else [("t", arguments)])


def test_the_closing_tag_may_be_missing_at_the_end() -> None:
    assert read(WRITTEN.removesuffix("</tool_call>")) == [("weather", CALL.arguments)]


@pytest.mark.parametrize(
    "written", ["<tool_call>\n{", "<tool_call>[1]</tool_call>", '<tool_call>{"name": 1}']
)
def test_what_cannot_be_read_is_text_unless_it_was_cut(written: str) -> None:
    splitter = CallSplitter(expected=True)
    assert splitter.add(f"So: {written}") == "So: "
    assert splitter.calls() == ()
    assert splitter.finish(cut=True) == ""
    assert splitter.finish(cut=False) == written


def test_an_answer_breaks_off_within_a_string_that_holds_the_tag() -> None:
    for more, broken_off in (("", False), ('<tool_call>{"name": "</tool_call> and', True)):
        splitter = CallSplitter(expected=True)
        splitter.add(WRITTEN + more)
        assert (len(splitter.calls()), splitter.broken_off) == (1, broken_off)


def test_where_none_is_expected_everything_is_text() -> None:
    splitter = CallSplitter(expected=False)
    assert splitter.add(WRITTEN) == WRITTEN
    assert splitter.calls() == ()
