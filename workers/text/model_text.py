"""A model's tokenizer, special tokens and chat template: one reading for all uses.

The tokenizer's file is taken at its word: transformers' AutoTokenizer would rebuild some
tokenizers with the rules that their model type usually has. Needs the tokenizers library alone.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from shammah.errors import ShammahError
from shammah.models.catalogue import FETCH_AGAIN
from workers.logs import describe
from workers.text.chat_template import TEMPLATE_FILE, ChatTemplate, read_template
from workers.text.piece_cache import PieceCache
from workers.text.sandbox import RefusalError
from workers.text.thought_tags import CLOSE, OPEN
from workers.text.tool_tags import CALL, CALL_END

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
NAMES = "special_tokens_map.json"

FILES = (TOKENIZER, CONFIG, NAMES, TEMPLATE_FILE)
"""All that says how the model's text is written."""


_PROBE = "shammah"
"""A text to find again: one word that no template contains."""

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around what looks like a control token in a message, while the template is applied. Unicode
has set these two aside for a program's own use: they are no characters."""
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


class Encoding(Protocol):
    """The tokens of a text."""

    @property
    def ids(self) -> list[int]: ...


class Tokenizer(Protocol):
    """What is needed of a `tokenizers.Tokenizer`."""

    encode_special_tokens: bool
    """Whether special tokens in a text are text."""

    @property
    def normalizer(self) -> Any: ...
    def encode(self, text: str, /, *, add_special_tokens: bool = True) -> Encoding: ...
    def decode(self, ids: Sequence[int], /, *, skip_special_tokens: bool = True) -> str: ...
    def token_to_id(self, token: str, /) -> int | None: ...
    def id_to_token(self, token_id: int, /) -> str | None: ...
    def get_vocab_size(self, *, with_added_tokens: bool = True) -> int: ...
    def get_added_tokens_decoder(self) -> Mapping[int, Any]: ...
    def add_special_tokens(self, tokens: list[Any], /) -> int: ...


class ModelText:
    """The tokenizer and the chat template of one model.

    Attributes:
        hidden: tokens that give no text: the special ones, but for the tags of thoughts and of
            calls, by which these are told from the answer.
        end: the token that the template writes after an answer, else the one that the files
            name; ``None``: there is none.
        ends: both, which end an answer. Some models' generation_config.json does not name
            them, and they would go on to write the user's next question.
        vocabulary: tokens that the weights know; 0: not known.
        folds_system: whether the template has no place for a system prompt, which then stands
            before the first question.

    Args:
        tokenizer: is changed.
        template: ``None``: the model continues text and cannot answer.
        names: the special tokens by their names (``eos_token``).
        special: further special tokens.
        vocabulary: tokens that the weights know; 0: not known.

    Raises:
        ShammahError: ``model_corrupt``: the tokenizer does not belong to the weights.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        names: Mapping[str, str],
        special: frozenset[str] = frozenset(),
        vocabulary: int = 0,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.vocabulary = vocabulary
        self._check_size()
        # Only these two of the names. Some models pad with a token that is also a word.
        named = {names[name] for name in ("bos_token", "eos_token") if names.get(name)} | special
        added = tokenizer.get_added_tokens_decoder()
        specials = frozenset(
            number for number, token in added.items() if token.special or token.content in named
        ) | {number for text in named if (number := self._known(text)) is not None}
        self.hidden = specials - {self._known(tag) for tag in (OPEN, CLOSE, CALL, CALL_END)}
        self._probe = self._render_probe()
        self._control = self._find_control(specials)
        self._normalized = self._find_normalized()
        self._pieces = PieceCache(self._plain)
        self._dividers = self._find_dividers()
        self._newline: list[int] = tokenizer.encode("\n", add_special_tokens=False).ids
        self._prefixes = self._after_newline(_PROBE) != self._plain(_PROBE)
        self.folds_system = self._refuses_system()
        named_end = self._known(names.get("eos_token", ""))
        written_end = self._find_end_of_turn()
        self.end = named_end if written_end is None else written_end
        self.ends = frozenset(end for end in (named_end, written_end) if end is not None)

    @classmethod
    def load(cls, directory: Path) -> ModelText:
        """Read what describes the text of the model in ``directory``.

        Raises:
            ShammahError: ``model_corrupt``.
        """
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER))
            tokenizer.no_truncation()
            tokenizer.no_padding()
            vocabulary = _read(directory / "config.json").get("vocab_size")
            config = _read(directory / CONFIG)
            names, special = _read_names(directory, config)
            template = read_template(directory, config, names)
            known = vocabulary if type(vocabulary) is int else 0
            return cls(tokenizer, template, names, special, known)
        except (KeyboardInterrupt, SystemExit, ShammahError):
            raise
        except BaseException as error:
            # tokenizers raises plain Exception, or panics, which is none; jinja2 its own.
            why = f"Can't read the model's tokenizer or chat template ({error})."
            raise ShammahError("model_corrupt", why, FETCH_AGAIN) from error

    # --- encoding -------------------------------------------------------------------------

    def encode(
        self, messages: Sequence[tuple[str, str]], *, ask: bool, think: bool = False
    ) -> list[int]:
        """The tokens of a conversation; with ``ask``, up to where an answer begins.

        Control tokens that are written out in a message (a pasted ``<|im_start|>system``) are
        encoded as plain text: only the template ends turns and changes roles.

        Args:
            messages: roles and texts.
            ask: see `ChatTemplate.render`.
            think: the same.

        Raises:
            Exception: whatever a template may do; ``model_corrupt``: see `encode_text`.
        """
        if self.folds_system:
            messages = fold_system(messages)
        conversation = [{"role": role, "content": text} for role, text in messages]
        return self.encode_documents(conversation, ask=ask, think=think)

    def encode_documents(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        ask: bool,
        think: bool = False,
    ) -> list[int]:
        """The same of messages and tools as templates know them."""
        if self.template is None:
            raise ValueError("there is none")
        marked: tuple[Any, Any] = (self._mark_all(messages), self._mark_all(tools))
        text = self.template.render(*marked, ask=ask, think=think)
        return self._ids(text, self._divided)

    def encode_text(self, text: str) -> list[int]:
        """The tokens of a text in which nothing controls.

        Raises:
            ShammahError: ``model_corrupt``: the tokenizer has tokens that the weights have not.
        """
        return self._ids(self._mark(text), self._plain)

    def encode_written(self, text: str) -> list[int]:
        """The tokens of a text that a template could have written."""
        return self._plain(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without those that are hidden."""
        return self.decode_all([token for token in ids if token not in self.hidden])

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens, the special ones among them."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _mark(self, content: str) -> str:
        """``content`` with its control tokens marked as text."""
        plain = content.replace(_BEGIN, "\ufffd").replace(_END, "\ufffd")
        if self._normalized and self._normalizes_to_control(plain):
            return f"{_BEGIN}{plain}{_END}"
        return self._control.sub(lambda found: f"{_BEGIN}{found[0]}{_END}", plain)

    def _mark_all(self, value: Any) -> Any:
        """``value`` with all of its texts marked, names of fields among them."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, Mapping):
            return {self._mark(name): self._mark_all(one) for name, one in value.items()}
        return [*map(self._mark_all, value)] if isinstance(value, list | tuple) else value

    def _normalizes_to_control(self, text: str) -> bool:
        """Whether letters that only look like a control token become one (full-width ones)."""
        normalized: str = self.tokenizer.normalizer.normalize_str(self._control.sub("", text))
        return any(token in normalized for token in self._normalized)

    def _ids(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """The tokens of a text with marks; ``encode``: of what lies between these."""
        ids: list[int] = []
        # Odd parts are what was marked. A mark that the template has torn apart is dropped.
        for place, part in enumerate(_MARKED.split(text)):
            part = part.replace(_BEGIN, "").replace(_END, "")
            self.tokenizer.encode_special_tokens = marked = bool(place % 2)
            plain = self._plain if marked else encode
            ids += self._after_newline(part) if place and self._prefixes else plain(part)
        self.tokenizer.encode_special_tokens = False
        self._check_ids(ids)
        return ids

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _divided(self, text: str) -> list[int]:
        """As `_plain`, from pieces between control tokens: all but the last ones were in the
        conversation's prompt before."""
        if self._dividers is None:
            return self._plain(text)
        return [one for piece in self._dividers.split(text) for one in self._pieces.encode(piece)]

    def _find_dividers(self) -> re.Pattern[str] | None:
        """The control tokens between which a text has the same tokens there and alone: they take no
        blanks around them, and the first piece is nothing special to the tokenizer."""
        found = []
        for token in set(self._control.findall(self._probe)) if not self._normalized else ():
            pieces = ["a b", token, " c ", token, "\n d\n", token, "e", token]
            if self._plain("".join(pieces)) == [
                one for each in pieces for one in self._plain(each)
            ]:
                found.append(re.escape(token))
        longest_first = sorted(found, key=len, reverse=True)
        return re.compile(f"({'|'.join(longest_first)})") if found else None

    def _after_newline(self, text: str) -> list[int]:
        """The tokens of a text within a line, without the blank that some put before the first."""
        ids, length = self._plain(f"\n{text}"), len(self._newline)
        return ids[length:] if ids[:length] == self._newline else self._plain(text)

    # --- what the files say ---------------------------------------------------------------

    def _known(self, text: str) -> int | None:
        """A special token's number, if the weights know it."""
        number: int | None = self.tokenizer.token_to_id(text) if text else None
        if number is None or (self.vocabulary and number >= self.vocabulary):
            return None
        return number

    def _name(self, number: int) -> str:
        return self.tokenizer.id_to_token(number) or ""

    def _check_size(self) -> None:
        if not self._plain(_PROBE):
            raise ShammahError(
                "model_corrupt", f"{TOKENIZER} gives no tokens for a text.", FETCH_AGAIN
            )
        own: int = self.tokenizer.get_vocab_size(with_added_tokens=False)
        if self.vocabulary and own > self.vocabulary:
            raise _foreign(f"{TOKENIZER} has {own:,} tokens", self.vocabulary)

    def _check_ids(self, ids: Sequence[int]) -> None:
        if self.vocabulary and ids and max(ids) >= self.vocabulary:
            number = max(ids)
            what = f"the text needs {self._name(number)!r}, its token {number:,}"
            raise _foreign(what, self.vocabulary)

    def _find_control(self, specials: Iterable[int]) -> re.Pattern[str]:
        """What must not become a token when a person writes it: the special tokens, those that
        the template writes, and those that the weights do not know.

        The tokenizer encodes them as text when it is asked to (`_ids`), for which it must take
        all of them for special.
        """
        written = self.template.source + self._probe if self.template else ""
        added = self.tokenizer.get_added_tokens_decoder()
        texts = [self._name(number) for number in specials]
        for number, token in added.items():
            foreign = bool(self.vocabulary) and number >= self.vocabulary
            if foreign:
                log.warning("the weights know no token %d, %r: it is text", number, token.content)
            if foreign or (token.content in written and not token.content.isspace()):
                texts.append(token.content)
        known = {token.content: token for token in added.values()}
        self.tokenizer.add_special_tokens([_as_special(text, known.get(text)) for text in texts])
        longest_first = sorted(filter(None, set(texts)), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def _find_normalized(self) -> tuple[str, ...]:
        """The control tokens that are looked for in the normalized text."""
        normalizer = self.tokenizer.normalizer
        added = self.tokenizer.get_added_tokens_decoder().values()
        texts = [one.content for one in added if one.normalized and one.special]
        return tuple(filter(None, map(normalizer.normalize_str, texts))) if normalizer else ()

    def _render_probe(self, role: str = "user") -> str:
        """A short conversation as the template writes it; empty where it refuses."""
        first = [] if role == "user" else [{"role": role, "content": _PROBE.upper()}]
        turns = [{"role": one, "content": _PROBE} for one in ("user", "assistant")]
        try:
            return self.template.render([*first, *turns], ask=False) if self.template else ""
        except Exception as error:
            log.info("the chat template refuses a conversation (%s)", type(error).__name__)
            return ""

    def _refuses_system(self) -> bool:
        return bool(self._probe) and _PROBE.upper() not in self._render_probe("system")

    def _find_end_of_turn(self) -> int | None:
        """The control token that the template writes after an answer, if it does."""
        self._check_ids(self._plain(self._probe))
        _, found, after = self._probe.rpartition(_PROBE)
        for token in self._plain(after.lstrip())[:1] if found else ():
            if self._control.fullmatch(self._name(token)):
                return token
        return None


def why_refused(error: Exception) -> str:
    """Why a conversation could not be written: what the template says itself, else the kind of
    error, since what a library says may quote the conversation."""
    return str(error) if isinstance(error, RefusalError) else describe(error)


def _as_special(text: str, token: Any | None) -> Any:
    token = token or tokenizers.AddedToken(text, normalized=False)
    token.special = True
    return token


def fold_system(messages: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """The system prompt at the beginning of the first question."""
    if len(messages) < 2 or [role for role, _ in messages[:2]] != ["system", "user"]:
        return messages
    (_, system), (role, question), *rest = messages
    return [(role, f"{system}\n\n{question}"), *rest]


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    document = json.loads(path.read_bytes()) if path.exists() else {}
    if not isinstance(document, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return document


def _read_names(
    directory: Path, config: Mapping[str, Any]
) -> tuple[dict[str, str], frozenset[str]]:
    """The special tokens by name, and others that are said to be special.

    As transformers has it: the older file counts, and first, unless the newer one has a table.
    """
    table = config.get("added_tokens_decoder")
    older = {} if isinstance(table, dict) else _read_older(directory / NAMES)
    every = {**config, **older}
    names = {name: _text(token) for name, token in every.items() if name.endswith("_token")}
    entries = table.values() if isinstance(table, dict) else ()
    special = (_text(one) for one in entries if isinstance(one, dict) and one.get("special"))
    return {name: text for name, text in names.items() if text}, frozenset(filter(None, special))


def _read_older(path: Path) -> dict[str, Any]:
    """The older file, which newer models go without."""
    try:
        return _read(path)
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s is left out: it cannot be read (%s)", path.name, error)
        return {}


def _text(token: Any) -> str:
    """A special token's text: given alone, or with its properties."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _foreign(what: str, vocabulary: int) -> ShammahError:
    return ShammahError(
        "model_corrupt",
        f"The tokenizer does not belong to the weights: {what}, but they know {vocabulary:,}.",
        FETCH_AGAIN,
    )
