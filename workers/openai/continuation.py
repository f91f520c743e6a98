"""An answer that goes on where another backend stopped. Pure.

The Messages API takes no beginning of an answer from us: today's models refuse a conversation
that ends with the assistant. So the person asks to go on. A model begins a reply neither with a
blank nor in the middle of a word, and then nobody could tell "of" + "France" from "Par" + "is";
so it is instructed to begin with the last words once more, and these are removed (`Joint`). If a
model ignores this, its text is joined as well as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

from shammah.bus.messages import ChatMessage

ANCHOR = 60
"""Characters that are to be repeated, about: enough to be found, few enough to be repeated
rightly and not to keep the reader waiting."""
REACH = 400
"""Characters at the end of the text so far in which a repetition nobody asked for is looked for."""
LEAST_CHARACTERS, LEAST_WORDS = 8, 2
"""Of such a repetition. A word alone, or a bracket, may be meant: "that that", "}}"."""
LEAST_OF_WORD = 3
"""Letters of an unfinished word that is begun again."""

_INSTRUCTION = """\
Your answer was cut off by a technical fault. Go on exactly where it stops. Begin by repeating \
its last words, which stand between the tags, letter for letter and without the tags; then go on \
in the same sentence, in the same language and form. Nothing before it, no comment, no apology.
<last_words>{anchor}</last_words>"""


def ask_to_continue(begun: str) -> ChatMessage:
    """The question that follows the beginning of an answer."""
    return ChatMessage("user", _INSTRUCTION.format(anchor=find_anchor(begun)))


def split_begun(messages: Sequence[ChatMessage]) -> tuple[Sequence[ChatMessage], str]:
    """The conversation with a question at its end, and how much of the answer there is already.

    Nothing but blanks is no beginning.
    """
    if [one.role for one in messages[-2:]] not in (["user", "assistant"], ["tool", "assistant"]):
        return messages, ""
    begun = messages[-1].content
    if not begun.strip():
        return messages[:-1], begun
    return (*messages, ask_to_continue(begun)), begun


def find_anchor(begun: str) -> str:
    """The last words of ``begun``, from the beginning of a word on, without blanks around."""
    text = begun.strip()
    start = max(0, len(text) - ANCHOR)
    while start and start < len(text) - ANCHOR // 2 and not text[start - 1].isspace():
        start += 1
    return text[start:].lstrip()


class Joint:
    """Takes out of a continuation what ``begun`` has already. For one attempt.

    What has come is held back until it is clear; that is a line at most.
    """

    def __init__(self, begun: str) -> None:
        self._begun = begun
        self._anchor = find_anchor(begun)
        self._held = ""
        self._open = bool(begun)
        self._blanks = begun[len(begun.rstrip()) :]
        self._due = ""

    def add(self, text: str) -> str:
        """What of ``text`` is new, as far as that is known."""
        if not self._open:
            return self._trim(text)
        self._held += text
        if self._may_repeat(self._held.lstrip()):
            return ""
        return self._decide()

    def finish(self) -> str:
        """What was held back: the continuation has ended."""
        return self._decide() if self._open else ""

    def _may_repeat(self, said: str) -> bool:
        """Whether ``said`` may still become a (longer) repetition."""
        if not said or (len(said) < len(self._anchor) and self._anchor.startswith(said)):
            return True
        if said.startswith(self._anchor):
            return False
        return said in self._begun[-REACH:].rstrip()

    def _decide(self) -> str:
        held, self._held, self._open = self._held, "", False
        said = held.lstrip()
        if said.startswith(self._anchor):
            repeated = len(self._anchor)
        else:
            glued = said == held and not self._blanks
            repeated = overlap(self._begun.rstrip(), said, glued=glued)
        if not repeated:
            return held
        self._due = self._blanks
        return self._trim(said[repeated:])

    def _trim(self, text: str) -> str:
        """``text`` without the blanks that the text so far ends with."""
        while text and self._due:
            if text[0] == self._due[0]:
                text, self._due = text[1:], self._due[1:]
            else:
                self._due = ""
        return text


def overlap(begun: str, said: str, *, glued: bool) -> int:
    """How many characters at the beginning of ``said`` repeat the end of ``begun``.

    Counted from the beginning of a word, and only what cannot well be meant: some words, or
    (``glued``: there is no blank between the two) an unfinished word that is begun again.
    """
    for length in range(min(len(begun), len(said), REACH), 0, -1):
        start = len(begun) - length
        if not begun.endswith(said[:length]):
            continue
        if start and begun[start - 1].isalnum() and begun[start].isalnum():
            continue  # in the middle of a word
        if _counts(said[:length], glued=glued):
            return length
    return 0


def _counts(repeated: str, *, glued: bool) -> bool:
    words = repeated.split()
    if len(words) >= LEAST_WORDS and len(repeated.strip()) >= LEAST_CHARACTERS:
        return any(character.isalpha() for character in repeated)
    return glued and repeated.isalpha() and len(repeated) >= LEAST_OF_WORD
