"""What the router reads in a question. Pure."""

from __future__ import annotations

from shammah.bus.messages import ChatMessage
from shammah.router.categories import categorize
from shammah.router.crisis import detect_danger
from shammah.router.first_guess import is_sum
from shammah.router.route import Question

BYTES_PER_TOKEN = 4.0
"""English prose has a little more, program text and most other languages less."""
MESSAGE_TOKENS = 5
"""What a chat template adds to each message."""


def examine(conversation: tuple[ChatMessage, ...]) -> Question:
    """The question is the last message; what counts for the length is all of them."""
    text = conversation[-1].content
    tokens = estimate_tokens(conversation)
    return Question(categorize(text), detect_danger(text), tokens, is_sum(text))


def estimate_tokens(conversation: tuple[ChatMessage, ...]) -> int:
    """Roughly: the frontend has no tokenizer."""
    size = sum(len(message.content.encode("utf-8", "replace")) for message in conversation)
    return round(size / BYTES_PER_TOKEN) + MESSAGE_TOKENS * len(conversation)
