"""The SDK's own HTTP client, with one leak stopped.

When a TLS handshake is cancelled, httpcore2 (2.16) closes the connection only for errors, not
for a cancellation: it would stay open for as long as the worker lives. Its trace extension
tells of both ends of a handshake.
"""

from __future__ import annotations

from typing import Any

import anthropic
import httpx2


def http_client(timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    """A client for `anthropic.AsyncAnthropic`, which closes it."""
    return anthropic.DefaultAsyncHttpxClient(timeout=timeout, event_hooks={"request": [_watch]})


async def _watch(request: httpx2.Request) -> None:
    opened: list[Any] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name.endswith("connect_tcp.complete"):
            opened.append(info["return_value"])
        elif name.endswith("start_tls.failed"):
            while opened:
                await opened.pop().aclose()

    request.extensions["trace"] = trace
