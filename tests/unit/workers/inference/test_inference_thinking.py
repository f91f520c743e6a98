"""Models that think before they answer: how long, and that an answer comes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from shammah.bus.messages import ChatMessage, Done, Generate, Ready, Token
from shammah.settings.model import InferenceSettings
from tests.real.models import CHATML, make_tokenizer
from workers.inference.engine import FinishReason, SequenceRequest, StepResult
from workers.inference.inbox import Arrival, Inbox
from workers.inference.scheduling.sampling import GenerationDefaults
from workers.inference.serving import Serving
from workers.inference.startup.loading import LoadedModel
from workers.inference.text.chat import ChatFormat
from workers.service import Outlet
from workers.text.model_text import ModelText

OPENS = CHATML + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
"""As of models that always think."""
SWITCHED = CHATML + (
    "{% if add_generation_prompt and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
"""As of Qwen3, whose models open their thoughts themselves."""
QUESTION = ChatMessage("user", "what is the capital of france?")
ANSWER = "the capital of france is paris."


@dataclass
class Thinker:
    """A model that thinks these thoughts, again and again, until they are closed in its prompt.

    Then it answers. ``width``: tokens of a step; ``once``: it ends with its thoughts.
    """

    inbox: Inbox
    chat: ChatFormat
    thoughts: tuple[int, ...]
    answer: tuple[int, ...]
    width: int = 1
    once: bool = False
    waiting: int = 0
    submitted: list[SequenceRequest] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    generated: int = 0
    active: int = 0

    def submit(self, request: SequenceRequest) -> None:
        assert not self.active, "the one before was dropped"
        self.submitted.append(request)
        self.active, self.generated = 1, 0
        times = 1 if self.once else 1000
        closed = self.chat.closing[1:]  # after an empty thought there is a line end less
        done = request.prompt[-len(closed) :] == closed
        self.left = list(self.answer if done else self.thoughts * times)

    def step(self) -> list[StepResult]:
        request = self.submitted[-1]
        room = request.max_new_tokens - self.generated
        ids = tuple(islice(self.left, min(self.width, room)))
        del self.left[: len(ids)]
        self.generated += len(ids)
        finish: FinishReason | None = "length" if len(ids) == room else None
        if not self.left and finish is None:
            finish = "stop"
        if finish:
            self.active = 0
        count = len(ids) + (finish == "stop")
        return [StepResult(request.request_id, 0, count, ids, finish)]

    def cancel(self, request_id: str) -> None:
        self.active = 0


@dataclass
class Told:
    """What came of a question."""

    thoughts: str
    text: str
    done: Done
    thinker: Thinker


def ask(
    directory: Path,
    template: str,
    *,
    thoughts: str = "the dog sleeps on. ",
    context: int = 4096,
    think: bool = True,
    wanted: int = 60,
    begun: str = "",
    **options: Any,
) -> Told:
    tokenizer = make_tokenizer(directory, template)
    chat = ChatFormat(ModelText.load(directory))
    inbox, outlet = Inbox(), Outlet(lambda: None)
    thinker = Thinker(
        inbox,
        chat,
        tuple(tokenizer.encode(thoughts).ids),
        tuple(tokenizer.encode(ANSWER).ids),
        width=options.pop("width", 1),
        once=options.pop("once", False),
    )
    ready = Ready("m", context_length=context)
    engine: Any = thinker
    model = LoadedModel(engine, chat, GenerationDefaults(), ready, directory)
    messages = (QUESTION, *([ChatMessage("assistant", begun)] if begun else []))
    generate = Generate("a", messages, max_new_tokens=wanted, think=think)
    settings = InferenceSettings(think_tokens=options.pop("think_tokens", 40), **options)

    class Closing(Outlet):
        """Closes the inbox when the answer has ended."""

        def reply(self, message: Any) -> None:
            super().reply(message)
            if isinstance(message, Done):
                inbox.close(0.0)

    outlet = Closing(lambda: None)
    inbox.put(Arrival(generate, 0.0))
    Serving(model, directory, settings, inbox, outlet, lambda: 1.0).run()
    parts = {True: "", False: ""}
    while True:
        message = outlet.queue.get_nowait()
        if isinstance(message, Done):
            return Told(parts[True], parts[False], message, thinker)
        assert isinstance(message, Token), message
        parts[message.reasoning] += message.text


@pytest.mark.parametrize("width", [1, 3, 7])
def test_thoughts_that_have_used_up_their_tokens_are_ended_and_the_answer_goes_on(
    tmp_path: Path, width: int
) -> None:
    told = ask(tmp_path, OPENS, width=width)
    assert (told.text, told.done.finish_reason) == (ANSWER, "stop")
    assert told.thoughts.startswith("the dog sleeps on. the dog")
    first, second = told.thinker.submitted
    closing = told.thinker.chat.closing
    thought = second.prompt[len(first.prompt) : -len(closing)]
    assert 40 <= len(thought) < 40 + width
    assert thought == (told.thinker.thoughts * 40)[: len(thought)]
    assert second.prompt == (*first.prompt, *thought, *closing)
    assert second.max_new_tokens == 60
    said = len(told.thinker.answer) + 1  # and the stop token
    assert told.done.usage.input_tokens == len(first.prompt)
    assert told.done.usage.output_tokens == len(thought) + said


def test_thoughts_that_end_in_no_answer_are_ended_too(tmp_path: Path) -> None:
    told = ask(tmp_path, OPENS, once=True)
    assert (told.thoughts, told.text) == ("the dog sleeps on. \n", ANSWER)
    assert told.done.finish_reason == "stop"


def test_an_answer_after_thoughts_may_be_as_long_as_any(tmp_path: Path) -> None:
    thoughts = "the dog sleeps on.\n</think>\n\n" + "yes " * 400
    told = ask(tmp_path, OPENS, thoughts=thoughts, think_tokens=2000, wanted=20)
    assert told.thoughts == "the dog sleeps on.\n"
    assert told.done.finish_reason == "length"
    assert told.text == ("yes " * 20)[: len(told.text)]
    assert len(make_tokenizer(tmp_path).encode(told.text).ids) == 20
    assert len(told.thinker.submitted) == 1


def test_where_the_context_is_short_half_of_it_is_left_for_the_answer(tmp_path: Path) -> None:
    length = len(ask(tmp_path, OPENS).thinker.submitted[0].prompt)
    told = ask(tmp_path, OPENS, context=length + 120, wanted=1000, think_tokens=1000)
    first, second = told.thinker.submitted
    assert len(second.prompt) - len(first.prompt) == 60 + len(told.thinker.chat.closing)
    assert len(second.prompt) + second.max_new_tokens == length + 120
    assert told.text == ANSWER


def test_where_there_is_no_room_it_ends_without_an_answer(tmp_path: Path) -> None:
    length = len(ask(tmp_path, OPENS).thinker.submitted[0].prompt)
    told = ask(tmp_path, OPENS, context=length + 4)
    assert (told.text, told.done.finish_reason) == ("", "length")
    assert len(told.thinker.submitted) == 1


@pytest.mark.parametrize("think", [True, False])
def test_the_templates_own_switch_is_used(tmp_path: Path, think: bool) -> None:
    told = ask(tmp_path, SWITCHED, think=think, thoughts="<think>\nhm. ", think_tokens=30)
    assert told.text == ANSWER
    assert bool(told.thoughts) is think
    first = told.thinker.submitted[0]
    assert first.max_new_tokens == (60 + 30 if think else 60)
    ended = told.thinker.chat.encode([QUESTION], think=False)
    assert (first.prompt == ended) is not think


def test_a_model_that_takes_no_notice_of_the_switch_is_given_its_answer_all_the_same(
    tmp_path: Path,
) -> None:
    told = ask(tmp_path, CHATML, think=False, thoughts="<think>hm. ", think_tokens=1000)
    assert told.text == ANSWER
    assert told.thoughts.startswith("hm. ")
    assert [one.max_new_tokens for one in told.thinker.submitted] == [60, 60]


def test_what_has_begun_is_not_thought_about_again(tmp_path: Path) -> None:
    told = ask(tmp_path, OPENS, thoughts="and more.", once=True, begun="the capital")
    assert (told.thoughts, told.text) == ("", "and more.")
    assert told.thinker.submitted[0].max_new_tokens == 60
