"""One line of ``config.toml`` changes; the others stay, whatever they are."""

from __future__ import annotations

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.errors import ShammahError
from shammah.settings.edit import save, with_setting

ROOT = Path(__file__).resolve().parents[3]


def with_model(text: str, model: str) -> str:
    return with_setting(text, ("model",), model)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", 'model = "3B"\n'),
        ('model = "auto"\n', 'model = "3B"\n'),
        ("# mine\nmodel='auto' # by memory\n", '# mine\nmodel="3B" # by memory\n'),
        ('"model" = """auto"""\n', '"model" = "3B"\n'),
        ("  'model'\t=  'a\\b'\n", "  'model'\t=  \"3B\"\n"),
        ('model = "a \\" # b"\n', 'model = "3B"\n'),
        ('system = "s"\n', 'system = "s"\nmodel = "3B"\n'),
        ('system = "s"', 'system = "s"\nmodel = "3B"\n'),
        ('model = "auto"\r\nsystem = "s"\r\n', 'model = "3B"\r\nsystem = "s"\r\n'),
        ('system = "s"\r\n', 'system = "s"\r\nmodel = "3B"\r\n'),
        (
            'system = "s"\n\n# Claude.\n[cloud]\nmodel = "x"\n',
            'system = "s"\nmodel = "3B"\n\n# Claude.\n[cloud]\nmodel = "x"\n',
        ),
        (
            "# all of it\n\n# Claude.\n[cloud]\n",
            '# all of it\nmodel = "3B"\n\n# Claude.\n[cloud]\n',
        ),
        ('[cloud]\nmodel = "x"', 'model = "3B"\n\n[cloud]\nmodel = "x"'),
        (
            '[cloud]\nmodel = "x"\n[inference]\ndevice = "cpu"\n',
            'model = "3B"\n\n[cloud]\nmodel = "x"\n[inference]\ndevice = "cpu"\n',
        ),
        (
            'system = """\nmodel = "a"\n[b]\n"""\nmodel = "c"\n[cloud]\nmodel = "d"\n',
            'system = """\nmodel = "a"\n[b]\n"""\nmodel = "3B"\n[cloud]\nmodel = "d"\n',
        ),
        (
            "system = '''\nmodel = \"a\"\n[b]\n'''\n[cloud]\n",
            "system = '''\nmodel = \"a\"\n[b]\n'''\nmodel = \"3B\"\n\n[cloud]\n",
        ),
        ('# model = "auto"\n', '# model = "auto"\nmodel = "3B"\n'),
    ],
)
def test_only_the_model_changes(before: str, after: str) -> None:
    assert with_model(before, "3B") == after


def test_the_file_with_every_setting_stays_as_it_is_but_for_one_line() -> None:
    before = (ROOT / "configs" / "default.toml").read_text()
    after = with_model(before, "acme/tiny")
    changed = [
        (one, other)
        for one, other in zip(before.splitlines(), after.splitlines(), strict=True)
        if one != other
    ]
    assert changed == [('model = "auto"', 'model = "acme/tiny"')]


texts = st.lists(
    st.sampled_from(
        [
            "# note",
            "",
            'model = "a"',
            "'model'='b' # c",
            'system = """\nmodel = "x"\n[y]\n"""',
            "system = '''\n# z\n\n[y]\n'''",
            "[cloud]",
            "# of the cloud\n[inference]",
            "nan = nan",
            'dates = [1979-05-27, 07:32:00, {model = "q"}]',
            "[[many]]",
        ]
    ),
    max_size=8,
).map("\n".join)


@given(texts, st.text(st.characters(exclude_categories=["Cs"])))
def test_whatever_the_file_and_the_name_the_rest_means_what_it_meant(
    before: str, model: str
) -> None:
    try:
        document = tomllib.loads(before)
    except tomllib.TOMLDecodeError:
        return
    if not isinstance(document.get("model", ""), str):
        return
    after = tomllib.loads(with_model(before, model))
    assert after.pop("model") == model
    document.pop("model", None)
    assert repr(after) == repr(document)


@pytest.mark.parametrize(
    "before",
    ["cloud = 5\n", "[[cloud]]\n", "[[x]]\n[cloud]\nuse = 1\n[[x]]\n"],
    ids=["a number", "a list of tables", "a list in two places, which would be brought together"],
)
def test_what_cannot_be_changed_alone_is_refused(before: str) -> None:
    with pytest.raises(ShammahError) as refused:
        with_setting(before, ("cloud", "use"), "ask")
    assert refused.value.code == "config_not_editable"
    assert 'use = "ask"' in refused.value.hint


@pytest.mark.parametrize(
    ("before", "path", "value", "after"),
    [
        ("", ("cloud", "use"), "ask", '[cloud]\nuse = "ask"\n'),
        ("[cloud]", ("cloud", "use"), "ask", '[cloud]\nuse = "ask"\n'),
        (
            '[cloud] # Claude\nmodel = "x"\n\n# of privacy\n[privacy]\nwords = []\n',
            ("cloud", "use"),
            "ask",
            '[cloud] # Claude\nmodel = "x"\nuse = "ask"\n\n# of privacy\n[privacy]\nwords = []\n',
        ),
        (
            "[inference]\nqueue = 3 # few\n",
            ("inference", "queue"),
            9,
            "[inference]\nqueue = 9 # few\n",
        ),
        (
            "router.exploration = .5\n".replace(".5", "0.5"),
            ("router", "exploration"),
            0.25,
            "router.exploration = 0.25\n",
        ),
        (
            '[privacy]\nwords = [ # mine\n  "a#b",\n] # end\nemails = true\n',
            ("privacy", "words"),
            ("c", 'd"'),
            '[privacy]\nwords = ["c", "d\\""] # end\nemails = true\n',
        ),
        ("[privacy]\nemails = true\n", ("privacy", "emails"), False, "[privacy]\nemails = false\n"),
        ("model = 5\n", ("model",), "3B", 'model = "3B"\n'),
        ('system = "a # b" # c\n', ("system",), "d", 'system = "d" # c\n'),
        ('[cloud]\r\nuse = "auto"\r\n', ("cloud", "use"), "ask", '[cloud]\r\nuse = "ask"\r\n'),
        (
            "# a\r\n[router]\r\n",
            ("cloud", "use"),
            "ask",
            '# a\r\n[router]\r\n\r\n[cloud]\r\nuse = "ask"\r\n',
        ),
        (
            'cloud = { use = "auto" } # c\n',
            ("cloud", "use"),
            "ask",
            'cloud = { use = "ask" } # c\n',
        ),
        (
            'cloud.use = "auto"\nmodel = "x"\n',
            ("cloud", "model"),
            "y",
            'cloud.use = "auto"\ncloud.model = "y"\nmodel = "x"\n',
        ),
        (
            '[cloud]\nuse = "ask"\n[router]\n[cloud.deep]\nx = 1\n',
            ("cloud", "use"),
            "auto",
            '[cloud]\nuse = "auto"\n[router]\n[cloud.deep]\nx = 1\n',
        ),
    ],
)
def test_any_setting_changes_alone(
    before: str, path: tuple[str, ...], value: object, after: str
) -> None:
    assert with_setting(before, path, value) == after


# --- on the disk --------------------------------------------------------------------------


def test_it_is_for_its_owner_alone_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    save(path, 'model = "3B"\r\n')
    assert path.read_bytes() == b'model = "3B"\r\n'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_it_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old")
    with path.open() as reader:
        save(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target = tmp_path / "dotfiles" / "shammah.toml"
    target.parent.mkdir()
    target.write_text("old")
    link = tmp_path / "config.toml"
    link.symlink_to(target)
    save(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_not_a_directory_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ShammahError) as failed:
        save(tmp_path / "file" / "config.toml", "new")
    assert failed.value.code == "config_unwritable"
    assert "SHAMMAH_HOME" in failed.value.hint


def test_a_name_that_is_no_text_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("old")
    with pytest.raises(ShammahError) as failed:
        save(path, with_model("", "/models/\udcff"))
    assert failed.value.code == "config_invalid"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
