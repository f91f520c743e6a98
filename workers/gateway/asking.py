"""One question of a client, the same for every API. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from shammah.bus.messages import ChatMessage, Sampling
from shammah.chat.conversation import Conversation, Turn
from shammah.models.catalogue import SERVER
from shammah.privacy import Mark
from shammah.router.route import Override, Target
from shammah.settings.model import Settings
from workers.gateway.refusals import RefusedError, invalid

AUTO, LOCAL, CLOUD = "auto", "local", "cloud"
"""The models by which a client leaves the choice to the router, or makes it."""
CLAUDE = "claude-"
EFFORTS = ("low", "medium", "high", "xhigh", "max")
CLIENT_CHARACTERS = 40


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
    """What a client says in headers: who shall answer (a model's name; empty: as the request says),
    whether the question is private, and how the client is called."""

    model: str = ""
    private: bool = False
    client: str = ""


def compose(said: Iterable[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The messages of a conversation: one system prompt, then user and assistant in turns, as every
    chat template has it, with what tools returned after their calls. A later message of the system
    goes with the user's.

    Raises:
        RefusedError: nothing is asked, or calls and what they returned do not go together.
    """
    system: list[str] = []
    turns: list[ChatMessage] = []
    for message in said:
        if message.role == "system" and not turns:
            system.append(message.content)
            continue
        role = "user" if message.role == "system" else message.role
        if not (message.content or message.tool_calls or role == "tool"):
            continue
        if turns and turns[-1].role == role != "tool":
            before = turns.pop()
            texts = filter(None, (before.content, message.content))
            calls = before.tool_calls + message.tool_calls
            message = replace(message, content="\n\n".join(texts), tool_calls=calls)
        turns.append(replace(message, role=role))
    if not turns or turns[0].role != "user":
        raise invalid("The first message that is not the system's must be the user's.", "messages")
    if turns[-1].role == "assistant":
        why = "The last message must be the user's or a tool's; no answer is continued here."
        raise invalid(why, "messages")
    _check_calls(turns)
    prompt = "\n\n".join(filter(None, system))
    return (ChatMessage("system", prompt), *turns) if prompt else tuple(turns)


def _check_calls(turns: Iterable[ChatMessage]) -> None:
    """Refuse calls without what they returned, and the other way round."""
    open_calls: set[str] = set()
    for message in turns:
        if message.role == "tool":
            if message.tool_call_id not in open_calls:
                why = f"No call is named {message.tool_call_id!r:.60}, or it has returned already."
                raise invalid(why, "messages")
            open_calls.discard(message.tool_call_id)
        elif open_calls:
            raise invalid(f"The call {min(open_calls)!r:.60} has returned nothing.", "messages")
        open_calls.update(call.id for call in message.tool_calls)


def effort_of(model: str, wanted: str) -> str:
    """How hard Claude shall try. Only of a model that the client names: it knows what that one
    understands, and Claude refuses what it does not."""
    return wanted if model.startswith(CLAUDE) and wanted in EFFORTS else ""


def read_arguments(arguments: object, name: str) -> str:
    """The arguments of a call, as JSON."""
    try:
        found = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise invalid(f"{name} must be a JSON object.", name)
    return json.dumps(found, ensure_ascii=False)


def read_wishes(headers: Mapping[str, str]) -> Wishes:
    """What the headers say.

    Raises:
        RefusedError: they say what cannot be meant.
    """
    target = headers.get("shammah-target", AUTO).strip()
    target = target if target.startswith(SERVER) else target.lower()
    if target not in (AUTO, LOCAL, CLOUD) and not target.startswith(SERVER):
        what = "shammah-target must be auto, local, cloud or server:NAME."
        raise invalid(what, "shammah-target")
    private = headers.get("shammah-private", "no").strip().lower()
    if private not in ("yes", "no", "true", "false", "1", "0"):
        raise invalid("shammah-private must be yes or no.", "shammah-private")
    agent = headers.get("user-agent", "").split("/")[0].strip()
    client = (headers.get("shammah-client") or agent or "a program")[:CLIENT_CHARACTERS]
    return Wishes("" if target == AUTO else target, private in ("yes", "true", "1"), client)


def override_of(model: str, settings: Settings, local_model: str) -> Override:
    """Who answers for a model's name; without a target: whom the router chooses.

    Raises:
        RefusedError: there is no such model here.
    """
    if model == AUTO:
        return Override()
    served = f"{SERVER}{settings.server}" if settings.server else LOCAL
    if model in (LOCAL, local_model, settings.model, served):
        return Override(Target.LOCAL)
    if model in (CLOUD, settings.cloud_model) or model.startswith(CLAUDE):
        return Override(Target.CLOUD)
    if model.startswith(SERVER) and (name := model.removeprefix(SERVER)) in settings.beside:
        return Override(Target.SERVER, server=name)
    known = ", ".join(name for name, _ in models(settings, local_model))
    what = f"There is no model {model!r:.60} here. Try one of: {known}."
    raise RefusedError(404, "model_not_found", what, param="model")


def models(settings: Settings, local_model: str) -> list[tuple[str, str]]:
    """The names that can be asked for, with what each is."""
    found = {AUTO: "whom the router chooses", LOCAL: "the local model"}
    if settings.cloud_configured:
        found |= {CLOUD: settings.cloud_name, settings.cloud_model: settings.cloud_name}
    if local_model not in found:
        found[local_model] = "the local model"
    found |= {f"{SERVER}{name}": f"the server {name}" for name in settings.beside}
    return list(found.items())


def room(asked: Asked, settings: Settings) -> int | None:
    """How long the answer may be. What is beyond every limit of ours sets none."""
    most = max(settings.inference.max_new_tokens, settings.cloud.max_tokens)
    return None if asked.max_tokens is None or asked.max_tokens > most else asked.max_tokens


class Transcript(Conversation):
    """A conversation that a client sends whole with each question.

    Args:
        messages: all of them.
        marks: theirs.
        key: of its first turn, if an earlier one is in the history.
    """

    __slots__ = ("_before", "_last")

    def __init__(
        self, messages: tuple[ChatMessage, ...], marks: Sequence[Mark], key: str = ""
    ) -> None:
        *before, self._last = map(_marked, messages, marks)
        system = before[0] if before and before[0].role == "system" else ChatMessage("system", "")
        turns = [Turn("", key=key)] if key else []
        super().__init__(system.content, turns, system.private)
        self._before = tuple(before)

    def with_question(self, question: str, *, private: bool = False) -> tuple[ChatMessage, ...]:
        return (*self._before, replace(self._last, content=question, private=private))

    @property
    def holds_private(self) -> bool:
        return any(message.private for message in self._before)


def _marked(message: ChatMessage, mark: Mark) -> ChatMessage:
    return replace(message, private=mark.private)
