"""States, decisions and errors in words for a terminal. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

from shammah.bus.messages import (
    Done,
    Downloading,
    Failed,
    Initializing,
    Loading,
    NotAvailable,
    Ready,
    State,
)
from shammah.bus.transfers import Transfer, Transferring
from shammah.router.decision import Reason, RouteDecision

REASONS = {
    Reason.MODEL_READY: "the local model is ready",
    Reason.MODEL_NOT_READY: "the local model is not ready",
    Reason.NO_CLOUD: "no cloud is configured",
    Reason.USER: "as you asked",
    Reason.PRIVATE: "private",
}

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def describe_state(state: State | None) -> str:
    """One short line: ``Loading starter: weights (2/4)``."""
    return printable(_describe_state(state))


def _describe_state(state: State | None) -> str:
    match state:
        case None:
            return "Starting"
        case Initializing():
            return "Initializing"
        case Downloading(model, done, total, rate, eta_s):
            return f"Downloading {model}: {describe_bytes(done, total, rate, eta_s)}"
        case Loading(model, stage, done, total):
            return f"Loading {model}: {stage} ({min(done + 1, total)}/{total})"
        case Ready(model):
            facts = [state.dtype, state.device] if state.dtype else []
            facts += [f"{state.context_length:,} tokens"] if state.context_length else []
            facts += ["a small stand-in"] if state.stand_in else []
            return f"Ready: {model}" + (f" ({', '.join(facts)})" if facts else "")
        case Transferring(transfers):
            return describe_transfers(transfers)
        case NotAvailable(reason, _):
            return f"Not available: {reason}"
        case Failed(_, message, _):
            return f"Failed: {message}"


def describe_transfers(transfers: tuple[Transfer, ...]) -> str:
    """All downloads in one line."""
    if not transfers:
        return "Idle"
    parts = []
    for one in transfers:
        amount = describe_bytes(one.done, one.total, one.rate, one.eta_s)
        parts.append(f"{one.model} {one.phase}" + (f": {amount}" if one.total else ""))
    return "; ".join(parts)


def describe_bytes(done: int, total: int, rate: float, eta_s: float | None) -> str:
    """``41%, 1.3 of 3.1 GB, 24.0 MB/s, 1 min 12 s left``."""
    if not total:
        return f"{done / 1e6:.1f} MB"
    unit, name = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
    parts = [f"{100 * done // total}%", f"{done / unit:.1f} of {total / unit:.1f} {name}"]
    if rate:
        parts.append(f"{rate / 1e6:.1f} MB/s")
    if eta_s is not None and done < total:
        parts.append(f"{describe_duration(eta_s)} left")
    return ", ".join(parts)


def describe_duration(seconds: float) -> str:
    """``8 s``, ``1 min 12 s``, ``2 h 5 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def describe_answer(done: Done, decision: RouteDecision) -> str:
    """Who answered and why, and how fast, in one line."""
    by, timings = done.provenance, done.timings
    who = f"{decision.target}: {by.model}" + (", a small stand-in" if by.stand_in else "")
    tokens = done.usage.output_tokens
    parts = [who, REASONS[decision.reason], f"{tokens} token" + ("" if tokens == 1 else "s")]
    if timings.decode_tokens_per_second:
        parts.append(f"{timings.decode_tokens_per_second:.1f} tok/s")
    if timings.ttft_s:
        parts.append(f"first token {timings.ttft_s:.2f} s")
    if done.finish_reason not in ("stop", "cancelled"):
        parts.append({"length": "cut at the length limit"}.get(done.finish_reason, "refused"))
    return printable(" · ".join(parts))


def describe_failure(failure: Failed) -> str:
    return printable(f"{failure.message} {failure.hint}".rstrip())


def printable(text: str) -> str:
    """``text`` without control characters other than newline and tab.

    A model's output may hold escape sequences (it read them, or was asked for them); a
    terminal would obey them.
    """
    return _CONTROL.sub("", text)


def styled(text: str, code: str, environ: Mapping[str, str], *, terminal: bool) -> str:
    """``text`` in an SGR style on a terminal that wants it (https://no-color.org)."""
    if not terminal or environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return text
    return f"\x1b[{code}m{text}\x1b[0m"
