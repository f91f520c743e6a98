"""What the options of the prompt and of ``shammah ask`` mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shammah.chat.prompt_options import read_arguments
from shammah.errors import UsageError
from shammah.models.licences import LICENCES
from shammah.router.decision import Override, Target
from shammah.settings.thinking import THINK


@dataclass(frozen=True, slots=True)
class ReplOptions:
    """``None``: as the settings say. An empty ``system`` is no system prompt at all.

    ``resume`` is the number of the conversation to continue; 0: the newest, ``None``: a new one.
    """

    model: str | None = None
    licence: str | None = None
    system: str | None = None
    think: str | None = None
    override: Override = field(default_factory=Override)
    resume: int | None = None
    history: bool = True


def parse_options(arguments: list[str]) -> ReplOptions:
    """The options of a command line that opens the prompt.

    Raises:
        ShammahError: see `read_options`.
    """
    read = read_arguments(arguments)
    assert read is not None, "it opens the prompt"
    return read_options(*read)


def read_options(values: Mapping[str, str | None], flags: set[str]) -> ReplOptions:
    """What the values and flags mean that stand after the names of `prompt_options.OPTIONS`.

    Raises:
        ShammahError: ``usage``, for a contradiction, or a value that is none of its choices.
    """
    for name, choices in {"--licence": LICENCES, "--think": THINK}.items():
        if (given := values.get(name)) is not None and given not in choices:
            raise UsageError(f"{name} must be one of {', '.join(choices)}, not {given!r:.40}.")
    return ReplOptions(
        model=values.get("--model"),
        licence=values.get("--licence"),
        system=values.get("--system"),
        think=values.get("--think"),
        override=parse_override(flags),
        resume=parse_resume(values.get("--resume"), newest="--continue" in flags),
        history="--no-history" not in flags,
    )


def parse_resume(number: str | None, *, newest: bool) -> int | None:
    """The conversation that ``--resume`` and ``--continue`` name; 0: the newest.

    Raises:
        ShammahError: ``usage``, for both at once and for what is no number.
    """
    if number is None:
        return 0 if newest else None
    if newest:
        raise UsageError("--continue contradicts --resume.", "Give one of them.")
    if not number.isascii() or not number.isdigit() or not 0 < int(number) < 2**63:
        raise UsageError(
            f"{number!r:.40} is not a conversation's number.",
            "`shammah history list` shows them.",
        )
    return int(number)


def parse_override(flags: set[str]) -> Override:
    """What ``--local``, ``--cloud`` and ``--private`` ask for.

    Raises:
        ShammahError: ``usage``, for ``--cloud`` with one of the others.
    """
    local = bool(flags & {"--local", "--private"})
    if local and "--cloud" in flags:
        raise UsageError("--cloud contradicts --local and --private.", "Give one of them.")
    target = Target.LOCAL if local else Target.CLOUD if "--cloud" in flags else None
    return Override(target, private="--private" in flags)
