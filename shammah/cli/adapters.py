"""``shammah adapters``: list, show, choose, merge and share what was learnt."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from shammah.cli.options import Group, json_option, load_checked_settings
from shammah.cli.train import EXAMPLES
from shammah.errors import ExitCode, ShammahError
from shammah.learning.adapters import ACCEPTED, BASE, REFUSED, AdapterEntry, AdapterStore
from shammah.learning.examples import read_examples
from shammah.models.catalogue import model_id_of
from shammah.settings.load import home_directory, load_settings
from shammah.storage.files import new_directory
from shammah.terminal.output import echo, print_json
from shammah.terminal.text import printable

BAR = 40
"""Columns of the highest loss."""

_NO_NAME = re.compile(r"[^a-z0-9._-]+")


@click.group(cls=Group)
def adapters() -> None:
    """List, choose, roll back, merge, export, import and remove adapters.

    Examples:
      shammah adapters list
      shammah adapters show house-style
      shammah adapters use house-style
      shammah adapters use base                the model without any adapter
      shammah adapters rollback                back to the previous one
      shammah adapters merge house-style ./my-model
      shammah adapters export house-style ./house-style
      shammah adapters import ./house-style    made by PEFT or another program
    """


@adapters.command("list")
@json_option("One object an adapter.")
def list_(as_json: bool) -> int:
    """List the adapters, and which one each base model uses.

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
        echo("No adapters yet. To make one: `shammah train`.")
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
        echo("* in use")
    return ExitCode.OK


@adapters.command()
@click.argument("name")
@json_option("One object.")
def show(name: str, as_json: bool) -> int:
    """Show how NAME was made and how it was judged.

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
        "in use": "yes" if serves else "no",
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


@adapters.command(short_help="Use NAME with its base model; base: no adapter.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Use it even if the gate refused it.")
@click.option("--model", "-m", metavar="MODEL", help="With base: which base model.")
def use(name: str, force: bool, model: str | None) -> int:
    """Use NAME with its base model from your next question; base: no adapter.

    Examples:
      shammah adapters use house-style
      shammah adapters use base               no adapter
      shammah adapters use house-style --force
    """
    store = _store()
    if name == BASE:
        base = _which(store, model)
        store.use_base(base)
        echo(f"{base} uses no adapter from your next question.")
        return ExitCode.OK
    entry = store.use(name, force=force)
    echo(f"{entry.base_model} uses {name} from your next question.")
    return ExitCode.OK


@adapters.command()
@click.option("--model", "-m", metavar="MODEL", help="The base model, if there are several.")
def rollback(model: str | None) -> int:
    """Go back to the previous adapter.

    Examples:
      shammah adapters rollback
    """
    store = _store()
    base = _which(store, model)
    entry = store.rollback(base)
    echo(f"{base} uses {entry.name if entry else 'no adapter'} again, from your next question.")
    return ExitCode.OK


@adapters.command("rm")
@click.argument("name")
def remove(name: str) -> int:
    """Delete NAME, unless it is in use.

    Examples:
      shammah adapters rm house-style
    """
    _store().remove(name)
    echo(f"Deleted {name}.")
    return ExitCode.OK


@adapters.command(short_help="Merge NAME into its base model, as DIRECTORY.")
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--model", "-m", metavar="MODEL", help="Directory or name of the base model.")
def merge(name: str, directory: Path, model: str | None) -> int:
    """Merge NAME into its base model, as DIRECTORY for --model DIRECTORY.

    Examples:
      shammah adapters merge house-style ./my-model
      shammah --model ./my-model
    """
    from shammah.bus.client import new_request_id
    from shammah.bus.training import MergeAdapter, Merged
    from shammah.supervision.lifecycle import connect

    settings = load_settings(os.environ)
    entry = AdapterStore(settings.home).get(name)
    target = directory.absolute()
    base = load_settings(os.environ, model).model if model else ""
    with closing(connect(settings, "train", "adapters", os.environ)) as peer:
        peer.begin(MergeAdapter(new_request_id(), name, str(target), base)).end(Merged)
    echo(f"Wrote {entry.base_model} with {name} to {target}.")
    _warn_of_examples(entry)
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
            "directory_exists", f"{directory} already exists.", "Choose another name."
        )
    try:
        with new_directory(directory) as made:
            for path in entry.directory.iterdir():
                shutil.copyfile(path, made / path.name)
    except OSError as error:
        raise ShammahError(
            "directory_unwritable",
            f"Cannot write to {directory} ({error.strerror}).",
            "Choose another directory, or free some space.",
        ) from error
    echo(f"Exported {name} to {directory}, in PEFT's layout.")
    _warn_of_examples(entry)
    return ExitCode.OK


@adapters.command("import", short_help="Check, judge and store what another program made.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="", help="Name of the adapter; default: the directory's.")
@click.option("--model", "-m", metavar="MODEL", help="The base model; default: as set.")
@click.option("--examples", type=EXAMPLES, help="A JSONL file to judge it with.")
@json_option("One object with verdict and figures.")
def import_(
    directory: Path, name: str, model: str | None, examples: Path | None, as_json: bool
) -> int:
    """Check, judge and store a LoRA adapter that another program made.

    Examples:
      shammah adapters import ./house-style
      shammah adapters import ./checkpoint-300 --name house-style --model starter
      shammah adapters import ./house-style --examples house-style.jsonl --json
    DIRECTORY holds adapter_config.json and adapter_model.safetensors, as PEFT
    saves them. It is judged like your own adapters, with your feedback or the
    examples; without any it is stored as unjudged.
    Exit status: 0 imported, 1 failed or imported but refused, 2 wrong usage.
    """
    from shammah.bus import codec
    from shammah.bus.client import new_request_id
    from shammah.bus.training import ImportAdapter, Imported
    from shammah.supervision.lifecycle import connect

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
        echo(f"Imported {reply.adapter}, an adapter of {reply.model}.")
        echo(f"{reply.verdict.capitalize()}: {reply.why}")
        echo(f"To use it: `shammah adapters use {reply.adapter}{force}`.")
    return ExitCode.FAILED if reply.verdict == REFUSED else ExitCode.OK


def describe_curve(points: Sequence[Sequence[float]], best_step: int | None) -> Iterator[str]:
    """Draw a bar for each of ``points`` (a step and the loss after it, in nats a token)."""
    most = max((loss for _, loss in points), default=0.0) or 1.0
    for step, loss in points:
        kept = "  kept" if step == best_step else ""
        yield f"step {step:5.0f}  {loss:7.3f}  {'#' * round(BAR * loss / most)}{kept}"


def name_for(directory: Path) -> str:
    """Return the default name of an adapter from ``directory``; it may be invalid."""
    return _NO_NAME.sub("-", directory.absolute().name.lower()).strip("-._")[:64]


def _warn_of_examples(entry: AdapterEntry) -> None:
    """Say what of an adapter's examples speaks against giving it to others."""
    training = entry.training
    if private := training.get("private_examples", 0):
        echo(
            f"{private} of its examples were private: anyone with the adapter can make it repeat "
            "them. Don't share it."
        )
    sources = training.get("sources")
    if sources is None and training.get("source") == "feedback":
        echo(
            "It was made by a version that did not tell answers of Claude's from others. Terms "
            "such as Anthropic's forbid training on them."
        )
    elif foreign := (sources or {}).get("cloud", 0):
        echo(
            f"{foreign} of its examples were answered by Claude or another server. Terms such as "
            "Anthropic's forbid training on them."
        )


def _store() -> AdapterStore:
    return AdapterStore(home_directory(os.environ))


def _which(store: AdapterStore, model: str | None) -> str:
    """Return the base model that is meant.

    Raises:
        ShammahError: ``base_model_unclear``.
    """
    if model is not None:
        return os.path.basename(model) if os.path.isdir(model) else model_id_of(model)
    known = store.served_models()
    if len(known) == 1:
        return known[0]
    several = f"There are several base models: {', '.join(known)}."
    raise ShammahError(
        "base_model_unclear",
        several if known else "No adapter has been used yet.",
        "Name one with --model." if known else "`shammah adapters list` shows the adapters.",
        exit_code=ExitCode.USAGE,
    )


def _document(entry: AdapterEntry, *, serves: bool) -> dict[str, object]:
    return asdict(entry) | {"directory": str(entry.directory), "serves": serves}


def _text(value: object) -> str:
    if isinstance(value, dict):
        value = [f"{count} {of}" for of, count in value.items()]
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
