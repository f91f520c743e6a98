"""``python -P -m workers ROLE``: one worker process."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from dataclasses import replace
from typing import Any

from shammah.bus.endpoints import ROLES, Endpoints, RoleLock, lock_holder, open_endpoints
from shammah.errors import ExitCode, ShammahError
from shammah.models.licences import LICENCES
from shammah.settings.load import load_settings
from shammah.settings.model import Settings
from shammah.supervision.identity import identity
from shammah.supervision.oom_record import attempt_file
from shammah.supervision.secrets import take_secrets
from workers.confinement.launcher import fork_launcher
from workers.confinement.proof import Confined
from workers.host import Host
from workers.logs import LogFile, configure_logging
from workers.service import Service

SWITCH_S = 0.0005
"""How long a thread waits for the interpreter while another computes. One that reads files gives it
away at each: it would be done only after the one that imports or parses beside it."""

TRAIN_KEEP_ALIVE_S = 10.0
"""A train worker has nothing that would be worth keeping in memory."""


def main() -> int:
    options = _parse(sys.argv[1:])
    sys.setswitchinterval(SWITCH_S)
    try:
        return _serve(options)
    except ShammahError as error:
        print(f"shammah worker: {error}", file=sys.stderr)
        return error.exit_code


def _serve(options: argparse.Namespace) -> int:
    role = options.role
    settings = load_settings(os.environ, options.model, options.licence)
    if role == "gateway":
        where = replace(settings.gateway, port=options.port, socket=options.socket)
        settings = replace(settings, gateway=replace(where, origins=tuple(options.origin)))
    endpoints = open_endpoints(os.environ)
    if settings.confine != "off":
        fork_launcher(role, settings, os.environ, endpoints)
    lock = RoleLock(endpoints.lock(role))
    if not lock.acquire():
        holder = lock_holder(lock.path)
        raise ShammahError(
            "already_running",
            f"The {role} worker is already running (process {holder}).",
            f"All your terminals share it; `shammah stop {role}` stops it.",
            exit_code=ExitCode.ALREADY_RUNNING,
        )
    confined = Confined(role, settings, os.environ, endpoints.runtime)
    service = _service(role, settings, endpoints, confined, foreground=options.foreground)
    log_file = LogFile(settings.home, role)
    if not options.foreground:
        log_file.adopt()
    configure_logging(role)
    keep_alive = options.keep_alive
    if keep_alive is None:
        own = settings.cloud if role in ("cloud", "servers") else settings.inference
        keep_alive = TRAIN_KEEP_ALIVE_S if role == "train" else own.keep_alive
    # Before any thread is there: what is started later is held as this one is.
    confined.enter()
    on_tick = (lambda: None) if options.foreground else log_file.rotate_if_long
    host = Host(
        service,
        identity(settings, role, environ=os.environ),
        endpoints=endpoints,
        lock=lock,
        keep_alive=keep_alive,
        on_tick=on_tick,
        confined=confined,
    )
    host.run()
    return ExitCode.OK


def _service(
    role: str, settings: Settings, endpoints: Endpoints, confined: Confined, *, foreground: bool
) -> Service[Any]:
    if role == "inference" and settings.server:
        from workers.openai.service import ServerService

        return ServerService(settings)
    if role == "inference":
        from workers.inference.service import InferenceService
        from workers.inference.startup.attempts import Attempts

        attempts = Attempts(attempt_file(endpoints.runtime), time.time, os.getpid())
        return InferenceService(settings, attempts=attempts)
    if role == "servers":
        from workers.servers.beside import BesideService

        return BesideService(settings)
    if role == "cloud":
        from workers.cloud.service import CloudService

        return CloudService(settings)
    if role == "download":
        from workers.download.service import DownloadService

        return DownloadService(os.environ, settings.home)
    if role == "gateway":
        from workers.gateway.service import GatewayService

        return GatewayService(settings, take_secrets(os.environ), show=foreground)
    from workers.train.service import TrainService

    return TrainService(settings, os.environ, endpoints, narrow=confined.narrow)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -P -m workers", description="Runs one worker. People use `shammah worker`."
    )
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--model", help="auto, starter, a size, a Hub id or a path")
    parser.add_argument("--licence", choices=LICENCES, help="of what auto may choose")
    parser.add_argument("--keep-alive", type=float, help="seconds to stay unused; -1: for ever")
    parser.add_argument("--port", type=int, default=0, help="of a gateway")
    parser.add_argument("--socket", default="", help="of a gateway, instead")
    parser.add_argument("--origin", action="append", default=[], help="that may use a gateway")
    parser.add_argument("--foreground", action="store_true", help="log to this terminal")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: torch and asyncio leave threads behind that can hold the interpreter's
    # end for seconds, and a worker keeps nothing that is not on disk already.
    os._exit(code)
