"""The editor itself: prompt_toolkit with our keys, history and completion. Slow to import."""

from __future__ import annotations

import io
import select
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app, run_in_terminal
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER, EditingMode
from prompt_toolkit.filters import has_focus, is_done
from prompt_toolkit.input import Input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output, create_output
from prompt_toolkit.output.vt100 import Vt100_Output
from prompt_toolkit.styles import Style

from shammah.repl.input.completion import complete
from shammah.repl.input.line_history import LineHistory
from shammah.repl.input.lines import in_block
from shammah.terminal.text import printable

if TYPE_CHECKING:
    from shammah.repl.input.lines import EditorOptions

MENU_ROWS = 6

_STYLE = {
    "bottom-toolbar": "noreverse",
    "completion-menu": "noinherit",
    "completion-menu.completion": "noinherit",
    "completion-menu.completion.current": "noinherit reverse",
    "completion-menu.meta.completion": "noinherit",
    "completion-menu.meta.completion.current": "noinherit",
    "scrollbar.background": "noinherit",
    "scrollbar.button": "noinherit reverse",
}
"""Nothing but what every colour scheme has."""


class ReplCompleter(Completer):
    """`shammah.repl.input.completion` for prompt_toolkit."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Candidates for what stands before the cursor."""
        for found in complete(document.text_before_cursor, self._commands):
            shown = printable(found.text)  # it may be the name of a file
            yield Completion(found.text, -found.replaces, shown, display_meta=found.note)


def open_session(
    prompt: str,
    options: EditorOptions,
    *,
    edit: Callable[[str], str | None],
    bottom: Callable[[], str],
    typed: Callable[[], None],
) -> PromptSession[str]:
    """A prompt for one question at a time.

    Args:
        edit: what becomes of a text in the person's own editor; ``None``: nothing.
        bottom: the line below, for the width that the terminal has then.
        typed: called when the line has changed.
    """
    style = {**_STYLE, "bottom-toolbar.text": "dim" if options.styled else ""}
    session: PromptSession[str] = PromptSession(
        prompt,
        multiline=True,
        editing_mode=EditingMode.VI if options.vi else EditingMode.EMACS,
        history=LineHistory(options.history_file, options.may_store),
        completer=ReplCompleter(options.commands),
        complete_in_thread=True,
        complete_while_typing=False,
        reserve_space_for_menu=MENU_ROWS,
        enable_suspend=True,
        bottom_toolbar=bottom,
        style=Style.from_dict(style),
        include_default_pygments_style=False,
        key_bindings=_bindings(edit),
        output=_quiet_output(),
    )
    session.default_buffer.on_text_changed += lambda buffer: typed()
    return session


def _quiet_output() -> Output:
    """The terminal, with its cursor taken to be shown. Otherwise prompt_toolkit would show it as
    soon as the session is made, in the middle of an answer that is being written."""
    output = create_output()
    if isinstance(output, Vt100_Output):
        terminal, output.stdout = output.stdout, io.StringIO()
        output.show_cursor()
        output.flush()
        output.stdout = terminal
    return output


def _bindings(edit: Callable[[str], str | None]) -> KeyBindings:
    bindings = KeyBindings()
    in_line = has_focus(DEFAULT_BUFFER) & ~is_done

    @bindings.add("enter", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if in_block(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @bindings.add("c-@", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        # Ctrl-D pressed before the terminal was ours: its end-of-file is a zero byte by now.
        if event.current_buffer.text:
            event.current_buffer.start_selection()
        elif not event.previous_key_sequence:
            event.app.exit(exception=EOFError())

    @bindings.add("escape", "enter", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    @bindings.add("c-x", "c-e", filter=in_line)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer

        def change() -> None:
            text = edit(buffer.text)
            if text is not None:
                buffer.document = Document(text)  # the cursor at its end

        # On this thread, the only one that can give Ctrl-C to the other program. Not
        # `Buffer.open_in_editor`: Ctrl-C would end the line meanwhile.
        run_in_terminal(change)

    return bindings


def get_columns() -> int:
    """The width of the terminal that is being drawn on."""
    return get_app().output.get_size().columns


def take_over_typed(source: Input) -> tuple[bool, bool]:
    """Put what waits in the terminal behind the keys that the editor has read but not used.

    For the moment in which the editor has given the terminal back. What was typed just before
    came as single keys: in lines, the terminal takes it for a whole line, and a Ctrl-C for text.

    Returns:
        Whether keys wait, and whether a Ctrl-C was among them: that is taken out.
    """
    keys = get_typeahead(source)
    while select.select([source.fileno()], [], [], 0)[0]:
        keys += source.read_keys()
        if source.closed:  # Ctrl-D in lines: an end that is none for an input of keys
            assert isinstance(source, Vt100Input)
            source.stdin_reader.closed = False
            keys.append(KeyPress(Keys.ControlD))
            break
    keys = [key for key in keys if key.key is not Keys.CPRResponse]
    pressed = next((key for key in keys if key.key is Keys.ControlC), None)
    if pressed is not None:
        keys.remove(pressed)
    store_typeahead(source, keys)
    return bool(keys), pressed is not None
