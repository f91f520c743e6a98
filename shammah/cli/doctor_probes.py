"""What ``shammah doctor`` tries: a start and, with ``--network``, connections."""

from __future__ import annotations

import http.client
import json
import os
import pty
import select
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shammah.settings.model import Settings
from shammah.settings.network import PROXY_HINT, certificate_problem, read_proxies
from shammah.settings.report import without_secrets
from shammah.supervision.identity import hub_endpoint
from shammah.supervision.reachability import reach

CLAUDE = "https://api.anthropic.com"

USUAL_PORTS = {"llama": 8080, "vllm": 8000, "ollama": 11434, "lmstudio": 1234, "sglang": 30000}
"""Where llama-server, vLLM, ollama, LM Studio and SGLang listen unless they are told otherwise."""

SERVER_S = 1.0
MOST_BYTES = 1024 * 1024
"""Of a list of models."""

Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem. ``blocking``: it keeps Shammah from answering."""

    code: str
    message: str
    hint: str
    blocking: bool = True


def probe_start(environ: Mapping[str, str], problems: list[Problem]) -> Part:
    """Measure how long the prompt takes, compared with a bare interpreter."""
    try:
        found = measure_start(environ)
    except OSError as error:  # TimeoutError is one
        return {"error": str(error)}
    if found.ratio > BUDGET:
        why = f"The prompt takes {found.ratio:.1f} times as long to start as bare Python."
        hint = "Expected on a busy machine; try again later. If it persists, the disk may be slow."
        problems.append(Problem("start_slow", why, hint, blocking=False))
    return {"prompt_s": found.prompt_s, "bare_s": found.bare_s, "ratio": found.ratio}


def probe_network(
    settings: Settings, environ: Mapping[str, str], problems: list[Problem]
) -> dict[str, Part]:
    """Check whether the servers that would be used can be reached."""
    servers = {"hub": hub_endpoint(environ)}
    if settings.cloud_configured:
        provider = settings.provider
        own = settings.cloud.base_url or CLAUDE
        servers["cloud"] = own if provider is None else provider.base_url
    found: dict[str, Part] = {}
    for name, url in servers.items():
        reached = reach(url, environ)
        found[name] = asdict(reached)
        if reached.error:
            through = f" through the proxy {reached.through}" if reached.through else ""
            why = f"Couldn't reach {reached.host or name}{through}: {reached.error}."
            hint = "Check the network, any proxy (HTTPS_PROXY) and the system's certificates."
            problems.append(Problem(f"{name}_unreachable", why, hint, blocking=False))
    return found


def probe_servers(settings: Settings, problems: list[Problem]) -> dict[str, Part]:
    """Ask the servers that have a name, and others that usually run on this machine, for their
    models."""
    found = {}
    named = {name: (server.base_url, server.key) for name, server in settings.servers.items()}
    for name, (url, key) in named.items():
        found[name] = _list_models(url, key)
    taken = {url.replace("localhost", "127.0.0.1").rstrip("/") for url, _ in named.values()}
    for name, port in USUAL_PORTS.items():
        url = f"http://127.0.0.1:{port}/v1"
        if url not in taken and name not in named and (other := _list_models(url, ""))["models"]:
            found[name] = other | {"named": False}
    if error := found.get(settings.server, {}).get("error"):
        why = f"The server {settings.server} cannot be used: {error}."
        hint = f"Start it, or check servers.{settings.server}.base_url in config.toml."
        blocking = not settings.cloud_configured
        problems.append(Problem("server_unreachable", why, hint, blocking))
    return found


def _list_models(url: str, key: str) -> Part:
    found: Part = {"base_url": without_secrets(url), "named": True, "models": [], "error": ""}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url.rstrip('/')}/models", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SERVER_S) as response:
            document = json.loads(response.read(MOST_BYTES))
        found["models"] = [str(one["id"]) for one in document["data"]]
        found["error"] = "" if found["models"] else "it has no model loaded"
    except OSError as error:
        reason = getattr(error, "reason", error)
        found["error"] = getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    except (ValueError, KeyError, TypeError, http.client.HTTPException):
        found["error"] = "what answers there does not speak OpenAI's API"
    return found


def network_problems(environ: Mapping[str, str]) -> list[Problem]:
    """List the proxies and certificates in the environment that cannot be used."""
    found = [
        Problem("proxy_unusable", f"{proxy.variable} {proxy.why}.", PROXY_HINT, blocking=False)
        for proxy in read_proxies(environ).values()
        if proxy.why
    ]
    if why := certificate_problem(environ):
        hint = "Set it to a file with certificates in PEM format, or unset it."
        found.append(Problem("certificates_unusable", f"{why}.", hint, blocking=False))
    return found


# --- the time of a start ------------------------------------------------------------------

PAIRS = 5
LIMIT_S = 10.0
BUDGET = 2.0
"""The prompt may take at most so many times what a bare interpreter takes."""

PROMPT = b"> "


@dataclass(frozen=True, slots=True)
class StartTime:
    """Seconds, the least of several; the least is what nothing else has disturbed."""

    prompt_s: float
    bare_s: float

    @property
    def ratio(self) -> float:
        """Return the time of the prompt as a multiple of the bare interpreter's."""
        return self.prompt_s / self.bare_s


def measure_start(environ: Mapping[str, str], pairs: int = PAIRS) -> StartTime:
    """Start both in turn, each on its own terminal.

    Invalid settings make Shammah end after its prompt, so it starts no worker.

    Raises:
        OSError: no terminal is available, or nothing can be started.
        TimeoutError: no prompt appeared within `LIMIT_S`.
    """
    script = Path(sys.executable).with_name("shammah")
    shammah = [str(script)] if script.exists() else [sys.executable, "-m", "shammah"]
    with tempfile.TemporaryDirectory() as home:
        Path(home, "config.toml").write_text("started_to_be_timed = true\n")
        variables = {**environ, "SHAMMAH_HOME": home}
        prompts, bare = [], []
        for _ in range(pairs):
            prompts.append(_time(shammah, variables, PROMPT))
            bare.append(_time([sys.executable, "-c", "pass"], variables, b""))
    return StartTime(min(prompts), min(bare))


def _time(command: list[str], environ: Mapping[str, str], until: bytes) -> float:
    """Time ``command`` until it has written ``until`` or, if that is empty, has ended. Seconds."""
    main, side = pty.openpty()
    began = time.perf_counter()
    try:
        with subprocess.Popen(
            command,
            stdin=side,
            stdout=side,
            stderr=side,
            env=dict(environ),
            start_new_session=True,
        ) as child:
            try:
                if until:
                    _read_until(main, until)
                else:
                    child.wait(LIMIT_S)
                return time.perf_counter() - began
            finally:
                child.kill()
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"{command[0]} did not end") from error
    finally:
        os.close(side)
        os.close(main)


def _read_until(fd: int, text: bytes) -> None:
    seen = b""
    while text not in seen:
        if not select.select([fd], [], [], LIMIT_S)[0]:
            raise TimeoutError(f"no prompt within {LIMIT_S:.0f} s")
        seen += os.read(fd, 4096)
