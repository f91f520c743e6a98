"""Proxies and certificates from the environment, read the same way by every process."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
"""Kinds of proxies that can be used, with their usual ports."""

PROXY_HINT = "Set it to http://HOST:PORT or socks5://HOST:PORT, or name the server in NO_PROXY."


@dataclass(frozen=True, slots=True)
class Proxy:
    """What ``variable`` names. ``why`` it cannot be used, as the end of a sentence that begins
    with the variable; else empty."""

    variable: str
    url: str
    why: str = ""


def read_proxies(environ: Mapping[str, str]) -> dict[str, Proxy]:
    """Return the proxies by scheme (``http``, ``https``, ``all``), chosen as curl and Python do:
    lowercase names win, and an empty one disables the other."""
    found: dict[str, Proxy] = {}
    if "*" in _excepted(environ):
        return found
    for scheme in ("http", "https", "all"):
        for variable in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            value = environ.get(variable)
            if value is not None:
                if value.strip():
                    found[scheme] = _read(variable, value.strip())
                break
    return found


def _read(variable: str, value: str) -> Proxy:
    url = value if "://" in value else f"http://{value}"
    scheme, _, rest = url.partition("://")
    scheme = scheme.lower()
    if scheme == "socks":  # what desktops write; browsers take it for SOCKS5
        scheme, url = "socks5", f"socks5://{rest}"
    if scheme not in PORTS:
        return Proxy(variable, url, f"names a {scheme[:20]}:// proxy, which is not supported")
    try:
        parts = urlsplit(url)
        known = bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:  # UnicodeError is one
        known = False
    if not known:
        return Proxy(variable, url, "is not the address of a proxy")
    return Proxy(variable, url)


def proxy_for(url: str, environ: Mapping[str, str]) -> Proxy | None:
    """Return the proxy that a request to ``url`` goes through; ``None``: it goes directly.

    Raises:
        ValueError: ``url`` is not an address.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    for one in _excepted(environ):
        one = one.removeprefix("*").lstrip(".")
        if one and (host == one or host.endswith(f".{one}")):
            return None
    proxies = read_proxies(environ)
    return proxies.get(target.scheme) or proxies.get("all")


def _excepted(environ: Mapping[str, str]) -> list[str]:
    named = environ.get("no_proxy", environ.get("NO_PROXY", ""))
    return [one for part in named.split(",") if (one := part.strip())]


def certificate_problem(environ: Mapping[str, str]) -> str:
    """Say what is wrong with the certificates that the environment names, as a sentence without
    its full stop; empty: nothing."""
    file, directory = environ.get("SSL_CERT_FILE"), environ.get("SSL_CERT_DIR")
    if file:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
        except ssl.SSLError:
            return f"SSL_CERT_FILE names {file}, which contains no certificates"
        except OSError as error:
            return f"SSL_CERT_FILE names {file}, which cannot be read ({error.strerror})"
    elif directory and not any(map(os.path.isdir, directory.split(os.pathsep))):
        return f"SSL_CERT_DIR names {directory}, which is not a directory"
    return ""
