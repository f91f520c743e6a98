"""What became of a question, in words: the line below an answer, and what ``/why`` shows. Pure.

Apart from `wording`, because the router's vocabulary takes a while to load and a state needs
none of it.
"""

from __future__ import annotations

from shammah.bus.messages import Done, Failed, Provenance
from shammah.chat.turn import CORRECTED, Turn
from shammah.router.explanation import explain
from shammah.router.route import Reason, RouteDecision
from shammah.router.statistics import Label
from shammah.terminal.wording import (
    describe_cost,
    describe_failure,
    describe_left_out,
    describe_numbers,
    printable,
)

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

_SAID = {
    Label.CANCEL: "You cancelled it.",
    Label.REDO: "You had it answered once more.",
    Label.EDIT: "You corrected it.",
    Label.GOOD: "You said that it was good.",
    Label.BAD: "You said that it was bad.",
    Label.BETTER: "You found it better than the other answer.",
    Label.WORSE: "You found the other answer better.",
    Label.SAME: "You found it as good as the other answer.",
}


def describe_answer(done: Done, decision: RouteDecision) -> str:
    """Who answered and why, and how fast, in one line."""
    by, timings = done.provenance, done.timings
    who = f"{decision.target}: {by.model}" + (f" with {by.adapter}" if by.adapter else "")
    who += ", a small fallback model" if by.fallback else ""
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


def describe_empty(turn: Turn) -> Failed | None:
    """Why an answer that was not broken off has no text, and what to do about it; ``None``: it
    has some."""
    done, thought = turn.end, turn.thought
    if not isinstance(done, Done) or done.finish_reason == "cancelled" or turn.answer.strip():
        return None
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


def describe_turn(turn: Turn) -> str:
    """Several lines: the decision with its alternatives, then what came of it."""
    lines = ["Nobody was asked."]
    if turn.decision is not None:
        lines = [explain(turn.decision)]
    elif stored := ", ".join(filter(None, turn.stored)):
        lines = [f"From the history, where it was decided so: {stored}."]
    failure = turn.end if isinstance(turn.end, Failed) else None
    if failure is not None and failure.code != "cancelled" and failure.message:
        lines.append(f"It failed: {describe_failure(failure)}")
    if turn.provenance is not None:
        lines.append(_describe_course(turn))
        lines.append(_describe_origin(turn.provenance))
    elif turn.finish == "cancelled":
        lines.append(_SAID[Label.CANCEL])
    if turn.label is not None:
        lines.append(_SAID[turn.label])
    elif turn.corrected:
        lines.append(_SAID[Label.EDIT])
    return printable("\n".join(lines))


def _describe_course(turn: Turn) -> str:
    usage, timings = turn.usage, turn.timings
    took = f"took {timings.total_s:.1f} s" if timings.total_s else ""
    first = f"first token after {timings.ttft_s:.2f} s" if timings.ttft_s else ""
    if turn.decision is not None:
        parts = [f"waited {turn.waited_s:.1f} s to be asked", first, took]
    else:  # from the history, which does not know that
        parts = [took or "was answered", first]
    parts = [part for part in parts if part]
    if timings.decode_tokens_per_second:
        parts.append(f"{timings.decode_tokens_per_second:.0f} tok/s")
    parts.append(f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out")
    if usage.cost is not None:
        parts.append(describe_cost(usage.cost))
    if isinstance(turn.end, Done) and turn.end.left_out:
        parts.append(describe_left_out(turn.end.left_out))
    if turn.finish not in ("stop", "cancelled", CORRECTED):
        parts.append(f"ended by {turn.finish}")
    return f"It {', '.join(parts)}."


def _describe_origin(by: Provenance) -> str:
    revision = f" at {by.revision[:12]}" if by.revision else ""
    numbers = describe_numbers(by.dtype, by.quantization)
    facts = [fact for fact in (by.engine, by.device, numbers) if fact]
    if by.fallback:
        facts.append("a small fallback model")
    adapter = f" with the adapter {by.adapter}" if by.adapter else ""
    origin = f"The answer is by {by.model}{revision}{adapter}"
    return origin + (f" ({', '.join(facts)})." if facts else ".")
