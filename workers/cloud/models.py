"""What is known of Claude's models: prices, context, longest answer. Pure but for reading the
table next to it (``models.toml``), which says when it was true."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from shammah.bus.messages import Usage
from shammah.settings.model import CloudSettings

CONTEXT = 200_000
"""Tokens, of a model that is not in the table."""

BYTES_PER_TOKEN = 3
"""Of text in UTF-8, on the safe side: about 3.5 of English, 3 of code, 3 of Chinese."""

TURN_TOKENS = 8
"""Around each turn."""

MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Model:
    """Prices are US dollars for a million tokens, ``None`` where not known; ``context`` and
    ``longest`` (answer, 0: not known) are tokens. A conversation longer than ``long_from``
    tokens (0: there is no such limit) costs the long prices."""

    input: float | None = None
    output: float | None = None
    context: int = CONTEXT
    longest: int = 0
    long_from: int = 0
    long_input: float = 0.0
    long_output: float = 0.0

    @property
    def priced(self) -> bool:
        return self.input is not None and self.output is not None

    def cost(self, input_tokens: int, output_tokens: int) -> float | None:
        """US dollars; ``None`` where no price is known."""
        if self.input is None or self.output is None:
            return None
        is_long = 0 < self.long_from < input_tokens
        prices = (self.long_input, self.long_output) if is_long else (self.input, self.output)
        return (input_tokens * prices[0] + output_tokens * prices[1]) / MILLION

    def with_cost(self, usage: Usage) -> Usage:
        """``usage`` with what it costs."""
        return replace(usage, cost=self.cost(usage.input_tokens, usage.output_tokens))

    def most(self, body_bytes: int, max_tokens: int) -> float | None:
        """The most that a request can cost, in US dollars: two bytes of it to a token, and the
        longest answer."""
        return self.cost(body_bytes // 2, max_tokens)


def model_of(settings: CloudSettings) -> Model:
    """What is known of the model that is set, with what the settings say."""
    known = _table().get(re.sub(r"-20[0-9]{6}$", "", settings.model), Model())
    if settings.input_price >= 0 and settings.output_price >= 0:
        known = replace(
            known, input=settings.input_price, output=settings.output_price, long_from=0
        )
    if settings.context_length:
        known = replace(known, context=settings.context_length)
    return known


def estimate_tokens(text: str) -> int:
    """Tokens of ``text``, rather too many than too few."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + TURN_TOKENS


@cache
def _table() -> dict[str, Model]:
    document: dict[str, Any] = tomllib.loads(Path(__file__).with_name("models.toml").read_text())
    return {name: Model(**entry) for name, entry in document["models"].items()}
