"""Questions and finished turns, as tests need them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from shammah.bus.messages import ChatMessage, Done, Failed, Provenance, Sampling, Timings, Usage
from shammah.chat.conversation import Prompt, Step, Turn, TurnInProgress
from shammah.chat.session import Session
from shammah.router.route import Override

LOCAL, CLOUD = Provenance("inference", "starter"), Provenance("cloud", "claude")


def way_of(
    session: Session,
    messages: tuple[ChatMessage, ...],
    override: Override | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int | None = None,
) -> Iterator[Step]:
    """What comes of the last of ``messages``."""
    *before, last = messages
    mark = session.gate.judge(last.content, private=last.private)
    messages = (*before, replace(last, private=mark.private))
    prompt = Prompt(
        last.content,
        override=override or Override(),
        sampling=sampling or Sampling(),
        max_new_tokens=max_new_tokens,
    )
    return session.answer(TurnInProgress(prompt, mark), messages)


def done(by: Provenance = LOCAL, finish: str = "stop") -> Done:
    return Done("r", finish, Usage(), Timings(), by)


def answered(question: str, answer: str, by: Provenance = LOCAL, **more: Any) -> Turn:
    """A turn that came to its end. ``finish``: which; ``failed`` and ``left`` have no `Done`."""
    finish = more.pop("finish", "stop")
    end: Done | Failed | None = done(by, finish)
    if finish in ("failed", "left"):
        end = Failed("worker_died", "It died.") if finish == "failed" else None
    local = by.role != "cloud"
    foreign = by.role != "inference"
    return Turn(question, answer, end=end, **{"local": local, "foreign": foreign, **more})
