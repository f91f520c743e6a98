"""Examples as tokens: the model's own chat template, and which tokens are to be learnt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shammah.errors import ShammahError
from shammah.learning.examples import Example, Prompt
from workers.text.model_text import ModelText, why_refused


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
    """A model's tokenizer with its chat template."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self.ends = text.hidden | text.ends
        """The tokens that are no text: an answer ends at any of them."""

    @classmethod
    def load(cls, directory: Path) -> ChatEncoder:
        """Of the model in ``directory``.

        Raises:
            ShammahError: ``model_corrupt`` or ``chat_template_missing``.
        """
        text = ModelText.load(directory)
        if text.template is None:
            raise ShammahError(
                "chat_template_missing",
                "The model has no chat template: it continues text and cannot be taught answers.",
                "Choose an Instruct or Chat model with --model.",
            )
        return cls(text)

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
            end = self._text.end
            ending = () if end is None else (end,)
            whole = [*prompt, *self._text.encode_text(example.response), *ending]
        whole = whole[: self._last_end(whole, len(prompt))]
        return EncodedExample(tuple(whole), len(prompt), example.weight)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without those that only control."""
        return self._text.decode(ids)

    def is_word(self, text: str) -> bool:
        """Whether a word is a token of its own, as ordinary words are."""
        # Most tokenizers tell a word's beginning by the blank before it; others add one.
        blank = " " if len(self._text.encode_text(" the")) == 1 else ""
        return len(self._text.encode_text(blank + text)) == 1

    def _apply(self, messages: Sequence[tuple[str, str]], *, ask: bool) -> list[int]:
        try:
            return self._text.encode(messages, ask=ask)
        except ShammahError:
            raise
        except Exception as error:  # a template is a program of strangers
            raise ShammahError(
                "messages_invalid",
                f"The model's chat template rejects an example ({why_refused(error)}).",
                "Remove the example, or its system prompt.",
            ) from error

    def _last_end(self, ids: Sequence[int], start: int) -> int:
        """Where the answer ends: after its last special token, without the line end that
        templates write behind it."""
        for place in range(len(ids) - 1, start - 1, -1):
            if ids[place] in self.ends:
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
