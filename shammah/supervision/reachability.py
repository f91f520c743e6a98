"""Whether a server can be reached: a connection and a TLS handshake, and not a byte more.

The other side learns its own name and this machine's address; no key, path or text is sent.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from shammah.settings.network import PORTS, proxy_for

LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Reached:
    """``error`` is empty if it was reached, in ``seconds``. ``through`` is a proxy: then only that
    was tried, not what is behind it."""

    host: str
    seconds: float = 0.0
    through: str = ""
    error: str = ""


def reach(url: str, environ: Mapping[str, str], limit: float = LIMIT_S) -> Reached:
    """Connect to the server of ``url``, and hang up."""
    try:
        asked = urlsplit(url).hostname or ""
        proxy = proxy_for(url, environ)
        if proxy and proxy.why:
            return Reached(asked, error=f"{proxy.variable} {proxy.why}")
        target = urlsplit(proxy.url if proxy else url)
        host = target.hostname or ""
        port = target.port or PORTS[target.scheme]
    except (ValueError, KeyError):
        return Reached("", error="not a valid address")
    through = host if proxy else ""
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), limit) as connection:
            if target.scheme == "https":
                context = ssl.create_default_context()
                with context.wrap_socket(connection, server_hostname=host):
                    pass
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Reached(asked, through=through, error=why)
    return Reached(asked, time.monotonic() - began, through)
