"""A Messages API on loopback that keeps every body which it is sent."""

from __future__ import annotations

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.fakes.sandbox import LIMIT_S, Sandbox

ENDINGS = {
    "nothing": ("", "end_turn"),
    "decline": ("", "refusal"),
    "cut at once": ("", "max_tokens"),
    "cut": ("half an", "max_tokens"),
    "pause": ("so far", "pause_turn"),
    "pause at once": ("", "pause_turn"),
}
"""Text and stop reason of an answer."""


class Recorder(ThreadingHTTPServer):
    """Does with the next requests what ``behaviours`` say: answers (``ok``), refuses, hangs up
    (``drop``), breaks off, ends in silence (``empty``), has the worker killed before any text
    (``crash``) or in its midst (``crash later``), or keeps the rest of the answer back until
    ``go_on`` is set (``wait``), or all of its text (``think``); or ends as `ENDINGS` say.

    Attributes:
        bodies: of all requests, as they came.
        usage: what an answer says that it has used.
        begun: each answer begins with this.
    """

    daemon_threads = False

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.sandbox = sandbox
        self.bodies: list[bytes] = []
        self.behaviours: list[str] = []
        self.usage = {"input_tokens": 5, "output_tokens": 2}
        self.begun = "cloud answer"
        self.go_on = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.go_on.set()
        self.shutdown()
        self._thread.join()
        self.server_close()

    def kill_worker(self) -> None:
        holder = self.sandbox.holder("cloud")
        assert holder
        os.kill(holder, signal.SIGKILL)

    def handle_error(self, request: object, client_address: object) -> None:
        """The worker was killed, or it hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for each
    server: Recorder

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        server.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        behaviour = server.behaviours.pop(0) if server.behaviours else "ok"
        if behaviour == "crash":
            server.kill_worker()
        if behaviour in ("crash", "drop"):
            return
        if behaviour == "refuse":
            self.send_response(529)
            self.send_header("retry-after", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        if behaviour != "empty":
            self._answer(behaviour)

    def _answer(self, behaviour: str) -> None:
        server = self.server
        message = {"id": "m", "model": "m", "usage": server.usage}
        self._event("message_start", message=message)
        if behaviour == "think":
            server.go_on.wait(LIMIT_S)
        if behaviour in ENDINGS:
            self._end_as(*ENDINGS[behaviour])
            return
        self._text(f"{server.begun} {len(server.bodies)}")
        if behaviour == "crash later":
            server.kill_worker()
        if behaviour in ("crash later", "break"):
            return
        if behaviour == "wait":
            server.go_on.wait(LIMIT_S)
            self._text(" and the rest")
        self._end_as("", "end_turn")

    def _end_as(self, text: str, stop_reason: str) -> None:
        if text:
            self._text(text)
        self._event("message_delta", delta={"stop_reason": stop_reason}, usage=self.server.usage)
        self._event("message_stop")

    def _text(self, text: str) -> None:
        delta = {"type": "text_delta", "text": text}
        self._event("content_block_delta", index=0, delta=delta)

    def _event(self, kind: str, **fields: object) -> None:
        self.wfile.write(
            f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()
        )
