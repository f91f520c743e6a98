"""Who goes on with a turn, for every failure, mark, wish and state."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import pytest

from shammah.bus.messages import ChatMessage, Downloading, Failed, Loading, NotAvailable, Ready
from shammah.chat.conversation import Prompt, TurnInProgress
from shammah.chat.failover import GONE, RESTARTS, Failover, fail_over, with_text
from shammah.privacy import Mark
from shammah.router.route import Beside, Override, Reason, RouteDecision, Target, View

LOCAL, CLOUD = Target.LOCAL, Target.CLOUD
BROKEN = ("cloud_interrupted", "cloud_truncated", "cloud_timeout", "cloud_overloaded")
UNABLE = ("internal", "generation_failed", "out_of_memory", "cloud_key_rejected")
OWN_FAULT = (
    *("cancelled", "busy", "messages_invalid", "sampling_invalid", "private"),
    *("cloud_bad_request", "cloud_too_large", "cloud_budget", "cloud_declined", "worker_stopped"),
    *("cloud_switched_off", "not_available", "message_too_long", "planted"),
)
READY = Ready("m", engine="e")
STATES = (None, READY, Loading("m", "s", 0, 1), Downloading("m"), Failed("x", "X."))


@dataclass(frozen=True)
class Interruption:
    """A turn that has lost who answered it."""

    failure: Failed
    failed: Target
    override: Override
    text: str
    tied: bool
    restarts: int
    view: View
    openable: bool

    @property
    def following(self) -> Failover | Failed:
        turn = TurnInProgress(Prompt("q", override=self.override), Mark(), restarts=self.restarts)
        turn.decision = RouteDecision(self.failed, Reason.MODEL_READY)
        turn.pieces += [self.text] if self.text else []
        return fail_over(turn, self.failure, self.view, tied=self.tied, openable=self.openable)


def interruption(
    code: str = "worker_died",
    failed: Target = LOCAL,
    override: Override = Override(),  # noqa: B008
    text: str = "so far",
    *,
    tied: bool = False,
    restarts: int = 0,
    local: object = READY,
    cloud: object = READY,
    key: bool = True,
    may: bool = True,
) -> Interruption:
    view = View(local, cloud, key)  # type: ignore[arg-type]
    return Interruption(
        Failed(code, "It broke."),
        failed,
        override,
        text,
        tied=tied,
        restarts=restarts,
        view=view,
        openable=may,
    )


EVERY = [
    interruption(*some, tied=tied, restarts=restarts, cloud=cloud, local=local, key=key, may=may)
    for some in itertools.product(
        (*GONE, *BROKEN, *UNABLE, *OWN_FAULT),
        (LOCAL, CLOUD),
        [Override(target, private) for target in (None, LOCAL, CLOUD) for private in (False, True)],
        ("", "so far"),
    )
    for tied, restarts, cloud, local, key, may in itertools.product(
        (False, True),
        (0, RESTARTS),
        (READY, NotAvailable("n")),
        STATES,
        (False, True),
        (False, True),
    )
    if not (tied and not some[3])
]


def test_nothing_private_ever_goes_on_in_the_cloud() -> None:
    for turn in EVERY:
        found = turn.following
        if isinstance(found, Failover) and found.override.target is CLOUD:
            assert not turn.override.private
            assert not turn.tied
            assert turn.openable
            assert turn.view.cloud_configured
        elif isinstance(found, Failover):
            assert found.override.private == (turn.override.private or turn.tied)


def test_a_wish_is_respected() -> None:
    """Where somebody else than was wished had begun (a crisis), he may go on himself."""
    for turn in EVERY:
        found = turn.following
        if isinstance(found, Failover) and turn.override.target is not None:
            assert found.override.target in (turn.override.target, turn.failed)


def test_what_is_not_the_answerers_fault_is_the_end() -> None:
    for turn in EVERY:
        if turn.failure.code in OWN_FAULT or turn.restarts >= RESTARTS:
            assert turn.following is turn.failure


def test_the_end_is_the_failure_itself_and_the_cause_is_told() -> None:
    for turn in EVERY:
        found = turn.following
        if isinstance(found, Failover):
            assert found.note.startswith("It broke. ")
            assert found.override.target is not None
        else:
            assert found is turn.failure


@pytest.mark.parametrize(
    ("turn", "target", "reason"),
    [
        (interruption(), CLOUD, Reason.MODEL_NOT_READY),
        (interruption(key=False), LOCAL, Reason.MODEL_READY),
        (interruption(may=False), LOCAL, Reason.MODEL_READY),
        (interruption(override=Override(LOCAL)), LOCAL, Reason.MODEL_READY),
        (interruption(override=Override(private=True)), LOCAL, Reason.MODEL_READY),
        (interruption(tied=True), LOCAL, Reason.MODEL_READY),
        (interruption(cloud=NotAvailable("n")), LOCAL, Reason.MODEL_READY),
        (interruption("generation_failed"), CLOUD, Reason.MODEL_NOT_READY),
        (interruption("generation_failed", key=False), None, None),
        (interruption("context_too_long", text=""), CLOUD, Reason.CONTEXT_TOO_LONG),
        (interruption("context_too_long", key=False), None, None),
        (interruption("context_too_long", override=Override(private=True)), None, None),
        (interruption("context_too_long", override=Override(LOCAL)), None, None),
        (interruption("context_too_long", cloud=NotAvailable("n")), None, None),
        (interruption("cloud_truncated", CLOUD), LOCAL, Reason.CLOUD_FAILED),
        (interruption("cloud_truncated", CLOUD, local=None), LOCAL, Reason.CLOUD_FAILED),
        (interruption("cloud_truncated", CLOUD, local=Downloading("m")), CLOUD, Reason.MODEL_READY),
        (interruption("cloud_truncated", CLOUD, Override(CLOUD)), CLOUD, Reason.MODEL_READY),
        (interruption("cloud_truncated", CLOUD, Override(CLOUD), ""), None, None),
        (interruption("worker_died", CLOUD, Override(CLOUD), ""), CLOUD, Reason.MODEL_READY),
        (interruption("cloud_key_rejected", CLOUD, text=""), LOCAL, Reason.CLOUD_FAILED),
        (interruption("cloud_key_rejected", CLOUD, Override(CLOUD)), None, None),
    ],
)
def test_who_goes_on(turn: Interruption, target: Target | None, reason: Reason | None) -> None:
    found = turn.following
    if target is None:
        assert isinstance(found, Failed)
    else:
        assert isinstance(found, Failover)
        assert (found.override.target, found.reason) == (target, reason)


BOX, SHED = Beside("box", "m", private=True), Beside("shed", "m")
GONE_LOCAL = Failed("x", "X.")


@pytest.mark.parametrize(
    ("failed", "override", "tied", "local", "servers", "goes_on"),
    [
        ("box", Override(), False, READY, (BOX, SHED), "server:shed"),
        ("box", Override(), False, READY, (BOX,), "local"),
        ("box", Override(), False, GONE_LOCAL, (BOX,), "cloud"),
        ("box", Override(), True, READY, (BOX, SHED), "local"),
        ("shed", Override(), True, READY, (BOX, SHED), "server:box"),
        ("box", Override(private=True), False, GONE_LOCAL, (BOX, SHED), "server:box"),
        ("shed", Override(), False, READY, (replace(BOX, why="Gone."), SHED), "local"),
        ("shed", Override(), False, READY, (replace(BOX, failed=True), SHED), "local"),
        ("shed", Override(Target.SERVER, server="shed"), False, READY, (BOX, SHED), "server:shed"),
        ("", Override(), False, READY, (BOX, SHED), "server:box"),
        ("", Override(LOCAL), False, READY, (BOX, SHED), "local"),
    ],
)
def test_servers_go_on_for_each_other(
    failed: str,
    override: Override,
    tied: bool,
    local: object,
    servers: tuple[Beside, ...],
    goes_on: str,
) -> None:
    view = View(local, READY, True, servers=servers, cloud_name="far")  # type: ignore[arg-type]
    turn = TurnInProgress(Prompt("q", override=override), Mark(), pieces=["so far"])
    target = Target.SERVER if failed else LOCAL
    turn.decision = RouteDecision(target, Reason.MODEL_READY, who=failed)
    failure = Failed("server_interrupted", "The server broke off.")
    found = fail_over(turn, failure, view, tied=tied, openable=True)
    assert isinstance(found, Failover)
    chosen, server = found.override.target, found.override.server
    assert (f"server:{server}" if server else chosen) == goes_on
    who = {"local": "The local model", "cloud": "far"}.get(goes_on, f"The server {server}")
    same = (chosen, server) == (target, failed)
    said = "It is asked to continue." if same else f"{who} continues."
    assert found.note == f"The server broke off. {said}"
    assert same or found.reason is Reason.SERVER_FAILED


def test_the_beginning_of_an_answer_bears_the_mark_of_its_question() -> None:
    asked, secret = ChatMessage("user", "a"), ChatMessage("user", "a", True)
    assert with_text((asked,), "", tied=False) == (asked,)
    assert with_text((asked,), "b", tied=False)[-1] == ChatMessage("assistant", "b")
    assert with_text((asked,), "b", tied=True)[-1] == ChatMessage("assistant", "b", True)
    assert with_text((secret,), "b", tied=False)[-1] == ChatMessage("assistant", "b", True)
