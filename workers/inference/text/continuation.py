"""An answer that goes on where another one stopped. Pure.

The text so far is encoded again, and what follows is sent as new text, so the whole is always
exactly the one and then the other. The tokens may be others than those that were lost: a text
that stops in the middle of a word (Claude's pieces do, the local model's do not) may be divided
otherwise than the whole word would be. Only blanks at the end are healed: in most vocabularies a
blank belongs to the word after it, and a model that is shown one alone writes nonsense.
"""

from __future__ import annotations

from collections.abc import Sequence

from shammah.bus.messages import ChatMessage

_BLANKS = " \t"


def split_begun(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], str]:
    """Return the conversation up to its last question, and the answer so far."""
    if messages and messages[-1].role == "assistant":
        return messages[:-1], messages[-1].content
    return messages, ""


def heal(text: str) -> tuple[str, str]:
    """Return ``text`` as the model should see it, and the blanks that were cut off its end."""
    kept = text.rstrip(_BLANKS)
    return kept, text[len(kept) :]


class Blanks:
    """Takes the blanks that `heal` has cut off out of what the model writes next, as far as it
    writes them, since they have been shown."""

    def __init__(self, text: str) -> None:
        self._left = heal(text)[1]

    def strip(self, text: str) -> str:
        while text and self._left and text[0] == self._left[0]:
            text, self._left = text[1:], self._left[1:]
        if text:
            self._left = ""
        return text
