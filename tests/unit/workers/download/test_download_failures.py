"""When another attempt is made, and how a failure is told."""

from __future__ import annotations

import errno
import socket
import ssl
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx2
import pytest

from shammah.errors import ShammahError
from workers.download import failures
from workers.download.failures import TemporaryError
from workers.download.limits import Limits
from workers.download.retry import Patience
from workers.network import UnusableProxyError

NOW_S = datetime(2026, 11, 23, 12, 0, tzinfo=UTC).timestamp()
URL = "https://hub.test/acme/tiny/resolve/x/config.json?signature=secret"
LIMITS = Limits(backoff_s=1.0, backoff_max_s=30.0, retry_after_max_s=120.0)


def temporary(retry_after_s: float | None = None) -> TemporaryError:
    return TemporaryError(ShammahError("hub_error", "HTTP 503"), retry_after_s)


def response(status: int, *, token: bool = False, **headers: str) -> httpx2.Response:
    sent = {"Authorization": "Bearer hf_secret"} if token else {}
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=told, request=httpx2.Request("GET", URL, headers=sent))


def test_waits_double_up_to_a_limit() -> None:
    patience = Patience(10, LIMITS, lambda: 1.0)
    waits = [patience.failed(temporary()) for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_waits_are_spread_over_their_whole_range() -> None:
    assert Patience(10, LIMITS, lambda: 0.0).failed(temporary()) == 0.0


def test_progress_starts_the_count_anew_and_its_absence_ends_it() -> None:
    patience = Patience(3, LIMITS, lambda: 1.0)
    for _ in range(20):
        assert patience.failed(temporary()) == 1.0
        assert patience.failed(temporary()) == 2.0
        patience.progressed()
    patience.failed(temporary())
    patience.failed(temporary())
    with pytest.raises(ShammahError, match="503"):
        patience.failed(temporary())


def test_a_server_may_ask_for_a_wait_but_not_for_ever() -> None:
    patience = Patience(10, LIMITS, lambda: 0.0)
    assert patience.failed(temporary(7.5)) == 7.5
    assert patience.failed(temporary(1e9)) == 120.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", 3.0),
        ("0", 0.0),
        ("-5", 0.0),
        (format_datetime(datetime.fromtimestamp(NOW_S, UTC) + timedelta(seconds=90)), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW_S, UTC) - timedelta(days=1)), 0.0),
        ("soon", None),
        ("", None),
        ("inf", None),
        ("nan", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, expected: float | None) -> None:
    assert failures.retry_after(httpx2.Headers({"Retry-After": value}), NOW_S) == expected


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (response(401, X_Error_Code="GatedRepo"), "model_gated"),
        (response(403, X_Error_Code="GatedRepo", token=True), "model_gated"),
        (response(404, X_Error_Code="RepoNotFound"), "model_not_found"),
        (response(401, X_Error_Code="RepoNotFound"), "model_not_found"),
        (response(401, X_Error_Code="RepoNotFound", token=True), "hub_forbidden"),
        (response(404), "model_not_found"),
        (response(404, X_Error_Code="RevisionNotFound"), "revision_not_found"),
        (response(401), "hub_forbidden"),
        (response(403), "hub_forbidden"),
        (response(403, X_Error_Message="Access to this resource is disabled."), "hub_forbidden"),
        (response(407), "hub_forbidden"),
        (response(400), "hub_error"),
        (response(429), "hub_error"),
        (response(500), "hub_error"),
    ],
)
def test_statuses_have_stable_codes(answer: httpx2.Response, code: str) -> None:
    failure = failures.describe_response(answer, "acme/tiny")
    assert failure.code == code
    assert failure.hint
    assert "secret" not in str(failure)


def test_a_missing_file_is_not_a_missing_model() -> None:
    answer = response(404, X_Error_Code="EntryNotFound")
    failure = failures.describe_response(answer, "acme/tiny", "config.json")
    assert (failure.code, "config.json" in failure.message) == ("hub_error", True)


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (ConnectionRefusedError(), "refused"),
        (socket.gaierror(), "name could not be resolved"),
        (ConnectionResetError(), "reset"),
        (ssl.SSLCertVerificationError(), "certificate"),
        (httpx2.ReadTimeout("x"), "stopped answering"),
        (httpx2.ConnectTimeout("x"), "timed out"),
        (httpx2.RemoteProtocolError("x"), "closed the connection too early"),
        (httpx2.ProxyError("403"), "proxy"),
        (ValueError(), "failed"),
    ],
)
def test_the_true_cause_of_a_network_failure_is_told(cause: Exception, words: str) -> None:
    try:
        try:
            raise cause
        except Exception as inner:
            raise RuntimeError("check your connection") from inner
    except RuntimeError as outer:
        failure = failures.describe_network(outer, URL)
    assert failure.code == "hub_unreachable"
    assert words in failure.message
    assert "https://hub.test" in failure.message
    assert "secret" not in str(failure)


@pytest.mark.parametrize(
    "cause", [ConnectionRefusedError(), socket.gaierror(), httpx2.ConnectTimeout("x")]
)
def test_a_proxy_that_is_in_the_way_is_named(
    cause: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://me:secret@127.0.0.1:1")
    failure = failures.describe_network(cause, URL)
    assert "the proxy that ALL_PROXY names" in failure.message
    monkeypatch.setenv("NO_PROXY", "hub.test")
    assert "proxy" not in failures.describe_network(cause, URL).message
    assert "secret" not in str(failure)


def test_what_cannot_be_used_of_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = failures.describe_network(UnusableProxyError("ALL_PROXY names nothing"), URL)
    assert (refused.code, "ALL_PROXY names nothing." in refused.message) == (
        "hub_unreachable",
        True,
    )
    monkeypatch.setenv("SSL_CERT_FILE", "/none.pem")
    failure = failures.describe_network(ssl.SSLCertVerificationError(), URL)
    assert "SSL_CERT_FILE names /none.pem" in failure.message


def test_a_full_disk_is_told_with_numbers(tmp_path: Path) -> None:
    full = failures.describe_disk(OSError(errno.ENOSPC, "full"), tmp_path, 3 * 1024**3)
    assert full.code == "disk_full"
    assert "3.00 GiB" in full.message
    large = failures.describe_disk(OSError(errno.EFBIG, "large"), tmp_path, 1)
    assert large.code == "disk_full"
    denied = PermissionError(errno.EACCES, "Permission denied", "/x/blobs")
    assert failures.describe_disk(denied, tmp_path, 1).code == "cache_error"


def test_free_space_is_known_before_the_directory_exists(tmp_path: Path) -> None:
    assert failures.free_bytes(tmp_path / "not" / "yet") > 0
