"""``shammah`` as it is, but its inference worker eats memory while it loads a model.

It eats ``HUNGRY_BYTES`` with the offers before number ``HUNGRY_UNTIL`` (see `startup.offers`), and
then goes on as the real one::

    HUNGRY_BYTES=1000000000 HUNGRY_UNTIL=1 python -P tests/fakes/hungry.py ask hello
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from shammah.supervision import lifecycle
from shammah.supervision.lifecycle import WorkerSpec

HUNGRY = str(Path(__file__))
WORKER = "worker-of-the-hungry"


def hungry_command(spec: WorkerSpec) -> list[str]:
    return [sys.executable, "-P", HUNGRY, WORKER, spec.role, *spec.arguments]


def run_worker() -> int:
    from workers import __main__ as worker
    from workers.inference.engine import Engine
    from workers.inference.startup import loading
    from workers.inference.startup.offers import Offer

    find_offers = loading.find_offers

    def eat(*arguments: Any) -> Any:
        eaten = bytearray(b"x") * int(os.environ["HUNGRY_BYTES"])
        raise AssertionError(f"{len(eaten)} bytes were not too many")

    def starved(offer: Offer) -> Offer:
        def make() -> Engine:
            engine = offer.engine.make()
            engine.load = eat  # type: ignore[method-assign]
            return engine

        return replace(offer, engine=replace(offer.engine, make=make))

    def find(*arguments: Any) -> list[Offer]:
        until = int(os.environ["HUNGRY_UNTIL"])
        return [
            starved(offer) if offer.level < until else offer for offer in find_offers(*arguments)
        ]

    loading.find_offers = find
    sys.argv = sys.argv[1:]
    return worker.main()


def main() -> int:
    if sys.argv[1] == WORKER:
        return run_worker()
    lifecycle.worker_command = hungry_command
    from shammah.__main__ import main as frontend

    return frontend()


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
