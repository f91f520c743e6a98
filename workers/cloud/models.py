"""What is known of the cloud's models: prices, context, longest answer. Pure but for reading the
table of Claude's next to it (``models.toml``), which says when it was true."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from shammah.bus.messages import Usage
from shammah.settings.model import CloudSettings, ServerSettings
from workers.openai.wire import Offer

CONTEXT = 200_000
"""Tokens, of a model that is not in the table."""

BYTES_PER_TOKEN = 3
"""Of text in UTF-8, on the safe side: about 3.5 of English, 3 of code, 3 of Chinese."""

TURN_TOKENS = 8
"""Around each turn."""

MILLION = 1_000_000

CACHE_WRITE, CACHE_READ = 1.25, 0.1
"""Prices of input that is written to the cache (for 5 minutes) or read from it, in prices of
input. From Anthropic's public price list."""


@dataclass(frozen=True, slots=True)
class Model:
    """Prices are US dollars for a million tokens, ``None`` where not known; ``context`` and
    ``longest`` (answer, 0: not known) are tokens. A conversation longer than ``long_from``
    tokens (0: there is no such limit) costs the long prices. Fewer than ``cache_least`` tokens are
    not cached; ``cache_read``: the price of what is read from there, in prices of input."""

    input: float | None = None
    output: float | None = None
    context: int = CONTEXT
    longest: int = 0
    long_from: int = 0
    long_input: float = 0.0
    long_output: float = 0.0
    cache_least: int = 1024
    cache_read: float = CACHE_READ

    @property
    def priced(self) -> bool:
        return self.input is not None and self.output is not None

    def cost(self, usage: Usage) -> float | None:
        """US dollars; ``None`` where no price is known."""
        if self.input is None or self.output is None:
            return None
        is_long = 0 < self.long_from < usage.input_tokens
        prices = (self.long_input, self.long_output) if is_long else (self.input, self.output)
        read, written = usage.reused_tokens, usage.written_tokens
        counted = usage.input_tokens - (1 - self.cache_read) * read + (CACHE_WRITE - 1) * written
        return (counted * prices[0] + usage.output_tokens * prices[1]) / MILLION

    def with_cost(self, usage: Usage) -> Usage:
        """``usage`` with what it costs."""
        return replace(usage, cost=self.cost(usage))

    def most(self, body_bytes: int, max_tokens: int) -> float | None:
        """The most that a request can cost, in US dollars: two bytes of it to a token, all of them
        written to the cache, and the longest answer."""
        tokens = body_bytes // 2
        return self.cost(Usage(tokens, max_tokens, written_tokens=tokens))


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


def price_of(server: ServerSettings, offer: Offer) -> Model:
    """What a server's model costs: as the settings say, else as the server does. What it says to
    have had in its cache is counted in full: what that costs, no server says."""
    set_ones = (server.input_price, server.output_price)
    if min(set_ones) >= 0:
        return Model(*set_ones, cache_read=1.0)
    return Model(offer.input_price, offer.output_price, cache_read=1.0)


def estimate_tokens(text: str) -> int:
    """Tokens of ``text``, rather too many than too few."""
    return len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN + TURN_TOKENS


@cache
def _table() -> dict[str, Model]:
    document: dict[str, Any] = tomllib.loads(Path(__file__).with_name("models.toml").read_text())
    return {name: Model(**entry) for name, entry in document["models"].items()}
