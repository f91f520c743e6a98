"""What every HTTP client of the workers is made with: proxies and certificates that it can use.

httpx2 refuses to make a client if any proxy in the environment is of a kind that it does not
know, or if the certificates cannot be read, whether or not a request would need them. Here only
the requests fail that do.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import MutableMapping
from dataclasses import replace
from importlib.util import find_spec

import httpx2

from shammah.settings.network import Proxy, read_proxies

refused: dict[str, Proxy] = {}
"""Proxies that were taken out of this process's environment, by what would go through them."""


class UnusableProxyError(httpx2.ProxyError):
    """The environment names a proxy that cannot be used. The message is a sentence without its
    full stop."""


class _Refusing(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Sends nothing: what a person wants to go through a proxy must not go past it."""

    def __init__(self, proxy: Proxy) -> None:
        self._why = f"{proxy.variable} {proxy.why}"

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        raise UnusableProxyError(self._why, request=request)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        raise UnusableProxyError(self._why, request=request)


def mounts(environ: MutableMapping[str, str] = os.environ) -> dict[str, _Refusing]:
    """The ``mounts`` of a client, to be made after this: proxies that cannot be used are taken
    out of ``environ``, and remembered for the clients to come."""
    for scheme, proxy in read_proxies(environ).items():
        if proxy.url.lower().startswith("socks") and find_spec("socksio") is None:
            proxy = replace(proxy, why="names a SOCKS proxy, for which socksio is not installed")
        if proxy.why:
            for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
                environ.pop(variable, None)
            refused[f"{scheme}://"] = proxy
        elif environ[proxy.variable] != proxy.url:
            environ[proxy.variable] = proxy.url
    return {pattern: _Refusing(proxy) for pattern, proxy in refused.items()}


def ssl_context() -> ssl.SSLContext:
    """What a client checks certificates with. If the environment names some that cannot be read
    (`shammah.settings.network.certificate_problem`) it trusts nobody, and plain HTTP goes on."""
    try:
        return httpx2.create_ssl_context()
    except OSError:
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
