"""``shammah adapters``: what was learnt, shown, chosen and taken back."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path

from shammah.bus import codec
from shammah.bus.client import new_request_id
from shammah.bus.messages import Failed
from shammah.bus.training import ImportAdapter, Imported, MergeAdapter
from shammah.cli.training_plot import NAME
from shammah.errors import ExitCode, ShammahError
from shammah.learning.adapters import ACCEPTED, BASE, REFUSED, AdapterEntry, AdapterStore
from shammah.learning.examples import read_examples
from shammah.models.catalogue import model_id_of
from shammah.settings.load import load_settings
from shammah.settings.model import Settings
from shammah.storage.files import new_directory
from shammah.supervision.lifecycle import connect
from shammah.terminal.output import echo
from shammah.terminal.wording import printable

_NO_NAME = re.compile(r"[^a-z0-9._-]+")


def list_adapters(settings: Settings, *, as_json: bool) -> int:
    """All of them, the oldest first, with a mark at those that serve."""
    store = AdapterStore(settings.home)
    entries = store.entries()
    serving = {entry.name for entry in map(store.in_service, _bases(store)) if entry}
    if as_json:
        for entry in entries:
            print(json.dumps(_document(entry, serves=entry.name in serving), ensure_ascii=False))
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


def show_adapter(settings: Settings, name: str, *, as_json: bool) -> int:
    """One, with everything that is known of it."""
    store = AdapterStore(settings.home)
    entry = store.get(name)
    served = store.in_service(entry.base_model)
    serves = served is not None and served.name == name
    if as_json:
        print(json.dumps(_document(entry, serves=serves), ensure_ascii=False))
        return ExitCode.OK
    rows = {
        "base model": f"{entry.base_model} {entry.base_revision[:12]}",
        "made": entry.created,
        "serves": "yes" if serves else "no",
        "verdict": f"{entry.verdict}. {entry.gate.get('why', '')}",
        "directory": str(entry.directory),
        "sha256": entry.digest,
    }
    if (entry.directory / NAME).exists():
        rows["losses"] = str(entry.directory / NAME)
    hidden = ("held_out_curve",)
    rows |= {key: _text(value) for key, value in entry.training.items() if key not in hidden}
    for key, value in rows.items():
        echo(f"{key.replace('_', ' '):18} {value}".rstrip())
    return ExitCode.OK


def use_adapter(settings: Settings, name: str, model: str | None, *, force: bool) -> int:
    """Let it serve."""
    store = AdapterStore(settings.home)
    if name == BASE:
        base = _which(store, model)
        store.use_base(base)
        echo(f"{base} answers without an adapter from the next question on.")
        return ExitCode.OK
    entry = store.use(name, force=force)
    echo(f"{entry.base_model} answers with {name} from the next question on.")
    return ExitCode.OK


def rollback(settings: Settings, model: str | None) -> int:
    """Let that serve which did before."""
    store = AdapterStore(settings.home)
    base = _which(store, model)
    entry = store.rollback(base)
    how = f"with {entry.name}" if entry else "without an adapter"
    echo(f"{base} answers {how} again, from the next question on.")
    return ExitCode.OK


def remove_adapter(settings: Settings, name: str) -> int:
    """Delete it."""
    AdapterStore(settings.home).remove(name)
    echo(f"{name} is deleted.")
    return ExitCode.OK


def merge_adapter(settings: Settings, name: str, directory: Path, model: str | None) -> int:
    """Have the train worker write a model of its own.

    Raises:
        ShammahError: see `workers.train.merging.merge`.
    """
    entry = AdapterStore(settings.home).get(name)
    target = directory.absolute()
    peer = connect(settings, "train", "adapters", os.environ)
    try:
        base = load_settings(os.environ, model).model if model else ""
        *_, reply = peer.begin(MergeAdapter(new_request_id(), name, str(target), base))
    finally:
        peer.close()
    if isinstance(reply, Failed):
        raise ShammahError(reply.code, reply.message, reply.hint)
    echo(f"{entry.base_model} with {name} is in {target}.")
    _warn_private(entry)
    return ExitCode.OK


def import_adapter(settings: Settings, asked: ImportAdapter, *, as_json: bool) -> int:
    """Have the train worker check, judge and keep an adapter of another program's.

    Raises:
        ShammahError: see `workers.train.importing.import_adapter`.
    """
    AdapterStore(settings.home).check_new(asked.adapter)
    if asked.examples:
        read_examples(Path(asked.examples))  # so that what is wrong is reported at once
    peer = connect(settings, "train", "adapters", os.environ)
    try:
        task = peer.begin(asked)
        try:
            *_, reply = task
        except KeyboardInterrupt:
            task.cancel()
            return ExitCode.INTERRUPTED
    finally:
        peer.close()
    if isinstance(reply, Failed):
        raise ShammahError(reply.code, reply.message, reply.hint)
    assert isinstance(reply, Imported)
    if as_json:
        print(json.dumps(codec.to_document(reply), ensure_ascii=False))
    else:
        force = "" if reply.verdict == ACCEPTED else " --force"
        echo(f"{reply.adapter} is here, an adapter of {reply.model}.")
        echo(f"{reply.verdict.capitalize()}: {reply.why}")
        echo(f"`shammah adapters use {reply.adapter}{force}` lets it serve.")
    return ExitCode.FAILED if reply.verdict == REFUSED else ExitCode.OK


def name_for(directory: Path) -> str:
    """What an adapter from ``directory`` is called unless somebody says otherwise; it may still
    be no name at all."""
    return _NO_NAME.sub("-", directory.absolute().name.lower()).strip("-._")[:64]


def export_adapter(settings: Settings, name: str, directory: Path) -> int:
    """Copy it, whole or not at all.

    Raises:
        ShammahError: ``directory_exists`` or ``directory_unwritable``.
    """
    entry = AdapterStore(settings.home).get(name)
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


def _warn_private(entry: AdapterEntry) -> None:
    count = entry.training.get("private_examples", 0)
    if count:
        echo(
            f"{count} of its examples were private: whoever has the adapter may make it repeat "
            "them. Do not give it away."
        )


def _bases(store: AdapterStore) -> tuple[str, ...]:
    return store.served_models()


def _which(store: AdapterStore, model: str | None) -> str:
    """The base model that is meant.

    Raises:
        ShammahError: ``base_model_unclear``.
    """
    if model is not None:
        return os.path.basename(model) if os.path.isdir(model) else model_id_of(model)
    known = _bases(store)
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
