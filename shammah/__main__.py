"""``shammah``: the prompt first, everything else after.

Until the prompt is on the screen nothing is imported beyond what the interpreter itself has
loaded: no click (90 ms), no zmq (75 ms), no editor (240 ms); the bare interpreter needs 17.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, without its load time
import os
import sys

PROMPT = b"> "
_PASTE_ON, _PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"
"""As `shammah.terminal.paste` has them, which is not to be imported yet."""

_WITH_VALUE = frozenset({"--model", "-m", "--licence", "--license", "--system", "--resume"})
_FLAGS = frozenset({"--local", "--cloud", "--private", "--continue", "-c", "--no-history"})
_ONCE = (["status", "--once"], ["status", "--once", "--json"], ["status", "--json", "--once"])
_COMPLETION = "_SHAMMAH_COMPLETE"
"""Set by a shell that wants to know what could come next (`shammah.cli.completion`)."""


def main() -> int:
    """The console script."""
    arguments = sys.argv[1:]
    if _COMPLETION not in os.environ and opens_repl(arguments):
        instant = os.isatty(0) and os.isatty(1)
        try:
            if instant:
                # Until `repl.input.interrupts`: a KeyboardInterrupt in the midst of an import would
                # be a traceback, or vanish.
                _signal.signal(_signal.SIGINT, _leave_at_once)
                os.write(1, _PASTE_ON + PROMPT if _knows_marks() else PROMPT)
            from shammah.settings.environment import prepare

            prepare(os.environ)
            from shammah.repl.loop import open_repl

            try:
                return open_repl(arguments, prompt_shown=instant)
            finally:
                if instant:
                    _leave_marks()
        except KeyboardInterrupt:  # while it loads
            os.write(1, b"\n")
            return 130
    if arguments == ["--version"]:
        from shammah import __version__

        try:
            print(f"shammah {__version__}", flush=True)
            return 0
        except OSError:  # `run` fails in the same way, and says so as of every command
            pass
    try:
        from shammah.settings.environment import prepare

        prepare(os.environ)
        if arguments in _ONCE:
            from shammah.cli.status_once import show_once

            return show_once(arguments, os.environ)
        from shammah.cli.main import run
    except KeyboardInterrupt:  # while it loads
        return 130
    return run(arguments)


def _knows_marks() -> bool:
    return os.environ.get("TERM") != "dumb"


def _leave_marks() -> None:
    """Leave the terminal as it was found. Nothing is imported: it may be in an import."""
    if _knows_marks():
        try:  # noqa: SIM105 - as above
            os.write(1, _PASTE_OFF)
        except OSError:  # the terminal may be gone
            pass


def _leave_at_once(number: int, frame: object) -> None:
    _leave_marks()
    _signal.signal(number, _signal.SIG_DFL)
    os.kill(os.getpid(), number)


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
