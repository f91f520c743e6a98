"""A model's chat template, compiled and kept within its bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workers.text.sandbox import bounded_steps, make_environment

TEMPLATE_FILE = "chat_template.jinja"

LONGEST_SOURCE = 1024 * 1024
"""Characters; the longest of known models has 20,000."""

STEPS, STEPS_A_MESSAGE = 1_000_000, 10_000
"""Lines of Python that a template may take, ours among them. ChatML takes 200 a message."""

SWITCHES = ("enable_thinking", "thinking")
"""What templates of models that can think ask for (Qwen3, SmolLM3; DeepSeek-V3.1, Granite)."""

_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class ChatTemplate:
    """One model's template.

    Args:
        source: its text.
        tokens: the special tokens by their names (``bos_token``), for the template's use.

    Raises:
        ValueError, TemplateError: it is none.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        if len(source) > LONGEST_SOURCE:
            raise ValueError(f"the chat template has {len(source):,} characters")
        self.source = source
        self._template = make_environment().from_string(source)
        # Where there is none it is written as nothing.
        self._tokens = dict.fromkeys(_NAMES, "") | dict(tokens)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        ask: bool,
        think: bool = False,
    ) -> str:
        """The conversation as text; with ``ask``, up to where an answer begins, which the model is
        to ``think`` about first.

        Raises:
            Exception: whatever a template may do; `TemplateBoundError`: too much.
        """
        with bounded_steps(STEPS + STEPS_A_MESSAGE * len(messages)):
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=[*tools] or None,
                documents=None,
                add_generation_prompt=ask,
                **dict.fromkeys(SWITCHES, think),
                **self._tokens,
            )


def read_template(
    directory: Path, config: Mapping[str, Any], tokens: Mapping[str, str]
) -> ChatTemplate | None:
    """The template of the model in ``directory``; ``None``: it has none.

    Args:
        config: tokenizer_config.json.
        tokens: see `ChatTemplate`.

    Raises:
        OSError, ValueError, TemplateError: it cannot be read.
    """
    source = config.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if (directory / TEMPLATE_FILE).exists():
        source = (directory / TEMPLATE_FILE).read_text("utf-8-sig")
    return ChatTemplate(source, tokens) if isinstance(source, str) else None
