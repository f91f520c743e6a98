"""The line below an answer: who gave it, why, and how fast. Pure.

Apart from `wording`, because the router's vocabulary takes a while to load and a state needs
none of it.
"""

from __future__ import annotations

from shammah.bus.messages import Done
from shammah.router.route import Reason, RouteDecision
from shammah.wording import describe_cost, describe_left_out, printable

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
        parts.append({"length": "cut at the length limit"}.get(done.finish_reason, "refused"))
    return printable(" · ".join(parts))
