"""An adapter that another program has made: checked, judged and kept. Nothing is unpickled."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from shammah.bus.training import GateFigures, ImportAdapter, Imported
from shammah.errors import ShammahError
from shammah.learning.adapters import CONFIG, WEIGHTS, AdapterEntry, AdapterStore
from shammah.learning.examples import Example, read_examples
from shammah.learning.feedback import Feedback
from shammah.models.catalogue import GIB, LocatedModel, followable_hints
from shammah.settings.model import Settings
from workers.adapter_kind import KEY, describe_misfit
from workers.environment import prepare_libraries
from workers.train.base_model import (
    Arithmetic,
    choose_arithmetic,
    load_base,
    locate,
    parameters_of,
    revision_of,
    shape_of,
)
from workers.train.gate import Gate, judge
from workers.train.memory import estimate, free_memory
from workers.train.names import names_in
from workers.train.schedule import TrainingPlan

MOST_EXAMPLES = 64
"""Of the person's, the newest, an adapter is judged with: more take minutes."""

IMPORTED = "imported"
"""Says in `AdapterEntry.training` where it came from."""


def import_adapter(
    asked: ImportAdapter,
    settings: Settings,
    environ: Mapping[str, str],
    advance: Callable[[], object],
) -> Imported:
    """Copy an adapter into the home, whole or not at all, with what the gate says of it.

    Args:
        advance: called after each part of the work.

    Raises:
        ShammahError: ``adapter_name``, ``adapter_damaged``, ``adapter_unsupported``,
            ``adapter_wrong_base``, ``model_not_found``, ``out_of_memory`` and what reading the
            examples or loading the model can come across.
    """
    store = AdapterStore(settings.home)
    store.check_new(asked.adapter)
    with tempfile.TemporaryDirectory(prefix="shammah-") as made:
        copy = Path(made)  # what is judged is what is kept, whatever becomes of the source
        config = take_copy(Path(asked.directory), copy)
        located = locate(asked.model, settings, environ)
        path = Path(asked.examples)
        if asked.examples:
            given = read_examples(path)
        else:
            given = Feedback(settings.home).examples(from_cloud=settings.train.from_cloud)
        prepare_libraries()
        shapes = read_shapes(copy / WEIGHTS)
        arithmetic = choose_arithmetic()
        with followable_hints(located):
            _check_memory(located, arithmetic)
            base = load_base(located, arithmetic, advance)
        check_fit(base, located.name, shapes)
        figures = _judge(base, located, copy, given, advance)
        verdict, why = judge(figures)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        training = _report_origin(config) | {"examples": figures.held_out}
        entry = AdapterEntry(
            asked.adapter,
            Path(),
            located.name,
            revision_of(located.directory),
            now,
            training=training,
            gate=asdict(figures) | {"why": why},
            verdict=verdict,
        )

        def fill(directory: Path) -> None:
            for name in (CONFIG, WEIGHTS):
                shutil.copyfile(copy / name, directory / name)

        store.add(entry, fill)
    return Imported(
        asked.request_id,
        asked.adapter,
        model=located.name,
        verdict=verdict,
        why=why,
        figures=figures,
    )


def take_copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy the two files of an adapter; its configuration.

    Raises:
        ShammahError: ``adapter_damaged`` or ``adapter_unsupported``.
    """
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise _missing(source, name)
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise _damaged(f"{name} cannot be read ({error.strerror})") from error
    try:
        config = json.loads((target / CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        raise _damaged(f"{CONFIG} is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise _damaged(f"{CONFIG} is not a JSON object")
    if why := describe_misfit(config):
        raise _unsupported(why)
    return config


def read_shapes(weights: Path) -> dict[str, tuple[int, int, int]]:
    """Of each adapted module its (inputs, rank, outputs).

    Raises:
        ShammahError: ``adapter_damaged`` or ``adapter_unsupported``.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    kinds = (torch.float32, torch.float16, torch.bfloat16)
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(key)
                match = KEY.fullmatch(key)
                if match is None or tensor.ndim != 2:
                    raise _unsupported(f"it holds {key}, which is not a LoRA matrix")
                if tensor.dtype not in kinds:
                    raise _unsupported(f"{key} is stored as {tensor.dtype}")
                if not tensor.isfinite().all():
                    raise _damaged(f"{key} holds NaN or infinite numbers")
                found.setdefault(match[1], {})[match[2]] = tuple(tensor.shape)
    except (SafetensorError, OSError) as error:
        raise _damaged(f"{WEIGHTS}: {error}") from error
    if not found:
        raise _damaged(f"{WEIGHTS} is empty")
    return {module: _join(module, both) for module, both in found.items()}


def check_fit(base: Any, name: str, shapes: Mapping[str, tuple[int, int, int]]) -> None:
    """Refuse what has no place in the model ``base``, which is called ``name``.

    Raises:
        ShammahError: ``adapter_unsupported`` or ``adapter_wrong_base``.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for module, (inputs, _, outputs) in shapes.items():
        try:
            layer: Any = base.get_submodule(module)
        except AttributeError:
            raise _wrong_base(name, f"it adapts {module}, which {name} lacks") from None
        if isinstance(layer, nn.Linear):
            sizes = (layer.in_features, layer.out_features)
        elif isinstance(layer, Conv1D):
            sizes = (layer.weight.shape[0], layer.weight.shape[1])
        else:
            raise _unsupported(f"it adapts {module}, which is not a linear layer")
        if (inputs, outputs) != sizes:
            both = "{}x{}, and {} has {}x{}".format(inputs, outputs, name, *sizes)
            raise _wrong_base(name, f"its {module} is of {both}")


def _judge(
    base: Any,
    located: LocatedModel,
    directory: Path,
    given: tuple[Example, ...],
    advance: Callable[[], object],
) -> GateFigures:
    from workers.train.adapter import load_lora
    from workers.train.encoding import ChatEncoder, encode_all
    from workers.train.general import gate_facts, gate_questions

    plan = TrainingPlan()
    encoder = ChatEncoder.load(located.directory)
    held_out, _ = encode_all(encoder, given[-MOST_EXAMPLES:], plan.max_tokens)
    names = names_in(given, encoder.is_word)
    adapter, report = load_lora(base, directory), lambda detail: advance()
    gate = Gate(
        adapter,
        encoder,
        questions=gate_questions(),
        held_out=held_out,
        names=names,
        micro_tokens=plan.micro_tokens,
        report=report,
        facts=gate_facts(),
    )
    return gate.measure()


def _check_memory(located: LocatedModel, arithmetic: Arithmetic) -> None:
    """What is computed is what a training computes that keeps nothing."""
    if arithmetic.device == "cuda":
        return  # a GPU that is full says so itself
    directory, width = located.directory, 4 if arithmetic.dtype == "float32" else 2
    tokens = TrainingPlan().micro_tokens
    needs = estimate(shape_of(directory), parameters_of(directory), 0, tokens, width).least
    free = free_memory()
    if needs > free:
        raise ShammahError(
            "out_of_memory",
            f"Judging the adapter needs {needs / GIB:.1f} GiB, and {free / GIB:.1f} GiB of memory "
            "are free.",
            "Close other programs (`shammah stop inference` frees the memory of the local model).",
        )


def _report_origin(config: Mapping[str, Any]) -> dict[str, Any]:
    modules = config.get("target_modules") or []
    return {
        "source": IMPORTED,
        "made_for": str(config.get("base_model_name_or_path") or ""),
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "target_modules": modules if isinstance(modules, str) else sorted(map(str, modules)),
    }


def _join(module: str, both: Mapping[str, tuple[int, ...]]) -> tuple[int, int, int]:
    if len(both) < 2:
        raise _damaged(f"{module} lacks one of its two matrices")
    down, up = both["A"], both["B"]
    if down[0] != up[1] or 0 in (*down, *up):
        raise _damaged(f"{module} has matrices {down} and {up}, which do not match")
    return down[1], down[0], up[0]


def _missing(source: Path, name: str) -> ShammahError:
    pickled = name == WEIGHTS and (source / "adapter_model.bin").exists()
    why = f"There is no {name} in {source}."
    if pickled:
        why = f"{source} holds adapter_model.bin, a pickle: reading one runs what is in it."
    return ShammahError(
        "adapter_unsupported" if pickled else "adapter_damaged",
        why,
        "Save it as adapter_model.safetensors (peft's save_pretrained does)."
        if pickled
        else f"Name a directory in PEFT's layout: {CONFIG} and {WEIGHTS}.",
    )


def _damaged(why: str) -> ShammahError:
    return ShammahError(
        "adapter_damaged", f"The adapter is damaged: {why}.", "Save it, or download it, again."
    )


def _unsupported(why: str) -> ShammahError:
    return ShammahError(
        "adapter_unsupported",
        f"This adapter cannot be used here: {why}.",
        "Only plain LoRA works: two matrices next to a linear layer.",
    )


def _wrong_base(name: str, why: str) -> ShammahError:
    return ShammahError(
        "adapter_wrong_base",
        f"The adapter was made for another model than {name}: {why}.",
        "Use --model with the one it was made for.",
    )
