"""Questions of several lines."""

from __future__ import annotations

import pytest

from shammah.repl.input.lines import content_of_block, in_block


@pytest.mark.parametrize(
    ("text", "is_open", "content"),
    [
        ("plain", False, None),
        ('say """ in between', False, None),
        ('"""', True, ""),
        ('"""one', True, "one"),
        ('  """\none\n', True, "one"),
        ('"""one"""', False, "one"),
        ('"""\none\n\n two\n"""', False, "one\n\n two"),
        ('"""/quit"""  ', False, "/quit"),
        ('""""""', False, ""),
    ],
)
def test_a_block(text: str, is_open: bool, content: str | None) -> None:
    assert in_block(text) == is_open
    assert content_of_block(text) == content
