"""Lines on standard output and standard error, in one way for every command.

A terminal gets them broken between words at its own width; a pipe gets them as they are.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

from shammah.errors import ShammahError
from shammah.terminal.invocation import as_invoked
from shammah.terminal.printable import printable

if TYPE_CHECKING:
    from shammah.bus.messages import Failed

