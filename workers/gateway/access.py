"""Who may use the endpoint: checked before anything of a request is read.

Every request needs the token, except for our own page, which holds nothing. A page in a browser is
another program's, even on this machine: its origin must be allowed. A name that is not this
machine's, in ``Host``, is how a page of another site would get past that (DNS rebinding).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection, Mapping

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from workers.gateway.refusals import Dialect, RefusedError, describe

LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")


class Access:
    """Lets to ``app`` what may use it, and refuses the rest.

    Args:
        token: what a client must know.
        origins: pages that may use it, beside our own.
    """

    def __init__(self, app: ASGIApp, token: str, origins: Collection[str]) -> None:
        self._app = app
        self._token = token
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refused = refuse_place(headers, self._origins)
        asks_first = scope["method"] == "OPTIONS" and "origin" in headers
        is_page = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if refused is None and not asks_first and not is_page:
            refused = refuse_stranger(headers, self._token)
        if refused is None:
            await self._app(scope, receive, send)
            return
        shape = describe(refused, dialect_of(scope["path"], headers))
        closing = {**refused.headers, "connection": "close"}  # its body is not read
        await JSONResponse(shape, refused.status, closing)(scope, receive, send)


def refuse_place(headers: Mapping[str, str], origins: Collection[str]) -> RefusedError | None:
    """Why nothing from there is answered: another machine's name, or another's page."""
    host = headers.get("host", "")
    if host.rpartition(":")[0] not in LOCAL_NAMES and host not in LOCAL_NAMES:
        return RefusedError(403, "host_refused", "This is not the host that was asked for.")
    origin = headers.get("origin")
    if origin is not None and origin not in {f"http://{host}", *origins}:
        why = "Pages of this origin may not use it; `shammah serve --origin` allows one."
        return RefusedError(403, "origin_refused", why)
    return None


def refuse_stranger(headers: Mapping[str, str], token: str) -> RefusedError | None:
    """Why the client is not answered: it does not know the token."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    named = given.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")
    if hmac.compare_digest(named.encode(), token.encode()):
        return None
    what = "The token is not the right one." if named else "A token is needed."
    return RefusedError(401, "invalid_api_key", f"{what} `shammah serve --token` shows it.")


def dialect_of(path: str, headers: Mapping[str, str]) -> Dialect:
    """In whose shapes the client expects an answer."""
    anthropic = "anthropic-version" in headers or path.startswith("/v1/messages")
    return Dialect.ANTHROPIC if anthropic else Dialect.OPENAI
