"""``shammah doctor --network``: connects, and sends nothing that is ours."""

from __future__ import annotations

import socket
import threading

import pytest

from shammah.supervision.reachability import reach


@pytest.fixture
def server() -> tuple[str, list[bytes]]:
    """A port, and what came there."""
    came: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                came.append(connection.recv(1000))

    threading.Thread(target=serve, daemon=True).start()
    return f"127.0.0.1:{listener.getsockname()[1]}", came


def test_a_server_is_connected_to_and_told_nothing(server: tuple[str, list[bytes]]) -> None:
    place, came = server
    found = reach(f"http://me:secret@{place}/path?token=secret", {})
    assert (found.host, found.error, found.through) == ("127.0.0.1", "", "")
    assert b"".join(came) == b""


def test_behind_a_proxy_the_proxy_is_looked_at(server: tuple[str, list[bytes]]) -> None:
    place, came = server
    found = reach("https://hub.example/x", {"HTTPS_PROXY": place})
    assert (found.host, found.through, found.error) == ("hub.example", "127.0.0.1", "")
    assert b"".join(came) == b""


def test_what_does_not_speak_tls_is_an_error(server: tuple[str, list[bytes]]) -> None:
    place, _ = server
    assert reach(f"https://{place}", {}, limit=3).error


def test_what_is_not_there_is_an_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        assert "refused" in reach(f"http://127.0.0.1:{port}", {}).error
    assert reach("https://[broken", {}).error
    exempt = {"https_proxy": "http://127.0.0.1:1", "no_proxy": "example.org, .0.0.1"}
    assert reach("https://127.0.0.1:1", exempt).through == ""
