"""Paths that the environment names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from shammah.errors import ExitCode, ShammahError


def absolute(path: str) -> Path:
    """Return ``path`` made absolute, with ``~`` and ``$NAME`` replaced.

    Raises:
        ShammahError: ``directory_gone``: it is relative, and the working directory is gone.
    """
    meant = Path(os.path.expandvars(os.path.expanduser(path)))
    try:
        return meant.absolute()
    except FileNotFoundError:
        why = f"{meant} is relative to the working directory, which no longer exists."
        hint = "Change to another directory, or give an absolute path."
        raise ShammahError("directory_gone", why, hint, exit_code=ExitCode.USAGE) from None


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the Hugging Face cache, found as huggingface_hub finds it."""
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = environ.get("HF_HOME") or os.path.join(cache, "huggingface")
    default = os.path.join(home, "hub")
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or default
    return absolute(named)
