"""The socket, and bounds on the connections: how many there are, how long each may do nothing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import time

from uvicorn.protocols.http.h11_impl import H11Protocol

from shammah.errors import ExitCode, ShammahError
from shammah.settings.model import GatewaySettings

CONNECTIONS = 200
"""Beyond these the connection that has been idle longest is closed, or the new one."""
HEADER_S = 10.0
"""How long a request may take until its header is whole."""
KEEP_ALIVE_S = 30
"""How long a connection is kept after an answer."""
WRITE_S = 60.0
"""How long a client may leave unread what it was sent."""
HEADER_BYTES = 64 * 1024
BACKLOG = 128
LOOPBACK = "127.0.0.1"


class Door(H11Protocol):
    """One connection. uvicorn itself waits for ever for a first header, and for a reader."""

    _born = 0.0
    _patience: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._born = time.monotonic()
        if len(self.connections) > CONNECTIONS:
            idle = [one for one in self.connections if isinstance(one, Door) and one.idle]
            min(idle, key=lambda one: one._born).transport.abort()
        self._expect(HEADER_S)

    @property
    def idle(self) -> bool:
        """Whether no request is in hand."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        self._born = time.monotonic()
        self._expect(KEEP_ALIVE_S + HEADER_S)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._patience, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _expect(self, seconds: float) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(seconds, self._lose_patience)

    def _lose_patience(self) -> None:
        if self.idle:
            self.transport.abort()


def open_socket(settings: GatewaySettings) -> socket.socket:
    """Listen on loopback, or at the path, which others cannot open.

    Raises:
        ShammahError: ``gateway_address``.
    """
    if settings.socket:
        return _open_path(os.path.expanduser(settings.socket))
    listener = socket.socket(socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, settings.port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        where = f"port {settings.port}"
        raise _unusable(where, error, "Choose another one with --port.") from error
    return listener


def _open_path(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode) and _is_left(path):
                os.unlink(path)
        listener.bind(path)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _unusable(path, error, "Choose another path with --socket.") from error
    finally:
        os.umask(before)
    return listener


def _is_left(path: str) -> bool:
    """Whether nobody listens at the socket any more."""
    with socket.socket(socket.AF_UNIX) as trying:
        trying.settimeout(1.0)
        try:
            trying.connect(path)
        except ConnectionRefusedError:
            return True
    return False


def address_of(listener: socket.socket) -> str:
    """The URL, or the path."""
    name = listener.getsockname()
    return name if isinstance(name, str) else f"http://{name[0]}:{name[1]}"


def _unusable(where: str, error: Exception, hint: str) -> ShammahError:
    why = getattr(error, "strerror", None) or error
    what = f"Can't listen at {where}: {why}."
    return ShammahError("gateway_address", what, hint, exit_code=ExitCode.USAGE)
