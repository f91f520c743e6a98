"""The libraries find what they need when they are imported."""

from __future__ import annotations

import os

import pytest

from workers.environment import prepare_libraries


@pytest.mark.parametrize(("set_by_hand", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_no_network_and_threads_that_sleep(
    monkeypatch: pytest.MonkeyPatch, set_by_hand: str | None, found: str
) -> None:
    environment = {} if set_by_hand is None else {"OMP_WAIT_POLICY": set_by_hand}
    monkeypatch.setattr(os, "environ", environment)
    prepare_libraries()
    assert environment["HF_HUB_OFFLINE"] == environment["TRANSFORMERS_OFFLINE"] == "1"
    assert environment["OMP_WAIT_POLICY"] == found
