"""The service with an engine that only plays a part: no torch, no model."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shammah.bus.messages import (
    ChatMessage,
    Done,
    Failed,
    Generate,
    Loading,
    Prefill,
    Provenance,
    Ready,
    Sampling,
    State,
    Timings,
    Token,
    Tool,
    Usage,
)
from shammah.bus.transfers import Fetched
from shammah.errors import ShammahError
from shammah.models import machine as machine_module
from shammah.models.catalogue import GIB, Machine
from shammah.settings.model import InferenceSettings, Settings
from shammah.supervision import model_list
from shammah.supervision.download import FetchReply
from tests.fakes.engines import only
from tests.real.adapters import write_adapter
from tests.real.models import (
    CONTEXT_LENGTH,
    SCRIPTED_CHUNK,
    ScriptedEngine,
    make_tokenizer,
    write_checkpoint,
)
from workers.inference import serving as serving_module
from workers.inference.answer import Answer, Thinking
from workers.inference.engine import FinishReason, SequenceRequest, StepResult
from workers.inference.inbox import Arrival, Inbox
from workers.inference.scheduling.sampling import SamplingPlan
from workers.inference.service import InferenceService
from workers.inference.text.chat import ChatFormat
from workers.service import Outlet

PATIENCE_S = 60.0
MATRICES = {
    "base_model.model.x.lora_A.weight": np.ones((1, 2), np.float32),
    "base_model.model.x.lora_B.weight": np.ones((3, 1), np.float32),
}
ANSWER = "na\u00efve \U0001f680 yes"

Message = Token | Done | Failed | State


class Running:
    """A service on its work thread, and what it has said."""

    def __init__(self, service: InferenceService, engine: ScriptedEngine) -> None:
        self.service = service
        self.engine = engine
        self.outlet = Outlet(lambda: None)
        self.said: list[Message] = []
        self.thread = threading.Thread(target=service.run, args=(self.outlet,), daemon=True)

    def ask(self, request_id: str, text: str = "hello", **options: object) -> None:
        messages = (ChatMessage("user", text),)
        self.service.submit(Generate(request_id, messages, **options))

    def until(self, wanted: Callable[[Message], bool]) -> Message:
        while True:
            message = self.outlet.queue.get(timeout=PATIENCE_S)
            self.said.append(message)
            if wanted(message):
                return message

    def end(self, request_id: str) -> Done | Failed:
        found = self.until(lambda m: isinstance(m, Done | Failed) and m.request_id == request_id)
        assert isinstance(found, Done | Failed)
        return found

    def text(self, request_id: str) -> str:
        tokens = [m for m in self.said if isinstance(m, Token)]
        return "".join(token.text for token in tokens if token.request_id == request_id)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def answer(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    ids: list[int] = make_tokenizer(tmp_path_factory.mktemp("tokenizer")).encode(ANSWER).ids
    return ids


@contextmanager
def _running(
    directory: Path,
    answer: list[int],
    *,
    loaded: bool = True,
    home: Path | None = None,
    **options: object,
) -> Iterator[Running]:
    engine = ScriptedEngine(answer)
    if loaded:
        engine.loading.set()
    inference = InferenceSettings(max_new_tokens=99)
    asked = Settings(home or directory, str(directory), inference=inference)
    service = InferenceService(
        asked,
        engines=only(lambda: engine),
        **options,
    )
    running = Running(service, engine)
    running.thread.start()
    yield running
    engine.loading.set()
    service.stop()
    running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive()


def test_a_question_is_answered(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.ask("a", sampling=Sampling(seed=3), max_new_tokens=50)
        done = run.end("a")
    assert isinstance(done, Done)
    assert (done.finish_reason, run.text("a")) == ("stop", ANSWER)
    request = run.engine.submitted[0]
    assert done.usage == Usage(len(request.prompt), len(answer) + 1)
    assert done.provenance == Provenance("inference", "tiny", "", "fake", "cpu", "float32")
    assert (request.max_new_tokens, request.sampling.seed) == (50, 3)
    assert request.stop_ids == {0, 2}


def test_tokens_are_whole_characters_and_counted(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.ask("a")
        run.end("a")
    tokens = [message for message in run.said if isinstance(message, Token)]
    assert all("\ufffd" not in token.text and token.text for token in tokens)
    counts = [token.index for token in tokens]
    assert counts == sorted(set(counts))
    assert counts[-1] <= len(answer) + 1
    # Every step is progress, also one without text.
    assert run.outlet.progress >= run.engine.steps


def test_requests_wait_for_the_model(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer, loaded=False) as run:
        run.ask("a")
        run.ask("b")
        run.engine.loading.set()
        run.until(lambda message: isinstance(message, Ready))
        assert not [message for message in run.said if isinstance(message, Token)]
        assert isinstance(run.end("a"), Done)
        assert isinstance(run.end("b"), Done)
    assert run.text("a") == run.text("b") == ANSWER


def test_a_waiting_request_is_cancelled_at_once(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer, loaded=False) as run:
        run.until(lambda message: "pretend" in str(message))
        run.ask("a")
        run.ask("b")
        run.service.cancel("a")
        done = run.end("a")  # though the load goes on
        assert isinstance(done, Done)
        assert (done.finish_reason, done.usage) == ("cancelled", Usage())
        run.engine.loading.set()
        assert isinstance(run.end("b"), Done)
    assert [request.request_id for request in run.engine.submitted] == ["b"]


@pytest.mark.parametrize("at_step", [1, 2, 5])
def test_a_cancel_costs_no_further_step(directory: Path, answer: list[int], at_step: int) -> None:
    """Step 1 is prefill, 2 ends it, 5 is decode; the cancel comes while the step is done."""
    with _running(directory, answer, loaded=False) as run:
        run.engine.on_step = lambda number: run.service.cancel("a") if number == at_step else None
        run.ask("a")
        run.engine.loading.set()
        done = run.end("a")
        assert isinstance(done, Done)
        assert done.finish_reason == "cancelled"
        assert done.usage.output_tokens == at_step - 1
        run.ask("b")
        assert isinstance(run.end("b"), Done)
        assert run.text("b") == ANSWER
    alone = -(-len(run.engine.submitted[1].prompt) // SCRIPTED_CHUNK) + len(answer)
    assert run.engine.steps == at_step + alone


def test_a_cancel_for_nobody_does_nothing(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.service.cancel("nobody")
        run.ask("a")
        assert isinstance(run.end("a"), Done)
        run.service.cancel("a")
        run.ask("b")
        assert isinstance(run.end("b"), Done)
    assert sum(isinstance(message, Done) for message in run.said) == 2


def test_a_cancel_before_the_thread_runs_is_kept(directory: Path, answer: list[int]) -> None:
    engine = ScriptedEngine(answer)
    engine.loading.set()
    service = InferenceService(Settings(directory, str(directory)), engines=only(lambda: engine))
    run = Running(service, engine)
    run.ask("a")
    service.cancel("a")
    run.thread.start()
    done = run.end("a")
    assert isinstance(done, Done)
    assert done.finish_reason == "cancelled"
    service.stop()


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        ({"sampling": Sampling(top_p=3.0)}, "sampling_invalid", "top_p is 3.0"),
        ({"max_new_tokens": 0}, "sampling_invalid", "max_new_tokens is 0"),
        ({"text": "hello " * 900}, "context_too_long", f"holds {CONTEXT_LENGTH}"),
        ({"text": "\ud800"}, "messages_invalid", "rejects"),
    ],
)
def test_a_bad_request_fails_alone(
    directory: Path, answer: list[int], options: dict[str, object], code: str, part: str
) -> None:
    with _running(directory, answer, loaded=False) as run:
        run.ask("good")
        run.ask("bad", **options)
        run.engine.loading.set()
        failed = run.end("bad")
        assert isinstance(failed, Failed)
        assert failed.code == code
        assert part in failed.message
        assert failed.hint
        assert isinstance(run.end("good"), Done)
    assert run.text("good") == ANSWER


def test_the_answer_is_clipped_to_the_context(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.ask("a", max_new_tokens=10_000)
        run.ask("b")
        run.end("b")
    long, default = run.engine.submitted
    assert long.max_new_tokens == CONTEXT_LENGTH - len(long.prompt)
    assert default.max_new_tokens == 99


def test_a_prompt_may_leave_room_for_one_token(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.ask("measure", "")
        run.end("measure")
        room = CONTEXT_LENGTH - len(run.engine.submitted[0].prompt) - 1
        run.ask("full", "." * room)
        done = run.end("full")
        run.ask("over", "." * (room + 1))
        over = run.end("over")
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.output_tokens) == ("length", 1)
    assert isinstance(over, Failed)
    assert str(CONTEXT_LENGTH) in over.message
    assert over.code == "context_too_long"


def test_what_does_not_fit_is_counted_and_read_ahead_from_the_same_cut(
    directory: Path, answer: list[int]
) -> None:
    talk = [
        ChatMessage(role, f"{number} " + "hello world " * 6)
        for number in range(40)
        for role in ("user", "assistant")
    ]
    talk.insert(0, ChatMessage("system", "Be brief."))
    asked = (*talk, ChatMessage("user", "so?"))
    with _running(directory, answer) as run:
        run.service.submit(Prefill("ahead", tuple(talk)), "c")
        run.end("ahead")
        run.service.submit(Generate("a", asked), "c")
        done = run.end("a")
        run.service.submit(Generate("b", (*asked, ChatMessage("assistant", "yes"))), "c")
        begun = run.end("b")
        run.service.submit(Generate("c", asked, whole=True), "c")
        refused = run.end("c")
    assert isinstance(done, Done)
    assert isinstance(begun, Done)
    assert 0 < done.usage.unseen < 80
    assert done.usage.messages == begun.usage.messages == 81
    assert done.notices == ()  # whoever holds the conversation knows what has been told
    ahead, whole = (request.prompt for request in run.engine.submitted[:2])
    assert len(whole) - 30 < len(ahead) < len(whole) < CONTEXT_LENGTH
    assert whole[: len(ahead)] == ahead
    assert isinstance(refused, Failed)
    assert refused.code == "context_too_long"
    with _running(directory, answer) as later:  # another process arrives at the same
        later.service.submit(Generate("a", asked), "other")
        later.end("a")
        assert later.engine.submitted[0].prompt == whole


def test_a_failed_sequence_leaves_the_others(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer, loaded=False) as run:
        advance = run.engine.advance
        failure = ShammahError("out_of_memory", "full", "less")
        run.engine.advance = lambda r: (
            StepResult("a", failure=failure) if r.request_id == "a" else advance(r)
        )
        run.ask("a")
        run.ask("b")
        run.engine.loading.set()
        assert run.end("a") == Failed("out_of_memory", "full", "less", "a")
        assert isinstance(run.end("b"), Done)


NO_TOKEN = -1
"""A number that no tokenizer takes: it raises an OverflowError."""


@pytest.mark.parametrize("finish", [None, "stop", "length"])
def test_an_answer_that_cannot_be_decoded_fails_alone(
    directory: Path, answer: list[int], finish: FinishReason | None
) -> None:
    with _running(directory, answer, loaded=False) as run:
        advance = run.engine.advance
        run.engine.advance = lambda r: (
            StepResult("a", 0, 1, (NO_TOKEN,), finish)
            if r.request_id == "a" and run.engine.done["a"] == 3
            else advance(r)
        )
        run.ask("a")
        run.ask("b")
        run.engine.loading.set()
        failed = run.end("a")
        assert isinstance(failed, Failed)
        assert failed.code == "internal"
        assert "OverflowError" in failed.message
        assert run.text("a")
        assert run.text("a") not in failed.message
        assert isinstance(run.end("b"), Done)
        run.ask("c")
        assert isinstance(run.end("c"), Done)
    assert run.text("b") == run.text("c") == ANSWER
    assert not [state for state in run.said if isinstance(state, Failed) and not state.request_id]


class PanicError(BaseException):
    """As a panic of a library in Rust arrives: no Exception."""


def test_a_request_that_makes_a_library_panic_fails_alone(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = ChatFormat.encode

    def panic(
        chat: ChatFormat,
        messages: Sequence[ChatMessage],
        tools: Sequence[Tool] = (),
        *,
        think: bool = False,
    ) -> tuple[int, ...]:
        if messages[-1].content == "panic":
            raise PanicError(messages[-1].content)
        return encode(chat, messages, tools, think=think)

    monkeypatch.setattr(ChatFormat, "encode", panic)
    with _running(directory, answer) as run:
        run.ask("a", "panic")
        failed = run.end("a")
        run.service.submit(Prefill("ahead", (ChatMessage("user", "panic"),)), "x")
        assert isinstance(run.end("ahead"), Failed | Done)
        run.ask("b")
        assert isinstance(run.end("b"), Done)
    assert isinstance(failed, Failed)
    assert "PanicError" in failed.message


def test_a_failed_step_ends_everybody_but_not_the_worker(
    directory: Path, answer: list[int]
) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise RuntimeError("device lost")

    with _running(directory, answer, loaded=False) as run:
        run.engine.on_step = fail
        run.ask("a")
        run.ask("b")
        run.engine.loading.set()
        for request_id in ("a", "b"):
            failed = run.end(request_id)
            assert isinstance(failed, Failed)
            assert (failed.code, "device lost" in failed.message) == ("internal", True)
        run.ask("c")
        assert isinstance(run.end("c"), Done)
    assert run.text("c") == ANSWER


@pytest.mark.parametrize(
    ("model", "code"), [("7B", "not_available"), ("/nowhere", "model_not_found")]
)
def test_without_a_model_waiting_requests_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, code: str
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    service = InferenceService(Settings(tmp_path, model))
    run = Running(service, ScriptedEngine([]))
    run.ask("a")
    run.thread.start()
    failed = run.end("a")
    assert isinstance(failed, Failed)
    assert failed.code == code
    run.thread.join(PATIENCE_S)
    assert not run.thread.is_alive()


def test_timings_are_what_the_clock_says(directory: Path, answer: list[int]) -> None:
    """Each step takes a second, and nothing else takes time."""
    now = 100.0
    with _running(directory, answer, loaded=False, clock=lambda: now) as run:

        def tick(number: int) -> None:
            nonlocal now
            now += 1.0

        run.engine.on_step = tick
        run.ask("a")
        now += 5.0
        run.engine.loading.set()
        done = run.end("a")
    assert isinstance(done, Done)
    prompt = len(run.engine.submitted[0].prompt)
    chunks = -(-prompt // SCRIPTED_CHUNK)
    assert done.timings == Timings(
        queue_s=5.0,
        ttft_s=5.0 + chunks,
        total_s=5.0 + chunks + len(answer),
        prefill_tokens_per_second=prompt / chunks,
        decode_tokens_per_second=1.0,
    )


def test_text_that_was_held_back_comes_with_the_last_token() -> None:
    class Beginning:
        def add(self, token_id: int) -> str:
            return "<thi"

    sequence = SequenceRequest("a", (1,) * 5, SamplingPlan(), 9, frozenset())
    thinking = Thinking(begun=False, possible=False, thoughts=9, answer=9, closing=(), room=1000)
    taken = Answer(Arrival(Generate("a", ()), 0.0), sequence, thinking, Beginning())
    assert taken.take(StepResult("a", 5, 1, (7,)), 0.0, 1.0) == ()
    assert taken.take(StepResult("a", 0, 1, (), "stop"), 1.0, 2.0) == (Token("a", 2, "<thi"),)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), max_size=30))
@settings(max_examples=50, deadline=None)
def test_every_request_ends_exactly_once(
    directory: Path, answer: list[int], acts: list[tuple[str, bool]]
) -> None:
    asked: dict[str, int] = {}
    with _running(directory, answer) as run:
        for name, ask in acts:
            if ask:
                asked[name] = asked.get(name, 0) + 1
                run.ask(f"{name}{asked[name]}")
            else:
                run.service.cancel(f"{name}{asked.get(name, 0)}")
        names = [f"{name}{n + 1}" for name, count in asked.items() for n in range(count)]
        run.ask("last")
        run.end("last")
        ended = [m.request_id for m in run.said if isinstance(m, Done | Failed)]
        for _ in range(len(names) + 1 - len(ended)):
            run.until(lambda message: isinstance(message, Done | Failed))
    with pytest.raises(queue.Empty):
        run.outlet.queue.get_nowait()
    ended = [m.request_id for m in run.said if isinstance(m, Done | Failed)]
    assert sorted(ended) == sorted([*names, "last"])


def test_nothing_heavy_is_imported_before_a_model_is_loaded() -> None:
    code = "import sys, workers.inference.service; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "jinja2", "psutil"}
    assert not heavy & set(output)


# --- a stand-in gives way -----------------------------------------------------------------


class OneFetch:
    """A source whose only fetch ends when the test says so."""

    def __init__(self, directory: Path) -> None:
        self.arrived = threading.Event()
        self._directory = directory

    def fetch(self, model_id: str) -> OneFetch:
        return self

    def repair(self, model_id: str) -> None:
        raise AssertionError("nothing is damaged")

    def leave(self) -> None:
        self.arrived.set()

    def __iter__(self) -> Iterator[FetchReply]:
        assert self.arrived.wait(PATIENCE_S)
        yield Fetched("", "m", "r", str(self._directory))


@contextmanager
def _standing_in(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Running, OneFetch, list[ScriptedEngine]]]:
    monkeypatch.setattr(model_list, "starter_directory", lambda: directory)
    monkeypatch.setattr(machine_module, "look", lambda environ: Machine(4 * GIB))
    source = OneFetch(directory)
    engines = [ScriptedEngine(answer), ScriptedEngine(answer)]
    engines[0].loading.set()
    making = iter(engines)
    service = InferenceService(
        Settings(directory, "auto", inference=InferenceSettings(max_new_tokens=99)),
        environ={"HF_HUB_CACHE": str(directory / "no-such-cache")},
        engines=only(lambda: next(making)),
        make_source=lambda settings, environ: source,
    )
    running = Running(service, engines[0])
    running.thread.start()
    yield running, source, engines
    for engine in engines:
        engine.loading.set()
    service.stop()
    running.thread.join(PATIENCE_S)
    assert not running.thread.is_alive()


def test_a_stand_in_ends_its_answers_and_the_next_question_waits_for_the_real_model(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    held, hold = threading.Event(), Inbox.hold
    monkeypatch.setattr(Inbox, "hold", lambda inbox: (hold(inbox), held.set()))
    with _standing_in(directory, answer, monkeypatch) as (run, source, engines):
        first = run.until(lambda said: isinstance(said, Ready))
        assert isinstance(first, Ready)
        assert first.fallback
        went_on = threading.Event()

        def during(step: int) -> None:
            # In the midst of the answer the other model arrives, and a question for it.
            if step == 2:
                source.arrived.set()
                assert held.wait(PATIENCE_S)
                run.ask("b")
                went_on.set()

        engines[0].on_step = during
        run.ask("a")
        ended = run.end("a")
        assert went_on.is_set()
        assert isinstance(ended, Done)
        assert (ended.finish_reason, run.text("a")) == ("stop", ANSWER)
        assert ended.provenance.fallback
        run.until(lambda said: isinstance(said, Loading))
        assert engines[1].submitted == []
        engines[1].loading.set()
        second = run.end("b")
        assert isinstance(second, Done)
        assert run.text("b") == ANSWER
        assert second.provenance.model == "Qwen/Qwen2.5-0.5B-Instruct"
        assert [request.request_id for request in engines[0].submitted] == ["a"]


def test_a_question_that_waits_for_the_real_model_can_be_cancelled(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with _standing_in(directory, answer, monkeypatch) as (run, source, engines):
        run.until(lambda said: isinstance(said, Ready))
        source.arrived.set()
        run.until(lambda said: isinstance(said, Loading))
        run.ask("b")
        run.service.cancel("b")
        ended = run.end("b")
        assert isinstance(ended, Done)
        assert ended.finish_reason == "cancelled"
        assert not engines[1].submitted


@pytest.mark.parametrize(("asker", "reason"), [("a", "cancelled"), ("b", "stop")])
def test_a_question_goes_before_what_is_read_ahead(
    directory: Path, answer: list[int], asker: str, reason: str
) -> None:
    """That of the same frontend ends it; another's only puts it off."""
    with _running(directory, answer, loaded=False) as running:
        running.service.submit(Prefill("ahead", (ChatMessage("user", "hello"),)), "a")
        running.service.submit(Generate("asked", (ChatMessage("user", "hello"),)), asker)
        running.engine.loading.set()
        ends = [running.until(lambda m: isinstance(m, Done)) for _ in range(2)]
        by = {end.request_id: end for end in ends if isinstance(end, Done)}
        assert by["ahead"].finish_reason == reason
        assert by["ahead"].usage.output_tokens == 0
        assert running.text("asked") == ANSWER
        assert running.text("ahead") == ""
        assert (ends[0] is by["ahead"]) == (reason == "cancelled")


# --- adapters -----------------------------------------------------------------------------


def test_an_answer_says_which_adapter_it_was_given_with(
    directory: Path, answer: list[int], tmp_path: Path
) -> None:
    write_adapter(tmp_path, "tidy", {"lora_alpha": 1}, MATRICES, base_model="tiny")
    with _running(directory, answer, home=tmp_path) as run:
        run.ask("a", adapter="tidy")
        run.ask("b")
        run.ask("c", adapter="tidy")
        ends = [run.end(name) for name in "abc"]
    assert [end.provenance.adapter for end in ends if isinstance(end, Done)] == ["tidy", "", "tidy"]
    (adapter,) = run.engine.adapters  # read once
    assert [one.adapter for one in run.engine.submitted] == [adapter.key, "", adapter.key]


def test_an_adapter_that_cannot_be_used_fails_its_own_question_alone(
    directory: Path, answer: list[int], tmp_path: Path
) -> None:
    entry = write_adapter(tmp_path, "tidy", {"use_dora": True}, MATRICES, base_model="tiny")
    write_adapter(tmp_path, "other", {"lora_alpha": 1}, MATRICES, base_model="larger")
    with _running(directory, answer, home=tmp_path) as run:
        for adapter, code in (
            ("tidy", "adapter_unsupported"),
            ("other", "adapter_wrong_base"),
            ("none", "adapter_not_found"),
        ):
            run.ask("a", adapter=adapter)
            end = run.end("a")
            assert isinstance(end, Failed)
            assert (end.code, bool(end.hint)) == (code, True)
        (entry.directory / "adapter_config.json").write_text("{")
        run.ask("a", adapter="tidy")
        end = run.end("a")
        assert isinstance(end, Failed)
        assert end.code == "adapter_damaged"
        run.ask("b")
        assert isinstance(run.end("b"), Done)
    assert run.engine.adapters == []
    assert len(run.engine.submitted) == 1


# --- keeping what was computed ------------------------------------------------------------


def test_an_idle_worker_keeps_conversations_once(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_module, "IDLE_S", 0.0)
    with _running(directory, answer) as run:
        kept = threading.Event()
        run.engine.on_keep = kept.set
        run.ask("a", conversation="c")
        run.end("a")
        assert kept.wait(PATIENCE_S)
        assert run.engine.submitted[0].conversation == "c"
        assert run.engine.keeps == [False]
        run.ask("b")  # which may not be kept
        run.end("b")
    assert run.engine.keeps == [False, True]


def test_a_worker_that_ends_keeps_conversations(directory: Path, answer: list[int]) -> None:
    with _running(directory, answer) as run:
        run.ask("a", conversation="c")
        run.end("a")
    assert run.engine.keeps == [True]


def test_what_cannot_be_kept_ends_nothing(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(serving_module, "IDLE_S", 0.0)
    with _running(directory, answer) as run:
        run.engine.on_keep = fail
        for name in "ab":
            run.ask(name, conversation="c")
            assert isinstance(run.end(name), Done)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_was_read_from_the_disk_is_told_once(
    directory: Path, answer: list[int], monkeypatch: pytest.MonkeyPatch, *, ahead: bool
) -> None:
    def advance(engine: ScriptedEngine, request: SequenceRequest) -> StepResult:
        restored = 5 if len(engine.submitted) == 1 else 0
        return StepResult(request.request_id, 1, 1, (), "stop", reused=9, restored=restored)

    monkeypatch.setattr(ScriptedEngine, "advance", advance)
    with _running(directory, answer) as run:
        if ahead:
            turn = (ChatMessage("user", "hello"), ChatMessage("assistant", "yes"))
            run.service.submit(Prefill("p", turn))
            run.end("p")
        for name, restored in (("a", 5), ("b", 0)):
            run.ask(name)
            done = run.end(name)
            assert isinstance(done, Done)
            assert (done.usage.reused_tokens, done.usage.restored_tokens) == (9, restored)
