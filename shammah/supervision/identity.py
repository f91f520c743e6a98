"""Which worker the settings need: what it must have been started with. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, replace
from types import MappingProxyType

from shammah.bus.messages import Identity
from shammah.models.gguf_files import OLLAMA
from shammah.settings.model import (
    CloudSettings,
    GatewaySettings,
    PrivacySettings,
    ServerSettings,
    Settings,
)
from shammah.storage.paths import hub_cache

PUBLIC_HUB = "https://huggingface.co"
HUB_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
"""What huggingface_hub reads that makes one download worker differ from another."""

NETWORK_VARIABLES = tuple(
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY http_proxy https_proxy all_proxy no_proxy "
    "SSL_CERT_FILE SSL_CERT_DIR".split()
)
"""What changes how a worker reaches servers."""

CUSTOM_HEADERS = "ANTHROPIC_CUSTOM_HEADERS"
"""Headers that the SDK adds to every request, one ``name: value`` a line."""


def hub_endpoint(environ: Mapping[str, str]) -> str:
    """Return the address of the Hub in use."""
    return environ.get("HF_ENDPOINT") or PUBLIC_HUB


def identity(
    settings: Settings,
    role: str,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Identity:
    """Return what a worker of ``role`` must have been started with for these settings.

    Only ``auto`` chooses, so only there does the licence matter.
    """
    model, parts = _identifying(settings, role, environ)
    digests = {name: hashlib.sha256(_raw(value)) for name, value in parts.items()}
    whole = hashlib.sha256(_raw(role) + b"".join(one.digest() for one in digests.values()))
    own = tuple(f"{name}:{one.hexdigest()[:8]}" for name, one in digests.items())
    return Identity(role, model, whole.hexdigest()[:16], own)


def differing_settings(wanted: Identity, running: Identity) -> tuple[str, ...]:
    """Return the names of the settings that differ; none if the running worker is too old to
    report its own."""
    others = set(running.settings)
    return tuple(
        setting.rpartition(":")[0]
        for setting in wanted.settings
        if others and setting not in others
    )


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _identifying(
    settings: Settings, role: str, environ: Mapping[str, str]
) -> tuple[str, dict[str, str]]:
    """Return the model, and what distinguishes workers of ``role``, by the names people know."""
    parts = {"SHAMMAH_HOME": str(settings.home)}
    if settings.confine != "auto":  # workers of versions that had no such setting are as good
        parts["confine"] = settings.confine
    if role == "inference":
        names = "device dtype max_new_tokens think_tokens context_length kv_memory kv_disk engine"
        names += " quantization stop_repetition"
        own = settings.inference
        parts |= {"model": settings.model, "HF_HOME": str(hub_cache(environ))}
        parts |= {f"inference.{name}": str(getattr(own, name)) for name in names.split()}
        if settings.model.startswith(OLLAMA):
            parts["OLLAMA_MODELS"] = environ.get("OLLAMA_MODELS", "")
        if settings.server:
            parts |= _fields(f"servers.{settings.server}", settings.local_server())
        parts["licence"] = f"permissive={settings.permissive and settings.model == 'auto'}"
        return settings.model, parts
    if role == "cloud":
        # keep_alive makes no answer differ; everything else of both tables may.
        parts |= _fields("cloud", replace(settings.cloud, keep_alive=0.0))
        parts |= _fields("privacy", settings.privacy)
        parts |= {name: environ.get(name, "") for name in (CUSTOM_HEADERS, *NETWORK_VARIABLES)}
        if settings.provider is not None:
            parts |= _fields(f"servers.{settings.cloud.provider}", settings.provider)
        return settings.cloud_model, parts
    if role == "servers":
        parts |= _fields("privacy", settings.privacy)
        for name, server in settings.beside.items():
            parts |= _fields(f"servers.{name}", server)
        return settings.model, parts
    if role == "gateway":  # which starts the others, and nobody asks it by the bus
        parts |= {"model": settings.model, "licence": settings.licence}
        parts |= _fields("gateway", settings.gateway)
        return "", parts
    parts["HF_HOME"] = str(hub_cache(environ))
    if role == "train":  # each training names its own model
        parts["train.from_cloud"] = str(settings.train.from_cloud)
        return "", parts
    parts |= {name: environ.get(name, "") for name in (*HUB_VARIABLES, *NETWORK_VARIABLES)}
    return hub_endpoint(environ).rstrip("/"), parts


def _fields(
    table: str, values: CloudSettings | PrivacySettings | GatewaySettings | ServerSettings
) -> dict[str, str]:
    return {f"{table}.{one.name}": repr(getattr(values, one.name)) for one in fields(values)}
