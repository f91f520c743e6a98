"""The line below an answer: who gave it, why, and how fast; or why it has no text. Pure.

Apart from `wording`, because the router's vocabulary takes a while to load and a state needs
none of it.
"""

from __future__ import annotations

from shammah.bus.messages import Done, Failed
from shammah.router.route import Reason, RouteDecision
from shammah.terminal.wording import describe_cost, describe_left_out, printable

REASONS = {
    Reason.PRIVATE: "private",
    Reason.CRISIS: "somebody may be in danger",
    Reason.USER: "as you asked",
    Reason.MODEL_READY: "the local model is ready",
    Reason.MODEL_NOT_READY: "the local model is not ready",
    Reason.MODEL_UNKNOWN: "its state is not known yet",
    Reason.MODEL_SILENT: "the local model does not respond",
    Reason.CONTEXT_TOO_LONG: "too long for the local model",
    Reason.BUSY: "the local model is busy",
    Reason.LOW_CONFIDENCE: "the local model has done badly at such questions",
    Reason.NO_MATCH: "the local model has not proved itself at such questions",
    Reason.EXPLORATION: "the local model gets another chance",
    Reason.NO_CLOUD: "no cloud is configured",
    Reason.OFFLINE: "Claude cannot be reached",
    Reason.CLOUD_FAILED: "Claude failed a moment ago",
}

_ENDS = {
    "length": "cut at the length limit",
    "timeout": "cut at the time limit",
    "refusal": "refused",
    "tool_call": "ended by calling a tool",
}


def describe_answer(done: Done, decision: RouteDecision) -> str:
    """Who answered and why, and how fast, in one line."""
    by, timings = done.provenance, done.timings
    who = f"{decision.target}: {by.model}" + (f" with {by.adapter}" if by.adapter else "")
    who += ", a small stand-in" if by.stand_in else ""
    tokens = done.usage.output_tokens
    parts = [who, REASONS[decision.reason], f"{tokens} token" + ("" if tokens == 1 else "s")]
    if timings.decode_tokens_per_second:
        parts.append(f"{timings.decode_tokens_per_second:.1f} tok/s")
    if timings.ttft_s:
        parts.append(f"first token {timings.ttft_s:.2f} s")
    if done.usage.cost is not None:
        parts.append(describe_cost(done.usage.cost))
    if done.left_out:
        parts.append(describe_left_out(done.left_out))
    if done.finish_reason not in ("stop", "cancelled"):
        parts.append(_ENDS.get(done.finish_reason, "ended for an unknown reason"))
    return printable(" · ".join(parts))


def describe_empty(done: Done, *, thought: bool) -> Failed:
    """Why ``done`` ends an answer without text, and what to do about it. ``thought``: the model
    has thought aloud."""
    cloud = done.provenance.role == "cloud"
    who = "Claude" if cloud else "The local model"
    limit = "cloud.max_tokens" if cloud else "inference.max_new_tokens"
    tokens = f"{done.usage.output_tokens:,} token" + ("" if done.usage.output_tokens == 1 else "s")
    match done.finish_reason:
        case "refusal":
            hint = "Ask in other words" + (
                ", or ask the local model with --local." if cloud else "."
            )
            return Failed("answer_refused", f"{who} refused to answer.", hint)
        case "length":
            why = f"{who} reached the limit of {tokens} before it began to answer"
            why += ": it was still thinking." if thought else "."
            hint = f"Raise --max-tokens, or {limit} in config.toml."
            return Failed("answer_empty", why, hint)
        case "tool_call":
            why = f"{who} called a tool instead of answering, and Shammah has none."
            return Failed("answer_empty", why, "Ask again, or in other words.")
        case "stop":
            why = f"{who} ended its answer without any text" + (
                ", after thinking." if thought else "."
            )
            return Failed("answer_empty", why, "Ask again, or in other words.")
    why = f"{who} ended its answer without any text, for an unknown reason."
    return Failed("answer_empty", " ".join([why, *done.notices]), "Ask again.")
