"""A real worker with a planted line: at the first token of each answer, on the thread that computes
it and on a new one, it does what no inference worker should do, and logs what came of it.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shammah.bus.messages import Token
from workers.__main__ import main
from workers.service import Outlet

SECRET = "id_rsa"


def _read() -> None:
    (Path.home() / ".ssh" / SECRET).read_bytes()


def _write() -> None:
    (Path.home() / "config").write_text("planted")


def _connect() -> None:
    with socket.socket() as trying:
        trying.connect(("127.0.0.1", int(os.environ["PLANTED_PORT"])))


def _start() -> None:
    subprocess.run(["/bin/true"], check=True)


DEEDS: dict[str, Callable[[], None]] = {
    "read": _read,
    "write": _write,
    "connect": _connect,
    "start": _start,
}


def misbehave(thread: str) -> None:
    for name, deed in DEEDS.items():
        try:
            deed()
            said = "done"
        except OSError as error:
            said = errno.errorcode.get(error.errno or 0, str(error))
        print(f"planted: {thread} {name} {said}", file=sys.stderr, flush=True)


def reply(outlet: Outlet, message: Any) -> None:
    if isinstance(message, Token) and message.index == 1:
        misbehave("own")
        other = threading.Thread(target=misbehave, args=("new",))
        other.start()
        other.join()
    _reply(outlet, message)


if __name__ == "__main__":
    _reply = Outlet.reply
    Outlet.reply = reply  # type: ignore[method-assign]
    code = main()
    sys.stderr.flush()
    os._exit(code)
