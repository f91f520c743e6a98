"""The line below the prompt: what is coming, where the next question would go, what was spent.
Pure."""

from __future__ import annotations

from dataclasses import dataclass

from shammah.bus.messages import Downloading, Failed, Loading, Ready, State, Usage
from shammah.bus.record import record
from shammah.router.explanation import REASONS
from shammah.router.route import RouteDecision, Target
from shammah.terminal.text import cells, cut, printable
from shammah.terminal.wording import (
    describe_coming,
    describe_cost,
    describe_percent,
    download_under_way,
    short_name,
)

GAP = "   "


@record
class Part:
    """The same thing in full, and in a few words."""

    text: str
    short: str


NOT_LOADED = Part("local model: not loaded", "not loaded")


@dataclass(slots=True)
class Spending:
    """What the answers of this session have taken. ``cost`` is in US dollars."""

    tokens: int = 0
    cost: float = 0.0

    def add(self, usage: Usage) -> None:
        """Count one answer."""
        self.tokens += usage.input_tokens + usage.output_tokens
        self.cost += usage.cost or 0.0


def describe_bottom(
    state: State | None,
    decision: RouteDecision | Failed,
    cloud_model: str,
    spending: Spending,
    *,
    resting: bool = False,
) -> tuple[Part, ...]:
    """The parts, the most important first. ``state`` is the local model's, which comes when it is
    asked and not before if it is ``resting``."""
    coming = NOT_LOADED if resting else _coming(state)
    parts = [coming, _next(state, decision, cloud_model), _spent(spending)]
    return tuple(part for part in parts if part is not None)


def fit(parts: tuple[Part, ...], columns: int) -> str:
    """As much of ``parts`` as one line of ``columns`` holds: the last ones are shortened first,
    then left out."""
    texts = [part.text for part in parts]
    for index in reversed(range(len(parts))):
        if cells(GAP.join(texts)) <= columns:
            break
        texts[index] = parts[index].short
    while len(texts) > 1 and cells(GAP.join(texts)) > columns:
        texts.pop()
    return cut(GAP.join(texts), columns)


def _coming(state: State | None) -> Part | None:
    if isinstance(state, Ready) and state.missing:
        missing = printable(short_name(state.missing))
        return Part(f"local model: {missing} download failed", "download failed")
    text = describe_coming(state)
    if not text:
        return None
    return Part(f"local model: {text}", _short_coming(state, text))


def _short_coming(state: State | None, text: str) -> str:
    download = download_under_way(state)
    if isinstance(download, Downloading):
        share = describe_percent(download.done, download.total) if download.total else "..."
        return f"fetching {share}"
    if isinstance(state, Loading):
        return f"loading {min(state.done + 1, state.total)}/{state.total}"
    return text.partition(":")[0].lower()


def _next(state: State | None, decision: RouteDecision | Failed, cloud_model: str) -> Part:
    if isinstance(decision, Failed):
        return Part(f"next: nobody ({printable(decision.message).rstrip('.')})", "next: nobody")
    why = REASONS[decision.reason]
    if decision.target is Target.SERVER:
        return Part(f"next: {decision.who or 'a server'} ({why})", "next: server")
    if decision.target is Target.CLOUD:
        return Part(f"next: {printable(cloud_model)} ({why})", "next: cloud")
    if decision.wait:
        return Part(f"next: local, once it is ready ({why})", "next: local, waits")
    name = f", {short_name(printable(state.model))}" if isinstance(state, Ready) else ""
    if isinstance(state, Ready) and state.fallback:
        name += " (fallback)"
    return Part(f"next: local{name} ({why})", "next: local")


def _spent(spending: Spending) -> Part | None:
    text = describe_spending(spending)
    if not text:
        return None
    return Part(text, describe_cost(spending.cost) if spending.cost else text)


def describe_spending(spending: Spending) -> str:
    """``1,234 tokens · $0.0021``; empty when nothing was spent."""
    if not spending.tokens:
        return ""
    cost = f" · {describe_cost(spending.cost)}" if spending.cost else ""
    return f"{spending.tokens:,} token{'' if spending.tokens == 1 else 's'}{cost}"
