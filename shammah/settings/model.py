"""Settings: what they are, where they come from, and which worker they ask for.

Order, later wins: defaults, ``<home>/config.toml``, environment, command line. Pure: the
environment and the command line are passed in.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shammah.bus.messages import Identity
from shammah.errors import ExitCode, ShammahError
from shammah.models.catalogue import is_choice
from shammah.models.licences import LICENCES as LICENCES
from shammah.settings.check import CheckRules, Fault, build, list_settings
from shammah.storage.paths import absolute, hub_cache

MAX_CONFIG_BYTES = 4 * 1024 * 1024
"""Of ``config.toml``, which may be a link to what has no end."""


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """The local model."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""
    engine: str = "auto"
    """auto, native (8-bit or 4-bit weights on the CPU) or transformers."""
    quantization: str = "auto"
    """auto, none, int8 or int4 (outside the native engine: with bitsandbytes installed)."""
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

    use: str = "auto"
    """auto, ask (before each question that goes there) or never (no cloud worker is started)."""
    api_key: str = ""
    """ANTHROPIC_API_KEY wins over this; without either, nothing is ever sent."""
    base_url: str = ""
    """ANTHROPIC_BASE_URL wins over this; empty: Anthropic's own address."""
    model: str = "claude-sonnet-5-5"
    """Any model name that the API knows."""
    max_tokens: int = 16384
    """Longest answer with the thinking before it, in tokens."""
    context_length: int = 0
    """Longest conversation, in tokens; 0: what is known of the model, else 200,000."""
    daily_budget: float = 0.0
    """US dollars a day (UTC); when they are spent nothing more is sent. 0: no limit."""
    input_price: float = -1.0
    """US dollars for a million tokens of the conversation; -1: what is known of the model."""
    output_price: float = -1.0
    """US dollars for a million tokens of the answer; -1: what is known of the model."""
    keep_alive: float = 300.0
    """Seconds that the unused worker stays."""


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What never leaves this machine. A question to which one of these applies is private."""

    api_keys: bool = True
    """Keys and tokens of well-known services."""
    private_keys: bool = True
    """Private keys (PEM, OpenSSH, PGP, PuTTY, JWK, WireGuard)."""
    passwords: bool = True
    """Passwords in settings, connection strings and commands."""
    emails: bool = True
    """E-mail addresses."""
    cards: bool = True
    """Payment card numbers with the right check digit."""
    ibans: bool = True
    """Bank account numbers: IBAN with the right check digits, others where they are named."""
    identity_numbers: bool = True
    """National numbers of people, with check digits or where they are named."""
    phones: bool = True
    """Telephone numbers."""
    ip_addresses: bool = False
    """IP addresses of other machines; off, since they are in almost every log."""
    words: tuple[str, ...] = ()
    """Words and names of your own; upper and lower case are the same."""
    patterns: tuple[str, ...] = ()
    """Regular expressions of your own, without look-around and back-references."""
    paths: tuple[str, ...] = ()
    """Directories and files (~ and * allowed): text from there, or that names them."""


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """Who answers what."""

    policy: str = "measured"
    """measured (local where it has proved good enough) or classic (the original's numbers)."""
    exploration: float = 0.05
    """Share of the questions with which a local model that did badly is tried again; 0: never."""


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Learning from feedback."""

    auto: bool = False
    """Learn by itself, while a prompt is open; otherwise only `shammah train` does."""
    after_examples: int = 10
    """So many new examples begin a training,"""
    idle_minutes: float = 5.0
    """or so many minutes without a question, if there is any new example."""
    on_battery: bool = False
    """Learn also while the machine runs on battery."""


@dataclass(frozen=True, slots=True)
class EditorSettings:
    """The line at the prompt."""

    keys: str = "emacs"
    """emacs or vi."""


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
    render: str = "markdown"
    """How answers look at the prompt: markdown or plain."""
    history: str = "on"
    """on, or off: no turn is kept on the disk."""
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    editor: EditorSettings = field(default_factory=EditorSettings)

    @property
    def cloud_configured(self) -> bool:
        """Whether anything may ever be asked of Claude."""
        return bool(self.cloud.api_key) and self.cloud.use != "never"

    @property
    def permissive(self) -> bool:
        """Whether ``auto`` leaves out what may not be used commercially."""
        return self.licence == "permissive"


ENVIRONMENT = {
    "SHAMMAH_MODEL": ("model",),
    "SHAMMAH_HISTORY": ("history",),
    "ANTHROPIC_API_KEY": ("cloud", "api_key"),
    "ANTHROPIC_BASE_URL": ("cloud", "base_url"),
}
"""Environment variable to setting. SHAMMAH_HOME moves the home itself."""

PUBLIC_HUB = "https://huggingface.co"
HUB_VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_OFFLINE")
"""What huggingface_hub reads that makes one download worker differ from another."""
NETWORK_VARIABLES = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"),
    *("http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
"""What makes a worker that talks to servers reach them in another way."""

CUSTOM_HEADERS = "ANTHROPIC_CUSTOM_HEADERS"
"""Headers that the SDK adds to every request, one ``name: value`` a line."""

SECRET = ("cloud", "api_key")
"""The setting whose value is never shown."""

_CHOICES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("licence",): LICENCES,
    ("render",): ("markdown", "plain"),
    ("editor", "keys"): ("emacs", "vi"),
    ("history",): ("on", "off"),
    ("cloud", "use"): ("auto", "ask", "never"),
    ("router", "policy"): ("measured", "classic"),
    ("inference", "device"): ("auto", "cpu", "cuda", "mps"),
    ("inference", "dtype"): ("auto", "float32", "bfloat16", "float16"),
    ("inference", "engine"): ("auto", "native", "transformers"),
    ("inference", "quantization"): ("auto", "none", "int8", "int4"),
}
_AT_LEAST: dict[tuple[str, ...], int] = {
    ("inference", "max_new_tokens"): 1,
    ("inference", "context_length"): 0,
    ("inference", "kv_memory"): 0,
    ("inference", "queue"): 1,
    ("inference", "keep_alive"): -1,
    ("cloud", "max_tokens"): 1,
    ("cloud", "context_length"): 0,
    ("cloud", "daily_budget"): 0,
    ("cloud", "input_price"): -1,
    ("cloud", "output_price"): -1,
    ("cloud", "keep_alive"): -1,
    ("router", "exploration"): 0,
    ("train", "after_examples"): 1,
    ("train", "idle_minutes"): 0,
}


_RULES = CheckRules(
    (
        *(InferenceSettings, CloudSettings, PrivacySettings, RouterSettings),
        *(TrainSettings, EditorSettings),
    ),
    _CHOICES,
    _AT_LEAST,
    secret=SECRET,
)


def home_directory(environ: Mapping[str, str]) -> Path:
    """``$SHAMMAH_HOME``, else ``~/.shammah``."""
    named = environ.get("SHAMMAH_HOME")
    return absolute(named or "~/.shammah")


def load_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> Settings:
    """The settings in force; ``model`` and ``licence`` are those of the command line.

    Raises:
        ShammahError: ``config_invalid``, naming the file, the line, the key and what was expected.
    """
    settings, faults = examine_settings(environ, model, licence)
    if faults:
        raise faults[0]
    return settings


def examine_settings(
    environ: Mapping[str, str], model: str | None = None, licence: str | None = None
) -> tuple[Settings, list[ShammahError]]:
    """The settings, as they come where the file is wrong, and everything that is wrong with it.

    Raises:
        ShammahError: ``config_invalid``: the file cannot be read, or is not TOML.
    """
    home = home_directory(environ)
    file = home / "config.toml"
    text = read_config(file)
    document = parse_config(text, file)
    for variable, path in ENVIRONMENT.items():
        if environ.get(variable):
            _put(document, path, environ[variable])
    if model:
        document["model"] = model
    if licence:
        document["licence"] = licence
    faults: list[Fault] = []
    settings: Settings = build(Settings(home), document, _RULES, faults)
    _check_patterns(settings.privacy, faults)
    named = settings.model
    if not is_choice(named) and (named.startswith(("~", ".", "/")) or os.path.isdir(named)):
        # The worker has another working directory.
        settings = replace(settings, model=os.path.abspath(os.path.expanduser(named)))
    return settings, [_located(fault, text, file, environ) for fault in faults]


def identity(
    settings: Settings,
    role: str,
    *,
    environ: Mapping[str, str] = MappingProxyType({}),
) -> Identity:
    """What a worker of ``role`` must have been started with to serve these settings.

    Only ``auto`` chooses, so only there the licence makes a difference.
    """
    model, parts = _identifying(settings, role, environ)
    digests = {name: hashlib.sha256(_raw(value)) for name, value in parts.items()}
    whole = hashlib.sha256(_raw(role) + b"".join(one.digest() for one in digests.values()))
    own = tuple(f"{name}:{one.hexdigest()[:8]}" for name, one in digests.items())
    return Identity(role, model, whole.hexdigest()[:16], own)


def differing_settings(wanted: Identity, running: Identity) -> tuple[str, ...]:
    """The names of the settings that ``wanted`` has otherwise; none where the worker that runs
    is too old to say."""
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
    """The model, and what makes a worker of ``role`` another one, by the name people know."""
    parts = {"SHAMMAH_HOME": str(settings.home)}
    if role == "inference":
        names = ("device", "dtype", "max_new_tokens", "context_length", "kv_memory", "engine")
        own = settings.inference
        parts |= {"model": settings.model, "HF_HOME": str(hub_cache(environ))}
        parts |= {f"inference.{name}": str(getattr(own, name)) for name in names}
        parts["inference.quantization"] = own.quantization
        parts["licence"] = f"permissive={settings.permissive and settings.model == 'auto'}"
        return settings.model, parts
    if role == "cloud":
        # keep_alive makes no answer differ; everything else of both tables may.
        parts |= _fields("cloud", replace(settings.cloud, keep_alive=0.0))
        parts |= _fields("privacy", settings.privacy)
        parts |= {name: environ.get(name, "") for name in (CUSTOM_HEADERS, *NETWORK_VARIABLES)}
        return settings.cloud.model, parts
    parts["HF_HOME"] = str(hub_cache(environ))
    if role == "train":
        return "", parts  # each training names its own
    parts |= {name: environ.get(name, "") for name in (*HUB_VARIABLES, *NETWORK_VARIABLES)}
    return (environ.get("HF_ENDPOINT") or PUBLIC_HUB).rstrip("/"), parts


def _fields(table: str, values: CloudSettings | PrivacySettings) -> dict[str, str]:
    return {f"{table}.{one.name}": repr(getattr(values, one.name)) for one in fields(values)}


def read_config(path: Path) -> str:
    """The text of a configuration file; empty if there is none.

    Raises:
        ShammahError: ``config_invalid``.
    """
    try:
        if path.is_fifo():  # without a writer it would keep us for ever
            raise _invalid(path, "it is a pipe and no file")
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise _invalid(path, f"it has more than {MAX_CONFIG_BYTES:,} bytes")
        return data.decode("utf-8-sig")  # some editors begin every file with a mark
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise _invalid(path, "it is no text in UTF-8") from error
    except OSError as error:
        raise _invalid(path, f"it cannot be read ({error.strerror})") from error


def parse_config(text: str, path: Path) -> dict[str, Any]:
    """The document in ``text``, which is that of ``path``.

    Raises:
        ShammahError: ``config_invalid``.
    """
    if not text:
        return {}
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


def setting_names() -> list[tuple[str, ...]]:
    """The path of every setting."""
    return list_settings(Settings(Path()), _RULES)


def _check_patterns(privacy: PrivacySettings, faults: list[Fault]) -> None:
    """Refuse a list of the person's own that could not be kept."""
    if any(not word.strip() for word in privacy.words):
        faults.append(Fault(("privacy", "words"), "privacy.words holds an empty word"))
    if any(not path.strip() for path in privacy.paths):
        faults.append(Fault(("privacy", "paths"), "privacy.paths holds an empty path"))
    if not privacy.patterns:
        return
    from shammah.privacy.patterns import Pattern, PatternError  # most people have none

    for source in privacy.patterns:
        try:
            Pattern(source)
        except PatternError as error:
            why = f"privacy.patterns holds {source!r:.60}, which {error}"
            hint = "docs/PRIVACY.md says what a pattern may hold."
            faults.append(Fault(("privacy", "patterns"), why, hint))


def _located(fault: Fault, text: str, file: Path, environ: Mapping[str, str]) -> ShammahError:
    for variable, path in ENVIRONMENT.items():
        if path == fault.path and environ.get(variable):
            return _invalid(variable, fault.why, fault.hint)
    from shammah.settings.toml_lines import line_of  # only for what is wrong

    line = line_of(text, fault.path)
    return _invalid(file, (f"line {line}: " if line else "") + fault.why, fault.hint)


def _invalid(where: Path | str, why: str, hint: str = "") -> ShammahError:
    return ShammahError(
        "config_invalid",
        f"{where}: {why}.",
        hint or "configs/default.toml lists every setting.",
        exit_code=ExitCode.USAGE,
    )
