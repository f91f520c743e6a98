"""A model's chat template, compiled and kept in its place.

Templates come from the Hub: they are programs of strangers. They run in jinja2's sandbox, see
nothing but strings, and get the functions that transformers promises them
(``transformers/utils/chat_template_utils.py``, whose import alone takes a second).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2.ext
import jinja2.sandbox
import jinja2.utils
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser

TEMPLATE_FILE = "chat_template.jinja"
CONFIG_FILE = "tokenizer_config.json"

_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """One model's template.

    Args:
        source: its text.
        tokens: the special tokens by their names (``bos_token``), for the template's use.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, str]], *, ask: bool) -> str:
        """The conversation as text; with ``ask``, up to where an answer begins.

        Raises:
            Exception: whatever a template may do.
        """
        return self._template.render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=ask,
            **self._tokens,
        )


def read_template(directory: Path) -> ChatTemplate | None:
    """The template of the model in ``directory``; ``None``: it has none.

    Raises:
        OSError, ValueError, TemplateError: it cannot be read.
    """
    config: Any = {}
    if (directory / CONFIG_FILE).exists():
        config = json.loads((directory / CONFIG_FILE).read_bytes())
    if not isinstance(config, dict):
        raise ValueError(f"{CONFIG_FILE} is not a JSON object")
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if (directory / TEMPLATE_FILE).exists():
        source = (directory / TEMPLATE_FILE).read_text("utf-8")
    if not isinstance(source, str):
        return None
    return ChatTemplate(source, {name: _text(config.get(name)) for name in _SPECIAL})


def _text(token: Any) -> str:
    """A special token's text: given alone, or with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks what a model has said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 wants it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Namespace(jinja2.utils.Namespace):
    """Without names that begin with an underscore, as the sandbox has it elsewhere."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class _Dictionary:
    """``dict`` as a function: the type itself would be a way out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=_Dictionary(),
        namespace=_Namespace,
    )
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own would escape HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise TemplateError(message)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a template may not set {name!r}")
