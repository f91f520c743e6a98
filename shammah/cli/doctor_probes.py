"""What ``shammah doctor`` tries out: a start, and with ``--network`` connections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from shammah.cli.start_time import BUDGET, measure_start
from shammah.settings.model import Settings
from shammah.settings.network import PROXY_HINT, certificate_problem, read_proxies
from shammah.supervision.identity import PUBLIC_HUB
from shammah.supervision.reachability import reach

CLAUDE = "https://api.anthropic.com"

Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong. ``blocking``: it would keep Shammah from answering."""

    code: str
    message: str
    hint: str
    blocking: bool = True


def probe_start(environ: Mapping[str, str], problems: list[Problem]) -> Part:
    """How long the prompt takes, beside a bare interpreter."""
    try:
        found = measure_start(environ)
    except OSError as error:  # TimeoutError is one
        return {"error": str(error)}
    if found.ratio > BUDGET:
        why = f"The prompt takes {found.ratio:.1f} times as long as a bare interpreter."
        hint = "On a busy machine that is so; if it stays so, the disk may be slow: look again."
        problems.append(Problem("start_slow", why, hint, blocking=False))
    return {"prompt_s": found.prompt_s, "bare_s": found.bare_s, "ratio": found.ratio}


def probe_network(
    settings: Settings, environ: Mapping[str, str], problems: list[Problem]
) -> dict[str, Part]:
    """Whether the servers can be reached that would be used."""
    servers = {"hub": environ.get("HF_ENDPOINT") or PUBLIC_HUB}
    if settings.cloud_configured:
        servers["cloud"] = settings.cloud.base_url or CLAUDE
    found: dict[str, Part] = {}
    for name, url in servers.items():
        reached = reach(url, environ)
        found[name] = asdict(reached)
        if reached.error:
            through = f" through the proxy {reached.through}" if reached.through else ""
            why = f"{reached.host or name} cannot be reached{through}: {reached.error}."
            hint = "Check the network, a proxy (HTTPS_PROXY) and the system's certificates."
            problems.append(Problem(f"{name}_unreachable", why, hint, blocking=False))
    return found


def network_problems(environ: Mapping[str, str]) -> list[Problem]:
    """Proxies and certificates that the environment names and nobody can use."""
    found = [
        Problem("proxy_unusable", f"{proxy.variable} {proxy.why}.", PROXY_HINT, blocking=False)
        for proxy in read_proxies(environ).values()
        if proxy.why
    ]
    if why := certificate_problem(environ):
        hint = "Name a file with certificates in PEM format, or unset the variable."
        found.append(Problem("certificates_unusable", f"{why}.", hint, blocking=False))
    return found
