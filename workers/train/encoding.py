"""Examples as tokens: the model's own chat template, and which tokens are to be learnt."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shammah.errors import ShammahError
from shammah.examples import Example, Prompt

_BEGIN, _END = "\ufdd0", "\ufdd1"
"""Around what looks like a control token in a message, while the template is applied: Unicode
has set these two aside for a program's own use."""
_MARKED = re.compile(f"{_BEGIN}([^{_BEGIN}{_END}]*){_END}")


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """``ids[:prompt_length]`` is what the model is told, the rest what it should say: all of
    that, with the token that ends its turn, and nothing else is learnt."""

    ids: tuple[int, ...]
    prompt_length: int
    weight: float

    @property
    def targets(self) -> int:
        """How many tokens are learnt."""
        return len(self.ids) - self.prompt_length


class ChatEncoder:
    """A model's tokenizer with its chat template.

    Args:
        tokenizer: transformers' own.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = {number for number, token in added.items() if token.special}
        texts = sorted((added[n].content for n in self._special), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, texts)) if texts else r"(?!)")

    @classmethod
    def load(cls, directory: Path) -> ChatEncoder:
        """Of the model in ``directory``.

        Raises:
            ShammahError: ``model_corrupt`` or ``chat_template_missing``.
        """
        from transformers import PreTrainedTokenizerFast

        try:
            # As the engines read it: AutoTokenizer would rebuild some tokenizers with the
            # rules that their model type usually has.
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory, local_files_only=True)
        except Exception as error:
            raise ShammahError(
                "model_corrupt",
                f"The model's tokenizer cannot be read ({error}).",
                "Fetch the model again, or name another one with --model.",
            ) from error
        if tokenizer.chat_template is None:
            raise ShammahError(
                "chat_template_missing",
                "The model has no chat template: it continues text and cannot be taught answers.",
                "Name an Instruct or Chat model with --model.",
            )
        return cls(tokenizer)

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The conversation up to where an answer begins.

        Raises:
            ShammahError: ``messages_invalid``.
        """
        return tuple(self._apply(prompt, ask=True))

    def encode(self, example: Example) -> EncodedExample:
        """The conversation with the answer, up to the token that ends it.

        Raises:
            ShammahError: ``messages_invalid``.
        """
        prompt = self.encode_prompt(example.prompt)
        whole = self._apply((*example.prompt, ("assistant", example.response)), ask=False)
        if tuple(whole[: len(prompt)]) != prompt:
            # A template that writes an answer of the past otherwise than one that comes.
            whole = [*prompt, *self._ids(self._mark(example.response)), *self._end_of_turn()]
        end = self._last_end(whole, len(prompt))
        return EncodedExample(tuple(whole[:end]), len(prompt), example.weight)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without those that only control."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _apply(self, messages: Sequence[tuple[str, str]], *, ask: bool) -> list[int]:
        conversation = [{"role": role, "content": self._mark(text)} for role, text in messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                conversation, add_generation_prompt=ask, tokenize=False
            )
        except Exception as error:  # a template is a program of strangers
            raise ShammahError(
                "messages_invalid",
                f"The model's chat template refuses an example ({error}).",
                "Leave it out, or take its system prompt away.",
            ) from error
        return self._ids(rendered)

    def _mark(self, content: str) -> str:
        """``content`` with its control tokens marked: written out in a text they are text, and
        only the template ends turns and changes roles."""
        plain = content.replace(_BEGIN, "\ufffd").replace(_END, "\ufffd")
        return self._control.sub(lambda found: f"{_BEGIN}{found[0]}{_END}", plain)

    def _ids(self, text: str) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        ids: list[int] = []
        for place, part in enumerate(_MARKED.split(text)):  # odd parts are what was marked
            part = part.replace(_BEGIN, "").replace(_END, "")
            backend.encode_special_tokens = bool(place % 2)
            ids += backend.encode(part, add_special_tokens=False).ids
        backend.encode_special_tokens = False
        return ids

    def _end_of_turn(self) -> list[int]:
        end = self._tokenizer.eos_token_id
        return [] if end is None else [end]

    def _last_end(self, ids: Sequence[int], start: int) -> int:
        """Where the answer ends: after its last special token, without the line end that
        templates write behind it."""
        for place in range(len(ids) - 1, start - 1, -1):
            if ids[place] in self._special:
                return place + 1
        return len(ids)


def encode_all(
    encoder: ChatEncoder, examples: Iterable[Example], most: int
) -> tuple[tuple[EncodedExample, ...], int]:
    """The examples of at most ``most`` tokens, and how many are longer.

    Raises:
        ShammahError: ``messages_invalid``.
    """
    encoded = [encoder.encode(example) for example in examples]
    kept = tuple(one for one in encoded if len(one.ids) <= most and one.targets > 0)
    return kept, len(encoded) - len(kept)
