"""A worker process that answers every question with its last message, word for word.

It is hosted exactly as the real ones are (`workers.host`), so the bus, leases, supervision
and the REPL can be tested and timed without a model. Faults are switched on by arguments::

    python -P tests/fakes/echo.py inference --model starter --delay-ms 50

Two questions are answered otherwise: ``forever ...`` is echoed again and again until it is
cancelled, and ``fail ...`` ends with a failure that says the rest. The word ``until:FILE`` is
said only when that file is there. What is asked for ``cannot be taken``, an ``uncountable ...``
answer cannot be sent.
``usage.input_tokens`` is the number of messages, so that a test sees the conversation.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import operator
import os
import queue
import shlex
import signal
import sys
import threading
import time
import typing
from collections.abc import Iterable
from dataclasses import replace

from shammah.bus import messages
from shammah.bus.endpoints import RoleLock, open_endpoints
from shammah.bus.messages import (
    Done,
    Downloading,
    Failed,
    Generate,
    Loading,
    NotAvailable,
    Prefill,
    PromptProgress,
    Provenance,
    Ready,
    Timings,
    Token,
    Usage,
)
from shammah.bus.transfers import Transfer, Transferring
from shammah.errors import ExitCode
from shammah.settings.load import load_settings
from shammah.supervision.identity import identity
from workers import lease
from workers.host import Host
from workers.service import Outlet

UNTIL = "until:"
LEASE_S, FIRST_LEASE_S = 30.0, 60.0
"""A test is put aside for longer than a person's terminal, and not all of them renew."""


class EchoService:
    """Echoes one question at a time, in the order in which they came."""

    def __init__(self, model: str, options: argparse.Namespace) -> None:
        self._model = model
        self._options = self._started_with = options
        self._delay_s = options.delay_ms / 1000
        self._inbox: queue.SimpleQueue[Generate | Prefill | None] = queue.SimpleQueue()
        self._cancelled: set[str] = set()
        self._stopped = False

    def run(self, outlet: Outlet) -> None:
        options = self._options
        for stage in range(options.stages):
            outlet.publish(Loading(self._model, f"stage {stage}", stage, options.stages))
            time.sleep(self._delay_s)
        for part, file in enumerate(options.load_until):
            while not os.path.exists(file) and not self._stopped:
                outlet.publish(Loading(self._model, f"part {part}", part, len(options.load_until)))
                time.sleep(0.05)
        if options.crash_loading:
            outlet.publish(Loading(self._model, "weights", 0, 1))
            time.sleep(0.1)  # until somebody has attached, perhaps
            os.kill(os.getpid(), signal.SIGKILL)
        while options.load_for_ever and not self._stopped:
            outlet.publish(Loading(self._model, "weights", 0, 1))
            time.sleep(0.05)
        while options.download_for_ever and not self._stopped:
            outlet.publish(Downloading(self._model, 41, 100))
            time.sleep(0.05)
        if options.unavailable:
            outlet.publish(NotAvailable(options.unavailable, "A planted hint."))
        elif options.broken:
            raise OSError(options.broken)
        elif options.transferring:
            transfer = Transfer(options.transferring, "main", "running", 41, 100)
            outlet.publish(Transferring((replace(transfer, notices=tuple(options.notice)),)))
        elif options.fetching:
            threading.Thread(target=self._fetch, args=(outlet,), daemon=True).start()
        else:
            note = options.notice[0] if options.notice else ""
            outlet.publish(Ready(self._model, engine="echo", context_length=4096, note=note))
        while (request := self._inbox.get()) is not None:
            if isinstance(request, Prefill):
                self._read_ahead(request, outlet)
                continue
            options = self._steer()
            if options.record:
                self._record(options.record, request)
            if options.crash_on_question:
                os.kill(os.getpid(), signal.SIGKILL)
            if not options.hang and self._fits(request, outlet):
                self._answer(request, outlet)

    def _steer(self) -> argparse.Namespace:
        """The options for this question: those in the file that steers us are used once."""
        if self._started_with.steer:
            with open(self._started_with.steer, "r+") as file:
                words = [self._started_with.role, *shlex.split(file.read())]
                file.truncate(0)
            self._options = parse(words, argparse.Namespace(**vars(self._started_with)))
        return self._options

    def _fetch(self, outlet: Outlet) -> None:
        """Tell of a successor's bytes, again and again and for ever."""
        for done in itertools.count(1):
            rate = 1e6 * (1 + done % 7)
            coming = Downloading(self._options.fetching, min(41, done), 100, rate)
            outlet.publish(Ready(self._model, engine="echo", fallback=True, successor=coming))
            time.sleep(self._options.fetch_ms / 1000)

    def _answer(self, request: Generate, outlet: Outlet) -> None:
        began = time.monotonic()
        question, begun = request.messages[-1].content, ""
        if request.messages[-1].role == "assistant":  # the rest of an answer is wanted
            question, begun = request.messages[-2].content, question
        if self._options.recite:
            question = " ".join(message.content for message in request.messages)
        if self._options.knows:
            question = f"{question} {self._options.knows}"
        if self._options.learnt and request.adapter:
            question = f"{question} {self._options.learnt}"
        words = question.split(" ")
        reason = "stop"
        said = skipped = thought = 0
        for part in range(1, 4 if self._options.slow_prompt else 0):
            outlet.reply(PromptProgress(request.request_id, part * 1000, 4000))
        thoughts = (self._options.thoughts or "").split("|") if request.think else ()
        for said, piece in enumerate(thoughts, 1):
            thought = said
            outlet.reply(Token(request.request_id, said, piece, reasoning=True))
            time.sleep(self._delay_s)
        endless: Iterable[str] = itertools.cycle(words)
        for word in endless if words[0] == "forever" else words:
            if self._stopped:
                return  # the host ends what is open
            if self._is_ended(request):
                reason = "cancelled"
                break
            piece = f" {word}" if skipped or said > thought else word
            if skipped < len(begun):
                skipped += len(piece)
                continue
            while self._must_wait(word) and not self._is_ended(request):
                time.sleep(0.01)
            said += 1
            outlet.reply(Token(request.request_id, said, piece, reasoning=self._options.think))
            if said == self._options.crash_after:
                while not outlet.queue.empty():
                    time.sleep(0.01)  # the host's thread sends them
                time.sleep(0.5)  # and libzmq's
                os.kill(os.getpid(), signal.SIGKILL)
            while said == self._options.pause_after and not self._is_ended(request):
                time.sleep(0.01)
            time.sleep(self._delay_s)
        if words[0] == "fail" and reason == "stop":
            planted = " ".join(words[1:]) or "A planted failure."
            outlet.reply(Failed("planted", planted, "", request.request_id))
            return
        if words[0] == "uncountable":
            said = 2**70  # no message can carry it
        reason = "length" if self._options.think and reason == "stop" else reason
        elapsed = time.monotonic() - began
        outlet.reply(
            Done(
                request.request_id,
                reason,
                Usage(len(request.messages), said),
                Timings(total_s=elapsed),
                Provenance(self._options.role, self._model, engine="echo"),
            )
        )

    @staticmethod
    def _must_wait(word: str) -> bool:
        return word.startswith(UNTIL) and not os.path.exists(word.removeprefix(UNTIL))

    def _is_ended(self, request: Generate) -> bool:
        return self._stopped or request.request_id in self._cancelled

    def _read_ahead(self, request: Prefill, outlet: Outlet) -> None:
        if self._options.record:
            self._record(self._options.record + ".ahead", request)
        who = Provenance(self._options.role, self._model, engine="echo")
        outlet.reply(Done(request.request_id, "stop", Usage(), Timings(), who))

    def _fits(self, request: Generate, outlet: Outlet) -> bool:
        """Whether a model that ``--holds`` so many characters can have it; else it is refused."""
        most, turns = self._options.holds, request.messages[0 if request.whole else -1 :]
        fits = most is None or sum(len(message.content) for message in turns) <= most
        if not fits:
            what = "The conversation is too long." if request.whole else "It is too long."
            outlet.reply(Failed("context_too_long", what, "Shorten it.", request.request_id))
        return fits

    def _record(self, path: str, request: Generate | Prefill) -> None:
        said = [[message.role, message.content] for message in request.messages]
        with open(path, "a") as record:
            record.write(json.dumps(said) + "\n")

    def submit(self, request: Generate | Prefill, client: str = "") -> None:
        if any(message.content == "cannot be taken" for message in request.messages):
            raise ValueError("planted")
        self._inbox.put(request)

    def cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)

    def stop(self) -> None:
        self._stopped = True
        self._inbox.put(None)


def parse(arguments: list[str], known: argparse.Namespace | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("role")
    parser.add_argument("--model")
    parser.add_argument("--licence")
    parser.add_argument("--keep-alive", type=float, default=300)
    parser.add_argument("--delay-ms", type=float, default=0, help="time of one step")
    parser.add_argument("--stages", type=int, default=0, help="steps of loading before Ready")
    parser.add_argument("--load-for-ever", action="store_true", help="never be Ready")
    parser.add_argument(
        "--load-until", metavar="FILE", action="append", default=[],
        help="load a part until it is there",
    )  # fmt: skip
    parser.add_argument("--crash-loading", action="store_true", help="die in the midst of it")
    parser.add_argument("--download-for-ever", action="store_true", help="nor this")
    parser.add_argument("--unavailable", help="be NotAvailable for this reason")
    parser.add_argument("--broken", help="let the work thread fail with this message")
    parser.add_argument("--fetching", metavar="MODEL", help="stand in for it; it comes to 41 %%")
    parser.add_argument("--fetch-ms", type=float, default=50, help="between two such events")
    parser.add_argument("--transferring", metavar="MODEL", help="be a download worker at work")
    parser.add_argument("--notice", action="append", default=[], help="what it tells people")
    parser.add_argument("--think", action="store_true", help="come to no answer, only thoughts")
    parser.add_argument("--thoughts", help="think so first if asked to, in pieces with | between")
    parser.add_argument("--holds", type=int, help="so many characters of a conversation")
    parser.add_argument("--slow-prompt", action="store_true", help="tell how far it has read")
    parser.add_argument("--recite", action="store_true", help="answer with all it was told")
    parser.add_argument("--knows", metavar="TEXT", help="say this in every answer, too")
    parser.add_argument("--learnt", metavar="TEXT", help="and this with an adapter")
    parser.add_argument("--steer", metavar="FILE", help="one question's further options are here")
    parser.add_argument("--hang", action="store_true", help="answer pings but no question")
    parser.add_argument("--record", metavar="FILE", help="append every conversation as JSON")
    parser.add_argument("--crash-on-question", action="store_true")
    parser.add_argument("--crash-after", type=int, help="die after so many words of an answer")
    parser.add_argument("--pause-after", type=int, help="go no further in an answer")
    parser.add_argument("--lease-s", type=float, default=LEASE_S, help="a real worker's: 3")
    parser.add_argument("--crash-at-start", help="end with this last line on stderr")
    parser.add_argument("--protocol", type=int, help="speak another version")
    parser.add_argument("--ignore-stop", action="store_true", help="be deaf to Stop, not SIGTERM")
    return parser.parse_args(arguments, known)


def main() -> int:
    options = parse(sys.argv[1:])
    if options.crash_at_start:
        print("Traceback: not this line", file=sys.stderr)
        print(options.crash_at_start, file=sys.stderr)
        return ExitCode.FAILED
    if options.protocol:
        messages.PROTOCOL = options.protocol
    lease.LEASE_S, lease.FIRST_LEASE_S = options.lease_s, FIRST_LEASE_S
    settings = load_settings(os.environ, options.model, options.licence)
    endpoints = open_endpoints(os.environ)
    lock = RoleLock(endpoints.lock(options.role))
    if not lock.acquire():
        return ExitCode.ALREADY_RUNNING
    wanted = identity(settings, options.role, environ=os.environ)
    if options.ignore_stop:
        kept = [kind for kind in typing.get_args(messages.Request) if kind is not messages.Stop]
        messages.Request = functools.reduce(operator.or_, kept)  # type: ignore[misc]
    host = Host(EchoService(wanted.model, options), wanted, endpoints, lock, options.keep_alive)
    host.run()
    return ExitCode.OK


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)
