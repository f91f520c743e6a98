"""``python -P -m workers.inference.startup.examination``: what ``shammah doctor`` asks this side.

Prints one JSON object. Each part of it is examined by itself, and one that fails is an object
with an ``error`` (`code`, `message`, `hint`): what is wrong with one part is to be told with the
others.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

from shammah.errors import ShammahError
from shammah.models.catalogue import (
    LocatedModel,
    Machine,
    MissingModel,
    locate_model,
    starter_directory,
)
from shammah.models.footprint import NATIVE_WEIGHT_BYTES
from shammah.models.hub_config import WIDTHS
from shammah.models.licences import LICENCES
from shammah.models.machine import look
from shammah.settings.load import home_directory, load_settings
from shammah.settings.model import Settings
from shammah.storage.paths import hub_cache
from workers.environment import prepare_libraries
from workers.inference.engine import LoadSettings
from workers.inference.memory import gpu_failed
from workers.inference.packages.checkpoint import Checkpoint, inspect_checkpoint
from workers.inference.startup.choice import (
    GPU_HERE,
    NATIVE,
    choose_engine,
    native_quantizations,
    on_cpu,
    reason_for,
)
from workers.inference.startup.probe import FILE, MachineSpeed, machine_speed, measure_speed
from workers.manifest import is_complete

LIBRARIES = (
    "torch transformers numba llvmlite numpy tokenizers safetensors accelerate peft "
    "bitsandbytes huggingface_hub anthropic pyzmq msgpack prompt_toolkit psutil"
).split()
"""Whose versions matter."""

Part = dict[str, Any]


def examine(settings: Settings, environ: Mapping[str, str]) -> dict[str, Part]:
    """Everything; torch is imported."""
    prepare_libraries()
    parts: dict[str, Callable[[], Part]] = {
        "libraries": _libraries,
        "kernels": lambda: _kernels(settings),
        "accelerator": _accelerator,
        "speed": lambda: asdict(_speed(settings)),
        "model": lambda: _model(settings, environ),
    }
    return {name: _guarded(part) for name, part in parts.items()}


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


def _kernels(settings: Settings) -> Part:
    """Where the machine code of these kernels is kept, and whether it is there."""
    from workers.inference.engines.native.compiler import kernel_directory, own_directory
    from workers.inference.engines.native.machine_code import code_path

    places = [settings.home / "kernels", kernel_directory(settings.home)]
    compiled = [place for place in places if code_path(own_directory(place)).exists()]
    return {"directory": str((compiled or places)[0]), "compiled": bool(compiled)}


def _accelerator() -> Part:
    """What torch can compute on beside the processor."""
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        return {"device": "cuda", "name": name, "free": free, "total": total}
    if torch.backends.mps.is_available():
        return {"device": "mps", "name": platform.processor(), "free": 0, "total": 0}
    return {"device": "", "name": "", "free": 0, "total": 0}


def _speed(settings: Settings) -> MachineSpeed:
    import torch

    return machine_speed(settings.home / FILE, torch.__version__, measure_speed)


# --- the model ----------------------------------------------------------------------------


def _model(settings: Settings, environ: Mapping[str, str]) -> Part:
    """Which model, where it is, and how it would be computed now."""
    machine = look(environ)
    found = locate_model(
        settings.model,
        machine.memory,
        hub_cache(environ),
        starter_directory(),
        fallback=True,
        is_whole=is_complete,
        permissive=settings.permissive,
        gpu_memory=machine.gpu_memory,
    )
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
    from workers.inference.engines.native.architecture import supports
    from workers.text.model_text import ModelText

    checkpoint = inspect_checkpoint(located.directory)
    ModelText.load(located.directory)
    instead = on_cpu(settings.inference, machine)
    gpu = instead.gpu(checkpoint) if instead is not None else ""

    def computed(device: str, why: str = "") -> Part:
        asked, quantizations = replace(settings.inference, device=device), native_quantizations()
        engine = choose_engine(asked, checkpoint, machine, supports, quantizations)
        reason = reason_for(asked, checkpoint, machine, supports, quantizations)
        form = _native_form if engine == NATIVE else _transformers_form
        found = form(checkpoint, replace(settings, inference=asked))
        return {"engine": engine, "engine_why": why or reason, **found}

    try:
        found = computed(gpu or settings.inference.device, GPU_HERE if gpu else "")
    except (ShammahError, RuntimeError) as error:  # the latter is torch's
        if not gpu:
            raise
        refusal = error if isinstance(error, ShammahError) else gpu_failed(error)
        found = computed("cpu", refusal.message)
    return {
        "name": located.name,
        "directory": str(located.directory),
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "notices": checkpoint.notices,
        **found,
    }


def _native_form(checkpoint: Checkpoint, settings: Settings) -> Part:
    from workers.inference.engines.native.runner import WHY
    from workers.inference.engines.transformers.quantization import INT8, describe_form
    from workers.inference.memory import check_weights, conversation_bytes, free_main_memory

    asked = settings.inference.quantization
    quantization = INT8 if asked == "auto" else asked
    needed = int(NATIVE_WEIGHT_BYTES[quantization] * checkpoint.parameters)
    free = free_main_memory()
    check_weights(needed, free, describe_form("", quantization), conversation_bytes(checkpoint))
    return _form(
        "cpu",
        "float32",
        quantization=quantization,
        why=WHY[quantization],
        needed=needed,
        free=free,
    )


def _transformers_form(checkpoint: Checkpoint, settings: Settings) -> Part:
    from workers.inference.engines.transformers.quantization import needed_bytes
    from workers.inference.startup import placement

    asked = settings.inference
    device = placement.choose_device(
        asked.device, checkpoint.parameters, quantized=asked.quantization != "none"
    )
    free = placement.free_memory(device)
    wanted = LoadSettings(asked.device, asked.dtype, asked.quantization, home=settings.home)
    form = placement.choose_form(wanted, device, checkpoint, free, lambda: _speed(settings))
    needed = needed_bytes(checkpoint, form.quantization, WIDTHS[form.dtype])
    return _form(
        device, form.dtype, quantization=form.quantization, why=form.why, needed=needed, free=free
    )


def _form(device: str, dtype: str, quantization: str, why: str, needed: int, free: int) -> Part:
    return {
        "device": device,
        "dtype": dtype,
        "quantization": quantization,
        "why": why,
        "needed": needed,
        "free": free,
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
    except ShammahError:  # told by who asks
        settings = Settings(home_directory(os.environ))
    out.write(json.dumps(examine(settings, os.environ)) + "\n")
    out.flush()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Not sys.exit: torch leaves threads behind that can hold the interpreter's end for seconds.
    os._exit(code)
