"""A Messages API that caches as the real one does, for `scripted_api`.

What it keeps are beginnings of requests: tools, system, messages, block by block, up to a mark.
A request reads the longest beginning that is kept and ends at one of its marks, or at most
`LOOK_BACK` blocks before one, and writes what follows up to its last mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2

from tests.fakes.scripted_api import STOP, end, start, stream, text

LOOK_BACK = 20
MOST_MARKS = 4
BYTES_PER_TOKEN = 4


class CachingApi:
    """Answers with ``answers``, one after the other.

    Attributes:
        bodies: of all requests.
        least: beginnings of fewer tokens are not kept.
    """

    def __init__(self, *answers: str, least: int = 1024) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.least = least
        self._answers = list(answers)
        self._kept: set[str] = set()

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        answer = self._answers.pop(0)
        response = stream(
            start(**self._usage(body)),
            text(answer),
            end(output_tokens=len(answer) // BYTES_PER_TOKEN),
            STOP,
        )(request)
        assert isinstance(response, httpx2.Response)
        return response

    def _usage(self, body: dict[str, Any]) -> dict[str, int]:
        beginnings, marks, tokens = list[str](), list[int](), [0]
        so_far = body["model"]
        for block, marked in blocks(body):
            so_far += block
            beginnings.append(so_far)
            tokens.append(tokens[-1] + len(block) // BYTES_PER_TOKEN)
            if marked:
                marks.append(len(beginnings))
        assert len(marks) <= MOST_MARKS, "400: too many marks"
        found = [
            count
            for mark in marks
            for count in range(max(1, mark - LOOK_BACK), mark + 1)
            if beginnings[count - 1] in self._kept
        ]
        read = tokens[max(found, default=0)]
        kept = [mark for mark in marks if tokens[mark] >= self.least]
        self._kept.update(beginnings[mark - 1] for mark in kept)
        written = max(0, tokens[max(kept, default=0)] - read)
        return {
            "input_tokens": tokens[-1] - read - written,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "output_tokens": 1,
        }


def blocks(body: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """What a request holds, in the order of the cache, and whether each has a mark."""
    parts = [("tool", one) for one in body.get("tools", ())]
    turns = [
        ("system", body.get("system", [])),
        *((m["role"], m["content"]) for m in body["messages"]),
    ]
    for role, content in turns:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        parts += [(role, one) for one in content]
    for role, one in parts:
        yield (
            role + json.dumps({k: v for k, v in one.items() if k != "cache_control"}),
            ("cache_control" in one),
        )
