"""What must stay on this machine: rules, marks and the gate before the cloud. Pure.

A mark sticks to a turn: its question and its answer never go to the cloud, now or later. What
cannot be checked counts as private. The same gate stands twice, in the frontend (`gate`) and
in the cloud worker (`check_outgoing`), so that a mistake in one of them
lets nothing out.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from shammah.bus.messages import ChatMessage, Sampling
from shammah.bus.record import record
from shammah.errors import ShammahError
from shammah.privacy import contacts, credentials, numbers
from shammah.privacy.text import forms, holds, normalise
from shammah.settings.model import PrivacySettings

PREFIX = "!private"
"""A line that begins with this word is private."""

UNCHECKED = "the rules could not be checked"
KNOWN = 500
"""Texts whose marks are remembered: a conversation is marked at each question."""

Check = Callable[[str], bool]


def _of_digits(check: Check) -> Check:
    """Return ``check`` for texts that have some digits at all: most have none."""
    return lambda text: holds(r"\d(?:\D{0,3}\d){3}", text) and check(text)


RULES: dict[str, tuple[Check, str]] = {
    "api_keys": (credentials.holds_key, "a key or token"),
    "private_keys": (credentials.holds_private_key, "a private key"),
    "passwords": (credentials.holds_password, "a password"),
    "emails": (contacts.holds_mail, "an e-mail address"),
    "cards": (_of_digits(numbers.holds_card), "a payment card number"),
    "ibans": (_of_digits(numbers.holds_account), "a bank account number"),
    "identity_numbers": (_of_digits(numbers.holds_identity), "an identity number"),
    "phones": (_of_digits(contacts.holds_phone), "a telephone number"),
    "ip_addresses": (contacts.holds_ip, "an IP address"),
}
"""The setting of ``[privacy]`` that switches each built-in rule, its check, which is given a text
in its normal form (`shammah.privacy.text.normalise`), and what it finds."""


@record
class Mark:
    """Whether a text is private. ``why`` completes "private, because ..."."""

    private: bool = False
    why: str = ""


def split_prefix(line: str) -> tuple[str, bool]:
    """The question in ``line``, and whether it begins with `PREFIX`."""
    head, rest = split_word(line)
    return (rest, True) if head.lower() == PREFIX else (line, False)


def split_word(line: str) -> tuple[str, str]:
    """The first word of ``line`` and what comes after it, without the blanks around that. A text
    that begins on a line of its own keeps its indentation."""
    head, *rest = line.split(maxsplit=1) or [""]
    if not rest:
        return head, ""
    blanks = line.lstrip()[len(head) :].removesuffix(rest[0])
    indent = blanks.rpartition("\n")[2] if "\n" in blanks else ""
    return head, indent + rest[0].rstrip()


PREPARING = "In 1999 it was 12 m, at x @ y (a = b)."
"""A text that no rule applies to, with what the quick looks before the slow patterns look for."""


class Rules:
    """The rules of ``[privacy]``, compiled.

    Args:
        settings: which rules there are; checked by `shammah.settings.load.load_settings`.
        home: what ``~`` stands for; empty: nothing.
        directory: where the person works; relative paths in a text begin there.
    """

    def __init__(self, settings: PrivacySettings, home: str = "", directory: str = "") -> None:
        self._home = home
        self._directory = directory
        self._examine = lru_cache(KNOWN)(self._apply)
        self._checks: list[tuple[Check, str]] = [
            (check, f"it contains {what} (privacy.{name})")
            for name, (check, what) in RULES.items()
            if getattr(settings, name)
        ]
        if settings.words:
            what = "it contains one of your words (privacy.words)"
            self._checks.append((_words(settings.words), what))
        if settings.patterns:
            from shammah.settings.patterns import Pattern  # most people have none

            patterns = [Pattern(source) for source in settings.patterns]
            self._checks.append(
                (
                    lambda text: any(one.search(text) for one in patterns),
                    "it matches one of your patterns (privacy.patterns)",
                )
            )
        self._paths = [self._absolute(path) for path in settings.paths]
        if self._paths:
            self._checks.append((self._names_path, "it names one of your paths (privacy.paths)"))

    def mark(self, text: str, sources: Iterable[str | None] = ()) -> Mark:
        """Whether ``text`` is private. ``sources``: absolute paths that it came from; ``None``:
        the path is unknown.

        Never raises: what cannot be checked is private.
        """
        try:
            paths = (*sources, self._directory)
            if any(self._covers(path) for path in paths if path):
                return Mark(True, "it comes from one of your paths (privacy.paths)")
            if self._paths and None in paths:
                return Mark(True, UNCHECKED)
            return self._examine(text)
        except Exception:  # a rule that breaks must not open the gate
            return Mark(True, UNCHECKED)

    def prepare(self) -> None:
        """Compile the patterns that most texts never reach, so that the first one that does, such
        as an answer with a year in it, is not kept waiting (about 15 ms)."""
        self.mark(PREPARING)

    def _apply(self, text: str) -> Mark:
        reasons = (why for form in forms(text) for check, why in self._checks if check(form))
        why = next(reasons, "")
        return Mark(bool(why), why)

    def _absolute(self, path: str) -> str:
        if path == "~" or path.startswith("~/"):
            path = self._home + path[1:]
        return os.path.normpath(os.path.join(self._directory or "/", path))

    def _covers(self, path: str) -> bool:
        """Whether ``path`` is one of the person's, or inside one."""
        return any(
            fnmatch.fnmatchcase(path, own) or fnmatch.fnmatchcase(path, f"{own}/*")
            for own in self._paths
        )

    def _names_path(self, text: str) -> bool:
        tilde = [f"~{own[len(self._home) :]}" for own in self._paths if self._in_home(own)]
        for own in (*self._paths, *tilde):
            # As they stand, so that blanks inside are found, too.
            if own in text and re.search(rf"{re.escape(own)}(?![\w-])", text):
                return True
        return any(
            self._covers(self._absolute(found.rstrip(".:")))
            for found in _PATH.findall(text)
            if "/" in found or "." in found
        )

    def _in_home(self, path: str) -> bool:
        return bool(self._home) and path.startswith(f"{self._home}/")


def told_beside(sampling: Sampling) -> Iterator[str]:
    """What a model is told beside the messages: tools, texts that end the answer, its schema."""
    for tool in sampling.tools:
        yield f"{tool.name}\n{tool.description}\n{tool.parameters}"
    yield from filter(None, (*sampling.stop, sampling.schema))


def check_outgoing(
    messages: tuple[ChatMessage, ...],
    rules: Rules,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> None:
    """Refuse a request for the cloud that holds a marked message, or anything to which a rule of
    the person's applies. For the cloud worker, which trusts no frontend.

    Answers are not held against the rules: a cloud answer reveals nothing to the cloud, and the
    local ones to which a rule applies come with a mark.

    Raises:
        ShammahError: ``private``.
    """
    for message in messages:
        if message.private:
            raise _private("The conversation holds a turn that is marked private.")
        if message.role != "assistant" and (mark := rules.mark(message.content)).private:
            raise _private(f"Private ({mark.why}).")
    for text in told_beside(sampling):
        if (mark := rules.mark(text)).private:
            raise _private(f"A tool, a stop text or the schema is private ({mark.why}).")


def _private(why: str) -> ShammahError:
    return ShammahError(
        "private", f"{why} Nothing was sent.", "Ask with --local, or leave out what is private."
    )


_PATH = re.compile(r"[~\w./+@%:-]+")


def _words(words: Iterable[str]) -> Check:
    """A search for whole words, whatever the blanks between them."""

    def sources() -> Iterator[str]:
        for word in words:
            parts = normalise(word).split()
            source = r"\s+".join(re.escape(part) for part in parts)
            yield (
                (r"(?<!\w)" if parts[0][0].isalnum() else "")
                + source
                + (r"(?!\w)" if parts[-1][-1].isalnum() else "")
            )

    pattern = re.compile("|".join(sources()), re.IGNORECASE)
    return lambda text: pattern.search(text) is not None
