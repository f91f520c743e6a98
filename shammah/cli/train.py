"""``shammah train`` and ``shammah adapters ...``: the command line of `training_commands`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from shammah.settings.model import Settings

EXAMPLES = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "train",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah train                     from what /good, /fix and /feedback noted
      shammah train --examples house-style.jsonl
      shammah train --epochs 5 --learning-rate 3e-4 --rank 8 --plot loss.png
      shammah train --target-modules q_proj,k_proj,v_proj,o_proj
      shammah train --json | jq .figures
    A line of the file: {"prompt": "...", "response": "...", "weight": 1}
    Ctrl-C stops and keeps what was learnt: the same command goes on from there.
    Exit status: 0 it serves or could, 1 failed or refused, 2 wrong usage,
    130 Ctrl-C.
    """,
    short_help="Teach the local model from feedback or a file.",
)
@click.option("--examples", type=EXAMPLES, help="A JSONL file instead of the feedback.")
@click.option("--model", "-m", metavar="MODEL", help="Which base model; default: as set.")
@click.option("--name", default="", help="Of the adapter; default: the date and time.")
@click.option("--epochs", type=click.IntRange(0, 100), default=0, help="0: by the examples.")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--rank", type=int, default=16, show_default=True, help="Of the adapter.")
@click.option("--alpha", type=float, default=None, help="Its scale; default: twice the rank.")
@click.option("--dropout", type=float, default=0.0, show_default=True)
@click.option(
    "--target-modules", default="all", show_default=True, help="Or a list: q_proj,v_proj."
)
@click.option("--batch", type=click.IntRange(1, 256), default=4, help="Examples of one step.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, help="Of order and start.")
@click.option("--qlora", is_flag=True, help="Base weights in 4 bits (CUDA and bitsandbytes).")
@click.option("--on-battery", is_flag=True, help="Do not wait for the plug.")
@click.option("--no-serve", is_flag=True, help="Keep the adapter, but let nothing change.")
@click.option("--restart", is_flag=True, help="Do not go on from where it was stopped.")
@click.option(
    "--plot", type=click.Path(dir_okay=False, path_type=Path), help="Where the losses go, as PNG."
)
@click.option("--json", "as_json", is_flag=True, help="One object with figures and curve.")
def train(
    examples: Path | None,
    model: str | None,
    rank: int,
    alpha: float | None,
    target_modules: str,
    no_serve: bool,
    plot: Path | None,
    as_json: bool,
    **asked: Any,
) -> int:
    """Teach the local model from feedback or a file, by a LoRA adapter.

    The adapter serves only if it helps on examples that were held back, and harms no general
    answers. Training gives way to questions and waits while the machine runs on battery.
    """
    from shammah.bus.client import new_request_id
    from shammah.bus.training import ALL_MODULES, Train
    from shammah.cli import training_commands
    from shammah.models.catalogue import check_model_name

    settings = _settings(model)
    check_model_name(settings.model)
    modules = tuple(one.strip() for one in target_modules.split(","))
    if target_modules == "all":
        modules = ALL_MODULES
    wanted = Train(
        new_request_id(),
        settings.model,
        str(examples.absolute()) if examples else "",
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        target_modules=modules,
        serve=not no_serve,
        **asked,
    )
    return training_commands.train(settings, wanted, plot, as_json=as_json)


@click.group(
    "adapters",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""
    \b
    Examples:
      shammah adapters list
      shammah adapters show house-style
      shammah adapters use house-style
      shammah adapters use base                the model without any adapter
      shammah adapters rollback                what served before
      shammah adapters merge house-style ./my-model
      shammah adapters export house-style ./house-style
      shammah adapters import ./house-style    what peft or another program made
    """,
    short_help="List, choose, take back, merge and pass on what was learnt.",
)
def adapters() -> None:
    """List, choose, take back, merge, export, import and remove what was learnt."""


@adapters.command(
    "list",
    epilog="""
    \b
    Examples:
      shammah adapters list
      shammah adapters list --json | jq -r .name
    """,
)
@click.option("--json", "as_json", is_flag=True, help="One object an adapter.")
def list_(as_json: bool) -> int:
    """Show the adapters, and which one serves each base model."""
    from shammah.cli import adapter_commands

    return adapter_commands.list_adapters(_settings(), as_json=as_json)


@adapters.command(
    epilog="""
    \b
    Examples:
      shammah adapters show house-style
      shammah adapters show house-style --json | jq .training
    """,
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="One object.")
def show(name: str, as_json: bool) -> int:
    """Show how NAME was made, and the figures that it was judged by."""
    from shammah.cli import adapter_commands

    return adapter_commands.show_adapter(_settings(), name, as_json=as_json)


@adapters.command(
    epilog="""
    \b
    Examples:
      shammah adapters use house-style
      shammah adapters use base               the model without any
      shammah adapters use house-style --force
    """,
    short_help="Let NAME serve its base model; base: none.",
)
@click.argument("name")
@click.option("--force", is_flag=True, help="Also one that the gate has refused.")
@click.option("--model", "-m", metavar="MODEL", help="With base: of which model.")
def use(name: str, force: bool, model: str | None) -> int:
    """Let NAME serve its base model from the next question on; base: none."""
    from shammah.cli import adapter_commands

    return adapter_commands.use_adapter(_settings(), name, model, force=force)


@adapters.command(
    epilog="""
    \b
    Examples:
      shammah adapters rollback
    """,
)
@click.option("--model", "-m", metavar="MODEL", help="Of which base model, if there are several.")
def rollback(model: str | None) -> int:
    """Go back to what served before."""
    from shammah.cli import adapter_commands

    return adapter_commands.rollback(_settings(), model)


@adapters.command(
    "rm",
    epilog="""
    \b
    Examples:
      shammah adapters rm house-style
    """,
)
@click.argument("name")
def remove(name: str) -> int:
    """Delete NAME; not while it serves."""
    from shammah.cli import adapter_commands

    return adapter_commands.remove_adapter(_settings(), name)


@adapters.command(
    epilog="""
    \b
    Examples:
      shammah adapters merge house-style ./my-model
      shammah --model ./my-model
    """,
    short_help="Write the base model with NAME worked in to DIRECTORY.",
)
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--model", "-m", metavar="MODEL", help="Where the base model is, if not by name.")
def merge(name: str, directory: Path, model: str | None) -> int:
    """Write the base model with NAME worked in to DIRECTORY, for --model DIRECTORY."""
    from shammah.cli import adapter_commands

    return adapter_commands.merge_adapter(_settings(), name, directory, model)


@adapters.command(
    epilog="""
    \b
    Examples:
      shammah adapters export house-style ./house-style
    """,
)
@click.argument("name")
@click.argument("directory", type=click.Path(path_type=Path))
def export(name: str, directory: Path) -> int:
    """Copy NAME to DIRECTORY, in PEFT's layout, for other programs."""
    from shammah.cli import adapter_commands

    return adapter_commands.export_adapter(_settings(), name, directory)


@adapters.command(
    "import",
    epilog="""
    \b
    Examples:
      shammah adapters import ./house-style
      shammah adapters import ./checkpoint-300 --name house-style --model starter
      shammah adapters import ./house-style --examples house-style.jsonl --json
    DIRECTORY holds adapter_config.json and adapter_model.safetensors, as peft
    saves them. It is judged as one of ours, with your feedback or the examples;
    without any it is kept as unjudged.
    Exit status: 0 it is here, 1 it failed or is here and refused, 2 wrong usage.
    """,
    short_help="Check, judge and keep what another program has made.",
)
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--name", default="", help="Of the adapter here; default: the directory's.")
@click.option("--model", "-m", metavar="MODEL", help="Its base model; default: as set.")
@click.option("--examples", type=EXAMPLES, help="A JSONL file to judge it with.")
@click.option("--json", "as_json", is_flag=True, help="One object with verdict and figures.")
def import_(
    directory: Path, name: str, model: str | None, examples: Path | None, as_json: bool
) -> int:
    """Check, judge and keep a LoRA adapter that another program has made."""
    from shammah.bus.client import new_request_id
    from shammah.bus.training import ImportAdapter
    from shammah.cli import adapter_commands
    from shammah.models.catalogue import check_model_name

    settings = _settings(model)
    check_model_name(settings.model)
    asked = ImportAdapter(
        new_request_id(),
        name or adapter_commands.name_for(directory),
        str(directory.absolute()),
        settings.model,
        str(examples.absolute()) if examples else "",
    )
    return adapter_commands.import_adapter(settings, asked, as_json=as_json)


def _settings(model: str | None = None) -> Settings:
    from shammah.settings.load import load_settings

    return load_settings(os.environ, model)
