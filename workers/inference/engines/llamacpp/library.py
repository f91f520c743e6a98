"""llama.cpp, as the wheel of xllamacpp carries it: its C functions, called through ctypes.

The wheel is one shared object. What it offers Python is an HTTP server, so it is not imported:
the functions of llama.h are exported beside that, and are all that is needed.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any

from shammah.errors import ShammahError
from workers.environment import prepare_libraries
from workers.inference.engines.llamacpp.spec import INSTALL
from workers.inference.engines.llamacpp.structures import (
    Batch,
    ContextParameters,
    ModelParameters,
    differences,
)

PACKAGE = "xllamacpp"

log = logging.getLogger(__name__)

_ERROR = 4
"""``GGML_LOG_LEVEL_ERROR``."""

_GPUS = (1, 2)
"""Types of devices: those with memory of their own, and those with the processor's."""

_REPORTED = 4
"""Of the errors before a failure, so many say why."""

_AbortCallback = ctypes.CFUNCTYPE(None, ctypes.c_char_p)
_LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
ProgressCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)

_pointer, _text, _size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
_int, _bool = ctypes.c_int32, ctypes.c_bool
_PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "llama_backend_init": (None,),
    "ggml_set_abort_callback": (_pointer, _AbortCallback),
    "llama_log_set": (None, _LogCallback, _pointer),
    "llama_supports_gpu_offload": (_bool,),
    "ggml_backend_dev_count": (_size,),
    "ggml_backend_dev_get": (_pointer, _size),
    "ggml_backend_dev_type": (_int, _pointer),
    "ggml_backend_dev_memory": (None, _pointer, ctypes.POINTER(_size), ctypes.POINTER(_size)),
    "llama_model_default_params": (ModelParameters,),
    "llama_model_load_from_file": (_pointer, _text, ModelParameters),
    "llama_model_load_from_splits": (_pointer, ctypes.POINTER(_text), _size, ModelParameters),
    "llama_model_free": (None, _pointer),
    "llama_model_get_vocab": (_pointer, _pointer),
    "llama_model_chat_template": (_text, _pointer, _text),
    "llama_model_meta_val_str": (_int, _pointer, _text, _pointer, _size),
    "llama_model_ftype": (_int, _pointer),
    "llama_ftype_name": (_text, _int),
    "llama_model_is_recurrent": (_bool, _pointer),
    "llama_model_is_hybrid": (_bool, _pointer),
    "llama_model_is_diffusion": (_bool, _pointer),
    "llama_model_has_encoder": (_bool, _pointer),
    "llama_model_has_decoder": (_bool, _pointer),
    "llama_context_default_params": (ContextParameters,),
    "llama_init_from_model": (_pointer, _pointer, ContextParameters),
    "llama_free": (None, _pointer),
    "llama_n_ctx": (ctypes.c_uint32, _pointer),
    "llama_n_batch": (ctypes.c_uint32, _pointer),
    "llama_n_ubatch": (ctypes.c_uint32, _pointer),
    "llama_n_seq_max": (ctypes.c_uint32, _pointer),
    "llama_n_threads": (_int, _pointer),
    "llama_n_threads_batch": (_int, _pointer),
    "llama_batch_init": (Batch, _int, _int, _int),
    "llama_batch_free": (None, Batch),
    "llama_decode": (_int, _pointer, Batch),
    "llama_get_logits_ith": (_pointer, _pointer, _int),
    "llama_get_memory": (_pointer, _pointer),
    "llama_memory_seq_rm": (_bool, _pointer, _int, _int, _int),
    "llama_memory_seq_cp": (None, _pointer, _int, _int, _int, _int),
    "llama_state_get_size": (_size, _pointer),
    "llama_state_get_data": (_size, _pointer, _pointer, _size),
    "llama_state_set_data": (_size, _pointer, _pointer, _size),
    "llama_state_seq_get_size": (_size, _pointer, _int),
    "llama_vocab_n_tokens": (_int, _pointer),
    "llama_vocab_get_text": (_text, _pointer, _int),
    "llama_vocab_get_attr": (_int, _pointer, _int),
    "llama_vocab_is_eog": (_bool, _pointer, _int),
    "llama_vocab_bos": (_int, _pointer),
    "llama_vocab_eos": (_int, _pointer),
    "llama_tokenize": (_int, _pointer, _pointer, _int, _pointer, _int, _bool, _bool),
    "llama_token_to_piece": (_int, _pointer, _int, _pointer, _int, _int, _bool),
}
"""Function to what it returns and what it takes."""


class Library:
    """The functions of llama.h as attributes, by their names.

    Raises:
        ShammahError: ``engine_unavailable``: the shared object cannot be used.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            for name, (result, *arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
                setattr(self, name, function)
        except (OSError, AttributeError) as error:
            raise unavailable(f"it cannot be loaded ({error})") from error
        self._errors: deque[str] = deque(maxlen=_REPORTED)
        # Kept: C code calls them.
        self._log, self._abort = _LogCallback(self._take_log), _AbortCallback(_take_end)
        self.llama_log_set(self._log, None)
        self.ggml_set_abort_callback(self._abort)
        self._check()
        self.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def failures(self) -> str:
        """What has gone wrong since this was asked last, in llama.cpp's own words."""
        found = "; ".join(dict.fromkeys(self._errors))
        self._errors.clear()
        return found

    def free_gpu_memory(self) -> int | None:
        """Bytes that are free on the first GPU that llama.cpp computes on; ``None``: on none."""
        if not self.llama_supports_gpu_offload():
            return None
        every = map(self.ggml_backend_dev_get, range(self.ggml_backend_dev_count()))
        gpu = next((one for one in every if self.ggml_backend_dev_type(one) in _GPUS), None)
        if gpu is None:
            return None
        free, total = _size(), _size()
        self.ggml_backend_dev_memory(gpu, free, total)
        return free.value

    def _take_log(self, level: int, text: bytes, _: Any) -> None:
        line = text.decode("utf-8", "replace").strip()
        if level == _ERROR and line:
            self._errors.append(line.partition(": ")[2] or line)
            log.warning("llama.cpp: %s", line)

    def _check(self) -> None:
        """Whether structures are laid out as expected, before any is handed over."""
        batch: Batch = self.llama_batch_init(1, 0, 1)
        wrong = list(
            differences(
                self.llama_model_default_params(), self.llama_context_default_params(), batch
            )
        )
        if wrong:
            raise unavailable(f"it has another layout of {', '.join(wrong[:3])}")
        self.llama_batch_free(batch)


def _take_end(message: bytes) -> None:
    """Write down why the process is about to end: an assertion in C has failed."""
    log.critical("llama.cpp ends the worker: %s", message.decode("utf-8", "replace"))


def installed() -> Path | None:
    """The shared object of the installed wheel; ``None``: there is none."""
    spec = importlib.util.find_spec(PACKAGE)
    places = spec.submodule_search_locations or () if spec else ()
    return next((path for place in places for path in Path(place).glob(f"{PACKAGE}*.so")), None)


@functools.cache
def open_library() -> Library:
    """The installed llama.cpp, ready.

    Raises:
        ShammahError: ``engine_unavailable``.
    """
    path = installed()
    if path is None:
        raise unavailable("it is not installed")
    prepare_libraries()  # OpenMP looks once whether threads are to spin while they wait
    # A token has hundreds of short steps, after each of which the threads wait for one another: a
    # thread that slept at once would have to be woken for each.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ["GGML_NO_BACKTRACE"] = "1"  # it would have a debugger print it
    return Library(path)


def unavailable(why: str) -> ShammahError:
    try:
        name = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
    except importlib.metadata.PackageNotFoundError:
        name = PACKAGE
    return ShammahError(
        "engine_unavailable",
        f"The llamacpp engine cannot use {name}: {why}.",
        f"Install the version that Shammah was tested with: {INSTALL}",
    )
