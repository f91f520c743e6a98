"""A gateway as it is, but with little patience, so that a test need not have much."""

from __future__ import annotations

import os
import sys

from workers import __main__ as process
from workers.gateway import app, desk, door

app.BODY_S = 1.0
app.BODIES_BYTES = 2 * 1024 * 1024
door.HEADER_S = 0.5
door.WRITE_S = 1.0
desk.IDLE_S = 0.5

if __name__ == "__main__":
    code = process.main()
    sys.stdout.flush()
    os._exit(code)
