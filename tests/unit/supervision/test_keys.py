"""A frontend keeps no secret where its children would inherit it."""

from __future__ import annotations

from shammah.supervision.secrets import SECRETS, take_secrets


def test_secrets_leave_the_environment_and_nothing_else_does() -> None:
    environ = {name: f"value of {name}" for name in SECRETS} | {"HOME": "/home/me"}
    before = dict(environ)
    assert take_secrets(environ) == before
    assert environ == {"HOME": "/home/me"}


def test_every_secret_is_for_one_role() -> None:
    assert set(SECRETS.values()) == {"cloud", "download"}
