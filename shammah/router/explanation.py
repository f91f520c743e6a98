"""A decision in words, with what was known when it was made. Pure."""

from __future__ import annotations

from shammah.router.measured import GOOD_ENOUGH
from shammah.router.route import Alternative, Reason, RouteDecision, Target

_WHY = {
    Reason.PRIVATE: "the question is private, and nothing private leaves this machine",
    Reason.CRISIS: "somebody may be in danger, and then the best backend there is, is asked",
    Reason.USER: "you asked for it",
    Reason.MODEL_READY: "the local model was ready, and nothing seen so far speaks against it",
    Reason.MODEL_NOT_READY: "the local model was not ready",
    Reason.MODEL_UNKNOWN: "nothing was known of the local model yet",
    Reason.MODEL_SILENT: "the local model's worker was there, but did not respond in time",
    Reason.CONTEXT_TOO_LONG: "the conversation was too long for the local model",
    Reason.BUSY: "the local model would have kept you waiting",
    Reason.LOW_CONFIDENCE: "the local model has not done well enough at such questions",
    Reason.NO_MATCH: "the classic policy has not seen enough local successes at such questions",
    Reason.EXPLORATION: "the numbers were for Claude, but the local model gets another chance",
    Reason.NO_CLOUD: "Claude would have been asked, but no cloud is configured",
    Reason.OFFLINE: "Claude would have been asked, but could not be reached",
    Reason.CLOUD_FAILED: "Claude would have been asked, but had just failed",
}
_FIXED = "A text that was written beforehand answered"
_OBSTACLES = {
    Reason.PRIVATE: "not to be asked: private",
    Reason.MODEL_NOT_READY: "not ready",
    Reason.MODEL_UNKNOWN: "state not known yet",
    Reason.MODEL_SILENT: "not responding",
    Reason.NO_CLOUD: "not configured",
    Reason.OFFLINE: "not reachable",
    Reason.CLOUD_FAILED: "had just failed",
}


def explain(decision: RouteDecision) -> str:
    """Several lines: who answered and why, then what was expected of each."""
    if decision.reason is Reason.CRISIS and not decision.alternatives:
        return f"{_FIXED}, because somebody may be in danger and no model could, or should, answer."
    who = "The local model" if decision.target is Target.LOCAL else "Claude"
    verb = "was waited for" if decision.wait else "answered"
    lines = [f"{who} {verb}, because {_WHY[decision.reason]}."]
    kind = decision.question.category.replace("_", " ")
    lines.append(f"Kind of question: {kind}, about {decision.question.tokens:,} tokens in all.")
    lines += [_describe(one) for one in decision.alternatives]
    return "\n".join(lines)


def as_document(decision: RouteDecision) -> dict[str, object]:
    """A decision as ``--json`` shows it; what was never measured is ``None``."""
    return {
        "target": decision.target.value,
        "reason": decision.reason.value,
        "category": decision.question.category.value,
        "alternatives": [
            {
                "target": one.arm.target.value,
                "model": one.arm.model or None,
                "quantization": one.arm.quantization or None,
                "quality": round(one.quality, 4),
                "quality_at_least": round(one.bound, 4),
                "evidence": round(one.evidence, 2),
                "ttft_s": one.ttft_s or None,
                "tokens_per_second": one.tokens_per_second or None,
                "cost": 0.0 if one.arm.target is Target.LOCAL else one.cost or None,
                "obstacle": one.obstacle.value if one.obstacle is not None else None,
            }
            for one in decision.alternatives
        ],
    }


def _describe(one: Alternative) -> str:
    name = one.arm.model or "not known yet"
    name += f" with {one.arm.adapter}" if one.arm.adapter else ""
    data = f"from the weight of {one.evidence:.1f} answers" if one.evidence else "a guess, no data"
    expected = f"{one.quality:.0%} good answers expected, at least {one.bound:.0%} ({data})"
    parts = []
    if one.arm.target is Target.LOCAL and not one.evidence:
        parts.append("asked until its answers speak against it")
    elif one.arm.target is Target.LOCAL:
        parts.append(f"{GOOD_ENOUGH:.0%} is enough; trusted with {one.trust:.0%}")
    if one.ttft_s:
        parts.append(f"first token in {one.ttft_s:.1f} s")
    if one.tokens_per_second:
        parts.append(f"{one.tokens_per_second:.0f} tok/s")
    if not (one.ttft_s or one.tokens_per_second):
        parts.append("speed not known then")
    if one.arm.target is Target.LOCAL:
        parts.append("free")
    elif one.cost:
        parts.append(f"${one.cost:.4f} an answer")
    else:
        parts.append("cost not known then")
    if one.obstacle is not None:
        parts.append(_OBSTACLES[one.obstacle])
    return f"  {one.arm.target} ({name}): {expected},\n    {', '.join(parts)}."
