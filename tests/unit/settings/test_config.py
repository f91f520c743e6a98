"""Settings: where they come from, and every way in which they can be wrong."""

from __future__ import annotations

import ast
import inspect
import itertools
import os
import tomllib
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shammah.errors import ExitCode, ShammahError
from shammah.settings import model
from shammah.settings.load import home_directory, load_settings
from shammah.settings.model import CloudSettings, InferenceSettings, ServerSettings, Settings
from shammah.settings.report import explain_settings, shown
from shammah.supervision.identity import identity
from tests.fakes.sandbox import Sandbox

DEFAULTS_FILE = Path(__file__).parents[3] / "configs" / "default.toml"


def load(sandbox: Sandbox, text: str | bytes = "", **environ: str) -> Settings:
    written = text.encode() if isinstance(text, str) else text
    (sandbox.shammah_home / "config.toml").write_bytes(written)
    return load_settings({"SHAMMAH_HOME": str(sandbox.shammah_home), **environ})


def refused(sandbox: Sandbox, text: str | bytes) -> ShammahError:
    with pytest.raises(ShammahError) as refusal:
        load(sandbox, text)
    error = refusal.value
    assert (error.code, error.exit_code) == ("config_invalid", ExitCode.USAGE)
    assert str(sandbox.shammah_home / "config.toml") in error.message
    assert error.hint
    return error


class TestWhereSettingsComeFrom:
    def test_without_a_file_the_defaults_hold(self, sandbox: Sandbox) -> None:
        home = str(sandbox.shammah_home)
        assert load_settings({"SHAMMAH_HOME": home}) == Settings(sandbox.shammah_home)

    def test_an_empty_file_changes_nothing(self, sandbox: Sandbox) -> None:
        assert load(sandbox) == Settings(sandbox.shammah_home)

    @pytest.mark.parametrize("text", ['model = "3B"\n', "", "# nothing\n"])
    def test_a_byte_order_mark_before_it_is_none_of_its_text(
        self, sandbox: Sandbox, text: str
    ) -> None:
        assert load(sandbox, b"\xef\xbb\xbf" + text.encode()) == load(sandbox, text)

    def test_the_file_changes_what_it_names(self, sandbox: Sandbox) -> None:
        loaded = load(sandbox, 'model = "3B"\n[inference]\ndevice = "cpu"\nkeep_alive = -1\n')
        inference = InferenceSettings(device="cpu", keep_alive=-1.0)
        assert loaded == Settings(sandbox.shammah_home, model="3B", inference=inference)
        assert isinstance(loaded.inference.keep_alive, float)

    @pytest.mark.parametrize(
        ("variable", "setting", "line"),
        [
            ("SHAMMAH_MODEL", "model", 'model = "3B"'),
            ("ANTHROPIC_API_KEY", "cloud.api_key", '[cloud]\napi_key = "3B"'),
            ("ANTHROPIC_BASE_URL", "cloud.base_url", '[cloud]\nbase_url = "3B"'),
        ],
    )
    def test_the_environment_wins_over_the_file_unless_empty(
        self, sandbox: Sandbox, variable: str, setting: str, line: str
    ) -> None:
        def found(loaded: Settings) -> object:
            for name in setting.split("."):
                loaded = getattr(loaded, name)
            return loaded

        assert found(load(sandbox, line)) == "3B"
        assert found(load(sandbox, line, **{variable: "from-env"})) == "from-env"
        assert found(load(sandbox, "", **{variable: "from-env"})) == "from-env"
        assert found(load(sandbox, line, **{variable: ""})) == "3B"

    def test_the_command_line_wins_over_all(self, sandbox: Sandbox) -> None:
        (sandbox.shammah_home / "config.toml").write_text('model = "3B"')
        environ = {"SHAMMAH_HOME": str(sandbox.shammah_home), "SHAMMAH_MODEL": "7B"}
        assert load_settings(environ, "14B").model == "14B"
        assert load_settings(environ, "").model == "7B"
        assert load_settings(environ, None).model == "7B"

    def test_a_licence_of_the_command_line_wins_over_the_files(self, sandbox: Sandbox) -> None:
        (sandbox.shammah_home / "config.toml").write_text('licence = "permissive"')
        environ = {"SHAMMAH_HOME": str(sandbox.shammah_home)}
        assert load_settings(environ).permissive
        assert not load_settings(environ, licence="any").permissive
        assert load_settings({"SHAMMAH_HOME": "/elsewhere"}, licence="permissive").permissive

    def test_a_licence_that_is_no_choice(self, sandbox: Sandbox) -> None:
        assert "any, permissive" in refused(sandbox, 'licence = "mit"').message

    def test_a_key_makes_the_cloud_configured(self, sandbox: Sandbox) -> None:
        assert not load(sandbox).cloud_configured
        assert load(sandbox, "", ANTHROPIC_API_KEY="sk-1").cloud_configured

    def test_the_home_is_dot_shammah_unless_named(
        self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert home_directory({}) == sandbox.home / ".shammah"
        assert home_directory({"SHAMMAH_HOME": ""}) == sandbox.home / ".shammah"
        monkeypatch.chdir(sandbox.root)
        assert home_directory({"SHAMMAH_HOME": "kept"}) == sandbox.shammah_home


class TestAModelOnDisk:
    @pytest.fixture(autouse=True)
    def here(self, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
        (sandbox.root / "models" / "mine").mkdir(parents=True)
        (sandbox.home / "mine").mkdir()
        monkeypatch.chdir(sandbox.root / "models")

    @pytest.mark.parametrize(
        ("named", "meant"),
        [
            ("mine", "models/mine"),
            ("./mine", "models/mine"),
            ("mine/", "models/mine"),
            ("../models/mine", "models/mine"),
            ("./missing", "models/missing"),
            (".", "models"),
            ("~/mine", "home/mine"),
        ],
    )
    def test_is_named_absolutely(self, sandbox: Sandbox, named: str, meant: str) -> None:
        """The worker has another current directory."""
        settings = load_settings(os.environ, named)
        assert settings.model == str(sandbox.root / meant)

    @pytest.mark.parametrize("named", ["auto", "starter", "3B", "Qwen/Qwen2.5-3B-Instruct"])
    def test_what_is_no_directory_stays_as_it_is(self, named: str) -> None:
        assert load_settings(os.environ, named).model == named

    @pytest.mark.parametrize("named", ["auto", "starter", "3B", "14b"])
    def test_a_directory_that_happens_to_be_called_like_a_choice_is_not_meant(
        self, sandbox: Sandbox, named: str
    ) -> None:
        (sandbox.root / "models" / named).mkdir()
        assert load_settings(os.environ, named).model == named

    def test_the_default_is_no_directory_either(self, sandbox: Sandbox) -> None:
        (sandbox.root / "models" / "auto").mkdir()
        assert load_settings(os.environ).model == "auto"


class TestWhatIsWrong:
    def test_a_pipe_is_not_waited_for(self, sandbox: Sandbox) -> None:
        os.mkfifo(home_directory(os.environ) / "config.toml")
        with pytest.raises(ShammahError, match="it is a pipe, not a file"):
            load_settings(os.environ)

    def test_what_has_no_end_is_not_read(self, sandbox: Sandbox) -> None:
        (home_directory(os.environ) / "config.toml").symlink_to("/dev/zero")
        with pytest.raises(ShammahError, match="it is larger than"):
            load_settings(os.environ)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("nonsense", "it is not TOML"),
            ("model = ", "it is not TOML"),
            ("[cloud]\n[cloud]", "it is not TOML"),
            (b"\xff\xfe", "it is not UTF-8 text"),
            ("model = 3", "model must be text, not 3"),
            ('[inference]\nmax_new_tokens = "many"', "must be a whole number, not 'many'"),
            ("[inference]\nmax_new_tokens = 1.5", "must be a whole number, not 1.5"),
            ("[inference]\nmax_new_tokens = true", "must be a whole number, not True"),
            ("[inference]\nmax_new_tokens = 0", "max_new_tokens must be at least 1, not 0"),
            ("[cloud]\nmax_tokens = -1", "cloud.max_tokens must be at least 1, not -1"),
            ("[inference]\nkeep_alive = -2", "keep_alive must be at least -1, not -2"),
            ("[cloud]\nkeep_alive = -1.5", "keep_alive must be at least -1, not -1.5"),
            ("[inference]\nkeep_alive = true", "keep_alive must be a number, not True"),
            ("[inference]\nkeep_alive = 2020-01-01", "keep_alive must be a number"),
            ('[inference]\ndevice = "gpu"', "one of auto, cpu, cuda, mps, not 'gpu'"),
            ('[inference]\ndtype = "int8"', "inference.dtype must be one of"),
            ("inference = 3", "inference must be a table, not 3"),
            ("[[inference]]", "inference must be a table"),
            ("cloud = []", "cloud must be a table"),
            ("[model]", "model must be text, not {}"),
        ],
    )
    def test_is_said_in_one_sentence(self, sandbox: Sandbox, text: str, says: str) -> None:
        error = refused(sandbox, text)
        assert says in error.message
        assert len(error.message) < 300

    @pytest.mark.parametrize(
        ("text", "nearest"),
        [
            ('modell = "3B"', "model"),
            ("[inferance]", "inference"),
            ('[inference]\ndevise = "cpu"', "inference.device"),
            ("[cloud]\nmax_token = 3", "cloud.max_tokens"),
        ],
    )
    def test_a_misspelt_name_gets_the_nearest_one(
        self, sandbox: Sandbox, text: str, nearest: str
    ) -> None:
        assert refused(sandbox, text).hint == f"Did you mean {nearest}?"

    def test_a_name_like_no_other_gets_the_list(self, sandbox: Sandbox) -> None:
        assert refused(sandbox, "zzzzzz = 1").hint == "configs/default.toml lists every setting."

    def test_a_variable_that_is_wrong_is_named_as_such(self, sandbox: Sandbox) -> None:
        environ = {"SHAMMAH_HOME": str(sandbox.shammah_home), "SHAMMAH_HISTORY": "perhaps"}
        with pytest.raises(ShammahError) as refusal:
            load_settings(environ)
        assert refusal.value.message == (
            "SHAMMAH_HISTORY: history must be one of on, off, not 'perhaps'."
        )

    def test_the_home_itself_cannot_be_set_in_it(self, sandbox: Sandbox) -> None:
        assert "unknown setting home" in refused(sandbox, 'home = "/"').message

    def test_an_unreadable_file(self, sandbox: Sandbox) -> None:
        (sandbox.shammah_home / "config.toml").mkdir()
        with pytest.raises(ShammahError, match=r"cannot read it \(Is a directory\)") as refusal:
            load_settings({"SHAMMAH_HOME": str(sandbox.shammah_home)})
        assert refusal.value.code == "config_invalid"

    def test_a_home_that_is_a_file(self, sandbox: Sandbox) -> None:
        home = sandbox.root / "file"
        home.write_text("")
        with pytest.raises(ShammahError, match="cannot read it"):
            load_settings({"SHAMMAH_HOME": str(home)})

    @pytest.mark.parametrize("value", ["nan", "1" + "0" * 400, "9" * 5000])
    def test_a_keep_alive_that_is_no_time(self, sandbox: Sandbox, value: str) -> None:
        refused(sandbox, f"[inference]\nkeep_alive = {value}")

    def test_a_very_deep_file(self, sandbox: Sandbox) -> None:
        refused(sandbox, "model = " + "[" * 5000)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ('[privacy]\npatterns = ["("]', "is not a regular expression"),
            ('[privacy]\npatterns = ["(a)\\\\1"]', "back-reference"),
            ('[privacy]\nwords = ["a", " "]', "privacy.words contains an empty word"),
            ('[privacy]\npaths = [""]', "privacy.paths contains an empty path"),
            ('[privacy]\nwords = "acme"', "privacy.words must be a list of texts"),
            ("[privacy]\nwords = [1]", "privacy.words must be a list of texts"),
            ("[privacy]\nemails = 1", "privacy.emails must be true or false"),
            ('[cloud]\nuse = "sometimes"', "cloud.use must be one of auto, ask, never"),
            ("[cloud]\ndaily_budget = -1", "cloud.daily_budget must be at least 0"),
        ],
    )
    def test_what_privacy_and_the_cloud_refuse(
        self, sandbox: Sandbox, text: str, says: str
    ) -> None:
        assert says in refused(sandbox, text).message

    def test_lists_and_switches(self, sandbox: Sandbox) -> None:
        text = '[privacy]\nemails = false\nwords = ["Acme", "b c"]\npatterns = ["(a+)+$"]'
        privacy = load(sandbox, text).privacy
        assert (privacy.emails, privacy.words) == (False, ("Acme", "b c"))
        assert privacy.patterns == ("(a+)+$",)

    def test_an_api_key_is_not_quoted(self, sandbox: Sandbox) -> None:
        """Wrong quotes are the commonest mistake; the key must not land on the screen."""
        for text in ("[cloud]\napi_key = ['sk-secret']", "[cloud]\napi_key = {k = 'sk-secret'}"):
            assert "sk-secret" not in str(refused(sandbox, text))

    def test_the_environment_cannot_repair_a_wrong_table(self, sandbox: Sandbox) -> None:
        with pytest.raises(ShammahError, match="cloud must be a table"):
            load(sandbox, "cloud = 3", ANTHROPIC_API_KEY="sk-1")

    @settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.text(alphabet="[]{}=\"'.,\n #-_0e1aclou\\d\u2028\ud7ff", max_size=60))
    def test_any_text_is_settings_or_refused(self, sandbox: Sandbox, text: str) -> None:
        try:
            load(sandbox, text)
        except ShammahError as error:
            if error.code != "config_invalid":
                raise


class TestTheIdentity:
    @pytest.fixture
    def base(self, sandbox: Sandbox) -> Settings:
        return Settings(sandbox.shammah_home, model="starter")

    def test_is_the_same_for_the_same_settings(self, base: Settings) -> None:
        for role in ("inference", "cloud"):
            assert identity(base, role) == identity(replace(base), role)

    def test_names_the_model_and_never_a_secret(self, base: Settings) -> None:
        keyed = replace(base, cloud=replace(base.cloud, api_key="sk-secret"))
        assert identity(keyed, "inference").model == "starter"
        assert identity(keyed, "cloud").model == base.cloud.model
        assert "sk-secret" not in repr(identity(keyed, "cloud"))

    @pytest.mark.parametrize("name", [f.name for f in fields(CloudSettings)])
    def test_of_the_cloud_covers_what_changes_its_answers(self, base: Settings, name: str) -> None:
        changed = replace(base, cloud=replace(base.cloud, **{name: _other(base.cloud, name)}))
        assert _differs(base, changed, "cloud") is (name != "keep_alive")
        assert not _differs(base, changed, "inference")

    @pytest.mark.parametrize("name", [f.name for f in fields(InferenceSettings)])
    def test_of_inference_covers_what_changes_its_answers(self, base: Settings, name: str) -> None:
        own = replace(base.inference, **{name: _other(base.inference, name)})
        changed = replace(base, inference=own)
        assert _differs(base, changed, "inference") is (
            name not in ("keep_alive", "queue", "think")
        )
        assert not _differs(base, changed, "cloud")

    def test_covers_model_and_home(self, base: Settings) -> None:
        assert _differs(base, replace(base, model="3B"), "inference")
        assert not _differs(base, replace(base, model="3B"), "cloud")
        assert _differs(base, replace(base, home=Path("/elsewhere")), "inference")
        assert not _differs(base, replace(base, system="Be brief."), "inference")

    def test_of_a_licence_matters_only_where_memory_chooses(self, base: Settings) -> None:
        permissive = replace(base, licence="permissive")
        assert not _differs(base, permissive, "inference")
        auto = replace(base, model="auto")
        assert _differs(auto, replace(permissive, model="auto"), "inference")
        assert not _differs(auto, replace(permissive, model="auto"), "download")

    def test_parts_cannot_run_into_each_other(self, base: Settings) -> None:
        one = replace(base, cloud=replace(base.cloud, base_url="ab", model="c"))
        two = replace(base, cloud=replace(base.cloud, base_url="a", model="bc"))
        assert _differs(one, two, "cloud")

    def test_of_a_model_whose_name_is_no_unicode(self, base: Settings) -> None:
        assert identity(replace(base, model="/models/\udcff"), "inference").digest

    def test_of_the_cloud_covers_the_headers_that_the_sdk_adds(self, base: Settings) -> None:
        def digest(headers: str) -> str:
            return identity(base, "cloud", environ={"ANTHROPIC_CUSTOM_HEADERS": headers}).digest

        assert digest("x-api-key: a") != digest("x-api-key: b")
        assert digest("") == identity(base, "cloud").digest

    def test_of_the_cloud_covers_the_rules_of_privacy(self, base: Settings) -> None:
        """Two frontends with other rules must not share a door."""
        assert _differs(base, replace(base, privacy=replace(base.privacy, words=("a",))), "cloud")

    def test_of_another_role_does_not_cover_the_clouds_key(self, base: Settings) -> None:
        keyed = replace(base, cloud=replace(base.cloud, api_key="sk-1"))
        assert not _differs(base, keyed, "download")


def _other(settings: object, name: str) -> object:
    value = getattr(settings, name)
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"{value}x"


def _differs(one: Settings, two: Settings, role: str) -> bool:
    return identity(one, role).digest != identity(two, role).digest


class TestTheDocumentedDefaults:
    def test_are_the_codes(self, sandbox: Sandbox) -> None:
        assert load(sandbox, DEFAULTS_FILE.read_bytes()) == Settings(sandbox.shammah_home)

    def test_are_all_there_in_order(self) -> None:
        def names(cls: type) -> dict[str, object]:
            return {
                field.name: names(field.default_factory)
                if is_dataclass(field.default_factory)
                else {}
                if field.default_factory is dict
                else list(field.default)
                if isinstance(field.default, tuple)
                else field.default
                for field in fields(cls)
                if field.name != "home"
            }

        def ordered(table: dict[str, object]) -> list[object]:
            return [(k, ordered(v) if isinstance(v, dict) else v) for k, v in table.items()]

        assert ordered(tomllib.loads(DEFAULTS_FILE.read_text())) == ordered(names(Settings))

    def test_have_the_codes_explanations_as_comments(self) -> None:
        explained = _explanations()
        text = DEFAULTS_FILE.read_text()
        # The servers are named by the person: what one has is in comments.
        text, _, served = text.partition("[servers]")
        example = [line.removeprefix("# ") for line in served.splitlines()]
        lines = [*text.splitlines(), *example]
        assert explained["Settings"].pop("servers") in example[1]
        comments = {
            line.split(" = ")[0]: above.removeprefix("# ")
            for above, line in itertools.pairwise(lines)
            if " = " in line and not line.startswith("#")
        }
        assert comments.keys() == {name for names in explained.values() for name in names}
        for names in explained.values():
            for name, words in names.items():
                # `keep_alive` and `model` stand in two tables: one of them is the last.
                assert words in lines_above(lines, name), name

    def test_every_environment_variable_names_a_setting(self, sandbox: Sandbox) -> None:
        for path in model.ENVIRONMENT.values():
            target: object = Settings(sandbox.shammah_home)
            for name in path:
                target = getattr(target, name)
            assert isinstance(target, str)

    def test_every_checked_setting_exists(self, sandbox: Sandbox) -> None:
        for *tables, name in (*model.CHOICES, *model.AT_LEAST):
            owner: object = Settings(sandbox.shammah_home)
            for table in tables:
                is_server = table in ("servers", "*")
                owner = ServerSettings() if is_server else getattr(owner, table)
            assert hasattr(owner, name)


def lines_above(lines: list[str], name: str) -> list[str]:
    """The comments above every ``name = ...``."""
    return [
        above.removeprefix("# ").removeprefix("Local model: ")
        for above, line in itertools.pairwise(lines)
        if line.startswith(f"{name} = ")
    ]


def _explanations() -> dict[str, dict[str, str]]:
    """The string below each field, by class and field."""
    tree = ast.parse(inspect.getsource(model))
    found: dict[str, dict[str, str]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name.endswith("Settings"):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                ):
                    words = inspect.cleandoc(str(below.value.value))
                    found.setdefault(node.name, {})[field.target.id] = words
    return found


NEXT_ROOM = '[servers.box]\nbase_url = "http://10.0.0.7/v1"\ntrust = "trusted"\n'


class TestServers:
    """``[servers.NAME]``."""

    @pytest.mark.parametrize(
        ("trust", "private", "takes"),
        [
            ("local", False, True),
            ("local", True, True),
            ("trusted", False, False),
            ("trusted", True, True),
            ("cloud", False, False),
            ("cloud", True, False),
        ],
    )
    def test_take_private_questions_by_trust(self, trust: str, private: bool, takes: bool) -> None:
        assert ServerSettings(trust=trust, private=private).takes_private is takes

    def test_stand_beside_the_local_model_unless_they_are_the_cloud(self, sandbox: Sandbox) -> None:
        text = (
            'model = "server:own"\ncloud.provider = "far"\n[servers.own]\n'
            f'base_url = "http://localhost/v1"\n{NEXT_ROOM}'
            '[servers.far]\nbase_url = "https://far.example/v1"\ntrust = "cloud"\nmodel = "m"\n'
            '[servers.later]\ntrust = "trusted"\n'
        )
        settings = load(sandbox, text)
        assert list(settings.beside) == ["box"]
        assert (settings.cloud_name, settings.cloud_model) == ("far", "m")
        assert settings.cloud_configured

    def test_are_tables_with_names_of_the_persons_own(self, sandbox: Sandbox) -> None:
        text = """
            model = "server:box/small"
            [servers.box]
            base_url = "http://localhost:8000/v1"
            key = "sk-1"
        """
        settings = load(sandbox, text)
        assert settings.server == "box"
        expected = ServerSettings("http://localhost:8000/v1", key="sk-1", model="small")
        assert settings.local_server() == expected

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("servers = 7", "servers must be a table"),
            ("[servers]\nbox = 7", "servers.box must be a table"),
            ('[servers."a b"]\nbase_url = "http://localhost"', "no name for a server"),
            ("[servers.box]", "servers.box.base_url is not an http address"),
            ('[servers.box]\nbase_url = "ftp://localhost"', "not an http address"),
            ('[servers.box]\nbase_url = "http://localhost:99999999"', "not an http address"),
            ('[servers.box]\nbase_url = "http://10.0.0.7:1/v1"', "another machine, 10.0.0.7"),
            ('[servers.box]\nbase_url = "http://localhost.evil.example"', "another machine"),
            ("[servers.box]\nbase_ur = 1", "unknown setting servers.box.base_ur"),
            ("[servers.box]\ncontext_length = -1", "servers.box.context_length must be at least"),
            ('model = "server:box"', "there is no [servers.box]"),
            (NEXT_ROOM.replace("trusted", "best"), "servers.box.trust must be one of local, tru"),
            (f'model = "server:box"\n{NEXT_ROOM}', "box may not have private questions"),
            (NEXT_ROOM.replace("trusted", "cloud") + "private = true", "private is true, but its"),
            (f'cloud.provider = "box"\n{NEXT_ROOM}', "there is no [servers.box] whose trust is"),
            (
                'cloud.provider = "box"\n' + NEXT_ROOM.replace("trusted", "cloud"),
                "needs a base_url and a model to be the cloud",
            ),
        ],
    )
    def test_that_cannot_be_used_are_refused(self, sandbox: Sandbox, text: str, words: str) -> None:
        with pytest.raises(ShammahError) as caught:
            load(sandbox, text)
        assert words in caught.value.message

    def test_have_keys_that_are_never_shown(self, sandbox: Sandbox) -> None:
        text = '[servers.box]\nbase_url = "http://localhost"\nkey = "sk-1"'
        load(sandbox, text)
        environ = {"SHAMMAH_HOME": str(sandbox.shammah_home)}
        found = {one.name: one for one in explain_settings(environ)}
        assert shown("servers.box.key", found["servers.box.key"].value) == "(set)"
        assert found["servers.box.key"].line == 3

    def test_that_are_changed_need_another_worker(self, sandbox: Sandbox) -> None:
        text = 'model = "server:box"\n[servers.box]\nbase_url = "http://localhost:{}"'
        one, two = (load(sandbox, text.format(port)) for port in (1, 2))
        assert _differs(one, two, "inference")
