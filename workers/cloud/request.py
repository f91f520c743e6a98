"""A `Generate` as a call of the Messages API. Pure; never imports the SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from shammah.bus.messages import ChatMessage, Generate, Sampling
from shammah.errors import ShammahError, schema_not_enforced
from shammah.settings.model import CloudSettings
from workers.cloud.caching import as_blocks, is_worth, mark, mark_turns
from workers.cloud.models import estimate_tokens, model_of
from workers.openai.continuation import split_begun

if TYPE_CHECKING:
    from anthropic.types import (
        MessageParam,
        OutputConfigParam,
        TextBlockParam,
        ToolChoiceParam,
        ToolParam,
    )

ANTHROPIC_URL = "https://api.anthropic.com"

BETWEEN_PARTS = "\n\n"
"""Between messages that become one."""

_SAMPLING = {
    "temperature": "a temperature",
    "top_p": "a top_p",
    "top_k": "a top_k",
    "repetition_penalty": "a repetition penalty",
    "min_p": "a min_p",
    "presence_penalty": "a presence penalty",
    "seed": "a seed",
}
_EXTRA_BODY = ("temperature", "top_p", "top_k")
"""What the Messages API once took, and compatible servers still do."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The server that receives a question, and its name in a sentence."""

    url: str
    is_anthropic: bool
    subject: str
    """Begins a sentence: ``Claude`` or ``The server at HOST``."""

    @property
    def subject_inside(self) -> str:
        """``subject`` in the middle of a sentence."""
        return self.subject if self.is_anthropic else self.subject[0].lower() + self.subject[1:]

    @classmethod
    def of(cls, base_url: str) -> Peer:
        """The peer of the setting ``base_url`` (empty: Anthropic's own address).

        Raises:
            ShammahError: ``cloud_address_invalid``. The address itself is not repeated, since
                it may hold a password.
        """
        url = base_url.strip() or ANTHROPIC_URL
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in ("http", "https"):
            raise ShammahError(
                "cloud_address_invalid",
                "The address of the cloud server is not a web address.",
                "Set ANTHROPIC_BASE_URL (or base_url under [cloud] in config.toml) to something "
                "like http://127.0.0.1:8080, or leave it empty for Anthropic's own address.",
            )
        if host == urlsplit(ANTHROPIC_URL).hostname:
            return cls(url, True, "Claude")
        name = f"[{host}]" if ":" in host else host
        return cls(url, False, f"The server at {name}:{port}" if port else f"The server at {name}")


@dataclass(frozen=True, slots=True)
class Call:
    """The arguments of one ``messages.create``, and notices for the person about them; the last
    two are as in `Usage`."""

    model: str
    max_tokens: int
    turns: list[MessageParam]
    system: str | list[TextBlockParam] = ""
    stop: tuple[str, ...] = ()
    extra_body: dict[str, float] = field(default_factory=dict)
    tools: list[ToolParam] = field(default_factory=list)
    tool_choice: ToolChoiceParam | None = None
    output_config: OutputConfigParam = field(default_factory=lambda: _output_config(Sampling()))
    adaptive: bool = False
    notices: tuple[str, ...] = ()
    unseen: int = 0
    messages: int = 0


def build_call(request: Generate, settings: CloudSettings, peer: Peer) -> Call:
    """The call that asks ``request`` of ``peer``, with as much of the conversation as fits.

    Raises:
        ShammahError: ``cloud_bad_request``, when there is nothing to ask; or
            ``schema_not_enforced``, when the answer must fit a schema and nothing enforces it.
    """
    if request.sampling.schema and not peer.is_anthropic:
        raise schema_not_enforced(peer.subject)
    extra_body, notices = _sampling(request.sampling, peer)
    model = model_of(settings)
    max_tokens = request.max_new_tokens or settings.max_tokens
    if model.longest:
        max_tokens = min(max_tokens, model.longest)
    system = BETWEEN_PARTS.join(
        m.content for m in request.messages if m.role == "system" and m.content.strip()
    )
    messages, begun = split_begun(request.messages)
    if begun and request.sampling.schema:
        raise schema_not_enforced("An answer that broke off and goes on")
    turns = _turns(messages)
    tools = _tools(request.sampling)
    system_tokens = estimate_tokens(system) + sum(estimate_tokens(str(tool)) for tool in tools)
    # Whoever goes on needs the question and the beginning of the answer.
    least = 3 if begun.strip() else 1
    kept = _fit(turns, model.context - max_tokens - system_tokens, least)
    unseen = len(turns) - len(kept)
    tokens = system_tokens + sum(map(_turn_tokens, kept))
    stable = len(kept) - least + 1  # what asks to go on is never asked again
    # What a tool returns is sent at once, with all that was before.
    ongoing = request.ongoing or bool(tools)
    if cached := is_worth(model, kept[:stable], tokens, ongoing=ongoing):
        kept = [*mark_turns(kept[:stable]), *kept[stable:]]
        tools = mark(tools) if tools and not system else tools
    return Call(
        model=settings.model,
        max_tokens=max_tokens,
        turns=kept,
        system=mark(as_blocks(system)) if cached and system else system,
        # The API refuses stop sequences that are blank.
        stop=tuple(stop for stop in request.sampling.stop if stop.strip()),
        extra_body=extra_body,
        tools=tools,
        tool_choice=_tool_choice(request.sampling) if tools else None,
        output_config=_output_config(request.sampling),
        adaptive=request.sampling.adaptive,
        notices=notices,
        unseen=unseen,
        messages=len(turns) - least + 1 if unseen else 0,
    )


def _output_config(sampling: Sampling) -> OutputConfigParam:
    config: dict[str, Any] = {}
    if sampling.schema:
        config["format"] = {"type": "json_schema", "schema": json.loads(sampling.schema)}
    if sampling.effort:
        config["effort"] = sampling.effort
    return cast("OutputConfigParam", config)


def _tools(sampling: Sampling) -> list[ToolParam]:
    return [
        {
            "name": tool.name,
            "description": tool.description,
            "input_schema": _object(tool.parameters, tool.name),
        }
        for tool in sampling.tools
    ]


def _object(text: str, tool: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise _bad_request(f"What describes or calls the tool {tool!r:.60} is no JSON object.")
    return found


def _tool_choice(sampling: Sampling) -> ToolChoiceParam:
    alone = not sampling.parallel
    match sampling.tool_choice:
        case "none":
            return {"type": "none"}
        case "auto":
            return {"type": "auto", "disable_parallel_tool_use": alone}
        case "any":
            return {"type": "any", "disable_parallel_tool_use": alone}
    return {
        "type": "tool",
        "name": sampling.tool_choice,
        "disable_parallel_tool_use": alone,
    }


def _turns(messages: Iterable[ChatMessage]) -> list[MessageParam]:
    """Alternating turns that begin with the user, as the API wants them.

    Blank messages are left out, since the API refuses them and they say nothing. An assistant
    turn without a question before it (the conversation was cut) is left out too. What tools
    returned is the user's.
    """
    turns: list[tuple[str, list[Any]]] = []
    for message in messages:
        if message.role not in ("system", "user", "assistant", "tool"):
            raise _bad_request(f"A message has the unknown role {message.role!r:.40}.")
        parts = [] if message.role == "system" else _parts(message)
        role = "user" if message.role == "tool" else message.role
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(parts)
        elif parts and (turns or message.role == "user"):
            turns.append((role, parts))
    if not turns:
        raise _bad_request("The conversation holds no question.")
    return [_turn(role, parts) for role, parts in turns]


def _parts(message: ChatMessage) -> list[Any]:
    """Texts, and blocks for calls and results."""
    if message.role == "tool":
        return [
            {
                "type": "tool_result",
                "tool_use_id": message.tool_call_id,
                "content": message.content,
                "is_error": message.failed,
            }
        ]
    calls = [
        {
            "type": "tool_use",
            "id": one.id,
            "name": one.name,
            "input": _object(one.arguments, one.name),
        }
        for one in message.tool_calls
    ]
    return [message.content, *calls] if message.content.strip() else calls


def _fit(turns: list[MessageParam], room: int, least: int) -> list[MessageParam]:
    """The latest of ``turns`` that fit into ``room`` tokens, from a question on, and the last
    ``least`` in any case: how long they are the server knows better.

    Cut in steps of a quarter of the room, so that the beginning stays, and cached, for many turns.
    """
    excess = sum(map(_turn_tokens, turns)) - room
    step = max(1, room // 4)
    due = -(-excess // step) * step
    latest = max(0, len(turns) - least)
    while latest and not _is_question(turns[latest]):
        latest -= 1
    first = 0
    while first < latest and (due > 0 or not _is_question(turns[first])):
        due -= _turn_tokens(turns[first])
        first += 1
    return turns[first:]


def _is_question(turn: MessageParam) -> bool:
    """Whether a conversation can begin with ``turn``: it answers no call."""
    first = as_blocks(turn["content"])[0]
    return turn["role"] == "user" and first["type"] != "tool_result"


def _turn_tokens(turn: MessageParam) -> int:
    return estimate_tokens(str(turn["content"]))


def _turn(role: str, parts: list[Any]) -> MessageParam:
    content: Any
    if all(isinstance(part, str) for part in parts):
        content = BETWEEN_PARTS.join(parts)
    else:
        content = [
            {"type": "text", "text": part} if isinstance(part, str) else part for part in parts
        ]
    if role == "assistant":
        return {"role": "assistant", "content": content}
    return {"role": "user", "content": content}


def _bad_request(message: str) -> ShammahError:
    return ShammahError("cloud_bad_request", message, "Ask a question.")


def _sampling(sampling: Sampling, peer: Peer) -> tuple[dict[str, float], tuple[str, ...]]:
    """What goes into the request, and a sentence for everything that cannot."""
    sent: dict[str, float] = {}
    notices: list[str] = []
    for name, described in _SAMPLING.items():
        value = getattr(sampling, name)
        if value is None:
            continue
        if not peer.is_anthropic and name in _EXTRA_BODY:
            sent[name] = value
        else:
            notices.append(f"{peer.subject} does not accept {described}; it was ignored.")
    return sent, tuple(notices)
