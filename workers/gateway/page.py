"""The page at ``/``, for people without a terminal at hand, and what it asks beside ``/v1``.

The page itself holds nothing: its token comes in the fragment of its address, which a browser
sends nowhere.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from shammah.bus.endpoints import ROLES, Endpoints
from shammah.bus.messages import Event
from shammah.bus.probe import ask_states, describe_worker
from shammah.errors import ShammahError
from shammah.privacy.ledger import day_totals, read_ledger
from shammah.terminal.wording import describe_state

SHOWN = 100
"""Requests of today that are listed, the newest first."""
HEADERS = {
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def routes(home: Path, endpoints: Endpoints, why: Callable[[str], str | None]) -> list[Route]:
    """The page's own paths; ``why`` explains an answer by its number."""

    async def explain(request: Request) -> Response:
        text = why(request.path_params["number"])
        if text is None:
            return JSONResponse({"error": {"message": "No such answer is known any more."}}, 404)
        return JSONResponse({"why": text})

    return [
        Route("/", show),
        Route("/shammah/why/{number}", explain),
        Route("/shammah/status", partial(list_workers, endpoints)),
        Route("/shammah/ledger", partial(list_sent, home, time.time)),
    ]


async def show(request: Request) -> Response:
    """The page."""
    nonce = secrets.token_urlsafe(16)
    text = files("workers.gateway").joinpath("page.html").read_text("utf-8")
    headers = {**HEADERS, "content-security-policy": POLICY.format(nonce)}
    return HTMLResponse(text.replace("NONCE", nonce), headers=headers)


def list_workers(endpoints: Endpoints, request: Request) -> Response:
    """What ``shammah status --once --json`` prints, with each state in words. On a thread."""
    return JSONResponse([_with_words(*one) for one in ask_states(endpoints, ROLES)])


def _with_words(role: str, found: Event | ShammahError | None) -> dict[str, object]:
    match found:
        case Event():
            said = describe_state(found.status.state)
        case ShammahError():
            said = str(found)
        case None:
            said = "not running"
    return {**describe_worker(role, found), "said": said}


def list_sent(home: Path, clock: Callable[[], float], request: Request) -> Response:
    """What ``shammah egress --json`` prints of today (UTC). On a thread."""
    today = time.strftime("%Y-%m-%d", time.gmtime(clock()))
    entries, damaged = read_ledger(home)
    entries = [sent for sent in entries if sent.day == today]
    total = next(map(asdict, day_totals(entries)), None)
    newest = [asdict(sent) for sent in entries[: -SHOWN - 1 : -1]]
    return JSONResponse({"day": today, "total": total, "requests": newest, "damaged": damaged})
