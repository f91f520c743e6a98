"""Proxies, certificates and relative paths, from the command line through a worker to a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.command import run
from tests.fakes.hub import StandInHub
from tests.fakes.sandbox import Sandbox
from tests.fakes.socks import SocksProxy
from tests.real.recorder import Recorder
from tests.real.test_download_commands import FILES, MODEL
from tests.real.test_download_commands import hub as hub


@pytest.fixture
def socks() -> Iterator[SocksProxy]:
    pytest.importorskip("socksio")
    proxy = SocksProxy()
    yield proxy
    proxy.close()


@pytest.fixture
def recorder(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    with_key = Recorder(sandbox)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-planted")
    monkeypatch.setenv("ANTHROPIC_BASE_URL", with_key.url)
    yield with_key
    run("stop")
    with_key.close()


@pytest.mark.parametrize("scheme", ["socks", "socks5", "socks5h"])
def test_a_model_comes_through_socks(
    hub: StandInHub, socks: SocksProxy, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", f"{scheme}://{socks.address}/")
    pulled = run("models", "pull", MODEL)
    assert pulled.code == 0, pulled.err
    assert set(socks.wanted) == {hub.endpoint.removeprefix("http://")}


def test_an_answer_comes_through_socks(
    recorder: Recorder, socks: SocksProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("all_proxy", f"socks5h://{socks.address}")
    asked = run("ask", "--cloud", "2+2?")
    assert (asked.code, asked.out) == (0, "cloud answer 1\n"), asked.err
    assert socks.wanted == [recorder.url.removeprefix("http://")]


def test_a_proxy_of_an_unknown_kind_is_named(
    hub: StandInHub, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:1")
    pulled = run("models", "pull", MODEL)
    asked = run("ask", "--cloud", "2+2?")
    for ended in (pulled, asked):
        assert ended.code == 1
        assert "ALL_PROXY names a socks4:// proxy, which is not supported." in ended.err
    assert not hub.asked
    assert not recorder.bodies
    assert "ALL_PROXY names a socks4:// proxy" in run("doctor").out

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")  # and the workers are others at once
    assert run("models", "pull", MODEL).code == 0
    assert run("ask", "--cloud", "2+2?").code == 0


def test_certificates_that_are_missing_hinder_no_plain_http(
    hub: StandInHub, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "none.pem")
    assert run("models", "pull", MODEL).code == 0
    assert run("ask", "--cloud", "2+2?").code == 0


@pytest.mark.parametrize("variable", ["HF_HOME", "HF_HUB_CACHE"])
def test_a_relative_cache_is_the_persons(
    hub: StandInHub, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "./hf")
    pulled = run("models", "pull", MODEL)
    directory = Path(pulled.out.strip())
    assert directory.is_relative_to(tmp_path / "hf")
    assert {path.name for path in directory.iterdir()} == set(FILES)
    assert run("models", "pull", MODEL).err == f"{MODEL} is already downloaded.\n"
    assert str(tmp_path / "hf") in run("doctor").out
