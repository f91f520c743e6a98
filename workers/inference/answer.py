"""One answer on its way: engine steps in, messages out, with the times it took."""

from __future__ import annotations

from dataclasses import replace

from shammah.bus.messages import Done, PromptProgress, Provenance, Timings, Token, Usage
from shammah.bus.record import record
from workers.inference.engine import FinishReason, SequenceRequest, StepResult
from workers.inference.inbox import Arrival
from workers.inference.text.continuation import Blanks, split_begun
from workers.inference.text.detokenizer import Detokenizer
from workers.inference.text.reasoning import CLOSING, ReasoningSplitter
from workers.inference.text.repetition import Repetition
from workers.inference.text.tools import CallSplitter
from workers.text.stop_strings import StopStrings

PAUSE_S = 0.025
"""Between two messages of an answer. Each wakes three threads of two processes, which takes a
twentieth of the computing on two cores at a message a token; nobody sees 40 a second come."""

REPEATED = (
    "The answer began to repeat itself and was ended. If repetition is what you want, set "
    "stop_repetition = false under [inference] in config.toml."
)

PROGRESS_S = 0.5
"""Between two words about a prompt that is being computed; a shorter one is not spoken of."""


@record
class Thinking:
    """How much a model may think before its answer; all numbers are tokens.

    Attributes:
        begun: the prompt has opened the thoughts.
        possible: as far as its template says.
        thoughts: what they may have.
        answer: what the answer may have besides.
        closing: those that end the thoughts.
        room: what there is for all of these. Half of it is never for thoughts.
    """

    begun: bool
    possible: bool
    thoughts: int
    answer: int
    closing: tuple[int, ...]
    room: int

    @property
    def most(self) -> int:
        """Tokens of thoughts, as far as there is room."""
        left = max(self.room - len(self.closing) - self.answer, self.room // 2)
        return min(self.thoughts, left)

    @property
    def planned(self) -> int:
        """Tokens of the sequence that is to have all of it."""
        return min(self.answer + (self.most if self.possible else 0), self.room)


class Answer:
    """What a request has got so far. All times are of one monotonic clock, in seconds.

    Args:
        arrival: the request.
        sequence: the engine's view of it.
        thinking: what of it may be thoughts.
        detokenizer: of its tokens.
        notices: sentences for the user.
        guarded: it ends when it repeats itself endlessly.
        usage: how much of the conversation did not fit.
    """

    def __init__(
        self,
        arrival: Arrival,
        sequence: SequenceRequest,
        thinking: Thinking,
        detokenizer: Detokenizer,
        notices: tuple[str, ...] = (),
        *,
        guarded: bool = False,
        usage: Usage = Usage(),  # noqa: B008 - frozen
    ) -> None:
        request = arrival.request
        self.request_id = request.request_id
        self.adapter = request.adapter
        self.deadline = None if request.timeout_s is None else arrival.at + request.timeout_s
        self._arrived = arrival.at
        self._stops = StopStrings(request.sampling.stop)
        self._sequence = sequence
        self._thinking = thinking
        self._splitter = ReasoningSplitter(begun=thinking.begun)
        self._tokens: list[int] = []
        self._thoughts = self._said = 0  # tokens
        self._following: SequenceRequest | None = None
        self._blanks = Blanks(split_begun(request.messages)[1])
        self._calls = CallSplitter(expected=bool(request.sampling.tools))
        self._notices = notices
        self._guarded = guarded
        self._repetition = Repetition()
        self._usage, self._restored = usage, usage.restored_tokens
        self._reused = 0
        self._started: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._input_tokens = len(sequence.prompt)
        self._prefilled = 0
        self._generated = 0
        self._detokenizer = detokenizer
        self._sent = -PAUSE_S
        self._progress_sent = arrival.at
        self._unsent = ("", "")  # reasoning and text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: nothing more is to be said."""
        return bool(self._stops.found)

    @property
    def full(self) -> bool:
        """Whether it is as long as it may be, besides its thoughts."""
        return self._said >= self._thinking.answer

    @property
    def repeats(self) -> bool:
        """Whether it does nothing else any more."""
        return self._repetition.found

    @property
    def ended(self) -> FinishReason | None:
        """Why it ends here, whatever the engine would go on with."""
        if self.stopped:
            return "stop"
        return "length" if self.full else "repetition" if self.repeats else None

    def take_following(self) -> SequenceRequest | None:
        """Return the sequence that goes on from here in place of the present one, if there is one:
        the thoughts had to be ended. Once."""
        following, self._following = self._following, None
        return following

    def take(self, step: StepResult, began: float, now: float) -> tuple[Token, ...]:
        """Return what to send after ``step``, which took from ``began`` to ``now``.

        The first text at once, then what has come within a pause together.
        """
        if self._started is None:
            self._started = began
        if self._first_token is None:  # what follows thoughts has been computed before
            self._prefilled += step.prefilled
            self._reused += step.reused
            self._restored += step.restored
        if step.generated:
            self._last_token = now
            if self._first_token is None:
                self._first_token = now
        reasoning, text = self._read(step)
        self._unsent = (self._unsent[0] + reasoning, self._unsent[1] + text)
        ended = step.finish_reason is not None or self.ended is not None
        if now - self._sent < PAUSE_S and not ended:
            return ()
        if any(self._unsent):
            self._sent = now
        return self.rest()

    def progress(self, now: float) -> PromptProgress | None:
        """How much of the prompt is computed; ``None``: all of it, or that was sent just now."""
        computed = self._reused + self._prefilled
        due = now - self._progress_sent >= PROGRESS_S
        if self._first_token is not None or computed >= self._input_tokens or not due:
            return None
        self._progress_sent = now
        return PromptProgress(self.request_id, computed, self._input_tokens)

    def rest(self) -> tuple[Token, ...]:
        """Return what has not been sent yet."""
        parts = zip(self._unsent, (True, False), strict=True)
        self._unsent = ("", "")
        return tuple(
            Token(self.request_id, self._generated, part, reasoning=thought)
            for part, thought in parts
            if part
        )

    def _read(self, step: StepResult) -> tuple[str, str]:
        """The new reasoning and text of a step.

        It may bring several tokens; what comes after a stop string, or where the answer is full,
        was never said, and is not counted.
        """
        generated, reasoning, text = step.generated, "", ""
        for number, token in enumerate(step.token_ids, 1):
            thought, said = self._splitter.add(self._detokenizer.add(token))
            reasoning += thought
            text += self._stops.add(self._calls.add(self._blanks.strip(said)))
            self._tokens.append(token)
            self._thoughts += self._splitter.thinking
            self._said += self._splitter.answering
            if self._guarded:
                self._repetition.add(token)
            if self.ended is not None:
                generated = number
                break
        self._generated += generated
        ended = step.finish_reason is not None
        enough = ended or self.repeats or self._thoughts >= self._thinking.most
        if self._splitter.thinking and enough:
            reasoning += self._end_thoughts()
        over = ended or self.full or self.repeats
        if over and not self.stopped and self._following is None:
            thought, said = self._splitter.finish()
            reasoning += thought
            text += self._stops.add(self._calls.add(self._blanks.strip(said)))
            rest = self._calls.finish(cut=step.finish_reason != "stop")
            text += self._stops.add(rest) + self._stops.finish()
        return reasoning, text

    def _end_thoughts(self) -> str:
        """Have the answer begin now, if there is room for it, in a sequence of its own. Its prompt
        is all that there is, of which an engine has computed nearly everything. Returns what was
        held back of the thoughts."""
        thinking, before = self._thinking, self._sequence
        prompt = (*before.prompt, *self._tokens, *thinking.closing)
        room = thinking.room - len(self._tokens) - len(thinking.closing)
        if room < 1:
            return ""
        self._following = replace(before, prompt=prompt, max_new_tokens=min(thinking.answer, room))
        self._repetition = Repetition()
        for token in thinking.closing:
            self._detokenizer.add(token)
        return self._splitter.add(CLOSING)[0]

    def done(self, finish_reason: str, now: float, provenance: Provenance) -> Done:
        """The end. Output tokens count the stop token too: it took a step."""
        usage = replace(
            self._usage,
            input_tokens=self._input_tokens,
            output_tokens=self._generated,
            reused_tokens=self._reused,
            restored_tokens=min(self._restored, self._reused),
        )
        calls = self._calls.calls() if finish_reason != "cancelled" else ()
        repeats = finish_reason == "repetition" and not calls  # calls may be all that is repeated
        cut = finish_reason in ("length", "timeout") and self._calls.broken_off
        timings = self._timings(now)
        return Done(
            self.request_id,
            "tool_call" if calls and not cut else finish_reason,
            usage=usage,
            timings=timings,
            provenance=provenance,
            notices=self._notices + ((REPEATED,) if repeats else ()),
            tool_calls=calls,
            stop=self._stops.found if finish_reason == "stop" and not calls else "",
        )

    def _timings(self, now: float) -> Timings:
        started = now if self._started is None else self._started
        first = now if self._first_token is None else self._first_token
        return Timings(
            queue_s=started - self._arrived,
            ttft_s=first - self._arrived if self._generated else 0.0,
            total_s=now - self._arrived,
            prefill_tokens_per_second=_rate(self._prefilled, first - started),
            # The first token came with the prefill; the others took the time since.
            decode_tokens_per_second=_rate(self._generated - 1, self._last_token - first),
        )


def _rate(count: int, seconds: float) -> float:
    return count / seconds if count > 0 and seconds > 0 else 0.0
