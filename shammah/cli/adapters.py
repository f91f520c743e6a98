"""``shammah adapters``: what was learnt, shown, chosen and taken back."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.training import ImportAdapter, Imported, MergeAdapter, Merged
from shammah.cli.options import Group, json_option, load_checked_settings
from shammah.cli.train import EXAMPLES
from shammah.errors import ExitCode, ShammahError
from shammah.learning.adapters import ACCEPTED, BASE, REFUSED, AdapterEntry, AdapterStore
from shammah.learning.examples import read_examples
from shammah.models.catalogue import model_id_of
from shammah.settings.load import home_directory, load_settings
from shammah.storage.files import new_directory
from shammah.supervision.lifecycle import connect
from shammah.terminal.output import echo, print_json
from shammah.terminal.wording import printable

BAR = 40
"""Columns of the highest loss."""

_NO_NAME = re.compile(r"[^a-z0-9._-]+")


@click.group(cls=Group)
def adapters() -> None:
    """List, choose, take back, merge, export, import and remove what was learnt.

    Examples:
      shammah adapters list
      shammah adapters show house-style
      shammah adapters use house-style
      shammah adapters use base                the model without any adapter
      shammah adapters rollback                what served before
      shammah adapters merge house-style ./my-model
      shammah adapters export house-style ./house-style
      shammah adapters import ./house-style    what peft or another program made
    """


@adapters.command("list")
@json_option("One object an adapter.")
def list_(as_json: bool) -> int:
    """Show the adapters, and which one serves each base model.

    Examples:
      shammah adapters list
      shammah adapters list --json | jq -r .name
    """
    store = _store()
    entries = store.entries()
    serving = {entry.name for entry in map(store.active, store.served_models()) if entry}
    if as_json:
        for entry in entries:
            print_json(_document(entry, serves=entry.name in serving))
    elif not entries:
        echo("There are no adapters yet; `shammah train` makes one.")
    else:
        width = max(len(entry.name) for entry in entries)
        for entry in entries:
            mark = "*" if entry.name in serving else " "
            echo(
                printable(
                    f"{mark} {entry.name:{width}}  {entry.verdict:8}  {entry.created[:16]}  "
                    f"{entry.base_model}"
                )
            )
        echo("* serves its base model.")
    return ExitCode.OK


@adapters.command()
@click.argument("name")
@json_option("One object.")
def show(name: str, as_json: bool) -> int:
    """Show how NAME was made, and the figures that it was judged by.

    Examples:
      shammah adapters show house-style
      shammah adapters show house-style --json | jq .training
    """
    store = _store()
    entry = store.get(name)
    served = store.active(entry.base_model)
    serves = served is not None and served.name == name
    if as_json:
        print_json(_document(entry, serves=serves))
        return ExitCode.OK
    rows = {
        "base model": f"{entry.base_model} {entry.base_revision[:12]}",
        "made": entry.created,
        "serves": "yes" if serves else "no",
        "verdict": f"{entry.verdict}. {entry.gate.get('why', '')}",
        "directory": str(entry.directory),
        "sha256": entry.digest,
    }
    training = dict(entry.training)
    curve = training.pop("held_out_curve", [])
    rows |= {key: _text(value) for key, value in training.items()}
    for key, value in rows.items():
        echo(f"{key.replace('_', ' '):18} {value}".rstrip())
    for number, line in enumerate(describe_curve(curve, training.get("best_step"))):
        echo(f"{'' if number else 'held-out loss':18} {line}")
    return ExitCode.OK


@adapters.command(short_help="Let NAME serve its base model; base: none.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also one that the gate has refused.")
@click.option("--model", "-m", metavar="MODEL", help="With base: of which model.")
def use(name: str, force: bool, model: str | None) -> int:
    """Let NAME serve its base model from your next question; base: none.

    Examples:
      shammah adapters use house-style
      shammah adapters use base               the model without any
      shammah adapters use house-style --force
    """
    store = _store()
    if name == BASE:
        base = _which(store, model)
        store.use_base(base)
        echo(f"{base} answers without an adapter from your next question.")
        return ExitCode.OK
    entry = store.use(name, force=force)
    echo(f"{entry.base_model} answers with {name} from your next question.")
    return ExitCode.OK


@adapters.command()
@click.option("--model", "-m", metavar="MODEL", help="Of which base model, if there are several.")
def rollback(model: str | None) -> int:
    """Go back to what served before.

    Examples:
      shammah adapters rollback
    """
    store = _store()
    base = _which(store, model)
    entry = store.rollback(base)
    how = f"with {entry.name}" if entry else "without an adapter"
    echo(f"{base} answers {how} again, from your next question.")
    return ExitCode.OK


@adapters.command("rm")
@click.argument("name")
def remove(name: str) -> int:
    """Delete NAME; not while it serves.

    Examples:
      shammah adapters rm house-style
    """
    _store().remove(name)
    echo(f"{name} is deleted.")
    return ExitCode.OK


@adapters.command(short_help="Write the base model with NAME worked in to DIRECTORY.")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--model", "-m", metavar="MODEL", help="Where the base model is, if not by name.")
def merge(name: str, directory: Path, model: str | None) -> int:
    """Write the base model with NAME worked in to DIRECTORY, for --model DIRECTORY.

    Examples:
      shammah adapters merge house-style ./my-model
      shammah --model ./my-model
    """
    settings = load_settings(os.environ)
    entry = AdapterStore(settings.home).get(name)
    target = directory.absolute()
    base = load_settings(os.environ, model).model if model else ""
    with closing(connect(settings, "train", "adapters", os.environ)) as peer:
        peer.begin(MergeAdapter(new_request_id(), name, str(target), base)).end(Merged)
    echo(f"{entry.base_model} with {name} is in {target}.")
    _warn_private(entry)
    return ExitCode.OK


@adapters.command()
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
def export(name: str, directory: Path) -> int:
    """Copy NAME to DIRECTORY, in PEFT's layout, for other programs.

    Examples:
      shammah adapters export house-style ./house-style
    """
    entry = _store().get(name)
    if directory.exists():
        raise ShammahError(
            "directory_exists", f"{directory} exists already.", "Name a directory that does not."
        )
    try:
        with new_directory(directory) as made:
            for path in entry.directory.iterdir():
                shutil.copyfile(path, made / path.name)
    except OSError as error:
        raise ShammahError(
            "directory_unwritable",
            f"{directory} cannot be written ({error.strerror}).",
            "Name another directory, or make room.",
        ) from error
    echo(f"{name} is in {directory}, in PEFT's layout.")
    _warn_private(entry)
    return ExitCode.OK


@adapters.command(
    "import",
    short_help="Check, judge and keep what another program has made.",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="", help="Of the adapter here; default: the directory's.")
@click.option("--model", "-m", metavar="MODEL", help="Its base model; default: as set.")
@click.option("--examples", type=EXAMPLES, help="A JSONL file to judge it with.")
@json_option("One object with verdict and figures.")
def import_(
    directory: Path, name: str, model: str | None, examples: Path | None, as_json: bool
) -> int:
    """Check, judge and keep a LoRA adapter that another program has made.

    Examples:
      shammah adapters import ./house-style
      shammah adapters import ./checkpoint-300 --name house-style --model starter
      shammah adapters import ./house-style --examples house-style.jsonl --json
    DIRECTORY holds adapter_config.json and adapter_model.safetensors, as peft
    saves them. It is judged as one of ours, with your feedback or the examples;
    without any it is kept as unjudged.
    Exit status: 0 it is here, 1 it failed or is here and refused, 2 wrong usage.
    """
    settings = load_checked_settings(model)
    name = name or name_for(directory)
    AdapterStore(settings.home).check_new(name)
    if examples:
        read_examples(examples)  # so that what is wrong is reported at once
    request = ImportAdapter(
        new_request_id(),
        name,
        str(directory.absolute()),
        settings.model,
        str(examples.absolute()) if examples else "",
    )
    with closing(connect(settings, "train", "adapters", os.environ)) as peer:
        task = peer.begin(request)
        try:
            reply = task.end(Imported)
        except KeyboardInterrupt:
            task.cancel()
            return ExitCode.INTERRUPTED
    if as_json:
        print_json(codec.to_document(reply))
    else:
        force = "" if reply.verdict == ACCEPTED else " --force"
        echo(f"{reply.adapter} is here, an adapter of {reply.model}.")
        echo(f"{reply.verdict.capitalize()}: {reply.why}")
        echo(f"`shammah adapters use {reply.adapter}{force}` lets it serve.")
    return ExitCode.FAILED if reply.verdict == REFUSED else ExitCode.OK


def describe_curve(points: Sequence[Sequence[float]], best_step: int | None) -> Iterator[str]:
    """A line for each of ``points`` (a step and the loss after it, in nats a token), as long as
    the loss is high."""
    most = max((loss for _, loss in points), default=0.0) or 1.0
    for step, loss in points:
        kept = "  kept" if step == best_step else ""
        yield f"step {step:5.0f}  {loss:7.3f}  {'#' * round(BAR * loss / most)}{kept}"


def name_for(directory: Path) -> str:
    """What an adapter from ``directory`` is called unless somebody says otherwise; it may still
    be no name at all."""
    return _NO_NAME.sub("-", directory.absolute().name.lower()).strip("-._")[:64]


def _warn_private(entry: AdapterEntry) -> None:
    count = entry.training.get("private_examples", 0)
    if count:
        echo(
            f"{count} of its examples were private: whoever has the adapter may make it repeat "
            "them. Do not give it away."
        )


def _store() -> AdapterStore:
    return AdapterStore(home_directory(os.environ))


def _which(store: AdapterStore, model: str | None) -> str:
    """The base model that is meant.

    Raises:
        ShammahError: ``base_model_unclear``.
    """
    if model is not None:
        return os.path.basename(model) if os.path.isdir(model) else model_id_of(model)
    known = store.served_models()
    if len(known) == 1:
        return known[0]
    several = f"There are several: {', '.join(known)}." if known else "No adapter has served yet."
    raise ShammahError(
        "base_model_unclear",
        several,
        "Name one with --model." if known else "`shammah adapters list` shows what there is.",
        exit_code=ExitCode.USAGE,
    )


def _document(entry: AdapterEntry, *, serves: bool) -> dict[str, object]:
    return asdict(entry) | {"directory": str(entry.directory), "serves": serves}


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
