"""The gate between a frontend and what is elsewhere: what may go there, and whether the person
agrees."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from shammah.bus.messages import ChatMessage, Done, Failed
from shammah.bus.record import record
from shammah.privacy import Mark, Rules
from shammah.settings.model import ServerSettings, Settings
from shammah.terminal.wording import describe_left_out

SYSTEM_LEFT_OUT = "The system prompt is private and was left out."


PRIVATE = Failed(
    "private",
    "A private question never goes to the cloud. Nothing was sent.",
    "Ask with --local, or leave out what is private.",
)
DECLINED = Failed(
    "cloud_declined", "Not sent: you said no.", "To wait for the local model, use --local."
)
NOBODY_TO_ASK = Failed(
    "cloud_needs_consent",
    "Not sent: cloud.use is ask, and there is no terminal to ask for your consent.",
    'Set use = "auto" under [cloud] in config.toml, or ask with --local.',
)
NEVER = Failed(
    "cloud_switched_off",
    "Nothing is sent to the cloud, because cloud.use is never.",
    'Set use = "auto" or "ask" under [cloud] in config.toml.',
)


@record
class Outgoing:
    """What may go elsewhere, and how many private turns were left out."""

    messages: tuple[ChatMessage, ...]
    left_out: int = 0
    system_left_out: bool = False


def withhold(messages: tuple[ChatMessage, ...]) -> Outgoing | Failed:
    """The conversation without its private turns; `PRIVATE` when the question itself, the last
    message, is private. A call of a tool and its result go together."""
    calls = {name for message in messages if message.private for name in _calls(message)}
    for message in messages:  # a call comes before its result
        if message.role == "assistant" and not calls.isdisjoint(_calls(message)):
            calls.update(_calls(message))
    kept = tuple(one for one in messages if not one.private and calls.isdisjoint(_calls(one)))
    if not kept or kept[-1] is not messages[-1]:
        return PRIVATE
    gone = [one for one in messages if one.private or not calls.isdisjoint(_calls(one))]
    return Outgoing(
        kept,
        sum(message.role == "user" for message in gone),
        any(message.role == "system" for message in gone),
    )


def _calls(message: ChatMessage) -> list[str]:
    """The names of the calls that a message makes or answers."""
    return [*(call.id for call in message.tool_calls), *filter(None, (message.tool_call_id,))]


def consent_question(outgoing: Outgoing, cloud: str) -> str:
    """Return what a person is asked before ``outgoing`` is sent to the ``cloud`` of that name."""
    begun = outgoing.messages[-1].role == "assistant"
    earlier = sum(message.role == "assistant" for message in outgoing.messages) - begun
    what = "this question" if not begun else "this question with the answer so far"
    if earlier:
        what += f" and {earlier} earlier turn" + ("" if earlier == 1 else "s")
    kept = f" ({describe_left_out(outgoing.left_out)})" if outgoing.left_out else ""
    return f"Send {what} to {cloud}{kept}? [y]es, [n]o, [a]lways in this session: "


class Gate:
    """Everything that a frontend sends to the cloud passes `open`.

    Attributes:
        private: every question is private.
        never: nothing is sent, whatever is requested.
        ask: asks the person a question before something is sent, and returns the line that was
            typed, if any; ``None``: there is nobody to ask.
    """

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self.rules = Rules(settings.privacy, environ.get("HOME", ""), _directory())
        self.private = False
        self.ask: Callable[[str], str | None] | None = None
        self.never = settings.cloud.use == "never"
        self._asks = settings.cloud.use == "ask"
        self._agreed = False
        self._cloud = settings.cloud_name
        away = [
            name
            for name, one in settings.servers.items()
            if one.takes_private and one.trust != "local"
        ]
        self._kept = "It stays on this machine."
        if away:
            self._kept = f"Only this machine and {', '.join(away)} may have it."

    @property
    def openable(self) -> bool:
        """Whether anything may be sent, given the person's consent where that is needed."""
        return not self.never and (not self._asks or self._agreed or self.ask is not None)

    def judge(
        self, question: str, *, private: bool = False, sources: Iterable[str | None] = ()
    ) -> Mark:
        """Whether ``question`` is private: because the person says so (then ``why`` is empty),
        or by a rule. ``sources``: as `Rules.mark` has them."""
        if private or self.private:
            return Mark(True)
        return self.rules.mark(question, sources)

    def explain(self, mark: Mark, *, cloud: bool) -> str:
        """Return why a question with such a mark stays here; empty where the person knows.

        Args:
            cloud: the cloud was requested.
        """
        if mark.why:
            return f"Private, because {mark.why}. {self._kept}"
        if mark.private and cloud:
            because = "/private is on" if self.private else "you said that it is private"
            return f"Not sent to {self._cloud}: {because}. {self._kept}"
        return ""

    def answer_is_private(self, answer: str, *, local: bool) -> bool:
        """Whether a rule applies to an answer. One that is the cloud's alone tells it nothing
        new; ``local``: any of it is the local model's."""
        return local and self.rules.mark(answer).private

    def open(
        self, conversation: tuple[ChatMessage, ...], server: ServerSettings | None = None
    ) -> Outgoing | Failed:
        """What may be sent of a marked ``conversation``, or why nothing may.

        Args:
            server: to this one beside the local model; ``None``: to the cloud.
        """
        if server is not None and server.takes_private:
            return Outgoing(conversation)
        if server is None and self.never:
            return NEVER
        outgoing = withhold(conversation)
        asks = server is None and self._asks and not self._agreed
        if isinstance(outgoing, Outgoing) and asks:
            if self.ask is None:
                return NOBODY_TO_ASK
            said = (self.ask(consent_question(outgoing, self._cloud)) or "").strip().lower()
            if said not in ("y", "yes", "a", "always"):  # anything but a clear yes is a no
                return DECLINED
            self._agreed = said in ("a", "always")
        return outgoing


def report_left_out(done: Done, outgoing: Outgoing) -> Done:
    """Return ``done`` with what was left out."""
    notices = (*done.notices, SYSTEM_LEFT_OUT) if outgoing.system_left_out else done.notices
    return replace(done, left_out=outgoing.left_out, notices=notices)


def _directory() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""
