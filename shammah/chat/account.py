"""What became of one question: who answered and why, how long it took, what it cost. Pure.

An `Account` is kept with every turn; `tell` is what ``/why`` shows of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from shammah.bus.messages import Done, Failed, Provenance, Timings, Usage
from shammah.router.explanation import explain
from shammah.router.route import RouteDecision
from shammah.router.statistics import Label
from shammah.terminal.wording import (
    describe_cost,
    describe_failure,
    describe_left_out,
    describe_numbers,
    printable,
)

CORRECTED = "corrected"
"""The finish of an answer in whose place the person has put a better one."""

LEFT = "left"
"""The finish of an answer in whose midst the program ended."""

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


@dataclass(frozen=True, slots=True)
class Account:
    """Everything but the words.

    Attributes:
        decision: who was asked and why, with the alternatives; ``None``: it came to none.
        waited_s: seconds from the question until somebody was asked.
        finish: `Done.finish_reason`, the code of the failure, or `CORRECTED`; empty: not known.
        failure: why there is no answer, or only the beginning of one.
        provenance: who answered.
        usage: tokens and cost.
        timings: as the worker measured them.
        left_out: private turns that the cloud was not told.
        outcome: its name in the statistics; empty: nothing was written down.
        label: what the person has said of it, or done with it.
        earlier: target and reason of a turn that was taken up from the history; else empty.
    """

    decision: RouteDecision | None = None
    waited_s: float = 0.0
    finish: str = ""
    failure: Failed | None = None
    provenance: Provenance | None = None
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    left_out: int = 0
    outcome: str = ""
    label: Label | None = None
    earlier: str = ""

    def routed(self, decision: RouteDecision, waited_s: float) -> Account:
        """Somebody is asked, ``waited_s`` seconds after the question; perhaps not the first."""
        waited_s = waited_s if self.decision is None else self.waited_s
        return replace(self, decision=decision, waited_s=waited_s)

    def ended(self, end: Done | Failed, outcome: str) -> Account:
        """The answer has ended; ``outcome`` is its name in the statistics."""
        if isinstance(end, Failed):
            return replace(self, finish=end.code, failure=end, outcome=outcome)
        return replace(
            self,
            finish=end.finish_reason,
            provenance=end.provenance,
            usage=end.usage,
            timings=end.timings,
            left_out=end.left_out,
            outcome=outcome,
            label=Label.CANCEL if end.finish_reason == "cancelled" else self.label,
        )

    @property
    def whole(self) -> bool:
        """Whether there is an answer that nothing has ended early."""
        return self.failure is None and self.finish not in ("", "cancelled")


def tell(account: Account) -> str:
    """Several lines: the decision with its alternatives, then what came of it."""
    lines = ["Nobody was asked."]
    if account.decision is not None:
        lines = [explain(account.decision)]
    elif account.earlier:
        lines = [f"From the history, where it was decided so: {account.earlier}."]
    if account.failure is not None and account.failure.code != "cancelled":
        lines.append(f"It failed: {describe_failure(account.failure)}")
    if account.provenance is not None:
        lines.append(_describe_course(account))
        lines.append(_describe_origin(account.provenance))
    elif account.finish == "cancelled":
        lines.append(_SAID[Label.CANCEL])
    if account.label is not None:
        lines.append(_SAID[account.label])
    elif account.finish == CORRECTED:
        lines.append(_SAID[Label.EDIT])
    return printable("\n".join(lines))


def _describe_course(account: Account) -> str:
    usage, timings = account.usage, account.timings
    took = f"took {timings.total_s:.1f} s" if timings.total_s else ""
    first = f"first token after {timings.ttft_s:.2f} s" if timings.ttft_s else ""
    if account.decision is not None:
        parts = [f"waited {account.waited_s:.1f} s to be asked", first, took]
    else:  # from the history, which does not know that
        parts = [took or "was answered", first]
    parts = [part for part in parts if part]
    if timings.decode_tokens_per_second:
        parts.append(f"{timings.decode_tokens_per_second:.0f} tok/s")
    parts.append(f"{usage.input_tokens:,} tokens in, {usage.output_tokens:,} out")
    if usage.cost is not None:
        parts.append(describe_cost(usage.cost))
    if account.left_out:
        parts.append(describe_left_out(account.left_out))
    if account.finish not in ("stop", "cancelled", CORRECTED):
        parts.append(f"ended by {account.finish}")
    return f"It {', '.join(parts)}."


def _describe_origin(by: Provenance) -> str:
    revision = f" at {by.revision[:12]}" if by.revision else ""
    numbers = describe_numbers(by.dtype, by.quantization)
    facts = [fact for fact in (by.engine, by.device, numbers) if fact]
    if by.stand_in:
        facts.append("a small stand-in")
    adapter = f" with the adapter {by.adapter}" if by.adapter else ""
    origin = f"The answer is by {by.model}{revision}{adapter}"
    return origin + (f" ({', '.join(facts)})." if facts else ".")
