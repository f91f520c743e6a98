"""What each of our programs fixes at its start: paths in variables, and the standard streams."""

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
    """Fix what every command relies on.

    Raises:
        OSError: earlier output cannot be delivered.
    """
    make_absolute(environ)
    mend_streams()


def mend_streams() -> None:
    """Make the standard streams usable for any text in any locale."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:  # closed by our parent
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the whole run
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if mode == "w" else "surrogateescape")


def make_absolute(environ: MutableMapping[str, str]) -> None:
    """Make every path in ``environ`` that libraries and workers read absolute: a worker has
    another working directory than the person who types ``HF_HOME=./hf``."""
    for name in _PATHS:
        value = environ.get(name, "")
        if value and not value.startswith("/"):
            from shammah.errors import ShammahError  # not loaded where all are absolute
            from shammah.storage.paths import absolute

            with contextlib.suppress(ShammahError):
                environ[name] = str(absolute(value))
