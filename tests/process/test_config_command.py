"""``shammah config`` and ``shammah completion`` as a shell sees them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from shammah.chat.prompt_options import FLAGS, VALUES
from shammah.cli.completion import SHELLS
from shammah.cli.main import COMPLETION as VARIABLE
from tests.fakes.command import SHAMMAH, run
from tests.fakes.sandbox import Sandbox
from tests.fakes.terminal import Terminal

pytestmark = pytest.mark.timeout(300)

SECRET = "sk-ant-planted"


@pytest.fixture
def file(sandbox: Sandbox) -> Path:
    return sandbox.shammah_home / "config.toml"


def test_show_tells_where_each_value_comes_from(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(f'# mine\n[cloud]\nuse = "ask"\napi_key = "{SECRET}"\n')
    monkeypatch.setenv("ANTHROPIC_BASE_URL", "https://me:planted@api.example/?t=planted")
    ended = run("config", "show", "--licence", "permissive")
    lines = dict(reversed(line.rsplit("  # ", 1)) for line in ended.out.splitlines())
    assert lines[f"{file}:3"].strip() == 'cloud.use = "ask"'
    assert lines[f"{file}:4"].strip() == "cloud.api_key = (set)"
    assert lines["--licence"].strip() == 'licence = "permissive"'
    assert lines["ANTHROPIC_BASE_URL"].strip() == 'cloud.base_url = "https://api.example/"'
    assert lines["default"]
    found = {one["name"]: one for one in json.loads(run("config", "show", "--json").out)}
    assert (found["cloud.use"]["origin"], found["cloud.use"]["line"]) == ("file", 3)
    assert found["model"] == {
        "name": "model", "value": "auto", "origin": "default", "source": "", "line": None
    }  # fmt: skip
    assert run("config", "get", "cloud.api_key").out == "(set)\n"
    assert run("config", "get", "cloud.use").out == "ask\n"
    assert "planted" not in ended.said + json.dumps(found)


def test_validate_tells_everything_at_once(file: Path) -> None:
    file.write_text(f'modell = 1\n\n[cloud]\nuse = "no"\napi_key = ["{SECRET}"]\n[inferance]\n')
    ended = run("config", "validate")
    assert (ended.code, ended.out) == (1, "")
    assert "line 1: unknown setting modell. Did you mean model?" in ended.err
    assert "line 4: cloud.use must be one of auto, ask, never" in ended.err
    assert "line 5: cloud.api_key must be text" in ended.err
    assert "line 6: unknown setting inferance. Did you mean inference?" in ended.err
    document = json.loads(run("config", "validate", "--json").out)
    assert (document["ok"], len(document["problems"])) == (False, 4)
    assert SECRET not in ended.said + json.dumps(document)


@pytest.mark.parametrize("text", ["", "model = 'starter'\n"])
def test_validate_of_a_good_file(file: Path, text: str) -> None:
    file.write_text(text)
    assert run("config", "validate").out == f"{file} is valid.\n"
    file.unlink()
    assert "does not exist" in run("config", "validate").out


def test_set_changes_one_line(file: Path) -> None:
    file.write_text('# mine\nmodel = "3B" # big\n[inference]\nqueue = 3\n')
    assert run("config", "set", "inference.keep_alive", "-1").code == 0
    assert run("config", "set", "privacy.words", "Alice", "Project X").code == 0
    secret = run("config", "set", "cloud.api_key", "-", stdin=f"{SECRET}\n")
    assert (secret.code, SECRET in secret.said) == (0, False)
    assert file.read_text() == (
        '# mine\nmodel = "3B" # big\n[inference]\nqueue = 3\nkeep_alive = -1\n\n'
        f'[privacy]\nwords = ["Alice", "Project X"]\n\n[cloud]\napi_key = "{SECRET}"\n'
    )
    assert run("config", "get", "privacy.words").out == "Alice\nProject X\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cloud.use", "perhaps"), "must be one of auto, ask, never"),
        (("use", "ask"), "Did you mean cloud.use?"),
        (("cloud.usee", "ask"), "Did you mean cloud.use?"),
        (("inference.queue", "many"), "must be a whole number"),
        (("inference.queue", "0"), "must be at least 1"),
        (("inference.queue", "1", "2"), "takes one value"),
        (("privacy.patterns", "(?=x)"), "privacy.patterns contains"),
        (("model", "gpt"), "There is no model 'gpt'"),
        (("system", "\udcff"), r"The value '\xff' of system is not UTF-8."),
        (("privacy.words", "a", "b\udcff"), r"The value 'b\xff' of privacy.words is not UTF-8."),
        (("cloud.api_key", "k\udcff"), "The value of cloud.api_key is not UTF-8."),
        (("us\udcffe", "ask"), r"Unknown setting 'us\xffe'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_set_refuses_and_changes_nothing(file: Path, arguments: tuple[str, ...], says: str) -> None:
    file.write_text('system = "s"\n')
    ended = run("config", "set", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert says in ended.err
    assert file.read_text() == 'system = "s"\n'


def test_an_input_without_a_key_sets_none(file: Path) -> None:
    ended = run("config", "set", "cloud.api_key", "-", stdin="\n")
    assert (ended.code, ended.out) == (2, "")
    assert "The input is empty." in ended.err
    assert not file.exists()


def test_a_byte_order_mark_hinders_no_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(b'\xef\xbb\xbf# mine\nrender = "markdown"\n')
    assert run("config", "validate").code == 0
    assert run("models", "use", "starter").code == 0
    assert run("config", "set", "render", "plain").code == 0
    assert (run("config", "get", "model").out, run("config", "get", "render").out) == (
        "starter\n",
        "plain\n",
    )
    monkeypatch.setenv("EDITOR", r"sed -i '1s/^/\xef\xbb\xbf/'")
    assert run("config", "edit").code == 0
    assert run("config", "validate").code == 0


class TestEdit:
    def edited(self, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
        """Have an editor that is this ``sed`` script."""
        monkeypatch.setenv("VISUAL", f"sed -i '{script}'")

    def test_takes_what_is_right(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text('[cloud]\nuse = "ask"\n')
        self.edited(monkeypatch, "s/ask/never/")
        assert run("config", "edit").out == f"Saved {file}.\n"
        assert file.read_text() == '[cloud]\nuse = "never"\n'
        assert [path.name for path in file.parent.glob("*.toml")] == ["config.toml"]

    def test_keeps_what_is_wrong_beside_it(
        self, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file.write_text('[cloud]\nuse = "ask"\n')
        self.edited(monkeypatch, "s/ask/perhaps/")
        ended = run("config", "edit")
        assert ended.code == 1
        assert "line 2: cloud.use must be one of" in ended.err
        assert file.read_text() == '[cloud]\nuse = "ask"\n'
        (kept,) = file.parent.glob("config-edited-*.toml")
        assert kept.read_text() == '[cloud]\nuse = "perhaps"\n'
        assert str(kept) in ended.err

    def test_lets_you_edit_again(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text('[cloud]\nuse = "ask"\n')
        self.edited(monkeypatch, "s/perhaps/auto/;s/ask/perhaps/")
        terminal = Terminal("config", "edit")
        terminal.expect("Edit it again")
        terminal.type("\r")
        terminal.expect("Saved")
        assert terminal.end() == 0
        assert file.read_text() == '[cloud]\nuse = "auto"\n'

    def test_overwrites_nobody_else(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file.write_text('[cloud]\nuse = "ask"\n')
        script = f"""sh -c 'echo "model = \\"3B\\"" > "$1"; echo "model = \\"7B\\"" > {file}' sh"""
        monkeypatch.setenv("EDITOR", script)
        ended = run("config", "edit")
        assert ended.code == 1
        assert "was changed while you edited" in ended.err
        assert file.read_text() == 'model = "7B"\n'

    @pytest.mark.parametrize(("editor", "says"), [("false", "status 1"), ("/none", "/none")])
    def test_without_an_editor_changes_nothing(
        self, file: Path, monkeypatch: pytest.MonkeyPatch, editor: str, says: str
    ) -> None:
        monkeypatch.setenv("EDITOR", editor)
        ended = run("config", "edit")
        assert ended.code == 1
        assert says in ended.err
        assert not list(file.parent.glob("*.toml"))


# --- completion ---------------------------------------------------------------------------


@pytest.fixture
def shell(sandbox: Sandbox) -> str:
    """A bash script that completes the words it is given, the last one unfinished."""
    return (
        f'PATH="{Path(SHAMMAH[0]).parent}:$PATH"\n'
        'eval "$(shammah completion bash)"\n'
        'COMP_WORDS=(shammah "$@"); COMP_CWORD=$#\n'
        "_shammah_completion shammah\n"
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("do",), ("doctor",)),
        (("--l",), ("--licence", "--license", "--local")),
        (("--model", "st"), ("starter",)),
        (("--licence", "p"), ("permissive",)),
        (("ask", "--model", "acme"), ("acme/tiny",)),
        (("status", "--role", "in"), ("inference",)),
        (("config", "get", "cloud.u"), ("cloud.use",)),
        (("models", "use", "1."), ("1.5B",)),
    ],
    ids=" ".join,
)
def test_bash_completes(
    shell: str,
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    expected: tuple[str, ...],
) -> None:
    cache = sandbox.root / "cache"
    (cache / "models--acme--tiny").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    ended = run(*words, command=("bash", "--norc", "-c", shell, "bash"))
    assert (ended.code, ended.err) == (0, "")
    assert set(ended.out.split()) == set(expected)


@pytest.mark.parametrize("name", SHELLS)
def test_every_shell_has_its_script(name: str) -> None:
    script = run("completion", name).out
    assert f"{VARIABLE}={name}_complete" in script
    assert get_completion_class(name) is not None
    assert run("completion", "tcsh").code == 2


def test_zsh_and_fish_are_answered_in_their_own_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "shammah comp")
    for name, first in (("zsh", "plain\ncompletion\n"), ("fish", "plain")):
        monkeypatch.setenv(VARIABLE, f"{name}_complete")
        monkeypatch.setenv("COMP_CWORD", "1" if name == "zsh" else "comp")
        assert run().out.startswith(first)


def test_one_that_no_shell_finds_by_its_name_completes_as_well(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SHAMMAH_PROGRAM")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv(VARIABLE, "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "shammah comp")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out == "plain,completion\n"


def test_every_option_of_the_prompt_is_completed(shell: str) -> None:
    ended = run("--", command=("bash", "--norc", "-c", shell, "bash"))
    wanted = {spelling for spelling in (*VALUES, *FLAGS) if spelling.startswith("--")}
    assert set(ended.out.split()) >= wanted


def test_completing_loads_nothing_heavy_and_no_bus(sandbox: Sandbox) -> None:
    code = (
        "import sys; sys.argv = ['shammah']\nfrom shammah.__main__ import main\n"
        "main(); print(*sys.modules, file=sys.stderr)"
    )
    words = {"COMP_WORDS": "shammah ask --model st", "COMP_CWORD": "3"}
    command = ["env", *(f"{k}={v}" for k, v in words.items()), f"{VARIABLE}=bash_complete"]
    python = Path(SHAMMAH[0]).with_name("python")
    ended = subprocess.run(
        [*command, python, "-P", "-c", f"try:\n  exec({code!r})\nexcept SystemExit: "
         "import sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stdout == "plain,starter\n"
    loaded = {name.partition(".")[0] for name in ended.stderr.split()}
    assert "click" in loaded
    assert not loaded & {"torch", "transformers", "huggingface_hub", "anthropic", "zmq", "ssl"}


def test_set_writes_a_path_that_holds_anywhere(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gguf").write_bytes(b"")
    for named in ("mine.gguf", "./mine.gguf"):
        ended = run("config", "set", "model", named)
        assert ended.code == 0, ended.err
        assert file.read_text() == f'model = "{tmp_path / "mine.gguf"}"\n'
    assert run("config", "set", "model", "3B").code == 0
    assert file.read_text() == 'model = "3B"\n'
