"""Reads a checkpoint's weights into a transformers model, and nothing but whole ones.

Imports torch and transformers: only an engine that is loading imports this.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils import logging as transformers_logging

from shammah.errors import ShammahError
from workers.inference.checkpoint import Checkpoint
from workers.inference.engine import LoadObserver
from workers.inference.mapped_files import giving_back
from workers.inference.memory import is_out_of_memory
from workers.inference.placement import Form
from workers.inference.quantization import (
    compute_alike,
    is_whole,
    keep,
    kept_directory,
    quantizer_config,
)

log = logging.getLogger(__name__)

_LAYER = re.compile(r"\.\d+\.")
_FETCH_AGAIN = "Fetch the model again, or name another one with --model."


def find_class(checkpoint: Checkpoint) -> Any:
    """The class of transformers that computes this architecture; imports its module.

    Raises:
        ShammahError: ``model_unsupported`` or ``model_config_invalid``.
    """
    if checkpoint.model_type not in CONFIG_MAPPING:
        raise _unsupported(checkpoint)
    try:
        config = AutoConfig.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        # transformers raises whatever its validation came across.
        raise ShammahError(
            "model_config_invalid",
            f"transformers cannot use the model's configuration: {_first_line(error)}",
            _FETCH_AGAIN,
        ) from error
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if found is None or not found._supports_default_dynamic_cache():
        raise _unsupported(checkpoint)
    return found


def read_weights(
    model_class: Any,
    checkpoint: Checkpoint,
    form: Form,
    device: str,
    observer: LoadObserver,
    home: Path,
) -> Any:
    """A ``model_class`` with the checkpoint's weights, on ``device``, ready to compute.

    Args:
        model_class: see `find_class`.
        checkpoint: the model.
        form: how they are to be held.
        device: where.
        observer: is told of each tensor.
        home: where quantised weights are kept.

    Raises:
        ShammahError: ``model_config_invalid``, ``model_corrupt`` or ``out_of_memory``.
    """
    dtype: torch.dtype = getattr(torch, form.dtype)
    read = giving_back(checkpoint.weights, observer.advance)
    with _explained(device):
        if not form.quantization:
            with _observed(read):
                return _read(model_class, checkpoint.directory, checkpoint, dtype).to(device).eval()
        config = quantizer_config(form.quantization, dtype)
        kept = kept_directory(home, checkpoint, form.quantization, form.dtype)
        options: dict[str, Any] = {"device_map": {"": device}}
        if is_whole(kept):
            try:
                with _observed(observer.advance):
                    return _read(model_class, kept, checkpoint, dtype, **options).eval()
            except (ShammahError, OSError, SafetensorError, ValueError) as error:
                log.warning("the quantised weights in %s are made anew: %s", kept, error)
        options["quantization_config"] = config

        def advance() -> None:
            read()
            _give_back()

        with _observed(advance):
            model = _read(model_class, checkpoint.directory, checkpoint, dtype, **options).eval()
            keep(model, kept)
        return model


def _give_back() -> None:
    """Let the system have freed memory again, where glibc would hold on to it.

    What is left of a matrix is smaller, and lies where it was: the next matrix does not fit
    beside it. So a model of small matrices would take its whole size after all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _read(
    model_class: Any, directory: Path, checkpoint: Checkpoint, dtype: torch.dtype, **options: Any
) -> Any:
    model, report = model_class.from_pretrained(
        directory,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        ignore_mismatched_sizes=True,  # reported, and refused by `_check`
        output_loading_info=True,
        **options,
    )
    _check(report, checkpoint)
    compute_alike(model)
    return model


@contextmanager
def _explained(device: str) -> Iterator[None]:
    """Turn what transformers raises into what people can do something about."""
    try:
        yield
    except ShammahError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise ShammahError(
                "out_of_memory",
                f"The memory of {device} ran out while the weights were read.",
                "Close other programs, or name a smaller model with --model.",
            ) from error
        damaged = isinstance(error, OSError | SafetensorError)
        raise ShammahError(
            "model_corrupt" if damaged else "model_config_invalid",
            f"transformers cannot {'read the weights' if damaged else 'build the model'}: "
            f"{_first_line(error)}",
            _FETCH_AGAIN,
        ) from error


def _check(report: dict[str, Any], checkpoint: Checkpoint) -> None:
    """transformers only warns where weights and configuration differ, and makes up the rest."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, held, told = mismatched[0]
        raise ShammahError(
            "model_config_invalid",
            f"The weights hold {name} as {list(held)}, but config.json says {list(told)}.",
            _FETCH_AGAIN,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ShammahError(
            "model_config_invalid",
            f"The weights lack {len(missing)} tensors that config.json asks for "
            f"({missing[0]}, ...).",
            _FETCH_AGAIN,
        )
    unexpected = sorted(report["unexpected_keys"])
    strangers = [name for name in unexpected if _LAYER.search(name)]
    if strangers:
        raise ShammahError(
            "model_config_invalid",
            f"The weights hold {len(strangers)} tensors that config.json does not describe "
            f"({strangers[0]}, ...).",
            _FETCH_AGAIN,
        )
    if unexpected:
        log.warning("%s: not used: %s", checkpoint.directory.name, ", ".join(unexpected))


@contextmanager
def _observed(advance: Callable[[], object]) -> Iterator[None]:
    """Have ``advance`` called for every tensor that is read, and no progress bar drawn."""
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def counted(bar: Callable[..., Any], arguments: Any, options: Any) -> Any:
        if not arguments:
            return bar(**options)
        return bar(_counting(arguments[0], advance), *arguments[1:], **options)

    previous = transformers_logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


def _counting(items: Any, advance: Callable[[], object]) -> Iterator[Any]:
    for item in items:
        yield item
        advance()


def _unsupported(checkpoint: Checkpoint) -> ShammahError:
    return ShammahError(
        "model_unsupported",
        f"transformers has no text generation for {checkpoint.architecture} "
        f"(model type {checkpoint.model_type!r}) built in.",
        "Name another model with --model.",
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
