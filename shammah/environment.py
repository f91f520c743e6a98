"""Variables that name files and directories, made absolute where a program of ours begins.

A worker has another working directory than the person who types ``HF_HOME=./hf``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import MutableMapping
from pathlib import Path

_PATHS = (
    *("SHAMMAH_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"),
    *("HF_ASSETS_CACHE", "HF_TOKEN_PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "TMPDIR"),
)


def absolute(path: str) -> Path:
    """``path`` with ``~`` and ``$NAME`` replaced, from the working directory on.

    Raises:
        FileNotFoundError: it is relative, and the working directory is gone.
    """
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()


def make_absolute(environ: MutableMapping[str, str]) -> None:
    """Make every path in ``environ`` that libraries and workers read absolute."""
    for name in _PATHS:
        value = environ.get(name, "")
        if value and not value.startswith("/"):
            with contextlib.suppress(FileNotFoundError):
                environ[name] = str(absolute(value))
