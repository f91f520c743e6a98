"""Attacks the gateway at a port, in every way at once, until its input ends; then says what became
of each: how often the gateway refused, or ended the connection.

Reads the token, which some of them know, from the first line of its input. Each way is tried some
ten times a second at most, and nobody asks for long answers: who may run programs on a machine can
always use up its processors, and who has the token the model.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable

CHAT = "POST /v1/chat/completions HTTP/1.1\r\n"
HERE = "Host: localhost\r\n"
IDLE = 500
PAUSE_S = 0.1
MIB = 1024 * 1024


class Attacks:
    """What is tried; ``ended`` counts by name and outcome."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._known = f"Authorization: Bearer {token}\r\n"
        self._over = threading.Event()
        self.ended: Counter[str] = Counter()

    def run(self) -> None:
        strangers = {
            "no token": CHAT + HERE,
            "wrong token": f"{CHAT}{HERE}Authorization: Bearer wrong\r\n",
            "evil host": f"{CHAT}Host: evil.example\r\n{self._known}",
            "other page": f"{CHAT}{HERE}{self._known}Origin: http://evil.example\r\n",
        }
        ways: dict[str, Callable[[str], None]] = {
            name: lambda name, head=head: self._refused(name, f"{head}Content-Length: 9\r\n\r\n")
            for name, head in strangers.items()
        }
        ways |= {
            "gigabyte": lambda name: self._pour(name, f"Content-Length: {10**9}\r\n\r\n"),
            "chunks": lambda name: self._pour(name, "Transfer-Encoding: chunked\r\n\r\n"),
            "slow header": self._dribble,
            "idle": self._idle,
            "never reads": self._never_read,
        }
        threads = [threading.Thread(target=self._repeat, args=way) for way in ways.items()]
        for thread in threads:
            thread.start()
        sys.stdin.read()
        self._over.set()
        for thread in threads:
            thread.join()
        for outcome, count in sorted(self.ended.items()):
            print(f"{outcome}: {count}")

    def _repeat(self, name: str, way: Callable[[str], None]) -> None:
        while not self._over.wait(PAUSE_S):
            with contextlib.suppress(OSError):
                way(name)

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self._port), 60)

    def _refused(self, name: str, head: str) -> None:
        with self._connect() as client:
            client.sendall(head.encode())
            self.ended[f"{name}, {client.recv(12).decode()[9:]}"] += 1

    def _pour(self, name: str, head: str) -> None:
        chunk, sent = b"%x\r\n%s\r\n" % (MIB, b"x" * MIB), 0
        with self._connect() as client:
            client.sendall(f"{CHAT}{HERE}{self._known}{head}".encode())
            try:
                while sent < 10**9:
                    sent += client.send(chunk[sent % len(chunk) :])
            except OSError:
                self.ended[f"{name}, cut off"] += 1
        self._over.wait(1)

    def _dribble(self, name: str) -> None:
        clients = [self._connect() for _ in range(10)]
        while clients and not self._over.wait(1):
            for client in [*clients]:
                try:
                    client.sendall(b"G")
                except OSError:
                    self.ended[f"{name}, cut off"] += 1
                    clients.remove(client)

    def _idle(self, name: str) -> None:
        """So many, and as many again as are closed."""
        held: list[socket.socket] = []
        while not self._over.wait(PAUSE_S):
            for client in [*held]:
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.recv(1)
                    client.close()
                    held.remove(client)
                    self.ended[f"{name}, cut off"] += 1
            if len(held) < IDLE:
                held += [self._connect() for _ in range(min(IDLE - len(held), 50))]

    def _never_read(self, name: str) -> None:
        asked = {"model": "local", "stream": True, "max_tokens": 8}
        asked |= {"messages": [{"role": "user", "content": "Count to a thousand."}]}
        body = json.dumps(asked)
        with self._connect() as client:
            head = f"{CHAT}{HERE}{self._known}Content-Length: {len(body)}\r\n\r\n"
            client.sendall(f"{head}{body}".encode())
            self._over.wait(2)
            self.ended[f"{name}, asked"] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    Attacks(options.port, sys.stdin.readline().strip()).run()


if __name__ == "__main__":
    main()
