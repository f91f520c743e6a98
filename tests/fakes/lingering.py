"""``shammah``, whose editor gives the terminal back only when something more was typed.

It says `LINGERS` each time, when it has stopped reading and single keys still count as such.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Any

from prompt_toolkit.input import vt100

LINGERS = "<lingers>"
LIMIT_S = 30.0


def main() -> int:
    """Run it with the arguments of ``shammah``."""
    give_back = vt100.raw_mode.__exit__

    def linger(mode: Any, *error: Any) -> None:
        # Not what inherits from it: a notice above the line is shown in the terminal's own mode,
        # whose end must not wait for a key, which would not even be seen before Enter.
        if type(mode) is vt100.raw_mode:
            os.write(1, LINGERS.encode())
            select.select([0], [], [], LIMIT_S)
        give_back(mode, *error)

    vt100.raw_mode.__exit__ = linger  # type: ignore[method-assign]
    from shammah.__main__ import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
