"""Connections that never come about, in words. The causes are chained as the SDK chains them."""

from __future__ import annotations

import socket
import ssl

import anthropic
import httpx2
import pytest

from shammah.settings.model import CloudSettings
from workers.cloud.failures import describe
from workers.cloud.request import Peer
from workers.network import UnusableProxyError
from workers.outgoing.errors import CallError
from workers.outgoing.retry import attempts

SETTINGS = CloudSettings(api_key="sk-secret")
REQUEST = httpx2.Request("POST", "https://api.anthropic.com/v1/messages")


def chained(*errors: BaseException) -> Exception:
    """`APIConnectionError` from the first, which comes from the second, and so on."""
    outer: BaseException = anthropic.APIConnectionError(request=REQUEST)
    top = outer
    for inner in errors:
        outer.__cause__ = inner
        outer = inner
    assert isinstance(top, Exception)
    return top


def told(*errors: BaseException, base_url: str = "") -> CallError:
    return describe(chained(*errors), SETTINGS, Peer.of(base_url), began=False)


def test_a_name_that_does_not_resolve() -> None:
    error = told(httpx2.ConnectError("x"), socket.gaierror(-3, "Temporary failure"))
    assert error.code == "cloud_unreachable"
    assert "no network" in error.message
    assert "local answers" in error.hint


def test_a_refused_connection_behind_several_addresses() -> None:
    both = ExceptionGroup("all failed", [ConnectionRefusedError(), ConnectionRefusedError()])
    error = told(httpx2.ConnectError("x"), OSError("failed"), both, base_url="http://localhost:9")
    assert error.code == "cloud_unreachable"
    assert (
        error.message == "The server at localhost:9 cannot be reached: nothing is listening there."
    )
    assert "ANTHROPIC_BASE_URL" in error.hint


def test_no_route() -> None:
    error = told(httpx2.ConnectError("x"), OSError(101, "Network is unreachable"))
    assert error.code == "cloud_unreachable"


def test_a_certificate_that_does_not_verify() -> None:
    cause = ssl.SSLCertVerificationError(1, "verify failed")
    cause.verify_message = "self-signed certificate"
    error = told(httpx2.ConnectError("x"), cause)
    assert error.code == "cloud_tls"
    assert "self-signed certificate" in error.message


def test_a_proxy_that_is_in_the_way_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    for cause in (socket.gaierror(), ConnectionRefusedError(), httpx2.ConnectTimeout("x")):
        error = told(httpx2.ConnectError("x"), cause)
        assert (error.code, "HTTPS_PROXY" in error.message) == ("cloud_unreachable", True)
    refused = told(UnusableProxyError("ALL_PROXY names a socks4:// proxy"))
    assert "ALL_PROXY names a socks4:// proxy." in refused.message
    assert attempts(refused) == 1  # it would fail again


def test_certificates_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")
    error = told(httpx2.ConnectError("x"), ssl.SSLCertVerificationError(1, "verify failed"))
    assert "SSL_CERT_FILE names /none.pem" in error.message


def test_a_server_without_tls() -> None:
    error = told(httpx2.ConnectError("x"), ssl.SSLError(1, "WRONG_VERSION_NUMBER"))
    assert error.code == "cloud_tls"
    assert "https://" in error.hint


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (httpx2.ConnectTimeout("x"), "cloud_timeout"),
        (httpx2.ReadTimeout("x"), "cloud_timeout"),
        (httpx2.ProxyError("x"), "cloud_unreachable"),
        (httpx2.ReadError("x"), "cloud_interrupted"),
        (httpx2.UnsupportedProtocol("x"), "cloud_unreachable"),
        (RuntimeError("x"), "cloud_unreachable"),
    ],
)
def test_other_causes(cause: Exception, code: str) -> None:
    error = told(cause)
    assert error.code == code
    assert error.message.endswith(".")
    assert error.hint.endswith(".")


def test_tls_that_breaks_in_the_middle_of_an_answer_is_a_broken_connection() -> None:
    error = httpx2.ReadError("x")
    error.__cause__ = ssl.SSLError(1, "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
    assert describe(error, SETTINGS, Peer.of(""), began=True).code == "cloud_interrupted"
