"""From a GGUF file, or its shards, to a model of llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from workers.inference.engines.llamacpp.library import Library, ProgressCallback

_LONGEST_VALUE = 256
"""Bytes of a value of the file's header that is of interest."""


_UNKNOWN = ("unknown model architecture", "unknown pre-tokenizer type", "unknown tokenizer")
"""What llama.cpp says of models that came after it, in its own words."""


class Model:
    """A model that llama.cpp has read. `close` gives its memory back."""

    def __init__(self, library: Library, pointer: int) -> None:
        self.library = library
        self.pointer = pointer
        self.vocabulary: int = library.llama_model_get_vocab(pointer)
        """llama.cpp's, which belongs to the model."""

    def value(self, key: str) -> str:
        """A value of the file's header as text; empty: there is none."""
        buffer = ctypes.create_string_buffer(_LONGEST_VALUE)
        self.library.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def close(self) -> None:
        if self.pointer:
            self.library.llama_model_free(self.pointer)
        self.pointer = 0

    def __del__(self) -> None:
        self.close()


def read_model(
    library: Library,
    files: Sequence[Path],
    *,
    layers_on_gpu: int = 0,
    vocabulary_only: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Model:
    """Read the model in ``files``: one, or all its shards in order.

    Args:
        layers_on_gpu: -1 for all.
        vocabulary_only: without weights: it cannot compute.
        advance: is called as the weights come.

    Raises:
        ShammahError: ``model_corrupt`` or ``model_unsupported``, with llama.cpp's reason.
    """
    parameters = library.llama_model_default_params()
    parameters.n_gpu_layers = layers_on_gpu
    parameters.vocab_only = vocabulary_only

    def go_on(share: float, _: object) -> bool:
        advance()
        return True

    progress = ProgressCallback(go_on)
    parameters.progress_callback = ctypes.cast(progress, ctypes.c_void_p)
    library.failures()
    names = [str(path).encode() for path in files]
    if len(names) == 1:
        pointer = library.llama_model_load_from_file(names[0], parameters)
    else:
        array = (ctypes.c_char_p * len(names))(*names)
        pointer = library.llama_model_load_from_splits(array, len(names), parameters)
    if not pointer:
        why = library.failures() or "it gives no reason"
        new = any(one in why for one in _UNKNOWN)
        raise ShammahError(
            "model_unsupported" if new else "model_corrupt",
            f"llama.cpp cannot read {files[0].name} ({why}).",
            "Choose another model with --model." if new else FETCH_AGAIN,
        )
    return Model(library, pointer)
