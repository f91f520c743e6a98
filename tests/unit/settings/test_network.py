"""Proxies and certificates as the environment names them."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx2
import pytest

from shammah.cli.doctor_probes import network_problems
from shammah.settings.network import Proxy, certificate_problem, proxy_for, read_proxies
from workers.network import UnusableProxyError, mounts, ssl_context
from workers.outgoing.transport import http_client


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, {}),
        ({"HTTPS_PROXY": "p:1"}, {"https": Proxy("HTTPS_PROXY", "http://p:1")}),
        (
            {"HTTPS_PROXY": "http://big", "https_proxy": "http://small"},
            {"https": Proxy("https_proxy", "http://small")},
        ),
        ({"HTTPS_PROXY": "http://big", "https_proxy": ""}, {}),
        ({"ALL_PROXY": "socks://p:1080/"}, {"all": Proxy("ALL_PROXY", "socks5://p:1080/")}),
        ({"ALL_PROXY": "SOCKS5H://p"}, {"all": Proxy("ALL_PROXY", "SOCKS5H://p")}),
        ({"ALL_PROXY": "socks4://p", "NO_PROXY": "a, *"}, {}),
    ],
)
def test_what_is_read(environ: dict[str, str], found: dict[str, Proxy]) -> None:
    assert read_proxies(environ) == found


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("socks4://p:1", "socks4:// proxy"),
        ("ftp://p:1", "ftp:// proxy"),
        ("http://", "not the address"),
        ("http://p:port", "not the address"),
        ("http://p:99999", "not the address"),
        ("http://[::1", "not the address"),
        ("http://a..b:1", "not the address"),
    ],
)
def test_what_cannot_be_used_is_named(value: str, says: str) -> None:
    assert says in read_proxies({"ALL_PROXY": value})["all"].why
    (problem,) = network_problems({"ALL_PROXY": value})
    assert problem.message.startswith("ALL_PROXY ")
    assert not problem.blocking


def test_no_password_is_ever_shown() -> None:
    for value in ("socks4://me:planted@p", "http://me:planted@p:port", "planted"):
        for problem in network_problems({"HTTPS_PROXY": value}):
            assert "planted" not in problem.message + problem.hint


@pytest.mark.parametrize(
    ("url", "variable"),
    [
        ("https://hub.example/x", "HTTPS_PROXY"),
        ("http://hub.example/x", "all_proxy"),
        ("https://127.0.0.1:8000", None),
        ("https://a.corp", None),
        ("https://b.a.corp", None),
        ("https://notcorp", "HTTPS_PROXY"),
    ],
)
def test_which_one_a_request_goes_through(url: str, variable: str | None) -> None:
    environ = {
        "HTTPS_PROXY": "http://p",
        "all_proxy": "socks5://q",
        "NO_PROXY": "127.0.0.1, *.corp,.other",
    }
    found = proxy_for(url, environ)
    assert (found.variable if found else None) == variable


class TestClients:
    """httpx2 makes no client at all while the environment names one proxy that it does not know."""

    @pytest.fixture(autouse=True)
    def forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.network.refused", {})

    def client(self) -> httpx2.Client:
        return httpx2.Client(mounts=mounts(), verify=ssl_context(), timeout=5)

    def test_only_what_would_need_it_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ALL_PROXY", "socks4://127.0.0.1:1")
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        with self.client() as client:
            with pytest.raises(UnusableProxyError, match=r"ALL_PROXY names a socks4://"):
                client.get("http://hub.example")
            for direct in ("http://127.0.0.1:1", "https://hub.example"):  # nobody listens
                with pytest.raises(httpx2.ConnectError, match="refused"):
                    client.get(direct)

    @pytest.mark.parametrize("entry", ["::1,fe80::/10", "\u00e4.de", "10.0.0.0/99", "[::1]:80"])
    def test_what_the_sdk_cannot_read_of_no_proxy_hinders_it_not(
        self, entry: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
        monkeypatch.setenv("NO_PROXY", entry)

        async def ask() -> None:
            async with http_client(httpx2.Timeout(5)) as client:
                await client.get("https://hub.example")

        with pytest.raises(httpx2.ConnectError, match="attempts failed"):  # at the proxy
            asyncio.run(ask())

    def test_a_second_client_refuses_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("all_proxy", "socks4://127.0.0.1:1")
        for _ in "ab":
            with self.client() as client, pytest.raises(UnusableProxyError):
                client.get("https://hub.example")

    def test_socks_without_its_package_says_what_it_needs(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.network.find_spec", lambda name: None)
        monkeypatch.setenv("all_proxy", "socks5://127.0.0.1:1")
        with self.client() as client, pytest.raises(UnusableProxyError, match="socksio"):
            client.get("https://hub.example")

    def test_a_desktops_socks_is_socks5(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("socksio")
        monkeypatch.setenv("ALL_PROXY", "socks://127.0.0.1:1/")
        with self.client() as client, pytest.raises(httpx2.ConnectError, match="refused"):
            client.get("https://hub.example")


def test_certificates_that_cannot_be_read_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "empty.pem"
    empty.touch()
    for variable, value, says in (
        ("SSL_CERT_FILE", str(tmp_path / "none.pem"), "No such file"),
        ("SSL_CERT_FILE", str(empty), "contains no certificates"),
        ("SSL_CERT_FILE", str(tmp_path), "SSL_CERT_FILE names"),
        ("SSL_CERT_DIR", str(empty), "not a directory"),
    ):
        problem = certificate_problem({variable: value})
        assert variable in problem
        assert says in problem
        assert [one.message for one in network_problems({variable: value})] == [f"{problem}."]
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            assert not ssl_context().get_ca_certs()
    assert certificate_problem({}) == ""


def test_certificates_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = ssl.get_default_verify_paths()
    if paths.cafile is None:
        pytest.skip("this machine has no file of certificates")
    monkeypatch.setenv("SSL_CERT_FILE", paths.cafile)
    assert certificate_problem({"SSL_CERT_FILE": paths.cafile}) == ""
    assert ssl_context().get_ca_certs()
