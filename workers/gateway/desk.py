"""Where the questions of clients are answered, several at a time, as the prompt answers its own.

Everything here runs on the event loop's thread, except what says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from shammah.bus.messages import Provenance, Ready
from shammah.chat.conversation import Prompt, Step, Turn, TurnInProgress, origin
from shammah.chat.runner import TurnRunner
from shammah.chat.session import Session
from shammah.chat.summary import describe_turn
from shammah.errors import ShammahError
from shammah.history.record import StoredConversation
from shammah.history.recorder import Recorder, history_of
from shammah.privacy import Mark, split_prefix, told_beside
from shammah.router.decision import Override, RouteDecision, Target
from shammah.settings.model import Settings
from workers.gateway.asking import CLAUDE, Asked, Transcript, Wishes, override_of, room
from workers.gateway.memory import Known, Memory
from workers.gateway.refusals import RETRY_S, RefusedError

log = logging.getLogger(__name__)

RUNNING = 8
"""Questions in hand at a time: so many make the local model busy for the router, too."""
WAITING = 32
"""More are refused."""
EXPLAINED = 1000
"""Answers that can be asked about; each takes about a kilobyte."""
IDLE_S = 60.0
"""After so long without a question the workers' leases are given back: their own ``keep_alive``
decides from then on."""


TELL_S = 0.1
"""How often it is told at most how many questions there are: each time takes as long as a token."""


@dataclass(frozen=True, slots=True)
class Piece:
    """More of the answer, or of the thoughts before it."""

    text: str
    thought: bool = False


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence about the answer."""

    text: str


Heard = RouteDecision | Piece | Remark | Mark | Turn | Exception
"""What comes of a question. `Mark`: why it stays here; `Turn`: it has ended, and is stored."""


class Reply:
    """What comes of one question, for its client. `put` is called from any thread."""

    def __init__(self, session: Session, ended: Callable[[Turn], None]) -> None:
        self.session = session
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Queue[Heard] = asyncio.Queue()

    def put(self, heard: Heard) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(self._take, heard)

    def _take(self, heard: Heard) -> None:
        if isinstance(heard, Turn):
            self._ended(heard)
        self._heard.put_nowait(heard)

    async def next(self, within_s: float | None = None) -> Heard | None:
        """What comes next; ``None``: nothing came in time.

        Raises:
            Exception: the question was refused (`RefusedError`), or its turn broke.
        """
        try:
            async with asyncio.timeout(within_s):  # `wait_for` loses a cancellation in Python 3.11
                heard = await self._heard.get()
        except TimeoutError:
            return None
        if isinstance(heard, Exception):
            raise heard
        return heard

    def source(self, decision: RouteDecision) -> Provenance:
        """Who is asked."""
        session = self.session
        return origin(decision, session.local.state, session.settings)


class _Wire:
    """Puts an answer into a reply (`shammah.chat.runner.Sink`)."""

    def __init__(self, reply: Reply) -> None:
        self._put = reply.put

    def notice(self, text: str, *, urgent: bool) -> None:
        # Whom to call in danger must be seen, and a client shows nothing but the answer.
        self._put(Piece(f"{text}\n\n") if urgent else Remark(text))

    def progress(self, text: str, step: Step) -> None:
        if isinstance(step, RouteDecision):
            self._put(step)

    def thought(self, text: str) -> None:
        self._put(Piece(text, thought=True))

    def piece(self, text: str, turn: TurnInProgress) -> None:
        self._put(Piece(text))

    def ended(self, turn: Turn) -> None:
        self._put(turn)


class Desk:
    """Answers the questions of clients.

    Args:
        settings: of the person.
        environ: with the secrets that the workers need.
        changed: told how many are in hand and how many wait.
    """

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], changed: Callable[[int, int], object]
    ) -> None:
        self._settings = settings
        self._environ = environ
        self._changed = changed
        self._threads = ThreadPoolExecutor(RUNNING, "turn")
        self._slots = asyncio.Semaphore(RUNNING)
        self._replies: dict[Reply, asyncio.Future[None]] = {}
        self._waiting = 0
        self._told = (0, 0)
        self._workers: Session | None = None
        self._resting: asyncio.TimerHandle | None = None
        self._telling: asyncio.TimerHandle | None = None
        self._recorders: list[Recorder] = []
        self._memory = Memory()
        self._recalled = self._threads.submit(self._recall)
        self._explained: dict[str, str] = {}
        self._local_model = settings.model

    def start(self) -> None:
        """Have the workers started, before the first question."""
        self._attach()
        self._rest_later()

    @property
    def local_model(self) -> str:
        """The name of the local model, as far as it is known."""
        state = self._workers.local.state if self._workers is not None else None
        if isinstance(state, Ready):
            self._local_model = state.model
        return self._local_model

    @contextlib.asynccontextmanager
    async def ask(self, asked: Asked, wishes: Wishes, number: str) -> AsyncIterator[Reply]:
        """Answer a question; leaving the block ends the answer, and stores what has come. By its
        ``number``, `why` tells of it.

        Raises:
            RefusedError: too many wait, or there is no such model.
        """
        model = wishes.model or asked.model
        override = override_of(model, self._settings, self.local_model)
        if self._waiting >= WAITING:
            what = f"{RUNNING} questions are being answered, and {WAITING} wait."
            raise RefusedError(429, "busy", what, retry_s=RETRY_S)
        await self._take_slot()
        reply = Reply(self._attach().beside(), partial(self._explain, number))
        work = partial(self._answer, reply, asked, wishes, override)
        working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        self._replies[reply] = working
        working.add_done_callback(lambda _: self._end(reply))
        self._tell()
        try:
            yield reply
        finally:
            reply.session.interrupt()  # its turn is stored by its thread, which `_end` waits for

    def why(self, number: str) -> str | None:
        """Why who answered, as ``/why`` says it; ``None``: the answer is not known (any more)."""
        return self._explained.get(number)

    async def stop(self) -> None:
        """End all answers, and give the workers back."""
        for reply in self._replies:
            reply.session.interrupt()
        if self._replies:
            await asyncio.wait(self._replies.values())
        if self._resting is not None:
            self._resting.cancel()
        work = partial(self._close, self._workers, self._recorders)
        await asyncio.get_running_loop().run_in_executor(None, work)

    async def _take_slot(self) -> None:
        self._waiting += 1
        try:
            if self._slots.locked():
                self._tell()
            await self._slots.acquire()
        finally:
            self._waiting -= 1

    def _explain(self, number: str, turn: Turn) -> None:
        self._explained[number] = describe_turn(turn)
        if len(self._explained) > EXPLAINED:
            del self._explained[next(iter(self._explained))]

    def _end(self, reply: Reply) -> None:
        del self._replies[reply]
        self._slots.release()
        self._rest_later()
        self._tell()

    def _tell(self) -> None:
        """At once when the first question comes, so that nobody takes it for idle."""
        if self._told == (0, 0):
            self._tell_now()
        elif self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(TELL_S, self._tell_now)

    def _tell_now(self) -> None:
        self._telling, now = None, (len(self._replies), self._waiting)
        if now != self._told:
            self._told = now
            self._changed(*now)

    def _attach(self) -> Session:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None
        if self._workers is None:
            self._workers = Session(self._settings, self._environ, "gateway")
            self._workers.watch(self._wake)
            self._workers.start()
        return self._workers

    def _wake(self) -> None:
        """From any thread: a worker's state has changed."""
        for reply in tuple(self._replies):
            reply.session.wake()

    def _rest_later(self) -> None:
        if not self._replies:
            self._resting = asyncio.get_running_loop().call_later(IDLE_S, self._rest)

    def _rest(self) -> None:
        _ = self.local_model
        workers, self._workers = self._workers, None
        recorders, self._recorders = self._recorders, []
        asyncio.get_running_loop().run_in_executor(None, self._close, workers, recorders)

    @staticmethod
    def _close(workers: Session | None, recorders: list[Recorder]) -> None:
        """On a thread of its own, since it waits for the disk."""
        for recorder in recorders:
            recorder.close()
        if workers is not None:
            workers.close()

    # --- on the threads of answers --------------------------------------------------------

    def _answer(self, reply: Reply, asked: Asked, wishes: Wishes, override: Override) -> None:
        try:
            self._run(reply, asked, wishes, override)
        except Exception as error:
            reply.put(error)
        finally:
            for notice in reply.session.notices.take():
                log.info("%s", notice)

    def _run(self, reply: Reply, asked: Asked, wishes: Wishes, override: Override) -> None:
        session = reply.session
        self._recalled.result()
        marks = self._memory.marks(session, asked.messages)
        if wishes.private:
            marks[-1] = Mark(True, marks[-1].why)
        offered = map(session.gate.rules.mark, told_beside(asked.sampling))
        found = next((mark for mark in chain(marks, offered) if mark.private), Mark())
        server = self._settings.beside.get(override.server)
        elsewhere = not server.takes_private if server else override.target is Target.CLOUD
        if found.private and elsewhere:
            raise _kept_here(found, override.server or "the cloud")
        if found.private:
            reply.put(found)
        if asked.model.startswith(CLAUDE):
            cloud = replace(session.settings.cloud, model=asked.model)
            session.settings = replace(session.settings, cloud=cloud)
        if asked.think is not None:
            session.settings = session.settings.with_think("show" if asked.think else "off")
        prompt = Prompt(
            split_prefix(asked.messages[-1].content)[0],
            found.private,
            override=replace(override, private=found.private),
            sampling=asked.sampling,
            max_new_tokens=room(asked, self._settings),
            whole=True,
            client=wishes.client,
        )
        known = self._memory.known(asked.messages[:-1])
        conversation = Transcript(asked.messages, marks, known.key)
        recorder = self._take_recorder(known.number)
        runner = TurnRunner(session, conversation, recorder)
        try:
            runner.begin(prompt)
            runner.answer(_Wire(reply))
        finally:
            self._recorders.append(recorder)
        begun = Known(recorder.number, conversation.turns[0].key)
        self._memory.learn(asked.messages, conversation.turns[-1], begun)

    def _recall(self) -> None:
        """Have the history say what is private, since clients go on with conversations from before
        the gateway was started."""
        recorder = self._take_recorder(0)
        try:
            self._memory.recall(recorder.read(lambda store: store.private_turns()))
        except ShammahError as error:
            if error.code != "history_empty":
                log.warning("earlier marks are not known: %s", error.message)
        finally:
            self._recorders.append(recorder)

    def _take_recorder(self, number: int) -> Recorder:
        """One that continues the conversation of this number; 0: that begins another."""
        try:
            recorder = self._recorders.pop()
        except IndexError:
            enabled = self._settings.gateway.history == "on"
            report = partial(log.warning, "%s")
            recorder = history_of(self._settings, enabled=enabled, report=report)
        if number:
            recorder.resume(StoredConversation(number))
        else:
            recorder.leave()
        return recorder


def _kept_here(mark: Mark, where: str) -> RefusedError:
    why = mark.why or "you said that it is private"
    what = f"Private, because {why}. Nothing was sent to {where}; ask the model auto or local."
    return RefusedError(403, "private", what)
