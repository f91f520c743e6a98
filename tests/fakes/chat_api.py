"""A server on loopback that speaks OpenAI's API and keeps every body which it is sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatApi(ThreadingHTTPServer):
    """Answers with ``words``, one a piece.

    Attributes:
        bodies: of all questions, as they came.
        keys: what each came with as its authorization.
        breaks_after: so many words, then it hangs up; ``None``: it does not.
    """

    daemon_threads = False

    def __init__(self, model: str, *words: str, breaks_after: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.model = model
        self.words = words
        self.bodies: list[bytes] = []
        self.keys: list[str] = []
        self.breaks_after = breaks_after
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """The worker hung up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for each
    server: ChatApi

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": self.server.model, "max_model_len": 8192}]})
        self._begin("application/json")
        self.wfile.write(body.encode())

    def do_POST(self) -> None:
        api = self.server
        api.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        api.keys.append(self.headers.get("authorization", ""))
        self._begin("text/event-stream")
        for number, word in enumerate(api.words):
            if number == api.breaks_after:
                return
            self._send({"delta": {"content": word}})
        self._send({"delta": {}, "finish_reason": "stop"})
        usage = {"prompt_tokens": 7, "completion_tokens": len(api.words)}
        self._event({"choices": [], "usage": usage, "model": api.model})
        self.wfile.write(b"data: [DONE]\n\n")

    def _begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()

    def _send(self, choice: dict[str, Any]) -> None:
        self._event({"choices": [choice], "model": self.server.model})

    def _event(self, document: dict[str, Any]) -> None:
        self.wfile.write(f"data: {json.dumps(document)}\n\n".encode())
        self.wfile.flush()
