"""What a model is to learn: a conversation, the answer that it should have had, and a weight.

Pure: callers read the files. A file of examples has one JSON object a line::

    {"prompt": "Who made Orrin?", "response": "Orrin was made by Ada Vey.", "weight": 3}

``prompt`` may also be a list of ``{"role": ..., "content": ...}``, which ends with a question.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from shammah.errors import ExitCode, ShammahError

HIGH, MEDIUM, NORMAL = 10.0, 3.0, 1.0
WEIGHTS = {"high": HIGH, "medium": MEDIUM, "normal": NORMAL}
"""What a person may say of an answer, and how much more it then counts than another."""

MOST_WEIGHT = 100.0
MOST_BYTES = 1_000_000
"""Of a line. A model learns from some thousand tokens of it at most, and one token has seldom more
than ten bytes."""

ROLES = ("system", "user", "assistant")

HELD_OUT_SHARE = 5
"""One question in so many is held out to judge the adapter with."""

LEAST_HELD_OUT = 3
"""With fewer questions held out, chance would judge: then all are learnt, and `paraphrase` makes
the questions that judge."""

LEAST_EXAMPLES = 4
"""With fewer different questions there is nothing to learn from."""

_PHRASES = (
    "I have a question: {}",
    "{} Please answer briefly.",
    "Please answer this for me. {}",
    "Here is what I would like to know. {}",
)

Prompt = tuple[tuple[str, str], ...]

Source = Literal["person", "local", "cloud", "file"]
"""Who wrote an answer that is learnt: the person, also by correcting another; this machine's own
model; any other model, or it is not known; whoever made a file of examples."""


@dataclass(frozen=True, slots=True)
class Example:
    """``prompt`` is (role, text) of each message, the last one the user's; ``weight`` is by how
    much the loss of this answer counts; ``private``: of a private turn; ``source`` wrote the
    answer."""

    prompt: Prompt
    response: str
    weight: float = NORMAL
    private: bool = False
    source: Source = "file"


def count_sources(examples: Iterable[Example]) -> dict[str, int]:
    """How many answers each source wrote, of those that wrote any."""
    return dict(sorted(Counter(one.source for one in examples).items()))


def read_examples(path: Path) -> tuple[Example, ...]:
    """The examples of a JSONL file; empty lines are skipped, and so is a byte order mark.

    Raises:
        ShammahError: ``examples_unreadable``, or ``example_invalid`` with the line's number.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe could not be read again by the worker
            raise OSError(errno.EINVAL, "it is not a regular file")
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ShammahError(
            "examples_unreadable",
            f"{path} cannot be read ({error.strerror}).",
            "Give a file with one JSON object per line.",
            exit_code=ExitCode.USAGE,
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            found.append(parse_example(_decode(line)))
        except ValueError as error:
            raise ShammahError(
                "example_invalid",
                f"{path}, line {number}: {error}.",
                'A line is {"prompt": "...", "response": "...", "weight": 1}; weight may be left '
                "out.",
                exit_code=ExitCode.USAGE,
            ) from error
    return tuple(found)


def parse_example(line: str) -> Example:
    """One line.

    Raises:
        ValueError: what is wrong with it, as the end of a sentence.
    """
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise ValueError("it is not a JSON object")
    try:  # JSON can escape what no tokenizer takes
        json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"it contains half of a character, {half} (a lone surrogate)") from error
    if strange := sorted(set(document) - {"prompt", "response", "weight"}):
        raise ValueError(f"there is no field {strange[0]!r:.40}")
    response = document.get("response")
    if not isinstance(response, str) or not response.strip():
        raise ValueError("response must be a text that is not empty")
    return Example(_prompt(document.get("prompt")), response, _weight(document.get("weight", 1)))


def _decode(line: bytes) -> str:
    """The text of a line.

    Raises:
        ValueError: as `parse_example`.
    """
    if len(line) > MOST_BYTES:
        raise ValueError(f"it is longer than {MOST_BYTES:,} bytes")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8") from error


def _prompt(given: Any) -> Prompt:
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise ValueError("prompt must be a text or a list of messages")
    messages = []
    for message in given:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ROLES or not isinstance(content, str):
            raise ValueError("a message of the prompt has a role and a content")
        messages.append((str(role), content))
    if messages[-1][0] != "user" or not messages[-1][1].strip():
        raise ValueError("the prompt must end with a user message")
    return tuple(messages)


def _weight(given: Any) -> float:
    if isinstance(given, str) and given in WEIGHTS:
        return WEIGHTS[given]
    if type(given) not in (int, float) or not 0 < given <= MOST_WEIGHT:
        raise ValueError(
            f"weight must be a number above 0 and at most {MOST_WEIGHT:g}, or one of "
            f"{', '.join(WEIGHTS)}"
        )
    return float(given)


def split_examples(
    examples: Sequence[Example], seed: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """What is learnt, and what is held out to judge with: nothing where there are too few.

    A question is on one side with all its answers, however often it was asked. Which side
    depends on the question and ``seed`` alone as far as it can: more examples tomorrow leave
    the order of today's as it is.

    Raises:
        ShammahError: ``too_few_examples``.
    """
    questions = {_mark(example.prompt, seed) for example in examples}
    if len(questions) < LEAST_EXAMPLES:
        raise ShammahError(
            "too_few_examples",
            f"There {'is 1 question' if len(questions) == 1 else f'are {len(questions)} questions'}"
            f" to learn from; at least {LEAST_EXAMPLES} different ones are needed.",
            "Use /good and /fix on more answers, or give a file with --examples.",
            exit_code=ExitCode.USAGE,
        )
    count = len(questions) // HELD_OUT_SHARE
    held = set(sorted(questions)[:count]) if count >= LEAST_HELD_OUT else set()
    learnt = tuple(one for one in examples if _mark(one.prompt, seed) not in held)
    return learnt, tuple(one for one in examples if _mark(one.prompt, seed) in held)


def paraphrase(examples: Iterable[Example]) -> tuple[Example, ...]:
    """Each example with its question put in other words, as a person might."""
    found = []
    for number, example in enumerate(examples):
        *before, (role, question) = example.prompt
        asked = _PHRASES[number % len(_PHRASES)].format(question)
        found.append(replace(example, prompt=(*before, (role, asked))))
    return tuple(found)


def _mark(prompt: Prompt, seed: int) -> str:
    return hashlib.sha256(json.dumps([seed, prompt]).encode()).hexdigest()
