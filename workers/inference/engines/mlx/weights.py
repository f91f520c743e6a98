"""Reads a checkpoint's weights into a model of mlx-lm's, as published or in 8 or 4 bits.

The bits are mlx's own: groups of 64 weights of a row share a scale and an offset. A model is
quantised once, tensor by tensor as it is read, and kept in the home's ``quantized/`` as
``<digest>.safetensors``, which appears whole or not at all; later loads read nothing of the
original weights.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from shammah.storage.disk import describe_remedy
from shammah.storage.files import new_file
from workers.inference.engine import Placement
from workers.inference.engines.mlx.architecture import MODULES, model_config
from workers.inference.engines.mlx.kv_slots import attend_by_sequences
from workers.inference.engines.mlx.spec import GROUP, LIBRARY, kept_path
from workers.inference.packages.checkpoint import Checkpoint
from workers.inference.packages.safetensors_header import read_header
from workers.model_classes import first_line, not_finite

log = logging.getLogger(__name__)

BITS = {"int8": 8, "int4": 4}

_EIGHT = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|v_proj)$")
"""What keeps 8 bits in ``int4``: rounding the smallest matrices does the greatest damage, and the
output layer's goes straight into the choice of the token (as in the native engine)."""


def import_models() -> None:
    """Have ``mlx_lm.models`` importable without the package around it.

    That would import transformers with torch (2 s, 400 MB) for its tokenizer, and lower this
    process's limit of open files.
    """
    if LIBRARY not in sys.modules:
        spec = importlib.util.find_spec(LIBRARY)
        assert spec is not None  # the obstacle says so
        sys.modules[LIBRARY] = importlib.util.module_from_spec(spec)
        attend_by_sequences(LIBRARY)
    importlib.import_module(f"{LIBRARY}.models.cache")


def read_weights(
    checkpoint: Checkpoint, form: Placement, home: Path, advance: Callable[[], None]
) -> tuple[Any, str]:
    """Return a model with the checkpoint's weights, and what people should know about it.

    Args:
        checkpoint: the model.
        form: how its weights are to be held.
        home: where quantised ones are kept.
        advance: called after each tensor.

    Raises:
        ShammahError: ``model_config_invalid`` or ``model_corrupt``.
        RuntimeError: memory ran out, or the GPU failed.
    """
    kept = kept_path(home, checkpoint, form.quantization, form.dtype) if form.quantization else None
    try:
        if kept is not None and kept.exists():
            try:
                read_header(kept)
                return _fill(_make(checkpoint), mx.load(str(kept)), advance), ""
            except (OSError, ValueError, RuntimeError) as error:
                log.warning("making the quantised weights in %s again: %s", kept, error)
        model = _make(checkpoint)
        weights = _read(model, checkpoint, getattr(mx, form.dtype))
        model.load_weights(list(weights.items()), strict=True)
        del weights  # so that each tensor is freed when it has been quantised
        if form.quantization:
            _quantise(model, BITS[form.quantization])
        _compute(model, advance)
    except (OSError, LookupError, TypeError, ValueError, AssertionError) as error:
        raise ShammahError(
            "model_corrupt" if isinstance(error, OSError) else "model_config_invalid",
            f"mlx cannot build the model: {first_line(error)}",
            FETCH_AGAIN,
        ) from error
    return model, _keep(model, kept) if kept is not None else ""


def check_finite(model: Any) -> None:
    """Refuse weights that no training can have left behind. Reads all of them.

    Raises:
        ShammahError: ``model_corrupt``, with the name of the tensor.
    """
    for name, array in tree_flatten(model.parameters()):
        if mx.issubdtype(array.dtype, mx.floating) and not mx.isfinite(array).all():
            raise not_finite(name)


def _make(checkpoint: Checkpoint) -> Any:
    """Return the model with weights that are computed only if they are not replaced."""
    module = importlib.import_module(f"{LIBRARY}.models.{MODULES[checkpoint.model_type]}")
    return module.Model(module.ModelArgs.from_dict(model_config(checkpoint)))


def _read(model: Any, checkpoint: Checkpoint, dtype: mx.Dtype) -> dict[str, mx.array]:
    """Return the weights under the names that ``model`` has for them; nothing is read yet."""
    weights: dict[str, Any] = {}
    for path in checkpoint.weights:
        weights.update(mx.load(str(path)))
    if hasattr(model, "sanitize"):
        weights = model.sanitize(weights)
    casts = getattr(model, "cast_predicate", lambda name: True)
    return {
        name: array.astype(dtype)
        if mx.issubdtype(array.dtype, mx.floating) and casts(name)
        else array
        for name, array in weights.items()
    }


def _quantise(model: Any, bits: int) -> None:
    own = getattr(model, "quant_predicate", None) or (lambda name, module: True)

    def choose(name: str, module: Any) -> Any:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % GROUP:
            return False
        chosen = own(name, module)
        return (
            {"group_size": GROUP, "bits": 8} if chosen is True and _EIGHT.search(name) else chosen
        )

    nn.quantize(model, GROUP, bits, class_predicate=choose)


def _fill(model: Any, weights: Any, advance: Callable[[], None]) -> Any:
    """Put quantised ``weights`` into a model that is not quantised yet."""

    def choose(name: str, module: Any) -> Any:
        scales = weights.get(f"{name}.scales")
        if scales is None:
            return False
        inputs = module.weight.shape[-1]
        bits = weights[f"{name}.weight"].shape[-1] * 32 // inputs
        return {"group_size": inputs // scales.shape[-1], "bits": bits}

    nn.quantize(model, class_predicate=choose)
    model.load_weights(list(weights.items()), strict=True)
    _compute(model, advance)
    return model


def _compute(model: Any, advance: Callable[[], None]) -> None:
    """Read, cast and quantise: one tensor after the other, so that their sources are never all
    there at once."""
    model.eval()
    for _, array in tree_flatten(model.parameters()):
        mx.eval(array)
        advance()
    mx.clear_cache()


def _keep(model: Any, path: Path) -> str:
    """Save a quantised ``model``; it appears whole, or not at all.

    What cannot be saved is only slower the next time, so that is no error, but a sentence for
    people; empty: it was saved.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with new_file(path) as draft, draft.open("wb") as file:
            mx.save_safetensors(file, dict(tree_flatten(model.parameters())))
        return ""
    except Exception as error:
        # mlx has errors of its own for a full disk.
        log.warning("cannot write the quantised weights to %s: %s", path, error)
        return (
            f"Couldn't write the quantised weights to {path.parent}, so they are made again at "
            f"each start. {describe_remedy(path.parent)}"
        )
