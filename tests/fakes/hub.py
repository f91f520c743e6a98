"""A Hub on loopback that breaks on demand.

It answers what huggingface_hub 2.4 asks about one model (revision, tree, resolve), counts what
it sends, and can break any answer: see `Fault`. A second origin plays the storage that a Hub
redirects to. As a process it serves a directory and ends with its standard input::

    python -P tests/fakes/hub.py DIRECTORY --delay-ms 50 --rate 8388608

The first line of its output is the endpoint; ``GET /_stats`` tells what was sent.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import re
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK = 256 * 1024
FINE_CHUNK = 16 * 1024
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
Content = bytes | mmap.mmap


@dataclass
class Fault:
    """What happens to the next ``times`` requests (``None``: to every one) for one path.

    ``kind``:
        ``reset``, ``truncate``, ``stall``: after ``at`` bytes of the body; a stall lasts until
        the hub is closed.
        ``silent``: no answer at all.
        ``status``: this status with ``headers``, instead of the file.
        ``corrupt``: the byte at ``at`` of the file is another one.
        ``length``: the file is ``at`` bytes longer (or shorter) than the tree says.
        ``etag``, ``commit``: another one, in ``value``.
        ``ignore_range``: the whole file with status 200.
        ``hook``: ``call`` is called after ``at`` bytes.

    What the other origin serves has paths that begin with ``cdn/``.
    """

    kind: str
    at: int = 0
    times: int | None = 1
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    value: str = ""
    call: Any = None


@dataclass(frozen=True)
class Asked:
    """A request that arrived. ``origin`` is ``hub`` or ``storage``."""

    origin: str
    method: str
    path: str
    range: str
    authorization: str


@dataclass(frozen=True)
class _File:
    content: Content
    sha256: str
    git_sha1: str
    large: bool

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_sha1


class StandInHub:
    """One model (under all of its ``names``) at several commits, on two ports of loopback.

    Args:
        files: what ``main`` holds.
        model_id: its name.
        large_from: files from this size on are in large file storage.
        redirect: whether large files are served by the other origin.
        rate: bytes per second of each connection; ``None``: as fast as it goes. May change.
        delay_s: before every answer.
        page: entries in one answer about the tree.
        send_buffer: bytes that the kernel may take off our hands before they are on the way;
            they count as sent.
        token: the only one that is let in; ``None``: everybody is.

    ``on_sent`` is called with the number of all bytes sent so far, after every 16 KiB.
    """

    def __init__(
        self,
        files: Mapping[str, Content],
        *,
        model_id: str = "acme/tiny",
        large_from: int = 4096,
        redirect: bool = False,
        rate: float | None = None,
        delay_s: float = 0.0,
        page: int = 1000,
        send_buffer: int | None = None,
        token: str | None = None,
    ) -> None:
        self.names = {model_id}
        self.redirect = redirect
        self.rate = rate
        self.delay_s = delay_s
        self.page = page
        self.token = token
        self.send_buffer = send_buffer
        self.sent: Counter[str] = Counter()
        self.asked: list[Asked] = []
        self.on_sent: Callable[[int], None] | None = None
        self.released = threading.Event()
        self.lock = threading.Lock()
        self._large_from = large_from
        self._faults: dict[str, list[Fault]] = {}
        self.commits: dict[str, dict[str, _File]] = {}
        self.main = ""
        self.publish(files)
        self._servers = [_Server(self, name) for name in ("hub", "storage")]
        self.endpoint, self.storage = (server.origin for server in self._servers)

    def publish(self, files: Mapping[str, Content]) -> str:
        """Make a commit of these files, and ``main`` name it."""
        found = {path: self._file(content) for path, content in files.items()}
        described = json.dumps({path: file.sha256 for path, file in found.items()})
        self.main = hashlib.sha1(described.encode()).hexdigest()
        self.commits[self.main] = found
        return self.main

    def fault(self, path: str, kind: str, **how: Any) -> None:
        """Break answers about a file, or about ``revision`` or ``tree``. Faults queue up."""
        self._faults.setdefault(path, []).append(Fault(kind, **how))

    def next_fault(self, path: str) -> Fault | None:
        with self.lock:
            queue = self._faults.get(path, [])
            if not queue:
                return None
            fault = queue[0]
            if fault.times is not None:
                fault.times -= 1
                if fault.times <= 0:
                    queue.pop(0)
            return fault

    def heal(self) -> None:
        """Forget the faults."""
        with self.lock:
            self._faults.clear()

    def count(self, path: str) -> int:
        """How many requests for a file arrived."""
        return sum(asked.path == path for asked in self.asked)

    @property
    def sent_bytes(self) -> int:
        """Of all files."""
        return sum(self.sent.values())

    @property
    def connections(self) -> int:
        """How many are open."""
        with self.lock:
            return sum(len(server.open) for server in self._servers)

    def close(self) -> None:
        self.released.set()
        for server in self._servers:
            server.stop()

    def __enter__(self) -> StandInHub:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _file(self, content: Content) -> _File:
        git = hashlib.sha1(b"blob %d\0" % len(content))
        git.update(content)
        sha256 = hashlib.sha256(content).hexdigest()
        return _File(content, sha256, git.hexdigest(), len(content) >= self._large_from)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # they are joined when the server closes
    request_queue_size = 64

    def __init__(self, hub: StandInHub, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.name = name
        self.origin = f"http://127.0.0.1:{self.server_address[1]}"
        self.to_reset: set[socket.socket] = set()
        self.open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        with self.hub.lock:
            connections = list(self.open)
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.hub.send_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.hub.send_buffer)
        with self.hub.lock:
            self.open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self.hub.lock:
            self.open.discard(request)
            reset = request in self.to_reset
            self.to_reset.discard(request)
        if reset:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # OSError: the client has gone
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        if url.path == "/_stats":
            self._json({"sent": hub.sent_bytes, "requests": len(hub.asked)})
            return
        path = self._subject(url.path)
        authorization = self.headers.get("Authorization", "")
        asked = Asked(
            self.server.name, self.command, path, self.headers.get("Range", ""), authorization
        )
        with hub.lock:
            hub.asked.append(asked)
        if hub.delay_s:
            time.sleep(hub.delay_s)
        fault = hub.next_fault(path)
        if fault is not None and fault.kind == "silent":
            hub.released.wait()
            self.close_connection = True
        elif fault is not None and fault.kind == "status":
            self._status(fault.status, fault.headers)
        elif hub.token and self.server.name == "hub" and authorization != f"Bearer {hub.token}":
            self._status(401, {"X-Error-Code": "GatedRepo"})
        else:
            self._route(url.path, url.query, path, fault)

    def _subject(self, path: str) -> str:
        if path.startswith("/api/"):
            return "tree" if "/tree/" in path else "revision"
        if path.startswith("/cdn/"):
            return "cdn/" + path.removeprefix("/cdn/").partition("/")[2]
        return path.partition("/resolve/")[2].partition("/")[2]

    def _route(self, url: str, query: str, path: str, fault: Fault | None) -> None:
        if self.server.name == "storage":
            commit = url.removeprefix("/cdn/").partition("/")[0]
            self._file(commit, path.removeprefix("cdn/"), fault, linked=False)
            return
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", url)
        if match:
            self._describe(match[1], match[2], match[3], query)
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", url)
        if not match:
            self._status(404, {})
        elif found := self._commit(match[1], match[2]):
            self._file(found, match[3], fault, linked=True)

    def _commit(self, model_id: str, revision: str) -> str | None:
        hub = self.server.hub
        commit = hub.main if revision == "main" else revision
        if model_id not in hub.names:
            self._status(404, {"X-Error-Code": "RepoNotFound"})
        elif commit not in hub.commits:
            self._status(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return commit
        return None

    def _describe(self, model_id: str, what: str, revision: str, query: str) -> None:
        hub = self.server.hub
        commit = self._commit(model_id, revision)
        if commit is None:
            return
        files = hub.commits[commit]
        if what == "revision":
            card = {"license": "apache-2.0"}
            siblings = [{"rfilename": path} for path in files]
            self._json({"id": model_id, "sha": commit, "siblings": siblings, "cardData": card})
            return
        entries: list[dict[str, Any]] = []
        for path, file in files.items():
            size = len(file.content)
            entry = {"type": "file", "path": path, "size": size, "oid": file.git_sha1}
            if file.large:
                entry["lfs"] = {"oid": file.sha256, "size": size, "pointerSize": 130}
            entries.append(entry)
        start = int(parse_qs(query).get("cursor", ["0"])[0])
        end = start + hub.page
        headers = {}
        if end < len(entries):
            address = f"{self.server.origin}{urlsplit(self.path).path}?recursive=true&cursor={end}"
            headers["Link"] = f'<{address}>; rel="next"'
        self._json(entries[start:end], headers)

    # --- files ----------------------------------------------------------------------------

    def _file(self, commit: str, path: str, fault: Fault | None, *, linked: bool) -> None:
        hub = self.server.hub
        file = hub.commits[commit].get(path)
        if file is None:
            self._status(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        kind, value = (fault.kind, fault.value) if fault else ("", "")
        headers = {
            "ETag": f'"{value if kind == "etag" else file.etag}"',
            "X-Repo-Commit": value if kind == "commit" else commit,
        }
        if kind == "etag" and value == "missing":
            del headers["ETag"]
        if linked and hub.redirect and file.large:
            headers["X-Linked-Etag"] = headers.pop("ETag")
            headers["X-Linked-Size"] = str(len(file.content))
            headers["Location"] = f"{self.server.hub.storage}/cdn/{commit}/{path}?signature=secret"
            self._status(302, headers)
            return
        if not linked:
            headers["ETag"] = '"of-the-storage"'
        self._body(path, file, fault, headers)

    def _body(self, path: str, file: _File, fault: Fault | None, headers: dict[str, str]) -> None:
        kind, at = (fault.kind, fault.at) if fault else ("", 0)
        size = len(file.content) + (at if kind == "length" else 0)
        begin, end, status = 0, size, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and kind != "ignore_range":
            begin = int(wanted[1])
            end = min(size, int(wanted[2]) + 1) if wanted[2] else size
            if begin >= size:
                self._status(416, {"Content-Range": f"bytes */{size}"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self.send_response(status)
        for name, value in {**headers, "Accept-Ranges": "bytes"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(end - begin))
        self.end_headers()
        if self.command == "GET":
            self._send(path, file, begin, end, fault)

    def _send(self, path: str, file: _File, begin: int, end: int, fault: Fault | None) -> None:
        hub, kind = self.server.hub, fault.kind if fault else ""
        stop = end
        if fault is not None and kind in ("reset", "truncate", "stall", "hook"):
            stop = min(end, begin + fault.at)
        chunk = FINE_CHUNK if hub.rate or hub.on_sent else CHUNK
        due_s, position = time.monotonic(), begin
        with memoryview(file.content) as content:
            while position < stop:
                piece: Any = content[position : min(stop, position + chunk)]
                if not len(piece):
                    piece = bytes(min(stop - position, chunk))  # longer than it should be
                if fault is not None and kind == "corrupt":
                    piece = bytearray(piece)
                    if 0 <= fault.at - position < len(piece):
                        piece[fault.at - position] ^= 0xFF
                count = self.connection.send(piece)
                position += count
                with hub.lock:
                    hub.sent[path] += count
                    total = hub.sent_bytes
                if hub.on_sent is not None:
                    hub.on_sent(total)
                if hub.rate:
                    due_s += count / hub.rate
                    self._wait(due_s)
        if fault is not None and kind in ("reset", "truncate", "stall") and position < end:
            self.close_connection = True
            if kind == "reset":
                with hub.lock:
                    self.server.to_reset.add(self.connection)
            elif kind == "stall":
                hub.released.wait()
        elif fault is not None and kind == "hook":
            fault.call()
            self._send(path, file, position, end, None)

    def _wait(self, due_s: float) -> None:
        """Until then, or until nothing holds this server back any more."""
        hub = self.server.hub
        while hub.rate and not hub.released.is_set():
            ahead_s = due_s - time.monotonic()
            if ahead_s <= 0:
                return
            time.sleep(min(ahead_s, 0.1))

    def _status(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _json(self, document: object, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(document).encode()
        self.send_response(200)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def _contents(directory: Path) -> Iterator[dict[str, Content]]:
    found: dict[str, Content] = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            name = path.relative_to(directory).as_posix()
            with path.open("rb") as file:
                empty = path.stat().st_size == 0
                found[name] = b"" if empty else mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    yield found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model-id", default="acme/tiny")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--rate", type=float, help="bytes per second of each connection")
    parser.add_argument("--send-buffer", type=int)
    arguments = parser.parse_args()
    with (
        _contents(arguments.directory) as files,
        StandInHub(
            files,
            model_id=arguments.model_id,
            delay_s=arguments.delay_ms / 1000,
            rate=arguments.rate,
            send_buffer=arguments.send_buffer,
        ) as hub,
    ):
        print(hub.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
