"""Holds an answer to a JSON schema, and calls of tools to theirs, while it is written.

llguidance says before each token which ones may come (20 to 100 µs; see docs/PERFORMANCE.md). It is
imported with the first request that needs it, and reads the vocabulary then, which takes a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, product
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from shammah.bus.messages import Sampling, Tool
from shammah.errors import ShammahError, schema_not_enforced
from workers.inference.text.repetition import Repetition
from workers.text.model_text import ModelText
from workers.text.tool_tags import CALL, CALL_END

FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As ``json.dumps`` writes it. Where blanks are free, small models write nothing else for long."""

QUOTE, BRACE, BRACKET, COMMA = '"', "}", "]", ","
CHARACTERS = "".join(map(chr, range(32, 127)))
STEPS, LONGEST_WAY = "@.:/-Za0A", 3
"""By which the end of a string of some form is looked for: any character, or so many of these."""
CLOSING_TOKENS = 48
SCHEMA_CHARACTERS = 3
"""The value is closed when so many tokens are left, and one for so many characters of the schema,
which names all that the value has to have."""


class Grammars:
    """Those of one model.

    Args:
        text: its tokenizer.
        ends: the tokens that end an answer.

    Raises:
        ShammahError: ``schema_not_enforced``: the tokenizer cannot be read from here.
    """

    def __init__(self, text: ModelText, ends: Iterable[int]) -> None:
        written = getattr(text.tokenizer, "to_str", None)
        if written is None:
            raise schema_not_enforced("This engine")
        self._ends = sorted(ends)
        self._tokenizer = llguidance.LLTokenizer(
            written(), n_vocab=text.vocabulary or None, eos_token=self._ends
        )
        added = text.tokenizer.get_added_tokens_decoder().values()
        special = {token.content for token in added if token.special}
        self._tags = [tag if tag in special else json.dumps(tag) for tag in (CALL, CALL_END)]
        encoded = {one: text.encode_text(one) for one in CHARACTERS}
        self._characters = {one: ids[0] for one, ids in encoded.items() if len(ids) == 1}

    def hold(self, sampling: Sampling, room: int) -> tuple[Grammar, tuple[str, ...]]:
        """What an answer of ``room`` tokens is held to, and notices for the user.

        Raises:
            ShammahError: ``schema_not_enforced``, with the reason.
        """
        notices: list[str] = []
        schema = _formed(json.loads(sampling.schema)) if sampling.schema else None
        if sampling.tools and sampling.tool_choice != "none":
            held = [(tool, *self._held(tool)) for tool in _offered(sampling)]
            notices += [
                f"Calls of {tool.name} are not held to all of its schema ({why})."
                for tool, _, why in held
                if why
            ]
            source = self._call_grammar(sampling, schema, [(tool, one) for tool, one, _ in held])
        else:
            source = _lark(f"start: %json {schema}")
        if why := (schema and self._refusal_of(schema)) or self._refusal(source):
            raise schema_not_enforced("The local model", why)
        matcher = llguidance.LLMatcher(self._tokenizer, source, log_level=0)
        closing = CLOSING_TOKENS + len(source) // SCHEMA_CHARACTERS
        closing = min(closing, room * 3 // 4)
        return Grammar(matcher, self._characters, self._ends, room - closing), tuple(notices)

    def _held(self, tool: Tool) -> tuple[str, str]:
        """The schema of a tool's arguments, as far as it can be held, and why not wholly."""
        asked = json.loads(tool.parameters)
        why = ""
        for schema in (_formed(asked), _formed(asked, lenient=True)):
            found = self._refusal_of(schema)
            if not found:
                return schema, why
            why = why or found
        return _formed({"type": "object"}), why

    def _call_grammar(
        self, sampling: Sampling, schema: str | None, tools: Sequence[tuple[Tool, str]]
    ) -> str:
        opening, closing = self._tags
        bodies = [
            f'"\\n{{\\"name\\": " {json.dumps(json.dumps(tool.name))} ", \\"arguments\\": " '
            f'%json {arguments} "}}\\n"'
            for tool, arguments in tools
        ]
        rules = [f"body: {' | '.join(bodies)}", f"call: {opening} body {closing}"]
        several = sampling.parallel
        calls = 'call ("\\n" call)*' if several else "call"
        if sampling.tool_choice != "auto":
            return _lark(f"start: {calls}", *rules)
        if schema is not None:
            return _lark(f"start: {calls} | answer", f"answer: %json {schema}", *rules)
        rules.append(r"TEXT: /(.|\n)*/")
        if opening == CALL:
            rules.append(f"told: TEXT {opening} body {closing}")
        else:  # ends where the tag does
            rules += [f"head[lazy]: TEXT {opening}", f"told: head body {closing}"]
        return _lark("start: told* TEXT" if several else "start: told | TEXT", *rules)

    def _refusal_of(self, schema: str) -> str:
        """The same of a schema."""
        return self._refusal(llguidance.LLMatcher.grammar_from_json_schema(schema))

    def _refusal(self, source: str) -> str:
        """Why a grammar cannot be held; empty: it can."""
        why = llguidance.LLMatcher.validate_grammar(source, self._tokenizer)
        return "" if why.startswith("WARNING") else " ".join(why.split())


class Grammar:
    """What one answer is held to; see `workers.inference.engine.Constraint`."""

    def __init__(
        self,
        matcher: llguidance.LLMatcher,
        characters: Mapping[str, int],
        ends: Sequence[int],
        room: int,
    ) -> None:
        self._matcher = matcher
        self._characters = characters
        self._way: list[int] = []
        self._ends = ends
        self._left = room
        self._repetition = Repetition()

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come now, (vocabulary,)."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        mask = np.unpackbits(bits, bitorder="little").view(np.bool_)
        if self._left > 0 and not self._repetition.found:
            return mask
        # A value that would have no end is ended: what a small model has begun may be endless.
        ends = [token for token in self._ends if mask[token]]
        if ends and mask.sum() > len(mask) // 2:
            return mask  # words, which may end anywhere
        closing = ends or self._closing(mask)
        if closing:
            mask = np.zeros_like(mask)
            mask[closing] = True
        return mask

    def _closing(self, mask: NDArray[np.bool_]) -> list[int]:
        """The token that ends the innermost value, if one does."""
        if not self._way:
            allowed = {one for one, token in self._characters.items() if mask[token]}
            within = BRACE in allowed and not allowed.isdisjoint("a]")  # in a string
            order = (QUOTE,) if within else (BRACE, BRACKET, QUOTE, COMMA)
            found = [self._characters[one] for one in order if one in allowed]
            self._way = found[:1] or self._find_way()
        return [self._way.pop(0)] if self._way else []

    def _find_way(self) -> list[int]:
        """A few tokens by which a string of some form (an address, a time) comes to its end."""
        known = self._characters
        ways: Iterator[tuple[str, ...]] = chain(
            product(CHARACTERS, repeat=1),
            *(product(STEPS, repeat=length) for length in range(2, LONGEST_WAY + 1)),
        )
        for way in ways:
            if all(one in known for one in (*way, QUOTE)):
                tokens = [known[one] for one in (*way, QUOTE)]
                if self._matcher.validate_tokens(tokens) == len(tokens):
                    return tokens
        return []

    def take(self, token: int) -> None:
        """The token that has come.

        Raises:
            ShammahError: ``schema_not_enforced``: the schema is too complex from here on.
        """
        self._left -= 1
        self._repetition.add(token)
        if not self._matcher.is_stopped() and not self._matcher.consume_token(token):
            raise schema_not_enforced("The local model", self._matcher.get_error())


def _offered(sampling: Sampling) -> list[Tool]:
    """The tools that may be called.

    Raises:
        ShammahError: ``messages_invalid``: there is none of this name.
    """
    if sampling.tool_choice in ("auto", "any"):
        return list(sampling.tools)
    found = [tool for tool in sampling.tools if tool.name == sampling.tool_choice]
    if not found:
        why = f"There is no tool {sampling.tool_choice!r:.60}."
        raise ShammahError("messages_invalid", why, "Choose one of those that are offered.")
    return found


def _formed(schema: dict[str, Any], *, lenient: bool = False) -> str:
    return json.dumps({**schema, "x-guidance": {**FORM, "lenient": lenient}})


def _lark(*rules: str) -> str:
    return "\n".join(("%llguidance {}", *rules))
