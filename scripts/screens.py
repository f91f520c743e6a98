#!/usr/bin/env python3
"""Render what a real program shows on a terminal to a PNG.

The program runs on a pseudo-terminal; pyte interprets what it writes as a terminal would, and
Pillow draws the cells with a monospace font of this system. Needs the ``screens`` extra
(``pip install -e '.[screens]'``).

    .venv/bin/python scripts/screens.py --output docs/images/status.png -- .venv/bin/shammah status
    .venv/bin/python scripts/screens.py --columns 80 --rows 24 --output why.png \\
        --wait '> ' --type 'What is a monad?\\r' --wait 'local: ' --type '/why\\r' \\
        -- .venv/bin/shammah --model starter

Steps are done in the order in which they are given: ``--wait REGEX`` until the screen shows it,
``--type KEYS`` (Python escapes: \\r is Enter, \\x03 Ctrl-C), ``--pause SECONDS``. The picture
is taken after the last of them, and the program is then ended.
"""

from __future__ import annotations

import argparse
import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyte
from PIL import Image, ImageDraw, ImageFont

FONT = "DejaVu Sans Mono"
SIZE = 18
MARGIN = 16
LIMIT_S = 60.0
SETTLE_S = 0.3
"""Without anything new for so long, the screen is taken as drawn."""

BACKGROUND, FOREGROUND = "#1d1f21", "#d5d8d6"
COLOURS = {
    "black": "#1d1f21",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#e5c07b",
    "blue": "#61afef",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
    "white": "#d5d8d6",
    "brightblack": "#7f848e",
    "brightred": "#ff7b86",
    "brightgreen": "#b5e890",
    "brightbrown": "#ffd58a",
    "brightyellow": "#ffd58a",
    "brightblue": "#7cc3ff",
    "brightmagenta": "#e29bf3",
    "brightcyan": "#74dbe8",
    "brightwhite": "#ffffff",
}
"""pyte's names (it calls yellow brown)."""


STYLES = {
    (False, False): "Book",
    (True, False): "Bold",
    (False, True): "Oblique",
    (True, True): "Bold Oblique",
}
"""Of the font, for bold and italics."""


class Screen(pyte.Screen):
    """pyte knows no dim text, of which Shammah shows much: it is drawn as bright black."""

    def select_graphic_rendition(self, *attributes: int, **more: Any) -> None:
        mapped = [90 if one == 2 else one for one in attributes]
        if 22 in attributes:
            mapped.append(39)
        super().select_graphic_rendition(*mapped, **more)


class Program:
    """A command on a pseudo-terminal of that size."""

    def __init__(
        self,
        command: list[str],
        columns: int,
        rows: int,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.screen = Screen(columns, rows)
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            # Before it starts, since a change of size would have it draw anew.
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            shown = {**environ, "TERM": "xterm-256color"}
            shown.pop("NO_COLOR", None)
            os.execvpe(command[0], command, shown)

    def read(self, seconds: float) -> bool:
        """Take what the program writes within ``seconds``; false if that is nothing."""
        if not select.select([self._fd], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # it has ended
            return False
        # pyte takes the private sequences of keyboards for text.
        self._stream.feed(re.sub(rb"\x1b\[[<>=?][0-9;]*[um]", b"", data))
        if b"\x1b[6n" in data:  # where is the cursor?
            place = f"\x1b[{self.screen.cursor.y + 1};{self.screen.cursor.x + 1}R"
            os.write(self._fd, place.encode())
        return bool(data)

    def wait(self, pattern: str) -> None:
        """Until the screen shows ``pattern``."""
        until = time.monotonic() + LIMIT_S
        while not re.search(pattern, "\n".join(self.screen.display)):
            self.read(0.1)
            if time.monotonic() > until:
                shown = "\n".join(self.screen.display)
                raise SystemExit(f"{pattern!r} did not come within {LIMIT_S:.0f} s:\n{shown}")

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(
            self._fd,
            codecs.decode(keys.encode("latin-1", "backslashreplace"), "unicode_escape").encode(),
        )

    def pause(self, seconds: float) -> None:
        """Let it go on for so long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(min(left, 0.1))

    def settle(self) -> None:
        """Until nothing new comes, or for two seconds at most (a view that is always drawn)."""
        until = time.monotonic() + 2
        while self.read(SETTLE_S) and time.monotonic() < until:
            pass

    def end(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGHUP)
        os.close(self._fd)
        os.waitpid(self.pid, 0)


def find_font(name: str, style: str) -> str:
    """The file of a font (fontconfig)."""
    found = subprocess.run(
        ["fc-match", "-f", "%{file}", f"{name}:style={style}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return found.stdout


def draw(screen: pyte.Screen, font_name: str, size: int) -> Image.Image:
    """The cells as a picture."""
    fonts = {
        key: ImageFont.truetype(find_font(font_name, style), size) for key, style in STYLES.items()
    }
    width = round(fonts[False, False].getlength("M"))
    ascent, descent = fonts[False, False].getmetrics()
    height = ascent + descent + 2
    picture = Image.new(
        "RGB",
        (screen.columns * width + 2 * MARGIN, screen.lines * height + 2 * MARGIN),
        BACKGROUND,
    )
    pen = ImageDraw.Draw(picture)
    for row in range(screen.lines):
        for column in range(screen.columns):
            cell = screen.buffer[row][column]
            front, back = _colour(cell.fg, FOREGROUND), _colour(cell.bg, BACKGROUND)
            if cell.reverse:
                front, back = back, front
            left, top = MARGIN + column * width, MARGIN + row * height
            if back != BACKGROUND:
                pen.rectangle((left, top, left + width - 1, top + height - 1), back)
            if cell.data.strip():
                pen.text((left, top), cell.data, front, fonts[cell.bold, cell.italics])
            if cell.underscore:
                pen.line((left, top + ascent + 1, left + width - 1, top + ascent + 1), front)
    if not screen.cursor.hidden:
        left = MARGIN + screen.cursor.x * width
        top = MARGIN + screen.cursor.y * height
        pen.rectangle((left, top, left + 1, top + height - 1), FOREGROUND)
    return picture


def _colour(name: str, default: str) -> str:
    if name == "default":
        return default
    return COLOURS.get(name, f"#{name}")


class Step(argparse.Action):
    """Keep the steps in the order in which they are given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.steps.append((self.dest, values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(steps=[])
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--text", action="store_true", help="print the screen as text, too")
    parser.add_argument("--font", default=FONT)
    parser.add_argument("--size", type=int, default=SIZE)
    parser.add_argument("--wait", action=Step, metavar="REGEX")
    parser.add_argument("--type", action=Step, metavar="KEYS")
    parser.add_argument("--pause", action=Step, type=float, metavar="SECONDS")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    program = Program(options.command, options.columns, options.rows)
    try:
        for name, value in options.steps:
            getattr(program, name)(value)
        program.settle()
        options.output.parent.mkdir(parents=True, exist_ok=True)
        draw(program.screen, options.font, options.size).save(options.output, optimize=True)
        if options.text:
            print("\n".join(line.rstrip() for line in program.screen.display))
    finally:
        program.end()
    print(f"{options.output}: {options.output.stat().st_size:,} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
