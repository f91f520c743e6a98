"""The options of the prompt, which `shammah ask` has as well. Imports nothing: they are looked at
before the prompt is on the screen."""

OPTIONS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("--model", "-m"), "MODEL", "auto, starter, a size (1.5B), a Hub id or a path"),
    (
        ("--licence", "--license"),
        "LICENCE",
        "any, or permissive (commercial use allowed)",
    ),
    (("--system",), "TEXT", "system prompt"),
    (("--think",), "MODE", "off, on or show: whether the local model thinks first"),
    (("--local",), "", "answer on this machine only"),
    (("--cloud",), "", "answer by the cloud only"),
    (("--private",), "", "like --local; the question never leaves this machine"),
    (("--continue", "-c"), "", "continue the newest conversation"),
    (("--resume",), "NUMBER", "continue this one (`shammah history list`)"),
    (("--no-history",), "", "store nothing of this session"),
)
"""Spellings, the first of which names the option; what its value is, or nothing for a flag; and
what it does."""

VALUES = {spelling: names[0] for names, value, _ in OPTIONS if value for spelling in names}
FLAGS = {spelling: names[0] for names, value, _ in OPTIONS if not value for spelling in names}
"""Every spelling to the option."""


def read_arguments(arguments: list[str]) -> tuple[dict[str, str], set[str]] | None:
    """The values and the flags of a command line, by the names of their options; ``None``: it has
    anything else, such as a command. Whether a value is right can be said after the prompt."""
    values: dict[str, str] = {}
    flags: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if argument in FLAGS:
            flags.add(FLAGS[argument])
            continue
        given = value if equals else next(rest, None)
        if name not in VALUES or given is None:
            return None
        values[VALUES[name]] = given
    return values, flags


def describe_options(indent: int) -> str:
    """A line for each."""
    lines = []
    for names, value, words in OPTIONS:
        short = [name for name in names if len(name) == 2]
        spelled = f"{', '.join([*short, names[0]])} {value}"
        lines.append(f"{' ' * indent}  {spelled:19} {words}")
    return "\n".join(lines)
