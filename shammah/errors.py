"""What can go wrong, as a value: a code, a message and a hint.

Inside a process an error is an exception; where it crosses a boundary (bus, terminal,
``--json``) it is these three strings. The message says what happened and why, the hint says
what to do next.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit statuses of every ``shammah`` command and worker (listed in docs/CLI.md)."""

    OK = 0
    FAILED = 1
    """The command ran and could not do what was asked."""
    USAGE = 2
    """Wrong arguments, an invalid setting, or a role that this version does not have."""
    ALREADY_RUNNING = 3
    """A second worker of a role that is running (the first goes on)."""
    BROKEN_PIPE = 141
    """Whoever read the output has seen enough, as shells report it (128 + SIGPIPE)."""
    INTERRUPTED = 130
    """Ctrl-C, as shells report it (128 + SIGINT)."""


class ShammahError(Exception):
    """An expected failure.

    Attributes:
        code: stable, for programs (``config_invalid``, ``context_too_long``, ...).
        message: one sentence for people: what happened and why.
        hint: one sentence: what to do next; may be empty.
    """

    def __init__(
        self, code: str, message: str, hint: str = "", *, exit_code: ExitCode = ExitCode.FAILED
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.exit_code = exit_code

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".rstrip()


class UsageError(ShammahError):
    """What was typed means nothing: ``usage``."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__("usage", message, hint, exit_code=ExitCode.USAGE)


def schema_not_enforced(subject: str, why: str = "") -> ShammahError:
    """Refuse a JSON schema that ``subject``, which begins the sentence, cannot enforce (``why``)
    while it chooses tokens.

    It could at best be asked to keep to it, and a program that reads the answer would break on the
    day when it does not.
    """
    return ShammahError(
        "schema_not_enforced",
        f"{subject} cannot hold an answer to this schema" + (f": {why:.300}" if why else "."),
        "Simplify the schema, or ask the cloud with --cloud.",
    )
