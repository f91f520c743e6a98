"""``shammah``: the prompt first, everything else after.

Until the prompt is on the screen nothing is imported beyond what the interpreter itself has
loaded: no click (90 ms), no zmq (75 ms), no editor (240 ms); the bare interpreter needs 17.
"""

import os
import sys

PROMPT = b"> "

_WITH_VALUE = frozenset({"--model", "-m", "--licence", "--license", "--system"})
_FLAGS = frozenset({"--local", "--cloud", "--private"})


def main() -> int:
    """The console script."""
    arguments = sys.argv[1:]
    if opens_repl(arguments):
        instant = os.isatty(0) and os.isatty(1)
        if instant:
            os.write(1, PROMPT)
        try:
            from shammah.repl.loop import open_repl

            return open_repl(arguments, prompt_shown=instant)
        except KeyboardInterrupt:  # while it loads
            os.write(1, b"\n")
            return 130
    if arguments == ["--version"]:
        from shammah import __version__

        print(f"shammah {__version__}")
        return 0
    from shammah.cli import run

    return run(arguments)


def opens_repl(arguments: list[str]) -> bool:
    """True if the command line names no sub-command and nothing else but the REPL's options.

    Values are not looked at: whether they are right can be said after the prompt.
    """
    rest = iter(arguments)
    for argument in rest:
        if argument in _WITH_VALUE:
            if next(rest, None) is None:
                return False
        elif argument not in _FLAGS and argument.partition("=")[0] not in _WITH_VALUE:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
