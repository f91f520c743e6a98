"""Which role may do what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shammah.settings.model import CloudSettings, GatewaySettings, ServerSettings, Settings
from workers.confinement.filter import Network
from workers.confinement.policy import Places, Policy, policy_for, training_policy

HOME, RUNTIME = Path("/h"), Path("/run/shammah")
PLACES = Places(
    system=(Path("/usr"),),
    model=(Path("/models/own"),),
    hub=(Path("/hub"), Path("/disk2/blobs")),
    token=(Path("/token"),),
)
SETTINGS = Settings(HOME)


def policy(
    role: str, settings: Settings = SETTINGS, environ: dict[str, str] | None = None
) -> Policy:
    return policy_for(role, settings, environ or {}, RUNTIME, PLACES)


def writable(found: Policy) -> set[Path]:
    return {*found.changes, *found.files}


@pytest.mark.parametrize("role", ["inference", "cloud", "download", "train"])
def test_no_worker_but_the_gateway_may_touch_settings_and_history(role: str) -> None:
    found = policy(role)
    for path in (*writable(found), *found.reads, *found.awaited, *found.removes):
        assert path not in (HOME, HOME / "config.toml", HOME / "history.db")
    assert {RUNTIME, HOME / "logs"} <= writable(found)


def test_inference_reaches_nothing_and_writes_what_it_makes_of_models() -> None:
    found = policy("inference")
    assert found.network is Network.NONE
    assert set(PLACES.hub) <= set(found.awaited)
    assert set(PLACES.model) <= set(found.reads)
    assert not {*PLACES.hub, *PLACES.token} & writable(found)
    assert HOME / "conversations" in writable(found)


def test_a_server_next_door_is_reached_at_its_port_alone() -> None:
    servers = {"a": ServerSettings("http://127.0.0.1:8000/v1"), "b": ServerSettings("http://[::1]")}
    for name, port in (("a", 8000), ("b", 80)):
        found = policy("inference", replace(SETTINGS, model=f"server:{name}", servers=servers))
        assert (found.network, found.ports) == (Network.STREAMS, (port,))
        assert not found.awaited  # it needs no model


def test_the_cloud_is_reached_at_its_port_and_through_proxies() -> None:
    assert policy("cloud").ports == (53, 443)
    moved = replace(SETTINGS, cloud=CloudSettings(base_url="http://10.0.0.1:8080"))
    assert policy("cloud", moved).ports == (53, 8080)
    through = {"https_proxy": "http://proxy:3128", "ALL_PROXY": "socks5://127.0.0.1"}
    assert policy("cloud", environ=through).ports == (53, 443, 1080, 3128)
    broken = {"https_proxy": "gopher://x:70"}
    assert policy("cloud", environ=broken).ports == (53, 443)


def test_the_hub_is_reached_at_its_port_and_a_mirror_wherever_it_leads() -> None:
    found = policy("download")
    assert found.ports == (53, 443)
    assert set(PLACES.hub) <= writable(found)
    assert policy("download", environ={"HF_ENDPOINT": "https://mirror"}).ports is None
    assert policy("download", environ={"HF_ENDPOINT": "https://huggingface.co/"}).ports == (53, 443)


def test_only_the_download_worker_may_read_the_hubs_token() -> None:
    for role in ("inference", "cloud", "train", "gateway"):
        assert not set(PLACES.token) & set(policy(role).reads)


def test_the_gateway_has_its_listener_already_and_reaches_nothing() -> None:
    found = policy("gateway", replace(SETTINGS, gateway=GatewaySettings(socket="/s/gateway")))
    assert found.network is Network.NONE
    assert found.removes == (Path("/s"),)
    assert not policy("gateway").removes


def test_a_training_may_read_what_its_request_names() -> None:
    base = policy("train")
    assert not base.files_held
    found = training_policy(base, HOME, PLACES, (Path("/examples.jsonl"),), (Path("/out"),))
    assert found.files_held
    assert Path("/examples.jsonl") in found.reads
    assert {HOME / "adapters", HOME / "training", Path("/out")} <= writable(found)
    assert HOME not in writable(found)
