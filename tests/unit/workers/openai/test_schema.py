"""A server's answer against the JSON schema that it was sent: `workers.openai.schema`."""

from __future__ import annotations

import pytest

from shammah.errors import ShammahError
from workers.openai.schema import SchemaCheck

SCHEMA = '{"type": "object"}'


@pytest.mark.parametrize(
    ("schema", "begun", "text", "finish_reason", "code"),
    [
        (SCHEMA, "", '\n {"a": 1}', "stop", ""),
        (SCHEMA, '{"a"', ": 1}", "stop", ""),
        (SCHEMA, "", '{"a": ', "length", ""),
        (SCHEMA, "", "", "tool_call", ""),
        ('{"type": "null"}', "", "null", "stop", ""),
        ("", "", "The city", "stop", ""),
        (SCHEMA, "", "The city", "length", "schema_not_enforced"),
        (SCHEMA, "", "```json\n{}\n```", "stop", "schema_not_enforced"),
        (SCHEMA, "", '{"a": 1} is it.', "stop", "schema_unmet"),
        (SCHEMA, "", "", "stop", "schema_unmet"),
    ],
)
def test_what_is_no_json_is_not_taken_for_it(
    schema: str, begun: str, text: str, finish_reason: str, code: str
) -> None:
    check = SchemaCheck("The server box", schema, begun)
    found = ""
    try:
        for piece in text:
            check.add(piece)
        check.finish(finish_reason)
    except ShammahError as error:
        found = error.code
    assert found == code
