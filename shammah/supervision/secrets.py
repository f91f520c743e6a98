"""Which secret is for which worker. Pure."""

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
    """A copy of ``environ``, which itself loses its secrets: so no child but the worker that a
    secret is for is ever given it (see
    `shammah.supervision.lifecycle.worker_spec`)."""
    kept = dict(environ)
    for name in SECRETS:
        environ.pop(name, None)
    return kept
