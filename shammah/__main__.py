"""``shammah``: the prompt first, everything else after.

Until the prompt is on the screen nothing is imported beyond what the interpreter itself has
loaded: no click (90 ms), no zmq (75 ms), no editor (240 ms); the bare interpreter needs 17.
"""

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, without its load time
import os
import sys

PROMPT = b"> "
SWITCH_S = 0.0005
"""How long a thread may hold the interpreter while another waits for it. With Python's own 5 ms a
key or a Ctrl-C waits up to that for each thread that hears workers or writes a file."""
_PASTE_ON, _PASTE_OFF = b"\x1b[?2004h", b"\x1b[?2004l"
"""As `shammah.terminal.tty` has them, which is not to be imported yet."""

_ONCE = (["status", "--once"], ["status", "--once", "--json"], ["status", "--json", "--once"])
_COMPLETION = "_SHAMMAH_COMPLETE"
"""Set by a shell that wants to know what could come next (`shammah.cli.completion`)."""


def main() -> int:
    """The console script."""
    arguments = sys.argv[1:]
    prompt = _COMPLETION not in os.environ and opens_repl(arguments)
    if prompt and os.isatty(0) and os.isatty(1):
        return _open_prompt(arguments)
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
        from shammah.cli.main import run, run_without_terminal
    except KeyboardInterrupt:  # while it loads
        return 130
    return run_without_terminal(arguments) if prompt else run(arguments)


def _open_prompt(arguments: list[str]) -> int:
    try:
        # Until `repl.input.interrupts`: a KeyboardInterrupt in the midst of an import would be a
        # traceback, or vanish.
        _signal.signal(_signal.SIGINT, _leave_at_once)
        os.write(1, _PASTE_ON + PROMPT if _knows_marks() else PROMPT)
        sys.setswitchinterval(SWITCH_S)
        from shammah.settings.environment import prepare

        prepare(os.environ)
        from shammah.repl.loop import open_repl

        try:
            return open_repl(arguments)
        finally:
            _leave_marks()
    except KeyboardInterrupt:  # while it loads
        os.write(1, b"\n")
        return 130


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
    """Whether the command line asks for the prompt."""
    if not arguments or not arguments[0].startswith("-"):
        return not arguments
    from shammah.chat.prompt_options import read_arguments

    return read_arguments(arguments) is not None


if __name__ == "__main__":
    sys.exit(main())
