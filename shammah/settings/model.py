"""The settings: what can be set, which values are valid, and which are secret. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from shammah.bus.record import record
from shammah.models.catalogue import SERVER, is_server_name
from shammah.models.licences import LICENCES
from shammah.settings.thinking import THINK

SettingPath = tuple[str, ...]
"""A setting's name, in parts: ``("cloud", "use")``."""


@record
class InferenceSettings:
    """The local model."""

    device: str = "auto"
    """auto, cpu, cuda or mps."""
    dtype: str = "auto"
    """auto, float32, bfloat16 or float16."""
    engine: str = "auto"
    """auto, native (8 or 4 bits on a CPU), llamacpp (GGUF), mlx (Mac), vllm (GPU), transformers."""
    quantization: str = "auto"
    """auto, none, int8 (native, mlx) or int4 (those, or transformers with bitsandbytes)."""
    max_new_tokens: int = 1024
    """Longest answer, in tokens, without the thinking before it."""
    think: str = "off"
    """off, on or show: whether models that can think before they answer do, and show it."""
    think_tokens: int = 2048
    """Longest thinking, in tokens; then the model has to answer."""
    context_length: int = 0
    """Longest conversation, in tokens; 0: what model and memory allow."""
    kv_memory: float = 0.0
    """GiB for the keys and values of conversations; 0: half of what is free after loading."""
    kv_disk: float = 2.0
    """GiB on disk for the same, so that conversations resume at once after a restart; 0: none."""
    stop_repetition: bool = True
    """Whether an answer ends when it does nothing but repeat itself."""
    queue: int = 64
    """Questions that may wait for the local model; more are refused as busy."""
    keep_alive: float = 300.0
    """Seconds that an unused model stays in memory; 0: unload at once, -1: stay forever."""


CLAUDE = "claude"
"""The provider that is no server of the settings."""


@record
class CloudSettings:
    """Who answers elsewhere, for money: Claude, or another provider."""

    provider: str = CLAUDE
    """claude, or the name of a server whose trust is cloud."""
    use: str = "auto"
    """auto, ask (before each question sent there) or never (no cloud worker is started)."""
    api_key: str = ""
    """ANTHROPIC_API_KEY wins over this; without either, nothing is ever sent."""
    base_url: str = ""
    """ANTHROPIC_BASE_URL wins over this; empty: Anthropic's own address."""
    model: str = "claude-sonnet-5-5"
    """Any model name that Claude's API knows."""
    max_tokens: int = 16384
    """Longest answer with the thinking before it, in tokens."""
    context_length: int = 0
    """Longest conversation, in tokens; 0: as known for the model, else 200,000."""
    daily_budget: float = 0.0
    """US dollars a day (UTC); once they are spent, nothing more is sent. 0: no limit."""
    input_price: float = -1.0
    """US dollars for a million tokens of the conversation; -1: the known price of the model."""
    output_price: float = -1.0
    """US dollars for a million tokens of the answer; -1: the known price of the model."""
    keep_alive: float = 300.0
    """Seconds that the unused worker stays."""


@record
class PrivacySettings:
    """What never leaves this machine. A question that matches one of these is private."""

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
    """Words and names of your own, in upper or lower case."""
    patterns: tuple[str, ...] = ()
    """Regular expressions of your own, without look-around and back-references."""
    paths: tuple[str, ...] = ()
    """Directories and files (~ and * allowed): text from there or that names them."""


@record
class RouterSettings:
    """Which model answers what."""

    policy: str = "measured"
    """measured (local where it proved good enough) or classic (the original's numbers)."""
    exploration: float = 0.05
    """Share of the questions with which a local model that did badly is tried again; 0: never."""


@record
class TrainSettings:
    """Learning from feedback."""

    auto: bool = False
    """Learn automatically while a prompt is open; otherwise only `shammah train` does."""
    after_examples: int = 10
    """So many new examples start a training,"""
    idle_minutes: float = 5.0
    """or so many minutes without a question, if there is any new example."""
    on_battery: bool = False
    """Learn on battery, too."""
    from_cloud: bool = False
    """Learn answers of Claude's, too, whose terms forbid it without Anthropic's permission."""


@record
class GatewaySettings:
    """The endpoint for other programs (`shammah serve`)."""

    port: int = 11611
    """Where it listens on this machine; 0: a free one."""
    socket: str = ""
    """A path to listen at instead, for which no port is opened."""
    origins: tuple[str, ...] = ()
    """Web pages that may use it, such as http://localhost:3000; other pages may not."""
    history: str = "on"
    """on, or off: what other programs ask is not kept in the history."""


@record
class ServerSettings:
    """A server that speaks OpenAI's API: ``[servers.NAME]``."""

    base_url: str = ""
    """Its address with the version, such as http://127.0.0.1:8000/v1."""
    trust: str = "local"
    """local (on this machine), trusted (a machine of yours) or cloud (a provider)."""
    private: bool = False
    """Whether private questions may go to a trusted server."""
    key: str = ""
    """Sent as a bearer token; empty: none is."""
    model: str = ""
    """Which of its models; empty: the first that it lists."""
    context_length: int = 0
    """Longest conversation, in tokens; 0: what the server says."""
    input_price: float = -1.0
    """US dollars for a million tokens of the conversation; -1: what a cloud server says."""
    output_price: float = -1.0
    """US dollars for a million tokens of the answer; -1: what a cloud server says."""

    @property
    def takes_private(self) -> bool:
        """Whether it may have private questions."""
        return self.trust == "local" or (self.trust == "trusted" and self.private)


@record
class EditorSettings:
    """The line at the prompt."""

    keys: str = "emacs"
    """emacs or vi."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a person can set. ``configs/default.toml`` is held equal to this by a test."""

    home: Path
    model: str = "auto"
    """auto (by memory), starter, a size (0.5B to 14B, qwen3-4b), a Hub id, a path, ollama:NAME."""
    licence: str = "any"
    """any, or permissive: then auto chooses no model whose licence forbids commercial use."""
    system: str = ""
    """System prompt for every question, local and cloud."""
    render: str = "markdown"
    """How answers look at the prompt: markdown or plain."""
    history: str = "on"
    """on, or off: no turn is kept on the disk."""
    confine: str = "auto"
    """auto (the kernel holds each worker to what its role needs, where it can) or off."""
    inference: InferenceSettings = field(default_factory=InferenceSettings)
    cloud: CloudSettings = field(default_factory=CloudSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    router: RouterSettings = field(default_factory=RouterSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    editor: EditorSettings = field(default_factory=EditorSettings)
    servers: Mapping[str, ServerSettings] = field(default_factory=dict)
    """By name; the model server:NAME is what one of them answers with."""

    @property
    def server(self) -> str:
        """The name of the server that ``model`` names (``server:NAME/MODEL``); empty: it names
        none."""
        is_server = is_server_name(self.model)
        return self.model.removeprefix(SERVER).partition("/")[0] if is_server else ""

    def local_server(self) -> ServerSettings:
        """The server of ``model``, with the model that it names there.

        Raises:
            KeyError: there is none (see `shammah.settings.load`).
        """
        found = self.servers[self.server]
        model = self.model.partition("/")[2]
        return replace(found, model=model) if model else found

    @property
    def beside(self) -> Mapping[str, ServerSettings]:
        """The servers that answer beside the local model, in the order of the file."""
        return {
            name: server
            for name, server in self.servers.items()
            if server.base_url and server.trust != "cloud" and name != self.server
        }

    @property
    def provider(self) -> ServerSettings | None:
        """The server that is the cloud; ``None``: Claude is."""
        return self.servers.get(self.cloud.provider)

    @property
    def cloud_name(self) -> str:
        """Who the cloud is, for people."""
        return "Claude" if self.cloud.provider == CLAUDE else self.cloud.provider

    @property
    def cloud_model(self) -> str:
        return self.cloud.model if self.provider is None else self.provider.model

    def with_think(self, think: str | None) -> Settings:
        """Return them with another `InferenceSettings.think`; ``None``: as they are."""
        if think is None:
            return self
        return replace(self, inference=replace(self.inference, think=think))

    @property
    def cloud_configured(self) -> bool:
        """Whether anything may ever be sent to the cloud."""
        known = bool(self.cloud.api_key) if self.provider is None else True
        return known and self.cloud.use != "never"

    @property
    def permissive(self) -> bool:
        """Whether ``auto`` skips models not licensed for commercial use."""
        return self.licence == "permissive"


ENVIRONMENT: dict[str, SettingPath] = {
    "SHAMMAH_MODEL": ("model",),
    "SHAMMAH_HISTORY": ("history",),
    "ANTHROPIC_API_KEY": ("cloud", "api_key"),
    "ANTHROPIC_BASE_URL": ("cloud", "base_url"),
}
"""Environment variable to setting. SHAMMAH_HOME moves the home itself."""

SECRET = ("cloud", "api_key")
"""The key of Claude. Which settings else are never shown: `is_secret`."""

SERVERS = "servers"
"""The table whose tables the person names."""


def is_secret(path: SettingPath) -> bool:
    """Whether the value of a setting is never shown."""
    return path == SECRET or (path[0] == SERVERS and path[-1] == "key")


PERSONAL = {
    ("system",),
    ("privacy", "words"),
    ("privacy", "patterns"),
    ("privacy", "paths"),
}
"""Settings of which others may learn only the size."""

CHOICES: dict[SettingPath, tuple[str, ...]] = {
    ("licence",): LICENCES,
    ("render",): ("markdown", "plain"),
    ("editor", "keys"): ("emacs", "vi"),
    ("history",): ("on", "off"),
    ("confine",): ("auto", "off"),
    ("gateway", "history"): ("on", "off"),
    ("cloud", "use"): ("auto", "ask", "never"),
    (SERVERS, "*", "trust"): ("local", "trusted", "cloud"),
    ("router", "policy"): ("measured", "classic"),
    ("inference", "device"): ("auto", "cpu", "cuda", "mps"),
    ("inference", "dtype"): ("auto", "float32", "bfloat16", "float16"),
    ("inference", "engine"): ("auto", "native", "llamacpp", "mlx", "vllm", "transformers"),
    ("inference", "think"): THINK,
    ("inference", "quantization"): ("auto", "none", "int8", "int4"),
}
AT_LEAST: dict[SettingPath, int] = {
    ("inference", "max_new_tokens"): 1,
    ("inference", "think_tokens"): 1,
    ("inference", "context_length"): 0,
    ("inference", "kv_memory"): 0,
    ("inference", "kv_disk"): 0,
    ("inference", "queue"): 1,
    ("inference", "keep_alive"): -1,
    ("cloud", "max_tokens"): 1,
    ("cloud", "context_length"): 0,
    ("cloud", "daily_budget"): 0,
    ("cloud", "input_price"): -1,
    ("cloud", "output_price"): -1,
    ("cloud", "keep_alive"): -1,
    ("router", "exploration"): 0,
    ("gateway", "port"): 0,
    ("train", "after_examples"): 1,
    ("train", "idle_minutes"): 0,
    (SERVERS, "*", "context_length"): 0,
    (SERVERS, "*", "input_price"): -1,
    (SERVERS, "*", "output_price"): -1,
}


def rule_of(path: SettingPath) -> SettingPath:
    """What `CHOICES` and `AT_LEAST` have of a setting."""
    return (SERVERS, "*", path[-1]) if path[0] == SERVERS else path


def setting_names(servers: Iterable[str] = ()) -> list[SettingPath]:
    """List the path of every setting, in the order of the file; and of these ``servers``."""
    found: list[SettingPath] = []
    base = Settings(Path())
    for one in fields(base):
        table: Any = getattr(base, one.name)
        if is_dataclass(table):
            found += [(one.name, inner.name) for inner in fields(table)]
        elif one.name not in ("home", SERVERS):
            found.append((one.name,))
    own = [one.name for one in fields(ServerSettings)]
    return [*found, *((SERVERS, server, name) for server in servers for name in own)]


def value_of(settings: Any, path: SettingPath) -> Any:
    """Return the value of the setting ``path`` of `Settings`, or of one of its tables."""
    found: Any = settings
    for name in path:
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found
