"""One answer on its way: engine steps in, messages out, with the times it took."""

from __future__ import annotations

from shammah.bus.messages import Done, Provenance, Timings, Token, Usage
from workers.inference.detokenizer import Detokenizer
from workers.inference.engine import StepResult
from workers.inference.inbox import Arrival


class Answer:
    """What a request has got so far. All times are of one monotonic clock, in seconds."""

    def __init__(self, arrival: Arrival, input_tokens: int, detokenizer: Detokenizer) -> None:
        self.request_id = arrival.request.request_id
        self._arrived = arrival.at
        self._started: float | None = None
        self._first_token: float | None = None
        self._last_token = 0.0
        self._input_tokens = input_tokens
        self._prefilled = 0
        self._generated = 0
        self._detokenizer = detokenizer

    def take(self, step: StepResult, began: float, now: float) -> Token | None:
        """The new text of ``step``, which took from ``began`` to ``now``; ``None``: no text."""
        if self._started is None:
            self._started = began
        self._prefilled += step.prefilled
        self._generated += step.generated
        if step.generated:
            self._last_token = now
            if self._first_token is None:
                self._first_token = now
        text = "".join(self._detokenizer.add(token) for token in step.token_ids)
        if step.finish_reason is not None:
            text += self._detokenizer.finish()
        return Token(self.request_id, self._generated, text) if text else None

    def done(self, finish_reason: str, now: float, provenance: Provenance) -> Done:
        """The end. Output tokens count the stop token too: it took a step."""
        usage = Usage(self._input_tokens, self._generated)
        return Done(self.request_id, finish_reason, usage, self._timings(now), provenance)

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
