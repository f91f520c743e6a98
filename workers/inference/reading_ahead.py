"""Conversations that are computed before the next question comes, while nobody else asks."""

from __future__ import annotations

from collections.abc import Callable

from shammah.bus.messages import ChatMessage, Done, Failed, Provenance, Sampling, Timings, Usage
from shammah.errors import ShammahError
from workers.inference.engine import SequenceRequest, StepResult
from workers.inference.inbox import Ahead
from workers.inference.scheduling.sampling import plan_sampling
from workers.inference.startup.loading import LoadedModel
from workers.inference.text.context import fit

_QUESTION = ChatMessage("user", "and " * 32)
"""As long as most: the conversation is cut where the next one's will be. If a shorter one needs no
cut yet, what was computed is for the one after it."""


class ReadingAhead:
    """One conversation of each client, one at a time, and only while no answer is under way.

    The engine keeps what it has computed of a prompt (`slots`), finished or not; nothing else
    is to be done with it. The one token that an engine chooses after a prompt is not sent.

    Args:
        reply: takes the end of a request.
        clock: monotonic seconds.
        adapter: the key of a named adapter that the engine holds now.

    Attributes:
        restored: tokens that were read from the disk for a client's conversation, until it asks.
    """

    def __init__(
        self,
        model: LoadedModel,
        provenance: Provenance,
        reply: Callable[[Done | Failed], None],
        clock: Callable[[], float],
        adapter: Callable[[str], str],
    ) -> None:
        self._model = model
        self._provenance = provenance
        self._reply = reply
        self._clock = clock
        self._adapter = adapter
        self._waiting: dict[str, Ahead] = {}
        self._running: Ahead | None = None
        self._usage = Usage()
        self.restored: dict[str, int] = {}

    @property
    def waits(self) -> bool:
        """Whether there is something to `begin`."""
        return bool(self._waiting)

    def add(self, ahead: Ahead) -> None:
        """Have it read when there is time, instead of what the client wanted before."""
        self.give_way(ahead.client)
        self._waiting[ahead.client] = ahead

    def give_way(self, client: str) -> None:
        """A question of ``client`` comes first, and its conversation with it; what the others
        want is put off."""
        running, superseded = self._interrupt(), self._waiting.pop(client, None)
        if running is not None and running.client == client:
            superseded = running
        elif running is not None:
            self._waiting = {running.client: running, **self._waiting}
        if superseded is not None:
            self._end(superseded, "cancelled")

    def cancel(self, request_id: str) -> None:
        """Drop a request, if it is one of these."""
        if self._running is not None and self._running.request.request_id == request_id:
            self._end_running("cancelled")
        for client, ahead in list(self._waiting.items()):
            if ahead.request.request_id == request_id:
                self._end(self._waiting.pop(client), "cancelled")

    def stop(self) -> None:
        """End them all."""
        self._end_running("cancelled")
        while self._waiting:
            self._end(self._waiting.popitem()[1], "cancelled")

    def next(self) -> Ahead | None:
        """What to `begin`; nothing while one is being read."""
        if self._running is not None or not self._waiting:
            return None
        return self._waiting.pop(next(iter(self._waiting)))

    def begin(self, ahead: Ahead) -> None:
        """Read one from `next`. Only while no answer is under way.

        Raises:
            ShammahError: as `_sequence`.
        """
        sequence = self._sequence(ahead)
        self._model.engine.submit(sequence)
        self._running, self._usage = ahead, Usage(len(sequence.prompt))

    def take(self, result: StepResult) -> bool:
        """Whether a step's result was of this one."""
        running = self._running
        if running is None or running.request.request_id != result.request_id:
            return False
        if result.restored:
            self.restored[running.client] = result.restored
        if result.reused:
            self._usage = Usage(self._usage.input_tokens, 0, result.reused)
        if result.failure is not None:
            self._running, error = None, result.failure
            self._reply(Failed(error.code, error.message, error.hint, result.request_id))
        elif result.finish_reason is not None:
            self._running = None
            self._end(running, "stop", self._usage)
        return True

    def _sequence(self, ahead: Ahead) -> SequenceRequest:
        """Return the engine's view of a request.

        Raises:
            ShammahError: for the adapter; ``messages_invalid``, ``chat_template_missing`` or
                ``context_too_long``: there is nothing to read ahead.
        """
        model, request, chat = self._model, ahead.request, self._model.chat
        prompt = fit(
            (*request.messages, _QUESTION),
            lambda messages: chat.encode_earlier(messages[:-1]),
            chat.count,
            model.ready.context_length,
        ).tokens
        if not prompt:
            raise ShammahError("context_too_long", "There is nothing to read ahead.")
        plan = plan_sampling(Sampling(temperature=0.0), model.defaults.plan)
        return SequenceRequest(
            request.request_id,
            prompt,
            sampling=plan,
            max_new_tokens=1,
            stop_ids=model.stop_ids,
            client=ahead.client,
            adapter=self._adapter(request.adapter),
        )

    def _interrupt(self) -> Ahead | None:
        running, self._running = self._running, None
        if running is not None:
            self._model.engine.cancel(running.request.request_id)
        return running

    def _end_running(self, reason: str) -> None:
        running = self._interrupt()
        if running is not None:
            self._end(running, reason)

    def _end(self, ahead: Ahead, reason: str, usage: Usage = Usage()) -> None:  # noqa: B008
        timings = Timings(total_s=self._clock() - ahead.at)
        request_id = ahead.request.request_id
        self._reply(Done(request_id, reason, usage, timings, self._provenance))
