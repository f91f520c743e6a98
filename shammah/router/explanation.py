"""A decision in words, with what was known when it was made. Pure."""

from __future__ import annotations

from shammah.router.measured import GOOD_ENOUGH
from shammah.router.route import Alternative, Reason, RouteDecision, Target

REASONS = {
    Reason.PRIVATE: "private",
    Reason.CRISIS: "someone may be in danger",
    Reason.USER: "as you asked",
    Reason.MODEL_READY: "local model ready",
    Reason.MODEL_NOT_READY: "local model not ready",
    Reason.MODEL_UNKNOWN: "local model not heard from yet",
    Reason.MODEL_SILENT: "local model not responding",
    Reason.CONTEXT_TOO_LONG: "too long for the local model",
    Reason.BUSY: "local model busy",
    Reason.LOW_CONFIDENCE: "local model weak at this kind of question",
    Reason.NO_MATCH: "local model unproven at this kind of question",
    Reason.EXPLORATION: "another try for the local model",
    Reason.NO_CLOUD: "no cloud configured",
    Reason.OFFLINE: "cloud unreachable",
    Reason.CLOUD_FAILED: "cloud just failed",
    Reason.SERVER_BETTER: "better answers expected than from the local model",
    Reason.SERVER_FAILED: "server unreachable, or just failed",
}
"""Without a tense, since they stand below an answer, before a question and in ``/why``."""


def explain(decision: RouteDecision) -> str:
    """Several lines: who answered and why, then what was expected of each."""
    why = REASONS[decision.reason]
    if decision.reason is Reason.CRISIS and not decision.alternatives:
        return f"Answered with a prewritten text: {why}, and no model could or should answer."
    if decision.target is not Target.LOCAL:
        verb = "Waited for" if decision.wait else "Answered by"
        who = f"{verb} {decision.who or 'the servers'}"
    else:
        who = "Waited for the local model" if decision.wait else "Answered locally"
    kind = decision.question.category.replace("_", " ")
    size = f"about {decision.question.tokens:,} tokens"
    lines = [f"{who}: {why}.", f"Kind of question: {kind}; {size}."]
    return "\n".join(lines + [_describe(one) for one in decision.alternatives])


def as_document(decision: RouteDecision) -> dict[str, object]:
    """A decision as ``--json`` shows it; what was never measured is ``None``."""
    return {
        "target": decision.answerer,
        "reason": decision.reason.value,
        "category": decision.question.category.value,
        "alternatives": [
            {
                "target": f"server:{one.arm.server}" if one.arm.server else one.arm.target.value,
                "model": one.arm.model.removeprefix(f"{one.arm.server}/") or None,
                "quantization": one.arm.quantization or None,
                "quality": round(one.quality, 4),
                "quality_at_least": round(one.bound, 4),
                "evidence": round(one.evidence, 2),
                "ttft_s": one.ttft_s or None,
                "tokens_per_second": one.tokens_per_second or None,
                "cost": one.cost or None if one.arm.target is Target.CLOUD else 0.0,
                "obstacle": one.obstacle.value if one.obstacle is not None else None,
            }
            for one in decision.alternatives
        ],
    }


def _describe(one: Alternative) -> str:
    free, by = one.arm.target is not Target.CLOUD, one.arm.adapter
    name = (one.arm.model or "not known yet") + (f" with {by}" if by else "")
    data = f"from {one.evidence:.1f} answers" if one.evidence else "no data yet"
    parts = []
    if free and one.evidence:
        parts.append(f"trusted {one.trust:.0%}, {GOOD_ENOUGH:.0%} is enough")
    elif free:
        parts.append("trusted until its answers say otherwise")
    parts += [f"first token in {one.ttft_s:.1f} s"] if one.ttft_s else []
    parts += [f"{one.tokens_per_second:.0f} tok/s"] if one.tokens_per_second else []
    parts += [] if one.ttft_s or one.tokens_per_second else ["speed unknown"]
    cost = f"${one.cost:.4f} per answer" if one.cost else "cost unknown"
    parts.append("free" if free else cost)
    parts += [f"unavailable: {REASONS[one.obstacle]}"] if one.obstacle is not None else []
    return (
        f"  {one.arm.target} ({name}): estimated {one.quality:.0%} good answers "
        f"({one.bound:.0%} worst case; {data}),\n    {', '.join(parts)}."
    )
