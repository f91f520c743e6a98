"""Files of examples, and which of them are held back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import ExitCode, ShammahError
from shammah.learning.examples import (
    Example,
    paraphrase,
    parse_example,
    read_examples,
    split_examples,
)


def some(count: int) -> list[Example]:
    return [Example((("user", f"question {n}"),), f"answer {n}") for n in range(count)]


def test_a_line_is_an_example() -> None:
    line = '{"prompt": "Who?", "response": "Ada.", "weight": 3}'
    assert parse_example(line) == Example((("user", "Who?"),), "Ada.", 3.0)
    assert parse_example('{"prompt": "Who?", "response": "Ada."}').weight == 1.0
    assert parse_example('{"prompt": "a", "response": "b", "weight": "high"}').weight == 10.0


def test_a_prompt_may_be_a_conversation() -> None:
    messages = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who?"},
    ]
    found = parse_example(json.dumps({"prompt": messages, "response": "Ada."}))
    assert found.prompt == (("system", "Be short."), ("user", "Who?"))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"prompt": "a"}', "response must be"),
        ('{"prompt": "a", "response": " "}', "response must be"),
        ('{"prompt": "a", "response": 3}', "response must be"),
        ('{"response": "b"}', "prompt must be"),
        ('{"prompt": [], "response": "b"}', "prompt must be"),
        ('{"prompt": " ", "response": "b"}', "must end with a user message"),
        ('{"prompt": [{"role": "assistant", "content": "x"}], "response": "b"}', "must end with"),
        ('{"prompt": [{"role": "robot", "content": "x"}], "response": "b"}', "has a role and"),
        ('{"prompt": ["x"], "response": "b"}', "has a role and"),
        ('{"prompt": "a", "response": "b", "weight": 0}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": -1}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": 101}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": NaN}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": true}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": "huge"}', "weight must be"),
        ('{"prompt": "a", "response": "b", "weight": Infinity}', "weight must be"),
        (f'{{"prompt": "a", "response": "b", "weight": 1{"0" * 400}}}', "weight must be"),
        ('{"prompt": "a", "response": "b", "answer": "c"}', "no field 'answer'"),
        (r'{"prompt": "a", "response": "b\ud83d"}', r"'\\ud83d' \(a lone surrogate"),
        (r'{"prompt": "\ude00", "response": "b"}', "lone surrogate"),
        (r'{"prompt": [{"role": "user", "content": "\ud800?"}], "response": "b"}', "lone"),
        (r'{"prompt": "a", "response": "b", "\udfff": "c"}', "lone surrogate"),
        ('{"prompt": {"role": "user", "content": "x"}, "response": "b"}', "prompt must be"),
        ('{"prompt": [{"role": ["user"], "content": "x"}], "response": "b"}', "has a role and"),
        ('{"prompt": [{"role": "user", "content": null}], "response": "b"}', "has a role and"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_example(line)


def test_the_number_of_a_bad_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n\n{"prompt": "a"}\n')
    with pytest.raises(ShammahError, match=r"examples\.jsonl, line 3: response must") as told:
        read_examples(path)
    assert told.value.exit_code is ExitCode.USAGE


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    text = "one\u2028two"
    path.write_text(json.dumps({"prompt": text, "response": text}, ensure_ascii=False) + "\n")
    assert read_examples(path) == (Example((("user", text),), text),)


LINE = b'{"prompt": "a", "response": "b"}'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (LINE + b"\n" + b'{"prompt": "a", "response": "\xff"}', "line 2: it is not UTF-8"),
        (LINE + b'\n{"prompt": "a", "response": "\xed\xa0\xbd"}', "line 2: it is not UTF-8"),
        (LINE.decode().encode("utf-16"), "line 1: it is not UTF-8"),
        (LINE + b"\n\n" + b'{"prompt": "' + b"a" * 1_000_000 + b'"}', "line 3: it is longer than"),
        (LINE + b'\n{"prompt": "a", "response": "\\ud83d"}', "line 2: it contains half of a char"),
        (b"\0" * 100, "line 1: it is not JSON"),
    ],
)
def test_a_line_that_is_no_text_is_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_bytes(content)
    with pytest.raises(ShammahError, match=why) as told:
        read_examples(path)
    assert told.value.exit_code is ExitCode.USAGE


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_byte_order_marks_are_skipped(tmp_path: Path, end: bytes) -> None:
    """Also where a file that begins with one was written behind another."""
    path = tmp_path / "examples.jsonl"
    path.write_bytes(2 * (b"\xef\xbb\xbf" + LINE + end) + b"\xef\xbb\xbf" + end)
    assert read_examples(path) == 2 * (Example((("user", "a"),), "b"),)


def test_whole_pairs_and_control_characters_are_text(tmp_path: Path) -> None:
    path = tmp_path / "examples.jsonl"
    path.write_text(r'{"prompt": "a\u0000\ufdd0", "response": "\ud83d\ude00"}')
    assert read_examples(path) == (Example((("user", "a\0\ufdd0"),), "😀"),)


@pytest.mark.parametrize("kind", ["none", "directory", "pipe"])
def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "examples.jsonl"
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ShammahError, match="cannot be read"):
        read_examples(path)


@given(st.integers(4, 60), st.integers(0, 5))
def test_everything_is_on_one_side(count: int, seed: int) -> None:
    examples = some(count)
    learnt, held_out = split_examples(examples, seed)
    assert sorted(map(str, learnt + held_out)) == sorted(map(str, examples))
    assert len(held_out) == (count // 5 if count >= 15 else 0)


def test_a_question_is_on_one_side_with_all_its_answers() -> None:
    examples = some(15) * 3
    learnt, held_out = split_examples(examples, 0)
    assert not {one.prompt for one in learnt} & {one.prompt for one in held_out}
    assert len(held_out) == 9


def test_a_paraphrase_asks_the_same_in_other_words() -> None:
    asked = (("system", "Be short."), ("user", "Who {is} it?"))
    examples = [Example(asked, f"answer {n}", 3.0, private=True) for n in range(8)]
    made = paraphrase(examples)
    assert [(one.response, one.weight, one.private) for one in made] == [
        (one.response, one.weight, one.private) for one in examples
    ]
    for one in made:
        assert one.prompt[0] == asked[0]
        assert one.prompt[1][0] == "user"
        assert "Who {is} it?" in one.prompt[1][1] != "Who {is} it?"


def test_another_seed_holds_others_back() -> None:
    assert len({split_examples(some(30), seed)[1] for seed in range(5)}) > 1


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(ShammahError, match="There are 3 questions"):
        split_examples(some(3) * 5, 0)
