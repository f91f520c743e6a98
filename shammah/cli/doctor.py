"""``shammah doctor``: what there is, what would be done with it and why, and what is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import click

from shammah.cli.options import (
    Command,
    json_option,
    licence_option,
    load_checked_settings,
    model_option,
)
from shammah.errors import ExitCode, ShammahError


@click.command(cls=Command)
@model_option
@licence_option
@click.option("--network", is_flag=True, help="Connect to the Hub and to the cloud; send nothing.")
@click.option("--prove", is_flag=True, help="Have running workers try what they must not do.")
@click.option("--bundle", type=click.Path(dir_okay=False), help="Write a zip for a bug report.")
@json_option("One object; sizes in bytes.")
def doctor(
    model: str | None,
    licence: str | None,
    network: bool,
    prove: bool,
    bundle: str | None,
    as_json: bool,
) -> int:
    """Check everything: what this machine has, what auto chooses and why, and what is wrong.

    Measures once how fast this machine computes. Never shows keys or tokens.

    Examples:
      shammah doctor                       what to paste into a bug report
      shammah doctor --model 7B            how that model would run here, and why
      shammah doctor --network             can the Hub and the cloud be reached?
      shammah doctor --prove               does the kernel confine the workers?
      shammah doctor --bundle report.zip   with logs and events, no private text
      shammah doctor --json | jq .problems
    Exit status: 0 all is well, 1 something would keep Shammah from answering;
    with --prove: a worker was allowed what its role does not need, or none runs.
    """
    if prove:
        return _prove(as_json=as_json)
    from shammah.cli.doctor_bundle import check_place, write_bundle
    from shammah.cli.doctor_document import examine, problem_of
    from shammah.cli.doctor_report import HANGING, report
    from shammah.settings.load import home_directory
    from shammah.settings.model import Settings
    from shammah.terminal.output import echo, print_json
    from shammah.terminal.screen import Screen
    from shammah.terminal.text import fold

    if bundle:
        check_place(Path(bundle))
    environ: Mapping[str, str] = os.environ
    problems, own = [], None
    try:
        settings = own = load_checked_settings(model, licence)
        # The child process has another working directory.
        model, environ = settings.model, {**environ, "SHAMMAH_HOME": str(settings.home)}
    except ShammahError as error:
        settings = Settings(home_directory(environ))
        problems.append(problem_of(error))
    document = examine(settings, environ, model, licence, problems=problems, network=network)
    parts = []
    if bundle:
        parts = write_bundle(Path(bundle), document, own, home=settings.home, environ=environ)
    if as_json:
        print_json(document)
    else:
        screen = Screen(environ, sys.stdout)
        for line, wrong in report(document):
            shown = fold(line, screen.columns, HANGING) if screen.terminal else line
            screen.error(shown) if wrong else screen.line(shown)
    if parts:
        echo(f"Wrote {bundle}: {', '.join(parts)}. Check what is in it before sharing.", err=True)
    return ExitCode.OK if document["ok"] else ExitCode.FAILED


def _prove(*, as_json: bool) -> int:
    from shammah.bus.endpoints import open_endpoints
    from shammah.cli.doctor_proof import as_document, describe, is_proven
    from shammah.cli.doctor_proof import prove as ask_workers
    from shammah.terminal.output import print_json
    from shammah.terminal.screen import Screen

    found = ask_workers(open_endpoints(os.environ))
    if as_json:
        print_json(as_document(found))
    else:
        screen = Screen(os.environ, sys.stdout)
        for line, wrong in describe(found):
            screen.error(line) if wrong else screen.line(line)
    return ExitCode.OK if is_proven(found) else ExitCode.FAILED
