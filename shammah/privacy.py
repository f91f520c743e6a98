"""What must stay on this machine: rules, marks and the gate before the cloud. Pure.

A mark sticks to a turn: its question and its answer never go to the cloud, now or later. What
cannot be checked counts as private. The same gate stands twice, in the frontend (`Rules.mark`,
`withhold`) and at the door of the cloud worker (`check_door`), so that a mistake in one of them
lets nothing out.
"""

from __future__ import annotations

import fnmatch
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from shammah.bus.messages import ChatMessage
from shammah.config import PrivacySettings
from shammah.errors import ShammahError

PREFIX = "!private"
"""A line that begins with this word is private."""

UNCHECKED = "the rules could not be checked"


@dataclass(frozen=True, slots=True)
class Mark:
    """Whether a text is private. ``why`` completes "private, because ..."."""

    private: bool = False
    why: str = ""


def split_prefix(line: str) -> tuple[str, bool]:
    """The question in ``line``, and whether it begins with `PREFIX`."""
    head, *rest = line.split(maxsplit=1) or [""]
    if head.lower() != PREFIX:
        return line, False
    if not rest:
        return "", True
    blanks = line.lstrip()[len(head) :].removesuffix(rest[0])
    indent = blanks.rpartition("\n")[2] if "\n" in blanks else ""  # of a text on its own lines
    return indent + rest[0].rstrip(), True


class Rules:
    """The rules of ``[privacy]``, compiled.

    Args:
        settings: which rules there are; checked by `shammah.config.load_settings`.
        home: what ``~`` stands for; empty: nothing.
        directory: where the person works; relative paths in a text begin there.
    """

    def __init__(self, settings: PrivacySettings, home: str = "", directory: str = "") -> None:
        self._home = home
        self._directory = directory
        self._checks: list[tuple[Callable[[str], bool], str]] = [
            (check, f"it holds {what}")
            for name, (check, what) in _BUILT_IN.items()
            if getattr(settings, name)
        ]
        if settings.words:
            self._checks.append((_words(settings.words), "it holds one of your words"))
        if settings.patterns:
            from shammah.patterns import Pattern  # most people have none

            patterns = [Pattern(source) for source in settings.patterns]
            self._checks.append(
                (
                    lambda text: any(one.search(text) for one in patterns),
                    "one of your patterns fits",
                )
            )
        self._paths = [self._absolute(path) for path in settings.paths]
        if self._paths:
            self._checks.append((self._names_path, "it names one of your paths"))

    def mark(self, text: str, sources: Iterable[str] = ()) -> Mark:
        """Whether ``text`` is private. ``sources``: absolute paths that it came from.

        Never raises: what cannot be checked is private.
        """
        try:
            if any(self._covers(path) for path in (*sources, self._directory) if path):
                return Mark(True, "it comes from one of your paths")
            for form in dict.fromkeys((text, unicodedata.normalize("NFKC", text))):
                for check, why in self._checks:
                    if check(form):
                        return Mark(True, why)
        except Exception:  # a rule that breaks must not open the gate
            return Mark(True, UNCHECKED)
        return Mark()

    def mark_messages(self, messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
        """``messages`` with a mark on what the person wrote and on the answers to it, where the
        rules say so."""
        marked: list[ChatMessage] = []
        asked_in_private = False
        for message in messages:
            if message.role == "assistant":
                private = message.private or asked_in_private
            else:
                private = message.private or self.mark(message.content).private
                asked_in_private = private and message.role == "user"
            marked.append(replace(message, private=private))
        return tuple(marked)

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


@dataclass(frozen=True, slots=True)
class Outgoing:
    """What may go to the cloud, and how many private turns were left out."""

    messages: tuple[ChatMessage, ...]
    left_out: int = 0
    system_left_out: bool = False


def withhold(messages: tuple[ChatMessage, ...]) -> Outgoing:
    """The conversation without its private turns.

    Raises:
        ShammahError: ``private``, when the question itself, the last message, is private.
    """
    if not messages or messages[-1].private:
        raise _private("A private question never goes to the cloud.")
    kept = tuple(message for message in messages if not message.private)
    gone = [message for message in messages if message.private]
    return Outgoing(
        kept,
        sum(message.role == "user" for message in gone),
        any(message.role == "system" for message in gone),
    )


def check_door(messages: tuple[ChatMessage, ...], rules: Rules) -> None:
    """Refuse a request for the cloud that holds a marked message, or one to which a rule of the
    person's applies. For the cloud worker, which trusts no frontend.

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


def _private(why: str) -> ShammahError:
    return ShammahError(
        "private", f"{why} Nothing was sent.", "Ask with --local, or ask without what is private."
    )


# --- the built-in rules -------------------------------------------------------------------
# None of these expressions has a quantifier inside a quantifier that could match in two ways,
# and all have bounds: the time is linear in the text.

_API_KEYS = re.compile(
    r"""(?<![A-Za-z0-9])(?:
    sk-[A-Za-z0-9_-]{20,}                       # Anthropic, OpenAI
    | (?:AKIA|ASIA)[0-9A-Z]{16}                 # AWS
    | gh[pousr]_[A-Za-z0-9]{36} | github_pat_[A-Za-z0-9_]{22,}
    | glpat-[A-Za-z0-9_-]{20}                   # GitLab
    | xox[abeoprs]-[A-Za-z0-9-]{10,} | xapp-[0-9]-[A-Za-z0-9-]{10,}    # Slack
    | hooks\.slack\.com/services/[A-Za-z0-9/]{20,}
    | AIza[0-9A-Za-z_-]{35} | ya29\.[0-9A-Za-z_-]{20,}    # Google
    | hf_[A-Za-z0-9]{30,}                       # Hugging Face
    | npm_[A-Za-z0-9]{36} | pypi-[A-Za-z0-9_-]{50,}
    | [sr]k_(?:live|test)_[0-9A-Za-z]{16,}      # Stripe
    | SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}    # SendGrid
    | dop_v1_[a-f0-9]{64}                       # DigitalOcean
    | [0-9]{8,10}:AA[A-Za-z0-9_-]{32,}          # Telegram
    | AGE-SECRET-KEY-1[0-9A-Z]{58}
    | eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}    # JSON web token
    )""",
    re.VERBOSE,
)
_PRIVATE_KEYS = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[0-9]"
)
_EMAIL = re.compile(
    r"([A-Za-z0-9._%+-]{1,64})@((?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24})(?![A-Za-z0-9-])"
)
_NOBODY = re.compile(r"(?:^|\.)(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)$", re.I)
"""Domains that belong to nobody (RFC 2606)."""

_DIGITS = re.compile(r"[0-9](?:[ -]?[0-9])*")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = {
    entry[:2]: int(entry[2:])
    for entry in re.findall(
        r"\w+",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 "
        "DO28 EE20 EG29 ES24 FI18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 "
        "IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 MC27 MD24 ME22 MK19 MR27 "
        "MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 "
        "TL23 TN24 TR26 UA29 VA22 VG24 XK20",
    )
}
"""Characters of a country's account numbers (ISO 13616)."""
_PATH = re.compile(r"[~\w./+@%:-]+")


def _holds_email(text: str) -> bool:
    return "@" in text and any(
        found[1].lower() != "git" and not _NOBODY.search(found[2])
        for found in _EMAIL.finditer(text)
    )


def _holds_card(text: str) -> bool:
    """13 to 19 digits, perhaps in groups, that begin as cards do and pass Luhn's test."""
    for run in _DIGITS.finditer(text):
        groups = re.split("[ -]", run[0])
        for start in range(len(groups)):
            digits = ""
            for group in groups[start : start + 19]:
                digits += group
                if len(digits) > 19:
                    break
                if len(digits) >= 13 and digits[0] in "23456" and _luhn(digits):
                    return True
    return False


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, the sum of all digits is 0
    modulo 10."""
    total = sum(map(int, digits[-1::-2])) + sum(sum(divmod(2 * int(d), 10)) for d in digits[-2::-2])
    return total % 10 == 0


def _holds_iban(text: str) -> bool:
    """ISO 13616: the first four characters at the end, letters as numbers, 1 modulo 97."""
    for found in _IBAN.finditer(text):
        account = found[0].replace(" ", "")
        account = account[: _IBAN_LENGTHS.get(account[:2], 0)]
        if len(account) == _IBAN_LENGTHS.get(account[:2]):
            number = "".join(str(int(one, 36)) for one in account[4:] + account[:4])
            if int(number) % 97 == 1:
                return True
    return False


def _words(words: Iterable[str]) -> Callable[[str], bool]:
    """A search for whole words, whatever the blanks between them."""

    def sources() -> Iterator[str]:
        for word in words:
            parts = unicodedata.normalize("NFKC", word).split()
            source = r"\s+".join(re.escape(part) for part in parts)
            yield (
                (r"(?<!\w)" if parts[0][0].isalnum() else "")
                + source
                + (r"(?!\w)" if parts[-1][-1].isalnum() else "")
            )

    pattern = re.compile("|".join(sources()), re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


_BUILT_IN: dict[str, tuple[Callable[[str], bool], str]] = {
    "api_keys": (lambda text: _API_KEYS.search(text) is not None, "a key or token"),
    "private_keys": (lambda text: _PRIVATE_KEYS.search(text) is not None, "a private key"),
    "emails": (_holds_email, "an e-mail address"),
    "cards": (_holds_card, "a payment card number"),
    "ibans": (_holds_iban, "a bank account number"),
}
"""Setting to check, and what it finds."""
