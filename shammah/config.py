"""Settings: what they are, where they come from, and which worker they ask for.

Order, later wins: defaults, ``<home>/config.toml``, environment, command line. Pure: the
environment and the command line are passed in.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shammah.bus.messages import Identity
from shammah.errors import ExitCode, ShammahError
from shammah.models import hub_cache, is_choice


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """The local model."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""
    engine: str = "auto"
    """auto, native (8-bit weights on the CPU) or transformers."""
    quantization: str = "auto"
    """auto, none or int8."""
    max_new_tokens: int = 1024
    """Longest answer, in tokens."""
    context_length: int = 0
    """Longest conversation, in tokens; 0: what the model and the memory allow."""
    kv_memory: float = 0.0
    """GiB for the keys and values of conversations; 0: half of what is free after loading."""
    queue: int = 64
    """Questions that may wait for the local model; more are refused as busy."""
    keep_alive: float = 300.0
    """Seconds that an unused model stays in memory; 0: leave at once, -1: stay for ever."""


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Claude."""

    api_key: str = ""
    """ANTHROPIC_API_KEY wins over this; without either, nothing is ever sent."""
    base_url: str = ""
    """ANTHROPIC_BASE_URL wins over this; empty: Anthropic's own address."""
    model: str = "claude-sonnet-5-5"
    """Any model name that the API knows."""
    max_tokens: int = 4096
    """Longest answer, in tokens."""
    keep_alive: float = 300.0
    """Seconds that the unused worker stays."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a person can set. ``configs/default.toml`` is held equal to this by a test."""

    home: Path
    model: str = "auto"
    """auto (by memory), starter, a size (0.5B, 1.5B, 3B, 7B, 14B), a Hub id or a directory."""
    licence: str = "any"
    """any, or permissive: then auto chooses no model whose licence forbids commercial use."""
    system: str = ""
    """System prompt for every question, local and cloud."""
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)

    @property
    def cloud_configured(self) -> bool:
        return bool(self.cloud.api_key)

    @property
    def permissive(self) -> bool:
        """Whether ``auto`` leaves out what may not be used commercially."""
        return self.licence == "permissive"


ENVIRONMENT = {
    "SHAMMAH_MODEL": ("model",),
    "ANTHROPIC_API_KEY": ("cloud", "api_key"),
    "ANTHROPIC_BASE_URL": ("cloud", "base_url"),
}
"""Environment variable to setting. SHAMMAH_HOME moves the home itself."""

PUBLIC_HUB = "https://huggingface.co"
HUB_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
"""What huggingface_hub reads that makes one download worker differ from another."""

LICENCES = ("any", "permissive")

_CHOICES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("licence",): LICENCES,
    ("inference", "device"): ("auto", "cpu", "cuda", "mps"),
    ("inference", "dtype"): ("auto", "float32", "bfloat16", "float16"),
    ("inference", "engine"): ("auto", "native", "transformers"),
    ("inference", "quantization"): ("auto", "none", "int8"),
}
_AT_LEAST: dict[tuple[str, ...], int] = {
    ("inference", "max_new_tokens"): 1,
    ("inference", "context_length"): 0,
    ("inference", "kv_memory"): 0,
    ("inference", "queue"): 1,
    ("inference", "keep_alive"): -1,
    ("cloud", "max_tokens"): 1,
    ("cloud", "keep_alive"): -1,
}


def home_directory(environ: Mapping[str, str]) -> Path:
    """``$SHAMMAH_HOME``, else ``~/.shammah``."""
    named = environ.get("SHAMMAH_HOME")
    return Path(named).absolute() if named else Path(os.path.expanduser("~/.shammah"))


def load_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> Settings:
    """The settings in force; ``model`` and ``licence`` are those of the command line.

    Raises:
        ShammahError: ``config_invalid``, naming the file, the key and what was expected.
    """
    home = home_directory(environ)
    document = _read(home / "config.toml")
    for variable, path in ENVIRONMENT.items():
        if environ.get(variable):
            _put(document, path, environ[variable])
    if model:
        document["model"] = model
    if licence:
        document["licence"] = licence
    settings: Settings = _build(Settings(home), document, (), home / "config.toml")
    named = settings.model
    if not is_choice(named) and (named.startswith(("~", ".", "/")) or os.path.isdir(named)):
        # The worker has another working directory.
        settings = replace(settings, model=os.path.abspath(os.path.expanduser(named)))
    return settings


def identity(
    settings: Settings,
    role: str,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
    stand_in: bool = False,
) -> Identity:
    """What a worker of ``role`` must have been started with to serve these settings.

    ``stand_in``: the starter may answer when the model chosen by memory cannot be had. Only
    ``auto`` chooses, so only there it makes a difference, as the licence does.
    """
    if role == "inference":
        parts = [settings.model, settings.inference.device, settings.inference.dtype]
        parts += [str(settings.inference.max_new_tokens), str(settings.home)]
        parts += [str(settings.inference.context_length), str(settings.inference.kv_memory)]
        parts += [settings.inference.engine, settings.inference.quantization]
        parts += [f"stand_in={stand_in and settings.model == 'auto'}", str(hub_cache(environ))]
        parts += [f"permissive={settings.permissive and settings.model == 'auto'}"]
        model = settings.model
    elif role == "cloud":
        parts = [settings.cloud.base_url, settings.cloud.model, str(settings.cloud.max_tokens)]
        parts += [settings.cloud.api_key, str(settings.home)]
        model = settings.cloud.model
    else:
        parts = [str(settings.home), str(hub_cache(environ))]
        parts += [environ.get(name, "") for name in HUB_VARIABLES]
        model = (environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/")
    joined = "\0".join([role, *parts])
    digest = hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return Identity(role, model, digest)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise _invalid(path, f"it cannot be read ({error})") from error
    import tomllib  # 10 ms that a home without a config file need not spend

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        # Beside TOMLDecodeError: a number of 5,000 digits, a table 1,000 levels deep.
        raise _invalid(path, f"it is not TOML ({error})") from error


def _put(document: dict[str, Any], path: tuple[str, ...], value: str) -> None:
    *tables, key = path
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            return  # `_build` names the wrong type.
        document = inner
    document[key] = value


def _build(base: Any, document: Mapping[str, Any], path: tuple[str, ...], file: Path) -> Any:
    """``base`` with the values of ``document``, each checked against the default's type."""
    known = {f.name for f in fields(base)} - {"home"}
    changes = {}
    for key, value in document.items():
        here = (*path, key)
        if key not in known:
            import difflib  # only for the error's hint

            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {'.'.join((*path, near[0]))}?" if near else ""
            raise _invalid(file, f"there is no setting {'.'.join(here)}", hint)
        default = getattr(base, key)
        changes[key] = (
            _build(default, _checked(value, dict, here, file), here, file)
            if isinstance(default, (InferenceSettings, CloudSettings))
            else _checked(value, type(default), here, file)
        )
    return replace(base, **changes)


def _checked(value: Any, expected: type, path: tuple[str, ...], file: Path) -> Any:
    name = ".".join(path)
    if expected is float and type(value) is int:
        with contextlib.suppress(OverflowError):
            value = float(value)
    finite = not isinstance(value, float) or math.isfinite(value)
    if type(value) is not expected or not finite:
        words = {str: "text", int: "a whole number", float: "a number", dict: "a table"}
        found = "what it is" if name == "cloud.api_key" else f"{value!r:.40}"
        raise _invalid(file, f"{name} must be {words[expected]}, not {found}")
    choices = _CHOICES.get(path)
    if choices and value not in choices:
        raise _invalid(file, f"{name} must be one of {', '.join(choices)}, not {value!r:.40}")
    least = _AT_LEAST.get(path)
    if least is not None and isinstance(value, int | float) and value < least:
        raise _invalid(file, f"{name} must be at least {least}, not {value}")
    return value


def _invalid(file: Path, why: str, hint: str = "") -> ShammahError:
    return ShammahError(
        "config_invalid",
        f"{file}: {why}.",
        hint or "configs/default.toml lists every setting.",
        exit_code=ExitCode.USAGE,
    )
