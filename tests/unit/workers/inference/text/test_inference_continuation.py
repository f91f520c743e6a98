"""An answer goes on where another one stopped: tokens, blanks and thoughts."""

from __future__ import annotations

from pathlib import Path

import pytest

from shammah.bus.messages import ChatMessage
from tests.real.models import CHATML, make_tokenizer
from workers.inference.text.chat import ChatFormat
from workers.inference.text.continuation import Blanks, heal
from workers.text.model_text import ModelText

QUESTION = ChatMessage("user", "hello")


@pytest.fixture
def chat(tmp_path: Path) -> ChatFormat:
    make_tokenizer(tmp_path, CHATML)
    return ChatFormat(ModelText.load(tmp_path))


@pytest.mark.parametrize("begun", ["yes", "\nyes", "na\u00efve \U0001f680", "<|im_end|>"])
def test_the_prompt_is_that_of_the_answer_and_then_its_beginning(
    chat: ChatFormat, begun: str
) -> None:
    prompt = chat.encode([QUESTION])
    assert chat.encode([QUESTION, ChatMessage("assistant", begun)]) == (
        *prompt,
        *chat.encode_begun(begun),
    )
    assert not chat.stop_ids & set(chat.encode_begun(begun))


def test_an_answer_that_has_begun_is_no_thought(tmp_path: Path) -> None:
    thinks = "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    tokenizer = make_tokenizer(tmp_path, CHATML + thinks)
    chat = ChatFormat(ModelText.load(tmp_path))
    ids = chat.encode([QUESTION, ChatMessage("assistant", "yes")])
    assert tokenizer.decode(list(ids)).endswith("<think>\n</think>\n\nyes")


def test_blanks_are_healed() -> None:
    assert heal("a b \t") == ("a b", " \t")
    for pieces, rest in (([" ", "x"], "x"), (["x"], "x"), (["  x y"], " x y"), (["\n x"], "\n x")):
        blanks = Blanks("so far ")
        assert "".join(map(blanks.strip, pieces)) == rest


def test_what_is_read_ahead_is_the_beginning_of_every_next_prompt(chat: ChatFormat) -> None:
    turns = [QUESTION, ChatMessage("assistant", "yes")]
    ahead = chat.encode_earlier(turns)
    whole = chat.encode([*turns, ChatMessage("user", "another question")])
    assert whole[: len(ahead)] == ahead
    assert len(ahead) >= len(chat.encode([QUESTION])) + len(chat.encode_begun("yes"))
