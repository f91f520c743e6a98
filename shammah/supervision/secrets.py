"""Which worker gets which secret. Pure."""

from __future__ import annotations

from collections.abc import MutableMapping

SECRETS = {
    "ANTHROPIC_API_KEY": "cloud",
    "ANTHROPIC_AUTH_TOKEN": "cloud",
    "ANTHROPIC_CUSTOM_HEADERS": "cloud",
    "HF_TOKEN": "download",
    "HUGGING_FACE_HUB_TOKEN": "download",
}
"""Environment variable to the only role that gets it."""


def take_secrets(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Return a copy of ``environ`` and remove the secrets from the original, so only the worker
    that needs a secret gets it (see `shammah.supervision.lifecycle.worker_spec`)."""
    kept = dict(environ)
    for name in SECRETS:
        environ.pop(name, None)
    return kept
