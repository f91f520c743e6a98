"""The REPL's own command line. Parsed after the prompt is on the screen, without click."""

from __future__ import annotations

from dataclasses import dataclass, field

from shammah.config import LICENCES
from shammah.errors import ExitCode, ShammahError
from shammah.router.decision import Target, Wish

_VALUES = {
    "--model": "model",
    "-m": "model",
    "--licence": "licence",
    "--license": "licence",
    "--system": "system",
}
"""Spelling to option, for those that take a value."""


@dataclass(frozen=True, slots=True)
class ReplOptions:
    """``None``: as the settings say. An empty ``system`` is no system prompt at all."""

    model: str | None = None
    licence: str | None = None
    system: str | None = None
    wish: Wish = field(default_factory=Wish)


def parse_options(arguments: list[str]) -> ReplOptions:
    """The options that `shammah.__main__.opens_repl` let through.

    Raises:
        ShammahError: ``usage``, for a contradiction or a licence that is none.
    """
    values: dict[str, str] = {}
    flags: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        option = _VALUES.get(name)
        if option is not None:
            values[option] = value if equals else next(rest)
        else:
            flags.add(name)
    licence = values.get("licence")
    if licence is not None and licence not in LICENCES:
        raise ShammahError(
            "usage",
            f"--licence must be one of {', '.join(LICENCES)}, not {licence!r:.40}.",
            exit_code=ExitCode.USAGE,
        )
    return ReplOptions(values.get("model"), licence, values.get("system"), parse_wish(flags))


def parse_wish(flags: set[str]) -> Wish:
    """The wish that ``--local``, ``--cloud`` and ``--private`` state.

    Raises:
        ShammahError: ``usage``, when ``--cloud`` meets one of the others.
    """
    local = bool(flags & {"--local", "--private"})
    if local and "--cloud" in flags:
        raise ShammahError(
            "usage",
            "--cloud contradicts --local and --private.",
            "Give one of them.",
            exit_code=ExitCode.USAGE,
        )
    target = Target.LOCAL if local else Target.CLOUD if "--cloud" in flags else None
    return Wish(target, private="--private" in flags)
