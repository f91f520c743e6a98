"""``python -P -m workers.inference.startup.examination``: what ``shammah doctor`` asks this side.

Prints one JSON object. Each part of it is examined by itself, and one that fails is an object
with an ``error`` (`code`, `message`, `hint`): what is wrong with one part is reported with the
others.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from shammah.errors import ShammahError
from shammah.models.catalogue import (
    LocatedModel,
    Machine,
    MissingModel,
    followable_hints,
)
from shammah.models.licences import LICENCES
from shammah.models.machine import look
from shammah.settings.load import home_directory, load_settings
from shammah.settings.model import Settings
from shammah.supervision.model_list import find_model
from workers.environment import prepare_libraries
from workers.inference.engines.table import ENGINES
from workers.inference.memory import gpu_failed
from workers.inference.packages.checkpoint import inspect_checkpoint
from workers.inference.startup.offers import find_alternatives, find_offers
from workers.manifest import is_complete

LIBRARIES = (
    "torch transformers numpy tokenizers safetensors xllamacpp accelerate peft "
    "bitsandbytes mlx mlx-lm huggingface_hub anthropic pyzmq msgpack prompt_toolkit psutil"
).split()
"""Whose versions matter."""

Part = dict[str, Any]


def examine(settings: Settings, environ: Mapping[str, str]) -> dict[str, Part]:
    """Return everything. Imports torch."""
    prepare_libraries()
    reports = [one for engine in ENGINES.values() for one in engine.reports.items()]
    return {
        "libraries": _guarded(_libraries),
        **{name: _guarded(functools.partial(report, settings.home)) for name, report in reports},
        "model": _guarded(lambda: _model(settings, environ)),
    }


def _guarded(part: Callable[[], Part]) -> Part:
    try:
        return part()
    except ShammahError as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint}}
    except Exception as error:
        # Any library may be broken in any way: that is what this is to find out.
        message = f"{type(error).__name__}: {error}"
        return {"error": {"code": "examination_failed", "message": message, "hint": ""}}


def _libraries() -> Part:
    found: Part = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


# --- the model ----------------------------------------------------------------------------


def _model(settings: Settings, environ: Mapping[str, str]) -> Part:
    """Which model, where it is, and how it would be computed now."""
    if settings.server:  # which the other side has asked
        return {}
    machine = look(environ)
    found = find_model(settings, environ, machine, is_complete, fallback=True)
    if isinstance(found, MissingModel):
        fallback = found.fallback
        computed = _guarded(lambda: _computed(fallback, settings, machine)) if fallback else None
        present = found.present is not None
        return {"name": found.model_id, "here": False, "present": present, "fallback": computed}
    if not isinstance(found, LocatedModel):
        raise ShammahError("memory_too_small", found.reason, found.hint)
    computed = _computed(found, settings, machine)
    if found.fallback:
        return {"name": found.wanted, "here": False, "present": False, "fallback": computed}
    return {"here": True, **computed}


def _computed(located: LocatedModel, settings: Settings, machine: Machine) -> Part:
    with followable_hints(located):
        return _described(located, settings, machine)


def _described(located: LocatedModel, settings: Settings, machine: Machine) -> Part:
    checkpoint = inspect_checkpoint(located.directory)
    offer, *others = find_offers(settings.inference, checkpoint, machine, ENGINES, settings.home)
    offer.engine.read_text(checkpoint)
    why = offer.why
    try:
        placement = offer.engine.place(checkpoint, offer.settings)
    except (ShammahError, RuntimeError) as error:  # the latter is torch's
        if not offer.on_gpu:
            raise
        refusal = error if isinstance(error, ShammahError) else gpu_failed(error)
        offer, why = others[0], refusal.message
        placement = offer.engine.place(checkpoint, offer.settings)
    next_best, faster = find_alternatives(offer, checkpoint, ENGINES)
    return {
        "name": located.name,
        "directory": str(located.directory),
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "notices": checkpoint.notices,
        "engine": offer.engine.name,
        "engine_why": why,
        "next_best": next_best and asdict(next_best),
        "faster": faster and asdict(faster),
        **asdict(placement),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="For `shammah doctor`.")
    parser.add_argument("--model")
    parser.add_argument("--licence", choices=LICENCES)
    options = parser.parse_args()
    # What libraries print must not get into the JSON.
    out, sys.stdout = sys.stdout, sys.stderr
    logging.disable(logging.WARNING)
    try:
        settings = load_settings(os.environ, options.model, options.licence)
    except ShammahError:  # doctor itself reports it
        settings = Settings(home_directory(os.environ))
    out.write(json.dumps(examine(settings, os.environ)) + "\n")
    out.flush()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not sys.exit: torch leaves threads behind that can hold the interpreter's end for seconds.
    os._exit(code)
