"""A port on loopback that leads to a server, as long as it is up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Hands bytes on, both ways. While it is down, connections are refused and old ones cut."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lock = threading.Lock()
        self._up = True
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])

    def go_down(self) -> None:
        with self._lock:  # from now on no connection is added
            self._up = False
            for connection in (self._listener, *self._open):  # ends whatever waits for them
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()
        for connection in (self._listener, *self._open):
            connection.close()
        self._open = []

    def come_up(self) -> None:
        self._up = True
        self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        self._start(self._accept, listener)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                self._connect(near)

    def _connect(self, near: socket.socket) -> None:
        with self._lock:
            try:
                if not self._up:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                near.close()
                return
            self._open += [near, far]
            self._start(self._pass_on, near, far)
            self._start(self._pass_on, far, near)

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65536):
                sink.sendall(piece)
        for end in (source, sink):  # the other direction, too: neither side would say more
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, work: object, *arguments: socket.socket) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()


@contextlib.contextmanager
def relay_to(server_port: int) -> Iterator[Relay]:
    relay = Relay(server_port)
    try:
        yield relay
    finally:
        relay.go_down()
