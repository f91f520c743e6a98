"""Which command lines open the prompt, and what they mean there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from shammah.__main__ import opens_repl
from shammah.chat.options import ReplOptions, parse_options, parse_override
from shammah.chat.prompt_options import FLAGS, VALUES
from shammah.cli import main
from shammah.errors import ExitCode, ShammahError
from shammah.router.decision import Override, Target


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--local",
        "--cloud",
        "--private",
        "--local --private",
        "--local --cloud",  # a contradiction, which is said after the prompt
        "--model starter",
        "--model=starter",
        "-m starter",
        "-m=starter",
        "--system prompt",
        "--licence permissive",
        "--license=permissive",
        "--system=",
        "--model status",
        "--model --help",
        "--model --local --private",
        "-m a -m b",
        "--continue",
        "-c --no-history",
        "--resume 12",
        "--resume=12",
    ],
)
def test_these_open_the_prompt(line: str) -> None:
    assert opens_repl(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "ask",
        "status",
        "stop inference",
        "worker --role cloud",
        "--help",
        "-h",
        "--version",
        "--local ask",
        "--model starter ask",
        "--model",
        "--local -m",
        "--licence",
        "--system",
        "--resume",
        "--continue=yes",
        "--local=yes",
        "--mode starter",
        "--Model starter",
        "--",
        "-",
        "hello",
    ],
)
def test_these_do_not(line: str) -> None:
    assert not opens_repl(line.split())


def test_an_empty_argument_does_not_open_the_prompt() -> None:
    assert not opens_repl([""])
    assert opens_repl(["--system", ""])


@pytest.mark.parametrize(
    ("arguments", "model", "system"),
    [
        ([], None, None),
        (["--model", "3B"], "3B", None),
        (["--model=3B"], "3B", None),
        (["-m", "3B"], "3B", None),
        (["-m=3B"], "3B", None),
        (["-m", "3B", "--model", "7B"], "7B", None),
        (["--system", "Be brief."], None, "Be brief."),
        (["--system=a=b"], None, "a=b"),
        (["--model", "--system"], "--system", None),
        (["--system", ""], None, ""),
    ],
)
def test_options_with_values(arguments: list[str], model: str | None, system: str | None) -> None:
    options = parse_options(arguments)
    assert (options.model, options.override) == (model, Override())
    assert (options.system or None) == (system or None)


@pytest.mark.parametrize("spelling", ["--licence", "--license"])
def test_a_licence_can_be_spelt_both_ways(spelling: str) -> None:
    assert parse_options([spelling, "permissive"]).licence == "permissive"
    assert parse_options([f"{spelling}=any"]).licence == "any"
    with pytest.raises(ShammahError, match="any, permissive") as refusal:
        parse_options([spelling, "mit"])
    assert refusal.value.exit_code == ExitCode.USAGE


def test_thinking_is_one_of_three() -> None:
    assert parse_options(["--think", "show"]).think == "show"
    assert parse_options([]).think is None
    with pytest.raises(ShammahError, match="off, on, show") as refusal:
        parse_options(["--think=aloud"])
    assert refusal.value.exit_code == ExitCode.USAGE


def test_an_empty_system_prompt_is_not_the_same_as_none() -> None:
    """With one in config.toml, ``--system ""`` asks for none, as in `shammah ask`."""
    assert parse_options(["--system", ""]) != ReplOptions()


@pytest.mark.parametrize(
    ("flags", "override"),
    [
        (set(), Override()),
        ({"--local"}, Override(Target.LOCAL)),
        ({"--cloud"}, Override(Target.CLOUD)),
        ({"--private"}, Override(Target.LOCAL, private=True)),
        ({"--private", "--local"}, Override(Target.LOCAL, private=True)),
    ],
)
def test_wishes(flags: set[str], override: Override) -> None:
    assert parse_override(flags) == override
    assert parse_options(sorted(flags)).override == override


@pytest.mark.parametrize(
    ("arguments", "resume", "history"),
    [
        ([], None, True),
        (["--continue"], 0, True),
        (["-c", "--no-history"], 0, False),
        (["--resume", "12"], 12, True),
        (["--resume=12"], 12, True),
    ],
)
def test_what_goes_on_and_is_kept(arguments: list[str], resume: int | None, history: bool) -> None:
    options = parse_options(arguments)
    assert (options.resume, options.history) == (resume, history)


@pytest.mark.parametrize("number", ["", "0", "-1", "one", "1.5", "٣", "9" * 30, "1 "])
def test_what_is_no_number_of_a_conversation(number: str) -> None:
    with pytest.raises(ShammahError, match="is not a conversation's number") as refusal:
        parse_options(["--resume", number])
    assert refusal.value.exit_code == ExitCode.USAGE


def test_the_newest_contradicts_a_number() -> None:
    with pytest.raises(ShammahError, match="contradicts"):
        parse_options(["--continue", "--resume", "1"])


@pytest.mark.parametrize("other", [{"--local"}, {"--private"}, {"--local", "--private"}])
def test_the_cloud_contradicts_staying_here(other: set[str]) -> None:
    with pytest.raises(ShammahError, match="contradicts") as refusal:
        parse_override({"--cloud", *other})
    assert refusal.value.exit_code == ExitCode.USAGE


def helps(command: click.Command, path: list[str], parent: click.Context | None) -> Iterator[str]:
    """The help of ``command`` and of all below it, on a terminal of 80 columns."""
    settings = command.context_settings
    context = click.Context(command, parent, path[-1], terminal_width=78, **settings)
    yield command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from helps(inner, [*path, name], context)


def test_every_help_has_examples_and_fits_a_terminal() -> None:
    found = list(helps(main.main, ["shammah"], None))
    assert len(found) > 30
    for text in found:
        assert "xamples:" in text or "To enable it in every new shell" in text or "monad" in text
        assert [line for line in text.splitlines() if len(line) > 80] == []
        assert [line for line in text.splitlines()[1:] if line.endswith("...")] == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--resume", "--resume needs a value: shammah --resume 12"),
        ("--local --model", "--model needs a value: shammah --model starter"),
        ("--model starter ask", "Options come after the command: shammah ask --model ..."),
        ("hello", 'To ask something: shammah ask "What is a monad?"'),
        ("asc", "Did you mean 'ask'?"),
        ("ask --nosuch", ""),
        ("--nosuch", ""),
        ("--nosuch --model", ""),
        ("", ""),
    ],
)
def test_a_wrong_line_is_answered_with_the_right_one(line: str, says: str) -> None:
    assert main.hint_at(line.split()) == says


def test_an_option_without_its_value_is_not_called_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["--resume"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert "Error: --resume needs a value" in said
    assert "No such option" not in said


def test_the_help_of_all_commands_imports_none_of_them() -> None:
    code = (
        "import sys\nfrom shammah.cli.main import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "print(*(name for name in sys.modules if name.startswith('shammah.')), file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert all(f"  {name} " in ended.stdout for name in main.COMMANDS)
    loaded = set(ended.stderr.split())
    assert {name for name in loaded if name.startswith("shammah.cli.")} == {
        "shammah.cli.main",
        "shammah.cli.options",
    }
    assert not {name.split(".")[1] for name in loaded} & {"settings.model", "supervision", "router"}


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_of_the_table_is_there(name: str) -> None:
    command = main.main.get_command(click.Context(main.main), name)
    assert command is not None
    assert command.name == name


def test_ask_has_every_option_of_the_prompt() -> None:
    ask = main.main.get_command(click.Context(main.main), "ask")
    assert ask is not None
    spelled = {spelling for option in ask.params for spelling in option.opts}
    assert spelled >= {*VALUES, *FLAGS}


def test_a_command_that_is_nearly_one_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["statu"]) == ExitCode.USAGE
    assert "No such command 'statu'. Did you mean 'status'?" in capsys.readouterr().err


def test_a_group_without_its_command_is_answered_with_its_help_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.run(["history"]) == ExitCode.USAGE
    said = capsys.readouterr().err
    assert said.count("Usage:") == 1
    assert "Error" not in said
