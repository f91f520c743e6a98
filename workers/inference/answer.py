"""One answer on its way: engine steps in, messages out, with the times it took."""

from __future__ import annotations

from shammah.bus.messages import Done, PromptProgress, Provenance, Timings, Token, Usage
from workers.inference.engine import StepResult
from workers.inference.inbox import Arrival
from workers.inference.text.continuation import Blanks, split_begun
from workers.inference.text.detokenizer import Detokenizer
from workers.inference.text.reasoning import ReasoningSplitter
from workers.inference.text.stop_strings import StopStrings

PAUSE_S = 0.025
"""Between two messages of an answer. Each wakes three threads of two processes, which takes a
twentieth of the computing on two cores at a message a token; nobody sees 40 a second come."""

PROGRESS_S = 0.5
"""Between two words about a prompt that is being computed; a shorter one is not spoken of."""


class Answer:
    """What a request has got so far. All times are of one monotonic clock, in seconds."""

    def __init__(
        self,
        arrival: Arrival,
        input_tokens: int,
        detokenizer: Detokenizer,
        notices: tuple[str, ...] = (),
        *,
        thinks: bool = False,
    ) -> None:
        request = arrival.request
        self.request_id = request.request_id
        self.adapter = request.adapter
        self.deadline = None if request.timeout_s is None else arrival.at + request.timeout_s
        self._arrived = arrival.at
        self._stops = StopStrings(request.sampling.stop)
        self._splitter = ReasoningSplitter(begun=thinks)
        self._blanks = Blanks(split_begun(request.messages)[1])
        self._notices = notices
        self._reused = 0
        self._started: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._input_tokens = input_tokens
        self._prefilled = 0
        self._generated = 0
        self._detokenizer = detokenizer
        self._sent = -PAUSE_S
        self._progress_sent = arrival.at
        self._unsent = ("", "")  # reasoning and text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: nothing more is to be said."""
        return self._stops.found

    def take(self, step: StepResult, began: float, now: float) -> tuple[Token, ...]:
        """Return what to send after ``step``, which took from ``began`` to ``now``.

        The first text at once, then what has come within a pause together.
        """
        if self._started is None:
            self._started = began
        self._prefilled += step.prefilled
        self._reused += step.reused
        if step.generated:
            self._last_token = now
            if self._first_token is None:
                self._first_token = now
        reasoning, text = self._read(step)
        self._unsent = (self._unsent[0] + reasoning, self._unsent[1] + text)
        if now - self._sent < PAUSE_S and step.finish_reason is None and not self.stopped:
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

        It may bring several tokens; what comes after a stop string was never said, and is not
        counted.
        """
        generated, reasoning, text = step.generated, "", ""
        for number, token in enumerate(step.token_ids, 1):
            thought, said = self._splitter.add(self._detokenizer.add(token))
            reasoning += thought
            text += self._stops.add(self._blanks.strip(said))
            if self.stopped:
                generated = number
                break
        self._generated += generated
        if step.finish_reason is not None and not self.stopped:
            thought, said = self._splitter.finish()
            reasoning += thought
            text += self._stops.add(self._blanks.strip(said)) + self._stops.finish()
        return reasoning, text

    def done(self, finish_reason: str, now: float, provenance: Provenance) -> Done:
        """The end. Output tokens count the stop token too: it took a step."""
        usage = Usage(self._input_tokens, self._generated, self._reused)
        timings = self._timings(now)
        return Done(
            self.request_id,
            finish_reason,
            usage=usage,
            timings=timings,
            provenance=provenance,
            notices=self._notices,
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
