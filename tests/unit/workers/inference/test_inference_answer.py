"""Steps that bring several tokens give the answer that steps of one token give."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    PromptProgress,
    Provenance,
    Ready,
    Sampling,
    Timings,
    Token,
    Tool,
)
from shammah.errors import ShammahError
from shammah.settings.model import InferenceSettings
from workers.inference.answer import PAUSE_S, REPEATED, Answer, Thinking
from workers.inference.engine import FinishReason, SequenceRequest, StepResult
from workers.inference.inbox import Arrival, Inbox
from workers.inference.scheduling.sampling import GenerationDefaults, SamplingPlan
from workers.inference.serving import Serving
from workers.inference.startup.loading import LoadedModel
from workers.service import Outlet


class Letters:
    """A token is a letter."""

    def add(self, token_id: int) -> str:
        return chr(token_id)


QUESTION = Generate("a", ())


def make_answer(
    question: Generate = QUESTION,
    arrived: float = 0.0,
    *,
    prompt: int = 2,
    guarded: bool = False,
    thinking: bool = False,
) -> Answer:
    """An answer to a prompt of so many tokens, which nothing limits."""
    sequence = SequenceRequest("a", (7,) * prompt, SamplingPlan(), 100, frozenset())
    limits = Thinking(
        begun=thinking, possible=thinking, thoughts=400, answer=400, closing=(10,), room=1000
    )
    letters: Any = Letters()
    return Answer(Arrival(question, arrived), sequence, limits, letters, guarded=guarded)


def _steps(text: str, cuts: list[int], finish: FinishReason) -> list[StepResult]:
    """``text`` in steps of so many tokens; a stop token comes after it, in its last step."""
    results, at = [], 0
    for cut in [*cuts, len(text)]:
        part = tuple(map(ord, text[at : at + cut]))
        at += len(part)
        last = at == len(text)
        count = len(part) + (last and finish == "stop")
        results.append(StepResult("a", 0, count, part, finish if last else None))
        if last:
            break
    return results


@dataclass
class Scripted:
    """An engine that does these steps and nothing else, then closes the inbox."""

    results: list[StepResult]
    inbox: Inbox
    active: int = 0
    waiting: int = 0
    cancelled: list[str] = field(default_factory=list)

    def submit(self, request: SequenceRequest) -> None:
        self.active = 1

    def step(self) -> list[StepResult]:
        if not self.results:
            self.inbox.cancel("a")
            return []
        result = self.results.pop(0)
        if result.finish_reason is not None or result.failure is not None:
            self.cancel("")
        return [result]

    def cancel(self, request_id: str) -> None:
        self.active = 0
        self.inbox.close(0.0)


def _serve(results: list[StepResult], stops: tuple[str, ...] = ()) -> tuple[str, Done | Failed]:
    inbox, outlet = Inbox(), Outlet(lambda: None)
    chat: Any = SimpleNamespace(
        encode=lambda messages, tools, think: (1, 2),
        detokenizer=lambda begun: Letters(),
        count=lambda message: 1,
        begins_thinking=lambda prompt: False,
        may_think=lambda prompt: False,
        closing=tuple(map(ord, "\n</think>\n\n")),
        stop_ids=frozenset(),
        notices=lambda messages: (),
    )
    ready = Ready("m", "r", "cpu", "float32", "", 1000, "e")
    engine: Any = Scripted(results, inbox)
    model = LoadedModel(engine, chat, GenerationDefaults(), ready, Path())
    question = Generate("a", (ChatMessage("user", "?"),), Sampling(stop=stops))
    inbox.put(Arrival(question, 0.0))
    Serving(model, Path(), InferenceSettings(), inbox, outlet, lambda: 1.0).run()
    text = ""
    while True:
        message = outlet.queue.get_nowait()
        if isinstance(message, Done | Failed):
            return text, message
        assert isinstance(message, Token)
        text += message.text


def test_a_long_prompt_is_spoken_of_now_and_then_until_it_is_computed() -> None:
    question = Generate("a", (ChatMessage("user", "?"),))
    answer = make_answer(question, 10.0, prompt=4000)
    told = []
    for step, now in ((1, 10.2), (2, 10.6), (3, 10.8), (4, 11.2)):
        done = step == 4
        answer.take(StepResult("a", 1000, int(done), (97,) if done else ()), now - 0.1, now)
        told.append(answer.progress(now))
    assert told == [None, PromptProgress("a", 2000, 4000), None, None]


TEXTS = st.text("ab\n<>think/", min_size=1, max_size=25)


@given(
    TEXTS,
    st.lists(st.integers(1, 8), max_size=25),
    st.lists(st.text("ab\n", min_size=1, max_size=3), max_size=2).map(tuple),
    st.sampled_from(("stop", "length")),
    st.booleans(),
)
def test_how_tokens_come_changes_neither_text_nor_count_nor_reason(
    text: str, cuts: list[int], stops: tuple[str, ...], finish: FinishReason, thinks: bool
) -> None:
    text = f"<think>{text}</think>{text}" if thinks else text
    found, done = _serve(_steps(text, cuts, finish), stops)
    expected, single = _serve(_steps(text, [1] * len(text), finish), stops)
    assert isinstance(done, Done)
    assert isinstance(single, Done)
    assert found == expected
    assert done.usage == single.usage
    assert (done.finish_reason, done.stop) == (single.finish_reason, single.stop)


def test_a_stop_string_within_a_step_ends_the_answer_there() -> None:
    found, done = _serve([StepResult("a", 0, 6, tuple(map(ord, "ab#cde")))], ("#",))
    assert isinstance(done, Done)
    assert (found, done.finish_reason, done.usage.output_tokens) == ("ab", "stop", 3)
    assert done.stop == "#"
    found, done = _serve([StepResult("a", 0, 3, tuple(map(ord, "#ab")), "length")], ("#",))
    assert isinstance(done, Done)
    assert (found, done.finish_reason, done.usage.output_tokens) == ("", "stop", 1)


def test_the_first_text_is_told_at_once_and_then_what_a_pause_brings() -> None:
    answer = make_answer()

    def take(letter: str, now: float, finish: FinishReason | None = None) -> list[str]:
        result = StepResult("a", 0, 1, (ord(letter),), finish)
        return [token.text for token in answer.take(result, now, now)]

    first, soon = 5.0, 5.0 + 0.6 * PAUSE_S
    assert take("a", first) == ["a"]
    assert take("b", soon) == []
    assert take("c", first + 1.1 * PAUSE_S) == ["bc"]
    assert take("d", first + 1.2 * PAUSE_S) == []
    assert [(token.index, token.text) for token in answer.rest()] == [(4, "d")]
    assert answer.rest() == ()
    assert take("e", first + 1.3 * PAUSE_S) == []
    assert take("f", first + 1.4 * PAUSE_S, "length") == ["ef"]


def test_what_was_held_back_is_told_before_an_end_of_any_kind() -> None:
    steps = [StepResult("a", 0, 1, (ord(letter),)) for letter in "abc"]
    found, end = _serve(list(steps))  # and is cancelled
    assert isinstance(end, Done)
    assert (found, end.finish_reason, end.usage.output_tokens) == ("abc", "cancelled", 3)
    found, end = _serve([*steps, StepResult("a", failure=ShammahError("broken", "It broke."))])
    assert isinstance(end, Failed)
    assert (found, end.code) == ("abc", "broken")


def test_the_rate_counts_every_token() -> None:
    answer = make_answer()
    answer.take(StepResult("a", 2, 1, (97,)), 0.0, 1.0)
    said = answer.take(StepResult("a", 0, 5, (98, 99, 100, 101, 102)), 1.0, 2.0)
    assert said == (Token("a", 6, "bcdef"),)
    done = answer.done("length", 2.0, Provenance("inference", "m"))
    assert done.timings == Timings(0.0, 1.0, 2.0, 2.0, 5.0)


def test_an_answer_that_repeats_itself_ends_with_a_notice() -> None:
    loop = "".join(map(chr, range(65, 95)))
    for guarded in (True, False):
        answer = make_answer(guarded=guarded)
        tokens = answer.take(StepResult("a", 0, 330, tuple(map(ord, loop * 11))), 0.0, 1.0)
        text = "".join(token.text for token in tokens)
        assert text == loop * (5 if guarded else 11)
        assert answer.ended == ("repetition" if guarded else None)
    done = make_answer().done("repetition", 1.0, Provenance("inference", "m"))
    assert done.notices == (REPEATED,)


def test_thoughts_that_repeat_themselves_end_and_the_answer_begins() -> None:
    loop = "".join(map(chr, range(65, 95)))
    answer = make_answer(guarded=True, thinking=True)
    answer.take(StepResult("a", 0, 330, tuple(map(ord, loop * 11))), 0.0, 1.0)
    assert answer.ended is None
    following = answer.take_following()
    assert following is not None
    assert len(following.prompt) == 2 + len(loop) * 5 + 1


def test_calls_end_an_answer_and_are_no_text() -> None:
    call = '<tool_call>\n{"name": "t", "arguments": {"a": 1}}\n</tool_call>'
    question = Generate("a", (), Sampling(tools=(Tool("t"),)))
    answer = make_answer(question)
    tokens = answer.take(StepResult("a", 0, 9, tuple(map(ord, f"Look.\n{call}")), "stop"), 0.0, 1.0)
    assert "".join(token.text for token in tokens) == "Look.\n"
    done = answer.done("stop", 1.0, Provenance("inference", "m"))
    assert done.finish_reason == "tool_call"
    assert [(one.name, one.arguments) for one in done.tool_calls] == [("t", '{"a": 1}')]
    assert answer.done("cancelled", 1.0, Provenance("inference", "m")).tool_calls == ()
    repeated = answer.done("repetition", 1.0, Provenance("inference", "m"))
    assert (repeated.finish_reason, repeated.notices) == ("tool_call", ())


def test_calls_that_are_whole_count_where_the_room_was_used_up() -> None:
    call = '<tool_call>\n{"name": "t", "arguments": {"a": 1}}\n</tool_call>'
    for rest, finish in (("", "tool_call"), ("<tool_call>\n{", "length")):
        answer = make_answer(Generate("a", (), Sampling(tools=(Tool("t"),))))
        written = tuple(map(ord, f"{call}{rest}"))
        answer.take(StepResult("a", 0, len(written), written, "length"), 0.0, 1.0)
        done = answer.done("length", 1.0, Provenance("inference", "m"))
        assert done.finish_reason == finish
        assert [one.arguments for one in done.tool_calls] == ['{"a": 1}']
