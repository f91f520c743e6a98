"""What is private stays here: through sessions, the prompt and ``shammah ask``, with real
processes. Both workers are stand-ins that write down what they are asked."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from shammah.bus.messages import ChatMessage, Done, Failed, Ready
from shammah.chat.conversation import Step, Waiting
from shammah.chat.session import Session
from shammah.router.decision import Override, Target
from shammah.settings.load import load_settings
from tests.fakes import turns
from tests.fakes.command import WITH_STAND_INS, run
from tests.fakes.echo_process import EchoProcess
from tests.fakes.sandbox import Sandbox, until
from tests.fakes.terminal import Record, Terminal

pytestmark = pytest.mark.timeout(300)

Open = Callable[..., Session]
OpenTerminal = Callable[..., Terminal]
StartEcho = Callable[..., EchoProcess]

CLOUD = Override(Target.CLOUD)
PAIR = (ChatMessage("user", "secret plan", True), ChatMessage("assistant", "of Acme", True))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-key-of-the-cloud")


@pytest.fixture
def local(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("STAND_IN_INFERENCE", f"--record {sandbox.root}/local --delay-ms 5")
    return Record(sandbox.root / "local")


@pytest.fixture
def cloud(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("STAND_IN_CLOUD", f"--record {sandbox.root}/cloud --delay-ms 5")
    return Record(sandbox.root / "cloud")


@pytest.fixture
def open_session(echo_spawns: None) -> Iterator[Open]:
    sessions: list[Session] = []

    def make() -> Session:
        sessions.append(Session(load_settings(os.environ, "starter"), os.environ, "test"))
        return sessions[-1]

    yield make
    for session in sessions:
        session.interrupt()
        session.close()


@pytest.fixture
def open_terminal() -> Iterator[OpenTerminal]:
    opened: list[Terminal] = []

    def make(*arguments: str) -> Terminal:
        opened.append(Terminal("--model", "starter", *arguments, command=WITH_STAND_INS))
        opened[-1].wait_editor()
        return opened[-1]

    yield make
    for terminal in opened:
        terminal.destroy()


def configure(sandbox: Sandbox, text: str) -> None:
    (sandbox.shammah_home / "config.toml").write_text(text)


def steps(session: Session, *messages: ChatMessage, override: Override | None = None) -> list[Step]:
    return list(turns.way_of(session, messages, override))


def end(
    session: Session, *messages: ChatMessage, override: Override | None = None
) -> Done | Failed:
    last = steps(session, *messages, override=override)[-1]
    assert isinstance(last, Done | Failed)
    return last


class TestASession:
    def test_leaves_private_turns_out_and_says_so(self, open_session: Open, cloud: Record) -> None:
        done = end(open_session(), *PAIR, ChatMessage("user", "hello"), override=CLOUD)
        assert isinstance(done, Done)
        assert done.left_out == 1
        assert cloud.conversations == [[("user", "hello")]]

    @pytest.mark.parametrize(
        ("question", "override"),
        [
            (ChatMessage("user", "hello", True), CLOUD),
            (ChatMessage("user", "hello"), Override(Target.CLOUD, private=True)),
            (ChatMessage("user", "mail jo@acme.de"), CLOUD),
        ],
    )
    def test_never_asks_the_cloud_a_private_question(
        self,
        open_session: Open,
        local: Record,
        sandbox: Sandbox,
        question: ChatMessage,
        override: Override,
    ) -> None:
        """Whoever calls it, whatever is wished: by mark, by wish, by rule."""
        done = end(open_session(), question, override=override)
        assert isinstance(done, Done)
        assert done.provenance.role == "inference"
        assert set(sandbox.holders()) == {"inference"}

    def test_lets_a_private_question_wait_for_a_model_that_does_not_come(
        self, open_session: Open, monkeypatch: pytest.MonkeyPatch, cloud: Record
    ) -> None:
        monkeypatch.setenv("STAND_IN_INFERENCE", "--load-for-ever")
        session = open_session()
        session.start()
        assert session.cloud is not None
        until(lambda: isinstance(session.cloud.state, Ready), "the cloud is ready")
        waited = 0
        for step in turns.way_of(session, (ChatMessage("user", "hello", True),), Override()):
            if isinstance(step, Waiting):
                waited += 1
                if waited == 4:
                    session.interrupt()
            else:
                assert isinstance(step, Failed), step
        assert waited == 4
        assert cloud.conversations == []

    def test_refuses_rather_than_forward_when_there_is_no_model(
        self, open_session: Open, monkeypatch: pytest.MonkeyPatch, cloud: Record
    ) -> None:
        monkeypatch.setenv("STAND_IN_INFERENCE", "--unavailable nothing")
        failed = end(open_session(), ChatMessage("user", "hello", True))
        assert isinstance(failed, Failed)
        assert cloud.conversations == []

    def test_starts_no_cloud_worker_when_it_is_switched_off(
        self, open_session: Open, sandbox: Sandbox, local: Record
    ) -> None:
        configure(sandbox, '[cloud]\nuse = "never"')
        session = open_session()
        session.start()
        assert isinstance(end(session, ChatMessage("user", "hello")), Done)
        refused = end(session, ChatMessage("user", "hello"), override=CLOUD)
        assert isinstance(refused, Failed)
        assert refused.code == "cloud_switched_off"
        assert set(sandbox.holders()) == {"inference"}


class TestThePrompt:
    def test_marks_by_prefix_by_switch_and_by_rule(
        self, open_terminal: OpenTerminal, local: Record, cloud: Record, sandbox: Sandbox
    ) -> None:
        terminal = open_terminal()
        for line in ("!private one", "mail jo@acme.de", "/private on"):
            terminal.ask(line)
            terminal.wait_editor() if line[0] == "/" else terminal.wait_answer()
        terminal.ask("three")
        terminal.wait_answer()
        assert [talk[-1][1] for talk in local.conversations] == ["one", "mail jo@acme.de", "three"]
        assert "Private, because it contains an e-mail address" in terminal.text
        terminal.ask("/private")
        terminal.expect("3 turns so far will never go to the cloud")
        assert cloud.conversations == []

    def test_tells_the_cloud_all_but_the_private_turns(
        self, open_terminal: OpenTerminal, local: Record, cloud: Record
    ) -> None:
        terminal = open_terminal("--cloud")
        for question, line in (
            ("one", "cloud: "),
            ("!private two", "local: "),
            ("three", "1 private turn left out"),
        ):
            terminal.ask(question)
            assert line in terminal.wait_answer()
            terminal.wait_editor()
        assert local.conversations[0][-1] == ("user", "two")
        assert len(local.conversations[0]) == 3  # it is told everything
        said = [("user", "one"), ("assistant", "one"), ("user", "three")]
        assert cloud.conversations[-1] == said

    @pytest.mark.parametrize(("typed", "role"), [("y", "cloud"), ("no", "local"), ("a", "cloud")])
    def test_asks_before_it_sends(
        self,
        open_terminal: OpenTerminal,
        sandbox: Sandbox,
        local: Record,
        cloud: Record,
        typed: str,
        role: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        configure(sandbox, '[cloud]\nuse = "ask"')
        enough = sandbox.root / "enough"
        slow = f"--record {local.path} --load-until {enough}"
        monkeypatch.setenv("STAND_IN_INFERENCE", slow)
        terminal = open_terminal()
        terminal.ask("hello")
        terminal.expect(re.escape("Send this question to Claude? [y]es, [n]o, [a]lways"))
        assert cloud.conversations == []
        terminal.ask(typed)
        if role == "local":
            enough.touch()
        assert f"{role}: " in terminal.wait_answer()
        assert len(cloud.conversations) == (1 if role == "cloud" else 0)

    def test_a_cancel_at_the_question_sends_nothing(
        self,
        open_terminal: OpenTerminal,
        sandbox: Sandbox,
        cloud: Record,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        configure(sandbox, '[cloud]\nuse = "ask"')
        monkeypatch.setenv("STAND_IN_INFERENCE", "--load-for-ever")
        terminal = open_terminal()
        terminal.ask("hello")
        terminal.expect(re.escape("Send this question to Claude?"))
        terminal.type("\x03")
        terminal.expect("cancelled")
        terminal.wait_editor()
        assert cloud.conversations == []


class TestAsk:
    def test_without_a_terminal_names_what_to_set(self, sandbox: Sandbox, cloud: Record) -> None:
        configure(sandbox, '[cloud]\nuse = "ask"')
        ended = run("ask", "--cloud", "hello", command=WITH_STAND_INS)
        assert (ended.code, ended.out) == (1, "")
        assert 'use = "auto"' in ended.err
        assert cloud.conversations == []

    def test_a_file_below_a_private_path(
        self, sandbox: Sandbox, local: Record, cloud: Record
    ) -> None:
        configure(sandbox, '[privacy]\npaths = ["~/secret"]')
        secret = sandbox.home / "secret" / "plan.txt"
        secret.parent.mkdir()
        secret.write_text("the plan")
        command = [*WITH_STAND_INS, "ask", "--model", "starter", "Review:"]
        with secret.open("rb") as file:
            subprocess.run(command, stdin=file, check=True, timeout=60)
        assert local.questions == ["Review:\n\nthe plan"]
        assert set(sandbox.holders()) == {"inference"}


def test_key_and_sockets_are_those_of_the_cloud_process_alone(
    open_terminal: OpenTerminal, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel tells it: environments and network sockets of every process of ours."""
    monkeypatch.setenv("ANTHROPIC_CUSTOM_HEADERS", "x-secret: header-of-the-cloud")
    terminal = open_terminal()
    holders = until(lambda: _both(sandbox), "both workers")
    for role in ("inference", "cloud"):
        environ = Path(f"/proc/{holders[role]}/environ").read_bytes()
        for secret in (b"sk-key-of-the-cloud", b"header-of-the-cloud"):
            assert (secret in environ) == (role == "cloud")
    for pid in (terminal.pid, holders["inference"]):
        assert psutil.Process(pid).net_connections("inet") == []
        sockets = {
            os.readlink(link)
            for link in Path(f"/proc/{pid}/fd").iterdir()
            if _target(link).startswith("socket:")
        }
        network = "".join(
            Path(f"/proc/{pid}/net/{table}").read_text()
            for table in ("tcp", "tcp6", "udp", "udp6", "raw")
            if Path(f"/proc/{pid}/net/{table}").exists()
        )
        inodes = {name[len("socket:[") : -1] for name in sockets}
        assert not [inode for inode in inodes if re.search(rf"\s{inode}\s", network)]


def _both(sandbox: Sandbox) -> dict[str, int] | None:
    """Both workers' pids, once both are written."""
    holders = sandbox.holders()
    return holders if set(holders) == {"inference", "cloud"} and all(holders.values()) else None


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


@pytest.mark.parametrize(("said", "asked"), [("y", ["hello\n\nfrom a pipe"]), ("n", [])])
def test_a_question_from_a_pipe_is_asked_about_on_the_terminal(
    sandbox: Sandbox, cloud: Record, local: Record, said: str, asked: list[str]
) -> None:
    (sandbox.shammah_home / "config.toml").write_text('[cloud]\nuse = "ask"\n')
    command = shlex.join([*WITH_STAND_INS, "ask", "--model", "starter", "--cloud", "hello"])
    terminal = Terminal("-c", f"echo from a pipe | {command}", command=("/bin/sh",))
    terminal.expect("Send this question to Claude")
    terminal.ask(said)
    assert (terminal.end() == 0) is (said == "y")
    assert terminal.is_sane()
    assert [question.strip() for question in cloud.questions] == asked
    assert local.questions == []
    terminal.destroy()
