"""A finished turn in words: the line below an answer, and what ``/why`` shows. Pure.

Not in `wording`, which states need, too: the router's vocabulary takes a while to load.
"""

from __future__ import annotations

from shammah.bus.messages import Done, Failed, Provenance
from shammah.chat.conversation import CORRECTED, Turn
from shammah.router.explanation import REASONS, explain
from shammah.router.route import RouteDecision
from shammah.router.statistics import Label
from shammah.terminal.text import printable
from shammah.terminal.wording import (
    describe_cached,
    describe_cost,
    describe_failure,
    describe_left_out,
    describe_numbers,
    describe_unseen,
)

_ENDS = {
    "length": "cut at the length limit",
    "repetition": "ended because it repeated itself",
    "timeout": "cut at the time limit",
    "refusal": "refused",
    "tool_call": "ended with a tool call",
}

_UNKNOWN_END = "stopped for an unknown reason"

_SAID = {
    Label.CANCEL: "You cancelled it.",
    Label.REDO: "You asked for another answer.",
    Label.EDIT: "You corrected it.",
    Label.GOOD: "You rated it good.",
    Label.BAD: "You rated it bad.",
    Label.BETTER: "You preferred it to the other answer.",
    Label.WORSE: "You preferred the other answer.",
    Label.SAME: "You found both answers equally good.",
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
    if done.usage.restored_tokens:
        parts.append("resumed from disk")
    if done.usage.cost is not None:
        parts.append(describe_cost(done.usage.cost))
    if done.left_out:
        parts.append(describe_left_out(done.left_out))
    if done.finish_reason not in ("stop", "cancelled"):
        parts.append(_ENDS.get(done.finish_reason, _UNKNOWN_END))
    return printable(" · ".join(parts))


def describe_empty(turn: Turn) -> Failed | None:
    """Why an answer that was not broken off has no text, and what to do about it; ``None``: it
    has some."""
    done, thought = turn.end, bool(turn.thoughts.strip())
    if not isinstance(done, Done) or done.finish_reason == "cancelled" or turn.answer.strip():
        return None
    if done.tool_calls:
        return None
    cloud = done.provenance.role == "cloud"
    who = "The local model"
    if turn.decision is not None and turn.decision.who:
        who = turn.decision.who
    elif cloud:
        who = "Claude"
    limit = "cloud.max_tokens" if cloud else "inference.max_new_tokens"
    tokens = f"{done.usage.output_tokens:,} token" + ("" if done.usage.output_tokens == 1 else "s")
    again = "Ask again, or rephrase the question."
    match done.finish_reason:
        case "refusal":
            hint = "Rephrase the question" + (", or use --local." if cloud else ".")
            return Failed("answer_refused", f"{who} refused to answer.", hint)
        case "length":
            why = f"{who} reached the limit of {tokens} before it began to answer"
            why += ": it was still thinking." if thought else "."
            again = f"Raise --max-tokens, or {limit} in config.toml."
            if thought and not cloud:  # there is no more room in its context
                again = "Start a new conversation, or have it think less (inference.think_tokens)."
        case "tool_call":
            why = f"{who} called a tool instead of answering, and Shammah offers none."
        case "stop":
            why = f"{who} returned no text" + (" after thinking." if thought else ".")
        case _:
            why = " ".join([f"{who} returned no text, for an unknown reason.", *done.notices])
    return Failed("answer_empty", why, again)


def describe_turn(turn: Turn) -> str:
    """Several lines: the decision with its alternatives, then what came of it."""
    lines = ["Not sent to any model."]
    if turn.decision is not None:
        lines = [explain(turn.decision)]
    elif stored := ", ".join(filter(None, turn.stored)):
        lines = [f"From the history: {stored}."]
    failure = turn.end if isinstance(turn.end, Failed) else None
    if failure is not None and failure.code != "cancelled" and failure.message:
        lines.append(f"Failed: {describe_failure(failure)}")
    if turn.provenance is not None:
        lines += [_describe_course(turn), _describe_origin(turn.provenance)]
        lines += [describe_unseen(turn.usage)] if turn.usage.unseen else []
    elif turn.finish == "cancelled":
        lines.append(_SAID[Label.CANCEL])
    if turn.label is not None or turn.corrected:
        lines.append(_SAID[turn.label or Label.EDIT])
    return printable("\n".join(lines))


def _describe_course(turn: Turn) -> str:
    usage, timings = turn.usage, turn.timings
    cached = describe_cached(usage.reused_tokens, usage.written_tokens)
    tokens_in = f"{usage.input_tokens:,} tokens in" + (f" ({cached})" if cached else "")
    parts = [f"{tokens_in}, {usage.output_tokens:,} out"]
    if usage.restored_tokens:
        parts.append(f"{usage.restored_tokens:,} tokens read from disk instead of computed")
    if timings.decode_tokens_per_second:
        parts.insert(0, f"{timings.decode_tokens_per_second:.0f} tok/s")
    if timings.total_s:
        parts.insert(0, f"{timings.total_s:.1f} s in total")
    if timings.ttft_s:
        parts.insert(0, f"first token {timings.ttft_s:.2f} s")
    if turn.decision is not None:  # the history does not know that
        parts.insert(0, f"queued {turn.waited_s:.1f} s")
    if usage.cost is not None:
        parts.append(describe_cost(usage.cost))
    if isinstance(turn.end, Done) and turn.end.left_out:
        parts.append(describe_left_out(turn.end.left_out))
    if turn.finish not in ("stop", "cancelled", CORRECTED):
        parts.append(_ENDS.get(turn.finish, _UNKNOWN_END))
    course = ", ".join(parts)
    return f"{course[0].upper()}{course[1:]}."


def _describe_origin(by: Provenance) -> str:
    revision = f" at {by.revision[:12]}" if by.revision else ""
    adapter = f" with the adapter {by.adapter}" if by.adapter else ""
    fallback = "a small fallback model" if by.fallback else ""
    numbers = describe_numbers(by.dtype, by.quantization)
    facts = ", ".join(filter(None, (by.engine, by.device, numbers, fallback)))
    return f"Model: {by.model}{revision}{adapter}" + (f" ({facts})." if facts else ".")
