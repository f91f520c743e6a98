"""The clients that `shammah connect` knows, and how their settings change: text in, text out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

Sets = dict[tuple[str, ...], Any]
"""Key within a client's settings to its value; ``None``: the key goes."""
MODELS = ("auto", "local", "cloud")
CONTEXT, ANSWER = 200_000, 32_000
"""Tokens, for clients that must be told. Of Claude: for the local model the gateway refuses what is
too long, and an answer's limit above the setting's is none."""


@dataclass(frozen=True, slots=True)
class Use:
    """Where the gateway listens (without ``/v1``), and the file with its token."""

    address: str
    token_file: str

    @property
    def command(self) -> str:
        """What prints the token, for a shell."""
        import shlex

        return f"cat {shlex.quote(self.token_file)}"


@dataclass(frozen=True, slots=True)
class Client:
    """A client of the gateway.

    Attributes:
        program: what is on the ``PATH`` where it is installed.
        words: what to do then, with ADDRESS and $(TOKEN) to be filled in.
        place: of its settings: a variable with a directory, that directory if it is unset, and the
            file therein.
        sets: what is written there; none: it is only said what to set.
    """

    title: str
    program: str
    words: str
    place: tuple[str, str, str] = ("", "", "")
    sets: Callable[[Use], Sets] | None = None

    @property
    def kind(self) -> str:
        """``json`` or ``toml``."""
        return self.place[2].rpartition(".")[2]


@dataclass(frozen=True, slots=True)
class Change:
    """One key that was changed. ``kept``: how many of its parents had been there."""

    path: Sequence[str]
    old: Any
    new: Any
    kept: int


def _claude(use: Use) -> Sets:
    return {
        ("env", "ANTHROPIC_BASE_URL"): use.address,
        ("env", "ANTHROPIC_API_KEY"): None,  # either would win over the command
        ("env", "ANTHROPIC_AUTH_TOKEN"): None,
        ("apiKeyHelper",): use.command,
    }


def _opencode(use: Use) -> Sets:
    own = {
        "npm": "@ai-sdk/openai-compatible",
        "name": "Shammah",
        "options": {"baseURL": f"{use.address}/v1", "apiKey": f"{{file:{use.token_file}}}"},
        "models": {name: {"name": name} for name in MODELS},
    }
    return {("provider", "shammah"): own, ("model",): "shammah/auto"}


def _codex(use: Use) -> Sets:
    own = {
        "name": "Shammah",
        "base_url": f"{use.address}/v1",
        "wire_api": "responses",
        "auth": {"command": "cat", "args": [use.token_file]},
    }
    return {
        ("model_provider",): "shammah",
        ("model",): "auto",
        ("model_providers", "shammah"): own,
    }


def _crush(use: Use) -> Sets:
    # Its schema requires all of these; what a question costs Shammah counts itself.
    prices = ("in", "out", "in_cached", "out_cached")
    size = {"context_window": CONTEXT, "default_max_tokens": ANSWER}
    able = {"can_reason": False, "supports_attachments": False}
    about = {**{f"cost_per_1m_{price}": 0 for price in prices}, **size, **able}
    own = {
        "name": "Shammah",
        "type": "openai-compat",
        "base_url": f"{use.address}/v1",
        "api_key": f"$({use.command})",
        "models": [{"id": name, "name": name, **about} for name in MODELS],
    }
    chosen = {"model": "auto", "provider": "shammah"}
    return {
        ("providers", "shammah"): own,
        ("models", "large"): chosen,
        ("models", "small"): chosen,
    }


def _zed(use: Use) -> Sets:
    models = [{"name": name, "max_tokens": CONTEXT} for name in MODELS]
    own = {"api_url": f"{use.address}/v1", "available_models": models}
    return {("language_models", "openai_compatible", "Shammah"): own}


CLIENTS = {
    "claude": Client(
        "Claude Code",
        "claude",
        "Unset ANTHROPIC_API_KEY and ANTHROPIC_AUTH_TOKEN where it runs: they would win.\n"
        "Its models are Claude's; `claude --model local` asks the local one.",
        ("CLAUDE_CONFIG_DIR", "~/.claude", "settings.json"),
        _claude,
    ),
    "opencode": Client(
        "opencode",
        "opencode",
        "`opencode --model shammah/local` asks the local model, shammah/cloud asks Claude.",
        ("XDG_CONFIG_HOME", "~/.config", "opencode/opencode.json"),
        _opencode,
    ),
    "codex": Client(
        "Codex",
        "codex",
        "`codex --model local` asks the local model, `codex --model cloud` asks Claude.",
        ("CODEX_HOME", "~/.codex", "config.toml"),
        _codex,
    ),
    "crush": Client(
        "crush",
        "crush",
        "Its list of models has local and cloud, too.",
        ("XDG_CONFIG_HOME", "~/.config", "crush/crush.json"),
        _crush,
    ),
    "zed": Client(
        "Zed",
        "zed",
        "It keeps keys in the system's keychain: paste what `shammah serve --token` prints into\n"
        "its settings of providers, or start it with\n  SHAMMAH_API_KEY=$(TOKEN) zed",
        ("XDG_CONFIG_HOME", "~/.config", "zed/settings.json"),
        _zed,
    ),
    "aider": Client(
        "aider",
        "aider",
        "Start it with\n"
        "  OPENAI_API_BASE=ADDRESS/v1 OPENAI_API_KEY=$(TOKEN) aider --model openai/auto\n"
        "or have in ~/.aider.conf.yml\n"
        "  model: openai/auto\n"
        "  openai-api-base: ADDRESS/v1",
    ),
    "llm": Client(
        "llm",
        "llm",
        'Add to "$(dirname "$(llm logs path)")/extra-openai-models.yaml"\n'
        "  - model_id: shammah\n"
        "    model_name: auto\n"
        "    api_base: ADDRESS/v1\n"
        "    api_key_name: shammah\n"
        "    supports_schema: true\n"
        "    supports_tools: true\n"
        "(once more with local or cloud for auto, and a name of its own, to choose) and type\n"
        '  llm keys set shammah --value "$(TOKEN)"\n'
        '  llm -m shammah "What is a monad?"',
    ),
    "open-webui": Client(
        "Open WebUI",
        "open-webui",
        "Start it with\n"
        "  OPENAI_API_BASE_URL=ADDRESS/v1 OPENAI_API_KEY=$(TOKEN) open-webui serve\n"
        "the first time; later it goes by its settings (Connections), where both can be set, too.",
    ),
    "continue": Client(
        "Continue",
        "cn",
        "Have in ~/.continue/config.yaml\n"
        "  name: Mine\n"
        "  version: 0.0.1\n"
        "  schema: v1\n"
        "  models:\n"
        "    - name: Shammah\n"
        "      provider: openai\n"
        "      model: auto\n"
        "      apiBase: ADDRESS/v1\n"
        "      apiKey: ${{ secrets.SHAMMAH_API_KEY }}\n"
        "and type\n"
        '  (umask 077; echo "SHAMMAH_API_KEY=$(TOKEN)" >> ~/.continue/.env)',
    ),
}


def describe_words(client: Client, use: Use) -> str:
    """What to do, with address and command filled in."""
    return client.words.replace("ADDRESS", use.address).replace("$(TOKEN)", f"$({use.command})")


def parse(kind: str, text: str) -> MutableMapping[str, Any]:
    """Read settings.

    Raises:
        ValueError: they are malformed, or have comments or doubled keys in JSON.
    """
    if kind == "toml":
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        try:
            return tomlkit.parse(text)
        except TOMLKitError as error:  # a key that is there twice is no ValueError there
            raise ValueError(str(error)) from error
    found = json.loads(text, object_pairs_hook=_object) if text.strip() else {}
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _print(kind: str, document: MutableMapping[str, Any], like: str) -> str:
    """``document`` with the indent and the ends of lines of ``like``."""
    if kind == "toml":
        import tomlkit

        return tomlkit.dumps(document)
    indent = re.search(r'\n([ \t]+)"', like)
    text = json.dumps(document, indent=indent[1] if indent else 2, ensure_ascii=False)
    text += "\n" if like.endswith("\n") or not like else ""
    return text.replace("\n", "\r\n") if "\r\n" in like else text


def look_up(document: Mapping[str, Any], path: Sequence[str]) -> Any:
    """The value at ``path``, ``None`` if there is none.

    Raises:
        ValueError: what should hold it is no table.
    """
    found: Any = document
    for name in path:
        if not isinstance(found, Mapping):
            raise ValueError(f"{'.'.join(path)} has no place in it")
        if (found := found.get(name)) is None:
            return None
    return found.unwrap() if hasattr(found, "unwrap") else found


def _put(document: MutableMapping[str, Any], path: Sequence[str], value: Any) -> int:
    """Set ``path`` (``None``: remove it), and return how many of its parents were there."""
    at, kept = document, 0
    for name in path[:-1]:
        kept += name in at
        if name not in at:
            at[name] = {}
        at = at[name]
    if value is None:
        at.pop(path[-1], None)
    else:
        at[path[-1]] = value
    return kept


def apply(kind: str, text: str, sets: Sets) -> tuple[str, list[Change]]:
    """Return settings with ``sets`` in force, and what that changed.

    Raises:
        ValueError: ``text`` is malformed.
    """
    document = parse(kind, text)
    changes = []
    for path, new in sets.items():
        if (old := look_up(document, path)) != new:
            changes.append(Change(path, old, new, _put(document, path, new)))
    if not changes:
        return text, []
    after = _print(kind, document, text)
    if any(look_up(parse(kind, after), path) != value for path, value in sets.items()):
        raise ValueError("it cannot be changed without harm")
    return after, changes


def revert(kind: str, text: str, changes: Sequence[Change]) -> tuple[str, list[str]]:
    """Return settings without ``changes``, and the keys that somebody has changed since, which are
    left.

    Raises:
        ValueError: ``text`` is malformed.
    """
    document = parse(kind, text)
    left = []
    for change in reversed(changes):
        if look_up(document, change.path) != change.new:
            left.append(".".join(change.path))
            continue
        _put(document, change.path, change.old)
        for length in range(len(change.path) - 1, change.kept, -1):
            if look_up(document, change.path[:length]) == {}:
                _put(document, change.path[:length], None)
    return (text if len(left) == len(changes) else _print(kind, document, text)), left


def is_connected(kind: str, text: str, sets: Sets) -> bool:
    """Return whether ``sets`` are in force; malformed settings are not."""
    try:
        document = parse(kind, text)
        return all(look_up(document, path) == value for path, value in sets.items())
    except ValueError:
        return False


def nest(sets: Sets) -> str:
    """``sets`` as JSON, for whoever must add them by hand."""
    document: dict[str, Any] = {}
    for path, value in sets.items():
        if value is not None:
            _put(document, path, value)
    return json.dumps(document, indent=2, ensure_ascii=False)
