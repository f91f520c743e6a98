"""Evenings at the prompt, in which a person says what is private in every way that there is.

The prompt, the sessions and the cloud worker are real; the local model is a stand-in that repeats
everything that it was told, and a server on loopback records what it is sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shammah.bus.messages import ChatMessage, Failed, Loading, NotAvailable, Ready
from shammah.chat.options import ReplOptions
from shammah.chat.session import Session
from shammah.history.recorder import NAME as HISTORY
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore
from shammah.privacy.gate import Outgoing
from shammah.privacy.ledger import NAME as LEDGER
from shammah.privacy.ledger import read_ledger
from shammah.repl import questions
from shammah.repl.loop import Repl
from shammah.router.decision import Override, Target
from shammah.settings.load import load_settings
from shammah.supervision.lifecycle import stop
from shammah.terminal import external_editor
from shammah.terminal.screen import Screen
from tests.fakes.sandbox import Sandbox, until
from tests.real.recorder import Recorder

RULES = """
[privacy]
words = ["forbidden"]
paths = ["~/vault"]
patterns = ["case-[0-9]+"]
"""
MARKS = {
    "plain": "tell me of {n}",
    "prefix": "SECRET {n}",
    "switch": "SECRET {n}",
    "word": "SECRET and forbidden {n}",
    "path": "SECRET in ~/vault/plan{n}.txt",
    "pattern": "SECRET of case-{n}",
    "address": "SECRET for jo{n}@acme.de",
    "file": "{n}: what is in @~/notes.txt ?",
    "output": "{n}: what was that?",
}
"""How a question is marked, and what it says; ``prefix`` and ``switch`` are no rules, ``file``
names a link to something in ``~/vault``, ``output`` brings what a private command has written."""

MARKED = ("secret", "forbidden", "vault", "case-", "@acme")
SYSTEMS = ("", "", "Be brief.", "I am FORBIDDEN to all.")
SERVERS = ("ok", "ok", "ok", "refuse", "drop", "break", "empty")
STEERS = ("", "", "--knows case-7")
"""What the local model does with one question: it may know what a rule is about."""
TAUGHT = "taught"
"""An adapter that was taught something private."""
AT_DOOR = ("turn that is marked private", "Private (")
"""What only the cloud worker says: the frontend was to send nothing that it must refuse."""


class Watching(Screen):
    """A screen that nobody sees; a question that waits for what does not come is cancelled."""

    session: Session

    def live(self, text: str) -> None:
        if text.startswith("inference: Loading"):
            self.session.interrupt()


class Evening(RuleBasedStateMachine):
    """One evening. Workers and server stay from one to the next. ``first`` is the mark of its first
    question, so that no mark is left to chance; empty: it begins with whatever comes.

    Attributes:
        crashes: how often the cloud worker may still die: each time it imports the SDK anew.
    """

    crashes = 3

    def __init__(
        self, sandbox: Sandbox, recorder: Recorder, patch: pytest.MonkeyPatch, first: str = ""
    ) -> None:
        super().__init__()
        self._first = first
        self._sandbox = sandbox
        self._recorder = recorder
        self._patch = patch
        self._home = sandbox.shammah_home
        self._steer = sandbox.root / "steer"
        self._locals = local_models(sandbox)
        self._asked = 0
        self._open: tuple[Session, Repl] | None = None

    @initialize(system=st.sampled_from(SYSTEMS))
    def sit_down(self, system: str) -> None:
        """As if nothing had been before: an evening that fails must fail alone, too."""
        self._recorder.bodies.clear()
        kept = [*self._home.glob("router.db*"), *self._home.glob(f"{HISTORY}*")]
        for file in (*kept, self._home / LEDGER):
            file.unlink(missing_ok=True)
        self._use_local(self._locals[0])
        # A private system prompt makes everything private, and would hide what the mark does.
        self._begin(system if self._first in ("", "plain") else "")
        if self._first:
            self.ask(self._first, Target.LOCAL, ["ok"])

    # --- what a person does ---------------------------------------------------------------

    @rule(
        mark=st.sampled_from(("plain", "plain", *MARKS)),
        requested=st.sampled_from((None, Target.CLOUD, Target.LOCAL, Target.LOCAL)),
        servers=st.lists(st.sampled_from(SERVERS), min_size=1, max_size=3),
        steer=st.sampled_from(STEERS),
    )
    def ask(self, mark: str, requested: Target | None, servers: list[str], steer: str = "") -> None:
        self._asked += 1
        _, repl = self._here()
        self._arrange(servers, steer)
        with self._turned_on(mark == "switch"), contextlib.suppress(KeyboardInterrupt):
            if mark == "output":
                repl.act(f"!private !echo SECRET {self._asked}")
            repl.ask(MARKS[mark].format(n=self._asked), mark == "prefix", Override(requested))

    def say(self, text: str, requested: Target | None) -> None:
        """Ask something that is in no list."""
        self._arrange([], "")
        self._here()[1].ask(text, False, Override(requested))

    def knock_with(self, text: str) -> Failed:
        """What the cloud worker says to a question without a mark, from a frontend without a
        gate."""
        session, _ = self._here()
        assert session.cloud is not None
        assert session.cloud.peer is not None
        end = [*session.cloud.peer.generate((ChatMessage("user", text),))][-1]
        assert isinstance(end, Failed)
        return end

    @rule(mark=st.sampled_from((*MARKS,)))
    def ask_locally(self, mark: str) -> None:
        self.ask(mark, Target.LOCAL, ["ok"])

    @rule(server=st.sampled_from(("ok", "ok", "refuse", "break")))
    def ask_the_cloud(self, server: str) -> None:
        """What would carry along whatever has lost its mark."""
        self.ask("plain", Target.CLOUD, [server])

    @rule(mark=st.sampled_from(("plain", "prefix")), before=st.sampled_from((1, 4)))
    def ask_before_it_dies(self, mark: str, before: int) -> None:
        """The local model begins to answer, and whoever may goes on."""
        self.ask(mark, None, ["ok"], f"--crash-after {before}")

    def ask_and_crash(self) -> None:
        self.ask("plain", Target.CLOUD, ["crash later" if self._may_crash() else "drop"])

    @rule(again=st.sampled_from(("", "cloud", "cloud", "local")), steer=st.sampled_from(STEERS))
    def redo(self, again: str, steer: str = "") -> None:
        self._arrange([], steer)
        self._command(f"/redo {again}")

    @rule(mark=st.sampled_from(("plain", "plain", "word", "pattern")))
    def edit(self, mark: str) -> None:
        """The last question becomes another."""
        self._asked += 1
        self._arrange([], "")
        text = MARKS[mark].format(n=self._asked)
        self._patch.setattr(external_editor, "edit_text", lambda _: text)
        self._command("/edit")

    @rule(line=st.sampled_from((f"/adapter {TAUGHT}", "/adapter off", "/undo", "/system Be kind.")))
    def command(self, line: str) -> None:
        """With the adapter, the local model says what it was taught."""
        self._command(line)

    @rule(what=st.sampled_from(("resume", "resume", "load", "load", "change", "crash", "kill")))
    def disturb(self, what: str) -> None:
        actions: dict[str, Callable[[], None]] = {
            "resume": self.leave_and_resume,
            "load": self.save_and_load,
            "change": self.leave_and_change,
            "crash": self.ask_and_crash,
            "kill": self.kill,
        }
        actions[what]()

    def save_and_load(self) -> None:
        talk = self._home / "talk.jsonl"
        self._command(f"/save! {talk}")
        if talk.exists():
            self._command(f"/load {talk}")

    def leave_and_resume(self) -> None:
        self._leave()
        self._begin("", resume=0)

    def leave_and_change(self) -> None:
        """The conversation goes on, with a local model that behaves otherwise."""
        self._leave()
        before = self._locals.index(os.environ["STAND_IN_INFERENCE"])
        self._use_local(self._locals[(before + 1) % len(self._locals)])
        self._begin("", resume=0)

    def kill(self) -> None:
        if (holder := self._sandbox.holder("cloud")) and self._may_crash():
            os.kill(holder, signal.SIGKILL)

    @rule(whole=st.booleans())
    def knock(self, whole: bool) -> None:
        """A frontend without any gate: the cloud worker's own must hold."""
        session, repl = self._here()
        messages: tuple[ChatMessage, ...] = (ChatMessage("user", "SECRET of case-1"),)
        if whole:
            messages = repl.conversation.with_question("hello")
            if not any(message.private for message in messages):
                return
        peer = session.cloud.peer if session.cloud is not None else None
        if peer is not None and session.cloud is not None and session.cloud.attached:
            assert isinstance([*peer.generate(messages)][-1], Failed)

    # --- what must hold -------------------------------------------------------------------

    @invariant()
    def nothing_marked_has_gone_out(self) -> None:
        for body in self._recorder.bodies:
            said = body.decode().lower()
            assert not [word for word in MARKED if word in said], said

    @invariant()
    def nothing_marked_would_go_out(self) -> None:
        """With a plain question, if it were the next."""
        if self._open is None:
            return
        session, repl = self._open
        outgoing = session.gate.open(repl.conversation.with_question("hello"))
        assert isinstance(outgoing, Outgoing)
        for message in outgoing.messages:
            assert not [word for word in MARKED if word in message.content.lower()], message

    @invariant()
    def the_door_has_nothing_to_refuse(self) -> None:
        """The frontend's gate is whole by itself."""
        if self._open is not None:
            shown = self._shown.getvalue()
            assert not [words for words in AT_DOOR if words in shown], shown

    @invariant()
    def the_ledger_has_what_the_server_got(self) -> None:
        """Every body, in the order in which they came, and no other."""
        entries, damaged = read_ledger(self._home)
        got = [(len(body), hashlib.sha256(body).hexdigest()) for body in self._recorder.bodies]
        assert [(entry.bytes, entry.sha256) for entry in entries] == got
        assert damaged == 0
        attempts: dict[str, list[int]] = {}
        for entry in entries:
            attempts.setdefault(entry.request_id, []).append(entry.attempt)
        for numbers in attempts.values():
            assert numbers == list(range(1, len(numbers) + 1))

    def check(self) -> None:
        self.nothing_marked_has_gone_out()
        self.nothing_marked_would_go_out()
        self.the_door_has_nothing_to_refuse()
        self.the_ledger_has_what_the_server_got()

    def teardown(self) -> None:
        if self._open is not None:
            self._leave()

    # --- how ------------------------------------------------------------------------------

    def _here(self) -> tuple[Session, Repl]:
        assert self._open is not None
        return self._open

    def _command(self, line: str) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            self._here()[1].act(line)

    def _arrange(self, servers: list[str], steer: str) -> None:
        self._recorder.behaviours = list(servers)
        self._steer.write_text(steer)

    @contextlib.contextmanager
    def _turned_on(self, private: bool) -> Iterator[None]:
        if private:
            self._command("/private on")
        yield
        if private:
            self._command("/private off")

    def _may_crash(self) -> bool:
        Evening.crashes -= 1
        return Evening.crashes >= 0

    def _use_local(self, options: str) -> None:
        if os.environ["STAND_IN_INFERENCE"] != options:
            stop("inference", self._sandbox.endpoints)
            os.environ["STAND_IN_INFERENCE"] = options

    def _begin(self, system: str, resume: int | None = None) -> None:
        self._shown = io.StringIO()
        screen = Watching(os.environ, self._shown)
        session = Session(load_settings(os.environ, "starter"), os.environ, "repl")
        screen.session = session
        random.seed(self._asked)
        options = ReplOptions(system=None if resume is not None else system, resume=resume)
        repl = Repl(session, options, screen)
        repl.start()
        known = (Ready, Loading, NotAvailable)
        until(lambda: isinstance(session.local.state, known), "the local model's state is known")
        self._open = session, repl

    def _leave(self) -> None:
        _, repl = self._here()
        self._open = None
        repl.close()


def prepare_home(sandbox: Sandbox, patch: pytest.MonkeyPatch) -> None:
    """The rules, a private file with a link to it, an adapter, and a person who says yes."""
    (sandbox.shammah_home / "config.toml").write_text(RULES)
    vault = sandbox.home / "vault"
    vault.mkdir()
    (vault / "plan.txt").write_text("SECRET in a file\n")
    (sandbox.home / "notes.txt").symlink_to(vault / "plan.txt")
    taught = AdapterEntry(TAUGHT, sandbox.root, "starter", training={"private_examples": 1})
    AdapterStore(sandbox.shammah_home).add(taught, write_nothing)
    (sandbox.root / "steer").touch()
    patch.setattr(questions, "confirm", lambda question, **_: True)
    patch.setenv("STAND_IN_INFERENCE", local_models(sandbox)[0])  # and taken back at the end


def write_nothing(directory: Path) -> None:
    """An adapter that the stand-in never reads."""
    for name in (CONFIG, WEIGHTS):
        (directory / name).write_text("{}")


def local_models(sandbox: Sandbox) -> tuple[str, str, str]:
    """One that answers, one that never comes, one that cannot."""
    steer = shlex.quote(str(sandbox.root / "steer"))
    answers = f"--recite --learnt 'SECRET of the adapter' --steer {steer}"
    return answers, "--load-for-ever", "--unavailable nothing"
