"""``shammah ask`` as it is declared; `shammah.cli.ask`, which does the work, loads when it runs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from shammah.cli.options import Command, json_option, load_checked_settings, prompt_options


def _finite(
    context: click.Context, parameter: click.Parameter, value: float | None
) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number.")
    return value


_SAMPLING = {
    "temperature": (click.FloatRange(min=0), "0: always the most likely word."),
    "top_p": (click.FloatRange(0, 1, min_open=True), "Share of the words to choose from."),
    "top_k": (click.IntRange(0), "How many words to choose from; 0: all."),
    "min_p": (click.FloatRange(0, 1), "Leave out words so much less likely than the first."),
    "repetition_penalty": (click.FloatRange(0, min_open=True), "More than 1: repeat less."),
    "presence_penalty": (click.FloatRange(-2, 2), "More than 0: other words than before."),
    "seed": (click.IntRange(0, 2**63 - 1), "The same answer each time."),
}
"""How words are chosen, where the model's own settings shall not count."""


def _sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for name, (kind, told) in reversed(_SAMPLING.items()):
        check = _finite if isinstance(kind, click.FloatRange) else None
        flag = f"--{name.replace('_', '-')}"
        command = click.option(flag, type=kind, callback=check, help=told)(command)
    return command


@click.command(cls=Command)
@click.argument("question", required=False)
@click.option(
    "--file",
    "-f",
    "files",
    multiple=True,
    type=click.Path(),
    help="Ask about this text file, too; repeatable.",
)
@prompt_options
@_sampling_options
@click.option("--max-tokens", type=click.IntRange(1, 10**6), help="Longest answer, in tokens.")
@click.option("--no-stream", is_flag=True, help="Print the answer once it is complete.")
@click.option("--schema", metavar="FILE", help="Make the answer fit this JSON schema.")
@click.option("--adapter", default="auto", metavar="NAME", help="Local adapter: NAME, off or auto.")
@json_option("One object with text and provenance.", text="")
@click.option("-n", "--no-stdin", is_flag=True, help="Leave standard input alone.")
def ask(
    question: str | None,
    files: tuple[str, ...],
    max_tokens: int | None,
    no_stream: bool,
    schema: str | None,
    adapter: str,
    as_json: bool,
    no_stdin: bool,
    **given: Any,
) -> int:
    """Ask one question, with files and piped input added to it.

    Standard input is read to its end if it is a pipe, a socket or a file, but not if it is a
    terminal or a file that something else has started to read, like the list of a `while read`
    loop. Behind a pipe, such a loop needs -n or `</dev/null`. `-f -` always reads it.

    Examples:
      shammah ask "What is the capital of France?"
      cat error.log | shammah ask "What went wrong?" --private
      shammah ask -f main.py -f test_main.py "Why does the test fail?"
      while read f; do shammah ask -n "What is $f?"; done < list
      shammah ask --json --temperature 0 "2+2?" | jq .text
      shammah ask --schema bill.schema.json -f bill.txt "Read it." | jq .total
    Exit status: 0 answered, 1 failed, 2 wrong usage, 130 Ctrl-C, 141 no reader.
    """
    from shammah.bus.messages import Sampling
    from shammah.chat.attachments import read_schema
    from shammah.chat.conversation import Prompt
    from shammah.chat.options import read_options
    from shammah.cli import ask as asking
    from shammah.privacy import split_prefix
    from shammah.terminal.output import echo

    chosen = {name: given.pop(name) for name in _SAMPLING}
    spelled = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
    flags = {name for name, value in spelled.items() if value is True}
    options = read_options(spelled, flags)
    report = functools.partial(echo, err=True)
    settings = load_checked_settings(options.model, options.licence).with_think(options.think)
    text, sources = asking.read_question(question, files, piped=not no_stdin)
    text, private = split_prefix(text)
    if not text.strip():
        raise click.UsageError('No question given. Try: shammah ask "What is a monad?"')
    prompt = Prompt(
        text,
        private,
        sources,
        replace(options.override, adapter=adapter),
        Sampling(**chosen, schema=read_schema(schema, report)),
        max_new_tokens=max_tokens,
    )
    return asking.ask(settings, prompt, options, as_json=as_json, stream=not no_stream)
