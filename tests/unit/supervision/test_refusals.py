"""Who uses a worker, what differs, and whether what is advised can be done there."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shammah.bus.messages import ClientInfo, Event, Identity, Initializing, Status, Welcome
from shammah.bus.transfers import Transfer
from shammah.settings.model import CloudSettings, ServerSettings, Settings
from shammah.supervision.identity import differing_settings, identity
from shammah.supervision.refusals import WorkerBusyError, WorkerInUseError
from tests.fakes.sandbox import Sandbox

HOLDERS = (ClientInfo("repl", 12, "/dev/pts/3"), ClientInfo("ask", 34))


@pytest.fixture
def base(sandbox: Sandbox) -> Settings:
    return Settings(sandbox.shammah_home, model="starter")


def refuse(wanted: Identity, running: Identity, program: str = "ask") -> WorkerInUseError:
    event = Event(running.role, "run", 1, 0.0, 0.0, "attached", Status(Initializing()))
    welcome = Welcome("", 3, "0", "run", 1, running, event, HOLDERS)
    return WorkerInUseError(wanted, welcome, program)


def test_another_model_can_be_shared_by_its_name(base: Settings) -> None:
    running = identity(replace(base, model="/my models/a"), "inference")
    refusal = refuse(identity(base, "inference"), running)
    assert refusal.message == (
        "The inference worker runs /my models/a for a prompt (process 12) on /dev/pts/3, "
        "ask (process 34); you asked for starter."
    )
    assert refusal.hint == (
        "Use it with --model '/my models/a', stop it with `shammah stop inference`, or try again "
        "when it is free."
    )


def test_at_the_prompt_its_commands_are_named(base: Settings) -> None:
    hint = refuse(
        identity(base, "inference"), identity(replace(base, model="3B"), "inference"), "repl"
    ).hint
    assert "/join" in hint
    assert "/takeover" in hint
    assert "--model" not in hint


@pytest.mark.parametrize("program", ["ask", "models"])
def test_elsewhere_they_are_not(base: Settings, program: str) -> None:
    running = identity(replace(base, model="3B"), "inference")
    assert "/" not in refuse(identity(base, "inference"), running, program).hint


def test_another_setting_is_named_and_no_model_advised(base: Settings) -> None:
    own = replace(base, inference=replace(base.inference, device="cpu", dtype="float32"))
    refusal = refuse(identity(own, "inference"), identity(base, "inference"))
    names = "inference.device and another inference.dtype"
    assert f"started with another {names} than yours" in refusal.message
    assert refusal.hint.startswith("Use the same inference.device and inference.dtype, stop it")


def test_another_model_with_other_settings_is_not_to_be_had_by_its_name(base: Settings) -> None:
    own = replace(base, model="3B", inference=replace(base.inference, device="cpu"))
    hint = refuse(identity(base, "inference"), identity(own, "inference")).hint
    assert hint.startswith("Use the same inference.device, stop it")


def test_a_server_is_named_by_its_model_or_its_table(base: Settings) -> None:
    box = ServerSettings("http://127.0.0.1:8000/v1")
    served = replace(base, model="server:box", servers={"box": box})
    running = identity(served, "inference")
    hint = refuse(running, identity(base, "inference")).hint
    assert hint.startswith("Use it with --model starter, stop it")
    keyed = replace(served, servers={"box": replace(box, key="k", context_length=512)})
    hint = refuse(identity(keyed, "inference"), running).hint
    assert hint.startswith("Use the same [servers.box], stop it")


def test_a_cache_of_another_home_is_named(base: Settings) -> None:
    wanted = identity(base, "download", environ={"HF_HOME": "/one"})
    running = identity(base, "download", environ={"HF_HOME": "/two"})
    refusal = refuse(wanted, running, "models")
    assert "started with another HF_HOME than yours" in refusal.message
    assert "`shammah stop download` (partial downloads are kept)" in refusal.hint
    busy = WorkerBusyError(wanted, running, (Transfer("acme/tiny", "main"),))
    assert "another HF_HOME than yours" in busy.message


def test_the_cloud_is_not_chosen_by_model_and_its_key_not_shown(base: Settings) -> None:
    keyed = replace(base, cloud=CloudSettings(api_key="sk-secret"))
    refusal = refuse(identity(keyed, "cloud"), identity(base, "cloud"), "repl")
    assert "another cloud.api_key than yours" in refusal.message
    assert "`shammah stop cloud` in another terminal" in refusal.hint
    assert "sk-secret" not in repr(identity(keyed, "cloud"))
    assert "--model" not in refusal.hint


def test_a_worker_that_does_not_say_has_other_settings(base: Settings) -> None:
    wanted = identity(base, "download")
    old = Identity("download", wanted.model, "another")
    assert differing_settings(wanted, old) == ()
    assert "started with other settings than yours" in refuse(wanted, old).message
