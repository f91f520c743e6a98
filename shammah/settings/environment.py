"""What a program of ours sets right where it begins: paths in variables, and the three streams."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import MutableMapping

_PATHS = (
    "SHAMMAH_HOME XDG_CACHE_HOME HF_HOME HF_HUB_CACHE HUGGINGFACE_HUB_CACHE HF_ASSETS_CACHE "
    "HF_TOKEN_PATH SSL_CERT_FILE SSL_CERT_DIR TMPDIR"
).split()


def prepare(environ: MutableMapping[str, str]) -> None:
    """Set right what every command relies on.

    Raises:
        OSError: what was written before cannot be delivered.
    """
    make_absolute(environ)
    mend_streams()


def mend_streams() -> None:
    """Have three streams that can be written whatever the text and the locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the whole run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if mode == "w" else "surrogateescape")


def make_absolute(environ: MutableMapping[str, str]) -> None:
    """Make every path in ``environ`` that libraries and workers read absolute: a worker has
    another working directory than the person who types ``HF_HOME=./hf``."""
    for name in _PATHS:
        value = environ.get(name, "")
        if value and not value.startswith("/"):
            from shammah.errors import ShammahError  # where all are absolute, nobody waits for it
            from shammah.storage.paths import absolute

            with contextlib.suppress(ShammahError):
                environ[name] = str(absolute(value))
