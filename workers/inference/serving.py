"""Serves requests with a loaded model: the loop of the work thread."""

from __future__ import annotations

import logging
from collections.abc import Callable

from shammah.bus.messages import Failed, Generate, Provenance
from shammah.errors import ShammahError
from workers.inference.answer import Answer
from workers.inference.bootstrap import LoadedModel
from workers.inference.engine import SequenceRequest, StepResult
from workers.inference.inbox import Arrival, Inbox
from workers.inference.sampling import plan_sampling
from workers.service import Outlet

log = logging.getLogger(__name__)

ROLE = "inference"


class Serving:
    """Between two engine steps it takes what has arrived, so a cancel waits for one step.

    Args:
        longest: tokens of an answer whose request names no number.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: LoadedModel,
        longest: int,
        inbox: Inbox,
        outlet: Outlet,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._engine = model.engine
        self._longest = longest
        self._inbox = inbox
        self._outlet = outlet
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        ready = model.ready
        self._provenance = Provenance(
            *(ROLE, ready.model, ready.revision, ready.engine, ready.device, ready.dtype),
            stand_in=ready.stand_in,
        )

    def run(self) -> None:
        """Until the inbox is closed, or held and every answer has ended.

        Whoever closes it ends the answers that still run.
        """
        while True:
            delivery = self._inbox.take(wait=self._engine.active == 0)
            if delivery.closed or (delivery.held and self._engine.active == 0):
                return
            for arrival in delivery.arrivals:
                self._admit(arrival)
            for request_id in delivery.cancelled:
                self._cancel(request_id)
            if self._engine.active:
                self._step()

    # --- requests -------------------------------------------------------------------------

    def _admit(self, arrival: Arrival) -> None:
        request_id = arrival.request.request_id
        try:
            sequence = self._sequence(arrival.request)
            self._engine.submit(sequence)
        except ShammahError as error:
            self._fail(request_id, error)
        except Exception as error:
            log.exception("a request could not be begun")
            self._fail(request_id, _unforeseen(error))
        else:
            self._answers[request_id] = Answer(
                arrival, len(sequence.prompt), self._model.chat.detokenizer()
            )

    def _sequence(self, request: Generate) -> SequenceRequest:
        """The engine's view of a request.

        Raises:
            ShammahError: ``sampling_invalid``, ``chat_template_missing``,
                ``messages_invalid`` or ``context_too_long``.
        """
        plan = plan_sampling(request.sampling, self._model.defaults.plan)
        wanted = self._longest if request.max_new_tokens is None else request.max_new_tokens
        if wanted < 1:
            raise ShammahError(
                "sampling_invalid",
                f"max_new_tokens is {wanted}, but must be 1 or more.",
                "Leave it out to use the setting inference.max_new_tokens.",
            )
        prompt = self._model.chat.encode(request.messages)
        room = self._model.ready.context_length - len(prompt)
        if room < 1:
            raise ShammahError(
                "context_too_long",
                f"The conversation has {len(prompt)} tokens, and {self._model.ready.model} "
                f"holds {self._model.ready.context_length} with the answer.",
                "Shorten the question, or begin a new conversation.",
            )
        return SequenceRequest(
            request.request_id, prompt, plan, min(wanted, room), self._model.stop_ids
        )

    def _cancel(self, request_id: str) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self._engine.cancel(request_id)
            self._outlet.reply(answer.done("cancelled", self._clock(), self._provenance))

    # --- steps ----------------------------------------------------------------------------

    def _step(self) -> None:
        began = self._clock()
        try:
            results = self._engine.step()
        except Exception as error:
            # Which answer it belongs to is not known, so none can be trusted to go on.
            log.exception("an engine step failed")
            for request_id in list(self._answers):
                self._engine.cancel(request_id)
                self._fail(request_id, _unforeseen(error))
            return
        now = self._clock()
        for result in results:
            self._deliver(result, began, now)

    def _deliver(self, result: StepResult, began: float, now: float) -> None:
        if result.failure is not None:
            self._fail(result.request_id, result.failure)
            return
        answer = self._answers[result.request_id]
        token = answer.take(result, began, now)
        if token is None:
            self._outlet.advance()
        else:
            self._outlet.reply(token)
        if result.finish_reason is not None:
            del self._answers[result.request_id]
            self._outlet.reply(answer.done(result.finish_reason, now, self._provenance))

    def _fail(self, request_id: str, error: ShammahError) -> None:
        self._answers.pop(request_id, None)
        self._outlet.reply(Failed(error.code, error.message, error.hint, request_id))


def _unforeseen(error: Exception) -> ShammahError:
    why = f"The local model failed: {type(error).__name__}: {error}"
    return ShammahError("internal", why, "The inference worker's log file says more.")
