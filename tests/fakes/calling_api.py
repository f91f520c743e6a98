"""A Messages API on loopback that has a client call its own tool, and keeps what it is sent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = "Paris is the capital, says the cloud."
TASK = "Write a file proof.txt with the shell."
"""Asked for this, it calls the client's shell."""
PROOF = "written by a tool"
"""What that writes there."""
SHELLS = {"Bash": "command", "bash": "command", "exec_command": "cmd"}
"""A client's shell, and its argument."""


class CallingApi(ThreadingHTTPServer):
    """Answers in Claude's place, and keeps what it was sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[bytes] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"  # a connection for each
    server: CallingApi

    def log_message(self, *_arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        asked = json.loads(body)
        usage = {"input_tokens": len(body) // 4, "output_tokens": 9}
        self._event("message_start", message={"id": "m", "model": asked["model"], "usage": usage})
        call = call_of(asked)
        block = {"type": "text", "text": ""} if call is None else {**call, "input": {}}
        self._event("content_block_start", index=0, content_block=block)
        if call is None:
            delta = {"type": "text_delta", "text": ANSWER}
        else:
            delta = {"type": "input_json_delta", "partial_json": json.dumps(call["input"])}
        self._event("content_block_delta", index=0, delta=delta)
        self._event("content_block_stop", index=0)
        ended = {"stop_reason": "end_turn" if call is None else "tool_use"}
        self._event("message_delta", delta=ended, usage=usage)
        self._event("message_stop")

    def _event(self, kind: str, **fields: object) -> None:
        said = json.dumps({"type": kind, **fields})
        self.wfile.write(f"event: {kind}\ndata: {said}\n\n".encode())


def call_of(asked: dict[str, Any]) -> dict[str, Any] | None:
    """The call that answers a request: of the shell, once, if the task asks for one."""
    last = asked["messages"][-1]["content"]
    tool = next((one for one in asked.get("tools", ()) if one["name"] in SHELLS), None)
    if tool is None or "tool_result" in json.dumps(last) or TASK not in json.dumps(asked):
        return None
    required = tool["input_schema"].get("required", ())
    said = dict.fromkeys(required, "write a file")
    said[SHELLS[tool["name"]]] = f"echo {PROOF} > proof.txt"
    return {"type": "tool_use", "id": "toolu_1", "name": tool["name"], "input": said}
