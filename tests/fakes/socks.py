"""A SOCKS5 proxy on loopback, for as many connections as there are."""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

_CONNECT, _NAME, _IPV4 = 1, 3, 1


class SocksProxy(ThreadingTCPServer):
    """Connects whoever asks to wherever they want, without a password.

    Attributes:
        wanted: the addresses that were asked for, as ``host:port``.
    """

    daemon_threads = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.wanted: list[str] = []
        self._open: set[socket.socket] = set()
        self.address = f"127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request_thread(request, client_address)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in self._open:  # whoever asked may keep it for long
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(BaseRequestHandler):
    server: SocksProxy

    def handle(self) -> None:
        client: socket.socket = self.request
        with contextlib.suppress(OSError), client.makefile("rb") as said:
            _, methods = said.read(2)
            said.read(methods)
            client.sendall(b"\5\0")
            _, command, _, kind = said.read(4)
            assert command == _CONNECT
            host = (
                said.read(said.read(1)[0]).decode()
                if kind == _NAME
                else socket.inet_ntop(socket.AF_INET, said.read(4))
            )
            port = int.from_bytes(said.read(2))
            self.server.wanted.append(f"{host}:{port}")
            with socket.create_connection((host, port)) as target:
                client.sendall(b"\5\0\0" + bytes([_IPV4, 0, 0, 0, 0, 0, 0]))
                back = threading.Thread(target=_copy, args=(target, client))
                back.start()
                _copy(client, target)
                back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            target.sendall(piece)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
