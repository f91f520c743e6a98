"""What the router reads in a question. Pure.

The categories are the original's nine, in its order, on words: the first that fits wins. The
original looked for substrings ("prefix" was a bug to fix, "history" a greeting); here whole words
count, and what they are next to.
"""

from __future__ import annotations

import re
from functools import cached_property

from shammah.bus.messages import ChatMessage
from shammah.router.crisis import detect_danger
from shammah.router.route import Category, Question

BYTES_PER_TOKEN = 4.0
"""English prose has a little more, program text and most other languages less."""
MESSAGE_TOKENS = 5
"""What a chat template adds to each message."""


_READ = 4000
"""Characters to look at: the kind shows at the beginning."""
_SUM = re.compile(
    r"\d\s*(?:[+*/\u00d7\u00f7^%]|plus|minus|times|divided by|mod)\s*\(?\d|\d\s+-\s+\(?\d",
    re.IGNORECASE,
)


def examine(conversation: tuple[ChatMessage, ...]) -> Question:
    """The question is the last message; what counts for the length is all of them."""
    text = conversation[-1].content
    tokens = estimate_tokens(conversation)
    danger = detect_danger(text) if conversation[-1].role == "user" else None  # not a tool's words
    return Question(categorize(text), danger, tokens, is_sum(text))


def estimate_tokens(conversation: tuple[ChatMessage, ...]) -> int:
    """Roughly: the frontend has no tokenizer."""
    size = sum(len(message.content.encode("utf-8", "replace")) for message in conversation)
    return round(size / BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(conversation)


def is_sum(text: str) -> bool:
    """Whether a question is arithmetic."""
    return _SUM.search(text) is not None


class _Pattern:
    """A regular expression, compiled at its first use: together they take longer to compile than
    the rest of a start that may ask nothing."""

    def __init__(self, source: str, flags: re.RegexFlag) -> None:
        self._source = source
        self._flags = flags

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self._source, self._flags)

    def search(self, text: str) -> re.Match[str] | None:
        return self._compiled.search(text)

    def match(self, text: str) -> re.Match[str] | None:
        return self._compiled.match(text)


def _words(pattern: str, flags: re.RegexFlag = re.IGNORECASE) -> _Pattern:
    return _Pattern(rf"\b(?:{pattern})\b", flags)


_CODE = _Pattern(
    r"```"
    r"|\bfn \w+\s*[(<]|\bdef \w+\s*\(|\bclass \w+\s*[:({]|^\s*#include\b"
    r"|^\s*(?:select\b.+\bfrom|insert into|update \w+ set|delete from)\b"
    r"|\b(?:int|void) main\s*\(",
    re.IGNORECASE | re.MULTILINE,
)
_MAKES_CODE = _words(
    r"(?:write|implement|generate|create|give me|show me|make|build|convert|refactor|code up"
    r"|program|complete|add)\b[^.?!\n]{0,60}?"
    r"\b(?:functions?|class|script|program|regex|regular expression|query|unit tests?|code"
    r"|interface|module|method|macro|makefile|dockerfile|quicksort|(?:search|sort) algorithm"
    r"|one-liner|snippet|component|decorator|list comprehension|(?:for|while) loop|struct"
    r"|type hints|(?:api|rest) endpoint|schema"
    r"|in (?:python|rust|java|javascript|typescript|go|c|ruby|haskell|kotlin|swift|sql|bash))"
)
_DEBUGGING = _words(
    r"errors?|bugs?|buggy|broken|fix(?:ed|es|ing)?|traceback|exceptions?|stack trace"
    r"|segmentation fault|segfaults?|core dumped|permission denied|undefined reference"
    r"|(?:do|does|did|is|wo|will|wil|ca|can|would|could)(?:n'?t| not|not)"
    r" (?:work|compile|start|run|load|build|open|boot|connect|install|respond|working"
    r"|recognized|found|loading|starting|responding)"
    r"|(?:not|stopped) working|no longer works?|keeps? (?:crashing|hanging|freezing|dropping)"
    r"|crash(?:es|ed|ing)?|fail(?:s|ed|ing|ure)?|what(?:'s| is| am i doing) wrong"
    r"|(?:gets?|getting|got|returns?|throws?|says) (?:an? )?(?:http )?[45]\d\d"
    r"|(?:hangs|freezes|is stuck|is rejected|was rejected|refuses to)"
    r"|\w+(?:Error|Exception)(?=:)"
)
_DEFINITION = _Pattern(
    r"(?:what(?:'s| is| are| was| were)|who(?:'s| is| are| was| were)|define)\b"
    r"|what (?:do|does) \S+(?: \S+){0,3} (?:mean|stand for)\b"
    r"|(?:the )?(?:definition|meaning) of\b"
    r"|(?:tell me|do you know) (?:what|who)\b[^.?!\n]{0,60} (?:is|are|was|were|means?)\b",
    re.IGNORECASE,
)
_HOW_TO = _Pattern(
    r"how (?:to|do|does|can|could|should|would)\b|steps to\b"
    r"|what(?:'s| is) (?:the|a) \w+ way (?:to|of)\b",
    re.IGNORECASE,
)
_GREETING = _Pattern(
    r"(?:hi|hello|hey|hiya|yo|greetings|good (?:morning|afternoon|evening))\b", re.IGNORECASE
)
_EXPLANATION = _words(
    r"explain(?:s|ed|ing)?|describe[sd]?|describing|help me understand|walk me through"
)
_WHY = _Pattern(
    r"why\b|how come\b|what (?:makes|causes|caused)\b"
    r"|how (?:do|does|did) (?!i\b|you\b|we\b|one\b)[^?]{2,60}\b(?:works?|happen|form|evolve)\b",
    re.IGNORECASE,
)
_COMPARISON = _words(
    r"vs\.?|versus|differences? between|compar(?:e[sd]?|ing|isons?)|pros and cons"
    r"|which (?:one )?is (?:\w+er|more \w+|less \w+)|what(?:'s| is) better"
    r"|(?:is|are)\b[^?]{2,40} (?:\w+er|more \w+|less \w+) than"
    r"|(?:different|differ) from"
)
_OPINION = _words(
    r"should (?:i|we)|is it (?:better|worth)|recommend(?:s|ed|ations?)?"
    r"|do you (?:like|think|prefer)|(?:what )?would you|your favou?rite|your opinion"
)


def categorize(question: str) -> Category:
    """The category of a question, by the first of the rules that fits."""
    text = question[:_READ].replace("\u2019", "'").strip()
    if _CODE.search(text) or _MAKES_CODE.match(_request(text)):
        return Category.CODE
    if _is_debugging(text):
        return Category.DEBUGGING
    compares, why = bool(_COMPARISON.search(text)), bool(_WHY.match(text))
    asks_how = bool(_HOW_TO.match(text))
    if _DEFINITION.match(text) and not (compares or asks_how or _OPINION.search(text)):
        return Category.DEFINITION
    if asks_how and not (compares or why):
        return Category.HOW_TO
    if len(text.split()) <= 3 and _GREETING.match(text):
        return Category.GREETING
    if why or _EXPLANATION.search(text):
        return Category.EXPLANATION
    if compares:
        return Category.COMPARISON
    return Category.OPINION if _OPINION.search(text) else Category.OTHER


def _request(text: str) -> str:
    """``text`` without the politeness that it begins with."""
    return re.sub(r"^(?:(?:please|can you|could you|would you)\s+)+", "", text, flags=re.I)


def _is_debugging(text: str) -> bool:
    """Something is wrong, rather than asked about: "what is an error budget" is a question."""
    found = _DEBUGGING.search(text)
    if found is None:
        return False
    return not (_DEFINITION.match(text) and len(text.split()) <= 6)
