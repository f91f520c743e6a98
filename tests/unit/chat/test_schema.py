"""Answers that are held to a JSON schema, and who refuses to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Generate, Sampling
from shammah.chat.attachments import read_schema
from shammah.errors import ShammahError
from shammah.settings.model import CloudSettings
from tests.fakes.scripted_api import WHOLE, converse, settings, stream
from workers.cloud.request import Peer, build_call

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
QUESTION = (ChatMessage("user", "Where is the Louvre?"),)
ASKED = Sampling(schema=json.dumps(SCHEMA))


def test_claude_is_sent_it_and_only_when_there_is_one() -> None:
    bodies: list[dict[str, Any]] = []

    def server(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        answer: httpx2.Response = stream(*WHOLE)(request)
        return answer

    for sampling in (ASKED, Sampling()):
        ended = converse(server, Generate("r", QUESTION, sampling))[2]
        assert isinstance(ended, Done), ended
    assert bodies[0]["output_config"] == {"format": {"type": "json_schema", "schema": SCHEMA}}
    assert "output_config" not in bodies[1]


def test_a_server_that_may_ignore_it_is_not_asked() -> None:
    def server(request: httpx2.Request) -> httpx2.Response:
        raise AssertionError("it was asked")

    chosen = settings(base_url="http://127.0.0.1:9")
    ended = converse(server, Generate("r", QUESTION, ASKED), chosen)[2]
    assert isinstance(ended, Failed)
    assert ended.code == "schema_not_enforced"
    assert "127.0.0.1:9 cannot hold an answer to this schema" in ended.message


def test_an_answer_that_broke_off_does_not_go_on() -> None:
    """Its second half by itself would be made to fit, and the whole would not."""
    begun = (*QUESTION, ChatMessage("assistant", '{"city": "Pa'))
    with pytest.raises(ShammahError, match="broke off") as caught:
        build_call(Generate("r", begun, ASKED), CloudSettings(), Peer.of(""))
    assert caught.value.code == "schema_not_enforced"


def test_a_file_is_read_and_bad_ones_are_told(tmp_path: Path) -> None:
    file = tmp_path / "city.json"
    file.write_text(json.dumps(SCHEMA, indent=2))
    assert json.loads(read_schema(str(file), print)) == SCHEMA
    assert read_schema(None, print) == ""
    for wrong, why in (("{", "is not JSON"), ("[1]", "does not hold a JSON object")):
        file.write_text(wrong)
        with pytest.raises(ShammahError, match=why) as caught:
            read_schema(str(file), print)
        assert (caught.value.code, caught.value.exit_code) == ("schema_invalid", 2)
