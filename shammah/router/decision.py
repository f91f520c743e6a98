"""The decision: which backend answers, and why. Pure; docs/ROUTING.md has it as a table.

Order: privacy, danger, the person's override, readiness, fit, what has worked, exploration.
"""

from __future__ import annotations

from shammah.bus.messages import Downloading, Failed, Loading, NotAvailable, Ready, State
from shammah.bus.record import record
from shammah.models.catalogue import STARTER
from shammah.router import measured
from shammah.router.route import Alternative, Arm, Beside, Question
from shammah.router.route import Override as Override
from shammah.router.route import Reason as Reason
from shammah.router.route import RouteDecision as RouteDecision
from shammah.router.route import Target as Target
from shammah.router.route import View as View
from shammah.router.statistics import Snapshot
from shammah.settings.model import RouterSettings

BUSY_AT = 8
"""A local model with so many questions to answer is busy, however fast."""

UNREACHABLE = frozenset({"cloud_unreachable", "server_unreachable"})
"""The failures that mean no network, rather than trouble at the cloud's."""

LEAST_TOKENS = 0.5
"""The least share of the estimated tokens that a text really has. Between that and the estimate the
local model counts."""

CLASSIC = "classic"

UNFIT = Failed("unfit", "No available model should answer someone who may be in danger.")
"""For the fallback model, or what may turn out to be it. `Session` has a fixed text instead."""

NO_KEY = Failed(
    "cloud_not_configured",
    "Can't ask Claude: no API key is set.",
    "Set ANTHROPIC_API_KEY, or cloud.api_key in config.toml.",
)


def decide(
    question: Question, override: Override, view: View, snapshot: Snapshot, rules: RouterSettings
) -> RouteDecision | Failed:
    """Return which backend answers now, or why none can."""
    return _Case(question, override, view, snapshot, rules).decide()


@record
class _Case:
    question: Question
    override: Override
    view: View
    snapshot: Snapshot
    rules: RouterSettings

    def decide(self) -> RouteDecision | Failed:
        decision = self._decide()
        local = isinstance(decision, RouteDecision) and decision.target is Target.LOCAL
        return UNFIT if local and self.question.danger and self._local_is_small() else decision

    def _local_is_small(self) -> bool:
        match self.view.local:
            case Ready(model, fallback=fallback):
                return fallback or model == STARTER
            case Loading(model):
                return model == STARTER
        return isinstance(self.view.local, Downloading)  # too late to be waited for

    def _decide(self) -> RouteDecision | Failed:
        if self.override.private:
            return self._where_private()
        if self.question.danger is not None:
            return self._cloud_if_possible(Reason.CRISIS, Reason.CRISIS)
        if self.override.target is Target.LOCAL:
            return self._local(Reason.USER)
        if self.override.target is Target.SERVER:
            return self._server_as_requested()
        if self.override.target is Target.CLOUD:
            return self._cloud_as_requested()
        elsewhere = self._obstacle() is None or self._able()
        if self.view.local is None and not self.view.local_silent and elsewhere:
            # It may be ready: a question must not leave before it has been heard.
            return self._decided(Target.LOCAL, Reason.MODEL_UNKNOWN, wait=True)
        local = self.view.local
        if isinstance(local, Ready) and not local.fallback:
            objection = self._objection(local)
        else:
            objection = self._absence()
        if self.view.servers and (best := self._best(objection, good=True)):
            return best
        if objection is None:
            return self._decided(Target.LOCAL, Reason.MODEL_READY)
        return self._cloud_if_possible(objection)

    def _where_private(self) -> RouteDecision | Failed:
        """The local model; a server that may have it if that was asked for, or is there alone."""
        may = [one for one in self._able() if one.private and self.question.danger is None]
        wished = [one for one in may if one.name == self.override.server]
        unheard = self.view.local is None and not self.view.local_silent
        if not wished and (unheard or isinstance(self.view.local, Ready)):
            may = []
        for one in wished or may:
            return self._decided(Target.SERVER, Reason.PRIVATE, server=one.name)
        decision = self._local(Reason.PRIVATE)
        soon = self._servers_come() and any(one.private for one in self.view.servers)
        if isinstance(decision, Failed) and soon:
            return self._decided(Target.SERVER, Reason.PRIVATE, wait=True)
        return decision

    def _servers_come(self) -> bool:
        """Whether a server may answer of which nothing has been heard yet."""
        return self.view.servers_unknown and self.question.danger is None

    def _able(self) -> list[Beside]:
        """The servers that can be asked."""
        return [one for one in self.view.servers if one.able]

    def _best(self, objection: Reason | None, *, good: bool) -> RouteDecision | None:
        """Of those that cost nothing, the one of which most is expected; the local model, against
        which there is ``objection``, among equals. ``good``: only who is good enough."""
        local, *servers, cloud = self._alternatives()
        able = [
            one
            for one in servers
            if one.obstacle is None and not (good and measured.objection(one, cloud))
        ]
        if objection is None or (not good and isinstance(self.view.local, Ready)):
            able.insert(0, local)
        if not able:
            return None
        best = max(able, key=lambda one: one.quality)
        if best is local:
            return self._decided(Target.LOCAL, objection or Reason.MODEL_READY)
        reason = objection or Reason.SERVER_BETTER
        return self._decided(Target.SERVER, reason, server=best.arm.server)

    def _server_as_requested(self) -> RouteDecision | Failed:
        name = self.override.server
        one = self.view.server(name)
        if one is None:
            why = f"No server named {name!r:.60} is beside the local model."
            return Failed("server_unknown", why, "docs/SERVERS.md shows how to name one.")
        if one.why and not self.view.servers_unknown:
            return Failed("server_unreachable", one.why, "Start it, or ask another.")
        return self._decided(Target.SERVER, Reason.USER, wait=bool(one.why), server=name)

    def _absence(self) -> Reason:
        """Why the local model is not ready."""
        if self.view.local is not None:
            return Reason.MODEL_NOT_READY
        return Reason.MODEL_SILENT if self.view.local_silent else Reason.MODEL_UNKNOWN

    def _objection(self, ready: Ready) -> Reason | None:
        """Why the ready local model should not answer."""
        if ready.context_length and self.question.tokens * LEAST_TOKENS > ready.context_length:
            return Reason.CONTEXT_TOO_LONG
        if self.view.local_active >= BUSY_AT:
            return Reason.BUSY
        if self.rules.policy == CLASSIC:
            fits = self.snapshot.classic.should_try_local(self.question.category)
            return None if fits else Reason.NO_MATCH
        local, *_, cloud = self._alternatives()
        return measured.objection(local, cloud)

    def _explores(self, objection: Reason) -> bool:
        """Whether the local model gets another try, within the budget."""
        if objection not in (Reason.LOW_CONFIDENCE, Reason.NO_MATCH):
            return False
        if self.snapshot.explored >= 1 + self.rules.exploration * self.snapshot.answers:
            return False
        share = 1.0
        if self.rules.policy != CLASSIC:
            share = measured.curiosity(self._alternatives()[0])
        return self.question.chance < self.rules.exploration * share

    def _cloud_as_requested(self) -> RouteDecision | Failed:
        if not self.view.cloud_configured:
            return NO_KEY
        return _inability(self.view.cloud) or self._decided(Target.CLOUD, Reason.USER)

    def _cloud_if_possible(
        self, reason: Reason, otherwise: Reason | None = None
    ) -> RouteDecision | Failed:
        """The cloud; the local model (``otherwise``: for that reason) if it cannot be asked."""
        obstacle = self._obstacle()
        if obstacle is None:
            if self._explores(reason):
                return self._decided(Target.LOCAL, Reason.EXPLORATION)
            if self._servers_come():
                # One of the person's own may be there, before a question leaves for the cloud.
                return self._decided(Target.SERVER, Reason.MODEL_UNKNOWN, wait=True)
            return self._decided(Target.CLOUD, reason)
        servers = self.view.servers and self.question.danger is None
        if servers and (best := self._best(obstacle, good=False)):
            return best
        decision = self._local(otherwise or obstacle)
        if isinstance(decision, Failed) and self._servers_come():
            return self._decided(Target.SERVER, Reason.MODEL_UNKNOWN, wait=True)
        if isinstance(decision, Failed) and self.view.cloud_configured:
            return _inability(self.view.cloud) or decision
        return decision

    def _obstacle(self) -> Reason | None:
        """Why the cloud cannot be asked."""
        view = self.view
        if not view.cloud_configured or isinstance(view.cloud, NotAvailable):
            return Reason.NO_CLOUD
        if isinstance(view.cloud, Failed):
            return Reason.CLOUD_FAILED
        if view.cloud_failure is None or not self._local_is_near():
            return None  # it has failed, but there is no other backend
        return Reason.OFFLINE if view.cloud_failure.code in UNREACHABLE else Reason.CLOUD_FAILED

    def _local_is_near(self) -> bool:
        return _inability(self.view.local) is None and not isinstance(self.view.local, Downloading)

    def _local(self, reason: Reason) -> RouteDecision | Failed:
        """The local model, now or when it is ready; its failure if it never will be."""
        failure = _inability(self.view.local)
        if failure is not None:
            return failure
        wait = not isinstance(self.view.local, Ready)
        return self._decided(Target.LOCAL, reason, wait=wait)

    def _decided(
        self, target: Target, reason: Reason, *, wait: bool = False, server: str = ""
    ) -> RouteDecision:
        who = self.view.cloud_name if target is Target.CLOUD else server
        return RouteDecision(target, reason, wait, self.question, self._alternatives(), who=who)

    def _alternatives(self) -> tuple[Alternative, ...]:
        """The local model, the servers, the cloud."""
        category, view = self.question.category, self.view
        known = view.local if isinstance(view.local, Ready) else Ready("")
        adapter = "" if self.question.danger else view.adapter  # taught something else
        here = Arm(category, Target.LOCAL, known.model, known.quantization, adapter)
        there = Arm(category, Target.CLOUD, view.cloud_model)
        not_ready = None if known is view.local else self._absence()
        obstacle = Reason.PRIVATE if self.override.private else self._obstacle()
        sums = self.question.sums
        return (
            measured.forecast(here, self.snapshot, not_ready, view.local_active, sums=sums),
            *map(self._beside, view.servers),
            measured.forecast(there, self.snapshot, obstacle, 0),
        )

    def _beside(self, one: Beside) -> Alternative:
        obstacle = None if one.able else Reason.SERVER_FAILED
        if one.context_length and self.question.tokens * LEAST_TOKENS > one.context_length:
            obstacle = Reason.CONTEXT_TOO_LONG
        if self.override.private and not one.private:
            obstacle = Reason.PRIVATE
        arm = Arm(self.question.category, Target.SERVER, f"{one.name}/{one.model}")
        return measured.forecast(arm, self.snapshot, obstacle, 0, sums=self.question.sums)


def _inability(state: State | None) -> Failed | None:
    match state:
        case Failed():
            return state
        case NotAvailable(reason, hint):
            return Failed("not_available", reason, hint)
    return None
