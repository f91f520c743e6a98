"""Reads a checkpoint's weights into a transformers model, and nothing but whole ones.

Imports torch and transformers: only an engine that is loading imports this.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from shammah.supervision.oom_record import CLOSE_OTHERS
from workers.inference.engine import LoadObserver, Placement
from workers.inference.engines.transformers.mapped_files import giving_back
from workers.inference.engines.transformers.quantization import compute_alike, quantizer_config
from workers.inference.memory import gpu_failed, is_out_of_memory
from workers.inference.packages.checkpoint import Checkpoint
from workers.model_classes import first_line, observed, read_model


def read_weights(
    model_class: Any, checkpoint: Checkpoint, form: Placement, observer: LoadObserver
) -> Any:
    """Return a ``model_class`` with the checkpoint's weights, ready to compute.

    Args:
        model_class: see `workers.model_classes.find_class`.
        checkpoint: the model.
        form: where and how they are to be held.
        observer: advances with each tensor.

    Raises:
        ShammahError: ``model_config_invalid``, ``model_corrupt`` or ``out_of_memory``.
    """
    dtype: torch.dtype = getattr(torch, form.dtype)
    read = giving_back(checkpoint.weights, observer.advance)
    with _explained(form.device):
        if not form.quantization:
            with observed(read):
                model = read_model(model_class, checkpoint.directory, dtype)
                return model.to(form.device).eval()

        def advance() -> None:
            read()
            release_freed_memory()

        with observed(advance):
            model = read_model(
                model_class,
                checkpoint.directory,
                dtype,
                device_map={"": form.device},
                quantization_config=quantizer_config(dtype),
            ).eval()
        compute_alike(model)
        return model


def release_freed_memory() -> None:
    """Let the system have freed memory again, where glibc would hold on to it.

    What is left of a matrix is smaller, and lies where it was: the next matrix does not fit
    there. So a model of small matrices would take its whole size after all.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
                f"{device} ran out of memory while reading the weights.",
                CLOSE_OTHERS,
            ) from error
        if device != "cpu" and isinstance(error, RuntimeError | AssertionError):
            raise gpu_failed(error) from error
        damaged = isinstance(error, OSError | SafetensorError)
        raise ShammahError(
            "model_corrupt" if damaged else "model_config_invalid",
            f"transformers cannot {'read the weights' if damaged else 'build the model'}: "
            f"{first_line(error)}",
            FETCH_AGAIN,
        ) from error
