"""One question of a client, the same for every API. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter

from shammah.bus.messages import ChatMessage, Sampling
from shammah.chat.conversation import Conversation
from shammah.privacy import Mark
from shammah.router.route import Target
from shammah.settings.model import Settings
from workers.gateway.refusals import RefusedError, invalid

AUTO, LOCAL, CLOUD = "auto", "local", "cloud"
"""The models by which a client leaves the choice to the router, or makes it."""
CLAUDE = "claude-"
CLIENT_CHARACTERS = 40

Said = tuple[str, str]
"""A role and what it said."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants.

    Attributes:
        model: by the name that the client gives.
        messages: system prompt, if any, and the turns; the last is the question.
        max_tokens: of the answer; ``None``: no limit of the client's.
        stream: in pieces.
        think: ``None``: as the settings say.
        ignored: the fields that have no effect here.
        counted: a stream ends with what it took (OpenAI's ``include_usage``).
    """

    model: str
    messages: tuple[ChatMessage, ...]
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    max_tokens: int | None = None
    stream: bool = False
    think: bool | None = None
    ignored: tuple[str, ...] = ()
    counted: bool = True

    @property
    def system(self) -> str:
        first = self.messages[0]
        return first.content if first.role == "system" else ""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a client says in headers: who shall answer, whether the question is private, and how the
    client is called."""

    target: Target | None = None
    private: bool = False
    client: str = ""


def compose(said: Iterable[Said]) -> tuple[ChatMessage, ...]:
    """The messages of a conversation: one system prompt, then user and assistant in turns, as every
    chat template has it. A later message of the system goes with the user's.

    Raises:
        RefusedError: nothing is asked.
    """
    turns: list[Said] = []
    system: list[str] = []
    for role, text in said:
        if role == "system" and not turns:
            system.append(text)
        elif text:
            turns.append(("assistant" if role == "assistant" else "user", text))
    merged = [
        ChatMessage(role, "\n\n".join(text for _, text in group))
        for role, group in groupby(turns, itemgetter(0))
    ]
    if not merged or merged[0].role != "user":
        raise invalid("The first message that is not the system's must be the user's.", "messages")
    if merged[-1].role != "user":
        why = "The last message must be the user's; no answer is continued here."
        raise invalid(why, "messages")
    prompt = "\n\n".join(filter(None, system))
    return (ChatMessage("system", prompt), *merged) if prompt else tuple(merged)


def read_wishes(headers: Mapping[str, str]) -> Wishes:
    """What the headers say.

    Raises:
        RefusedError: they say what cannot be meant.
    """
    target = headers.get("shammah-target", AUTO).strip().lower()
    if target not in (AUTO, LOCAL, CLOUD):
        raise invalid("shammah-target must be auto, local or cloud.", "shammah-target")
    private = headers.get("shammah-private", "no").strip().lower()
    if private not in ("yes", "no", "true", "false", "1", "0"):
        raise invalid("shammah-private must be yes or no.", "shammah-private")
    agent = headers.get("user-agent", "").split("/")[0].strip()
    client = (headers.get("shammah-client") or agent or "a program")[:CLIENT_CHARACTERS]
    wanted = None if target == AUTO else Target(target)
    return Wishes(wanted, private in ("yes", "true", "1"), client)


def target_of(model: str, settings: Settings, local_model: str) -> Target | None:
    """Who answers for a model's name; ``None``: whom the router chooses.

    Raises:
        RefusedError: there is no such model here.
    """
    if model == AUTO:
        return None
    if model in (LOCAL, local_model, settings.model):
        return Target.LOCAL
    if model in (CLOUD, settings.cloud.model) or model.startswith(CLAUDE):
        return Target.CLOUD
    known = ", ".join(name for name, _ in models(settings, local_model))
    what = f"There is no model {model!r:.60} here. Try one of: {known}."
    raise RefusedError(404, "model_not_found", what, param="model")


def models(settings: Settings, local_model: str) -> list[tuple[str, str]]:
    """The names that can be asked for, with what each is."""
    found = {AUTO: "whom the router chooses", LOCAL: "the local model"}
    if settings.cloud_configured:
        found |= {CLOUD: "Claude", settings.cloud.model: "Claude"}
    if local_model not in found:
        found[local_model] = "the local model"
    return list(found.items())


def room(asked: Asked, settings: Settings) -> int | None:
    """How long the answer may be. What is beyond every limit of ours sets none."""
    most = max(settings.inference.max_new_tokens, settings.cloud.max_tokens)
    return None if asked.max_tokens is None or asked.max_tokens > most else asked.max_tokens


class Transcript(Conversation):
    """A conversation that a client sends whole with each question; ``marks`` are its messages'."""

    __slots__ = ("_before",)

    def __init__(self, messages: tuple[ChatMessage, ...], marks: Sequence[Mark]) -> None:
        *before, _ = map(_marked, messages, marks)
        system = before[0] if before and before[0].role == "system" else ChatMessage("system", "")
        super().__init__(system=system.content, system_private=system.private)
        self._before = tuple(before)

    def with_question(self, question: str, *, private: bool = False) -> tuple[ChatMessage, ...]:
        return (*self._before, ChatMessage("user", question, private))

    @property
    def holds_private(self) -> bool:
        return any(message.private for message in self._before)


def _marked(message: ChatMessage, mark: Mark) -> ChatMessage:
    return replace(message, private=mark.private)
