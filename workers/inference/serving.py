"""Serves requests with a loaded model: the loop of the work thread."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from shammah.bus.messages import Failed, Generate, Provenance, Token, Usage
from shammah.errors import ShammahError, schema_not_enforced
from shammah.settings.model import InferenceSettings
from workers.inference.answer import Answer, Thinking
from workers.inference.engine import SequenceRequest, StepResult
from workers.inference.inbox import Arrival, Delivery, Inbox
from workers.inference.reading_ahead import ReadingAhead
from workers.inference.scheduling.sampling import plan_sampling
from workers.inference.startup.loading import LoadedModel
from workers.inference.text.context import fit
from workers.inference.text.continuation import split_begun
from workers.inference.text.tools import holds
from workers.logs import describe
from workers.service import Outlet

log = logging.getLogger(__name__)

IDLE_S = 60.0
"""After so many seconds without a request conversations are written to the disk: seldom enough not
to wear it out, and before `keep_alive` ends."""

END_S, LEAVE_S = 1.5, 2.0
"""How long after a stop they are written, and when the process ends anyway."""


class Serving:
    """Between two engine steps it takes what has arrived, so a cancel waits for one step.

    Args:
        home: where adapters are.
        settings: how long answers and thoughts may be, and how many requests may wait.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        model: LoadedModel,
        home: Path,
        settings: InferenceSettings,
        inbox: Inbox,
        outlet: Outlet,
        clock: Callable[[], float],
    ) -> None:
        self._model = model
        self._engine = model.engine
        self._home = home
        self._settings = settings
        self._inbox = inbox
        self._outlet = outlet
        self._clock = clock
        self._answers: dict[str, Answer] = {}
        self._kept = True
        outlet.leave_s = LEAVE_S
        ready = model.ready
        self._provenance = Provenance(
            "inference",
            ready.model,
            revision=ready.revision,
            engine=ready.engine,
            device=ready.device,
            dtype=ready.dtype,
            fallback=ready.fallback,
            quantization=ready.quantization,
        )
        self._ahead = ReadingAhead(model, self._provenance, outlet.reply, clock, self._adapter)

    def run(self) -> None:
        """Until the inbox is closed, or held and every answer has ended.

        The host, which closes it, ends the answers that still run.
        """
        while True:
            idle = self._engine.active == 0 and not self._ahead.waits
            delivery = self._inbox.take(wait=idle, most_s=None if self._kept else IDLE_S)
            if idle and delivery == Delivery():
                self._keep(self._inbox.has_news)
            if delivery.closed:
                self._keep(self._is_over, last=True)
            if delivery.held:
                self._ahead.stop()
            if delivery.closed or (delivery.held and self._engine.active == 0):
                return
            for ahead in delivery.ahead:
                self._alone(ahead.request.request_id, self._ahead.add, ahead)
            for arrival in delivery.arrivals:
                self._alone(arrival.request.request_id, self._admit, arrival)
            for request_id in delivery.cancelled:
                self._alone(request_id, self._cancel, request_id)
            self._end_overdue()
            while not self._answers and (following := self._ahead.next()) is not None:
                self._alone(following.request.request_id, self._ahead.begin, following)
            if self._engine.active:
                self._step()

    def _alone(self, request_id: str, work: Callable[..., None], *arguments: object) -> None:
        """Do a part of one request's work: whatever happens, only that request can fail."""
        try:
            work(*arguments)
        except ShammahError as error:
            self._fail(request_id, error)
        except BaseException as error:
            # A panic in a library written in Rust is no Exception. Nobody interrupts this thread.
            log.exception("a request failed")
            with contextlib.suppress(Exception):
                self._engine.cancel(request_id)
            why = f"The local model failed on this answer: {describe(error)}"
            hint = "Ask again. If it happens again, see the inference worker's log."
            self._fail(request_id, ShammahError("internal", why, hint))

    def _is_over(self) -> bool:
        return self._clock() >= self._inbox.closed_at + END_S

    def _keep(self, enough: Callable[[], bool], *, last: bool = False) -> None:
        """Write what may be kept of the conversations; if that fails they only come back cold."""
        self._kept = True
        try:
            self._engine.keep(enough, last=last)
        except Exception:
            log.exception("conversations could not be kept")

    # --- requests -------------------------------------------------------------------------

    def _admit(self, arrival: Arrival) -> None:
        self._ahead.give_way(arrival.client)
        sequence, thinking, notices, usage = self._sequence(arrival)
        if conversation := arrival.request.conversation:
            sequence, self._kept = replace(sequence, conversation=conversation), False
        usage = replace(usage, restored_tokens=self._ahead.restored.pop(arrival.client, 0))
        detokenizer = self._model.chat.detokenizer(split_begun(arrival.request.messages)[1])
        # A value that would have no end is ended as its schema wants it (`Grammar`).
        guarded = self._settings.stop_repetition and not arrival.request.sampling.schema
        answer = Answer(
            arrival, sequence, thinking, detokenizer, notices, guarded=guarded, usage=usage
        )
        self._engine.submit(sequence)
        self._answers[answer.request_id] = answer

    def _cancel(self, request_id: str) -> None:
        self._ahead.cancel(request_id)
        self._end(request_id, "cancelled")

    def _sequence(
        self, arrival: Arrival
    ) -> tuple[SequenceRequest, Thinking, tuple[str, ...], Usage]:
        """Return the engine's view of a request, what of it may be thoughts, notices for its user,
        and how much of the conversation did not fit.

        Raises:
            ShammahError: ``busy``, ``sampling_invalid``, ``chat_template_missing``,
                ``messages_invalid``, ``context_too_long``, ``schema_not_enforced``, or as
                `_adapter`.
        """
        request, chat = arrival.request, self._model.chat
        if self._engine.waiting >= self._settings.queue:
            raise ShammahError(
                "busy",
                f"{self._engine.waiting} questions are already waiting for the local model.",
                "Ask again in a moment.",
            )
        plan = plan_sampling(request.sampling, self._model.defaults.plan)
        wanted, held = self._wanted(request), holds(request.sampling)
        talk, answer = split_begun(request.messages)
        begun, messages = bool(answer), sum(one.role != "system" for one in talk)
        if begun and request.sampling.schema:
            raise schema_not_enforced("An answer that broke off and goes on")
        context = self._model.ready.context_length
        tools = request.sampling.tools if held else ()
        encode = functools.partial(chat.encode, tools=tools, think=request.think and not held)
        prompt = fit(request.messages, encode, chat.count, context, whole=request.whole)
        tokens, notices = prompt.tokens, chat.notices(request.messages)
        if held and chat.begins_thinking(tokens):  # what is held are no thoughts
            tokens += chat.closing
        thinking = Thinking(
            begun=not begun and chat.begins_thinking(tokens),
            possible=not begun and not held and chat.may_think(tokens),
            thoughts=self._settings.think_tokens,
            answer=wanted,
            closing=chat.closing,
            room=context - len(tokens),
        )
        constraint = None
        if held:
            constraint, told = chat.hold(request.sampling, thinking.planned)
            notices += told
        sequence = SequenceRequest(
            request.request_id,
            tokens,
            sampling=plan,
            max_new_tokens=thinking.planned,
            stop_ids=self._model.stop_ids,
            client=arrival.client,
            adapter=self._adapter(request.adapter),
            constraint=constraint,
        )
        usage = Usage(unseen=prompt.unseen, messages=messages if prompt.unseen else 0)
        return sequence, thinking, notices, usage

    def _wanted(self, request: Generate) -> int:
        """Tokens that the answer may have."""
        wanted = request.max_new_tokens
        if wanted is None:
            wanted = self._settings.max_new_tokens
        if wanted < 1:
            raise ShammahError(
                "sampling_invalid",
                f"max_new_tokens is {wanted}, but must be 1 or more.",
                "Leave it out to use the setting inference.max_new_tokens.",
            )
        return wanted

    def _adapter(self, name: str) -> str:
        """Return the key of an adapter that the engine holds now, read if it did not.

        Raises:
            ShammahError: ``adapter_not_found``, ``adapter_wrong_base``, ``adapter_damaged`` or
                ``adapter_unsupported``.
        """
        if not name:
            return ""
        # Not before the sockets answer: it brings numpy.
        from workers.inference.packages.adapter_file import find_adapter, key_of, read_adapter

        entry = find_adapter(self._home, name, self._model.ready)
        key = key_of(entry)
        if not self._engine.holds(key):
            began = self._clock()
            self._engine.add_adapter(read_adapter(entry, key))
            log.info("adapter %s read in %.2f s", key, self._clock() - began)
        return key

    def _end(self, request_id: str, reason: str) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self._engine.cancel(request_id)
            self._report(answer.rest())
            self._outlet.reply(answer.done(reason, self._clock(), self._provenance_of(answer)))

    def _end_overdue(self) -> None:
        now = self._clock()
        for answer in list(self._answers.values()):
            if answer.deadline is not None and now >= answer.deadline:
                self._alone(answer.request_id, self._end, answer.request_id, "timeout")

    # --- steps ----------------------------------------------------------------------------

    def _step(self) -> None:
        began = self._clock()
        try:
            results = self._engine.step()
        except Exception as error:
            # Which answer it belongs to is not known, so none can be trusted to go on. An engine
            # sees numbers only: what it says quotes nobody.
            log.exception("an engine step failed")
            why = f"The local model failed: {type(error).__name__}: {error}"
            failure = ShammahError("internal", why, "See the inference worker's log.")
            for request_id in list(self._answers):
                self._alone(request_id, self._break_off, request_id, failure)
            self._ahead.stop()
            return
        now = self._clock()
        for result in results:
            self._alone(result.request_id, self._deliver, result, began, now)

    def _break_off(self, request_id: str, failure: ShammahError) -> None:
        self._engine.cancel(request_id)
        raise failure

    def _deliver(self, result: StepResult, began: float, now: float) -> None:
        if self._ahead.take(result):
            self._outlet.advance()
            return
        if result.failure is not None:
            self._fail(result.request_id, result.failure)
            return
        answer = self._answers[result.request_id]
        tokens = answer.take(result, began, now)
        progress = answer.progress(now)
        if progress is not None:
            self._outlet.reply(progress)
        elif not tokens:
            self._outlet.advance()
        self._report(tokens)
        following = answer.take_following()
        if answer.ended is not None:
            self._end(result.request_id, answer.ended)
        elif following is not None:
            self._engine.cancel(result.request_id)
            self._engine.submit(following)
        elif result.finish_reason is not None:
            del self._answers[result.request_id]
            provenance = self._provenance_of(answer)
            self._outlet.reply(answer.done(result.finish_reason, now, provenance))

    def _provenance_of(self, answer: Answer) -> Provenance:
        return replace(self._provenance, adapter=answer.adapter)

    def _report(self, tokens: tuple[Token, ...]) -> None:
        for token in tokens:
            self._outlet.reply(token)

    def _fail(self, request_id: str, error: ShammahError) -> None:
        answer = self._answers.pop(request_id, None)
        if answer is not None:
            self._report(answer.rest())
        self._outlet.reply(Failed(error.code, error.message, error.hint, request_id))
