"""Text in which nothing is private: what lies on every machine with Python, and what is made up
here of the numbers and names that logs, tables and letters are full of."""

from __future__ import annotations

import pydoc_data.topics
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from uuid import UUID

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+")
"""What the authors of a file sign with: no false alarm, so it is taken out."""


def read_texts(seed: int = 1) -> dict[str, str]:
    """A text of each kind."""
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [*library.glob("*.py"), *library.glob("email/*.py"), *library.glob("asyncio/*.py")]
    prose = [*pydoc_data.topics.topics.values(), (ROOT / "LICENSE").read_text("utf-8")]
    random = Random(seed)
    return {
        "source code": _without_authors(one.read_text("utf-8") for one in sorted(sources)),
        "prose": _without_authors(prose),
        "logs": "\n\n".join("\n".join(make_log(random, 12)) for _ in range(600)),
        "tables and dumps": "\n\n".join("\n".join(make_table(random)) for _ in range(300)),
        "mail": "\n\n".join(make_mail(random) for _ in range(400)),
    }


def _without_authors(texts: Iterator[str] | list[str]) -> str:
    return ADDRESS.sub("somebody@example.com", "\n\n".join(texts))


def paragraphs(text: str) -> list[str]:
    """What stands between empty lines."""
    return re.split(r"\n[ \t]*\n", text)


def make_log(random: Random, lines: int) -> Iterator[str]:
    """Lines of services, with times, addresses, identifiers, sizes and durations."""
    for _ in range(lines):
        stamp = f"2026-{random.randint(1, 12):02}-{random.randint(1, 28):02}"
        stamp += (
            f"T{random.randint(0, 23):02}:{random.randint(0, 59):02}:{random.randint(0, 59):02}"
        )
        number, small = random.getrandbits(random.choice((24, 32, 48, 63))), random.randint(1, 9999)
        hexes, uuid = f"{random.getrandbits(160):040x}", UUID(int=random.getrandbits(128))
        host = f"10.{random.randint(0, 255)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
        yield random.choice(
            (
                f"{stamp}.{number % 1000000:06}Z INFO request {uuid} took {small / 7:.6f} s",
                f"{stamp}+00:00 worker[{small}]: wrote {number} bytes to /var/lib/app/{hexes[:12]}",
                f'{host} - - [{stamp}] "GET /items/{number}?page={small} HTTP/1.1" 200 {small}',
                f"Nov {small % 28 + 1:2} 09:32:58 host kernel: [{number % 10**6}.{small:06}] usb",
                f"commit {hexes}",
                f"sha256:{hexes}{hexes[:24]}  layer {small}",
                f'{{"ts": 17{number % 10**11:011}, "id": {number}, "score": {random.random()}}}',
                f"at com.acme.Shop.run(Shop.java:{small}) ~[shop-1.{small}.0.jar:?]",
                f"pod/shop-{hexes[:10]}-{hexes[10:15]} 1/1 Running {small % 9} {small}m",
                f"#{small} 0x{number:016x} in main () at main.c:{small % 900}",
                f"user@{small}.service: Succeeded. (tty1, session {small})",
                f"token bucket {small % 50}: {small} tokens left, key {hexes[:8]} hit",
            )
        )


def make_table(random: Random) -> Iterator[str]:
    """Numbers in columns, a dump in hexadecimal, or a list of files."""
    match random.randrange(4):
        case 0:
            width = random.choice((1, 2, 3, 4, 6, 8))
            for _ in range(6):
                yield "  ".join(f"{random.randrange(10**width):{width}}" for _ in range(8))
        case 1:
            for line in range(6):
                yield f"{line * 16:08x}  " + " ".join(
                    f"{random.getrandbits(8):02x}" for _ in range(16)
                )
        case 2:
            for _ in range(6):
                size = random.randrange(10**9)
                yield f"-rw-r--r-- 1 jo jo {size:>10} 2026-11-11 10:20 part-{size % 997:05}.csv"
        case _:
            for row in range(6):
                values = (random.gauss(0, 100), random.random(), random.randrange(10**7))
                yield ",".join((str(row), *(f"{value:.6f}" for value in values), "2026-11-28"))


def make_mail(random: Random) -> str:
    """A letter with headers, to somebody who does not exist."""
    number, day = random.randrange(10**6), random.randint(1, 28)
    return (
        f"Date: Sat, {day} Nov 2026 09:32:58 +0100\nMessage-ID: <{number}.{day}@mail.example.com>\n"
        "From: Sam <sam@example.org>\nTo: team@example.com\n"
        f"Subject: Order {number} of {day}.11.2026\n\n"
        f"Dear all,\nthe order {number:,} with {day} boxes left on 2026-11-{day:02} at 10.30. "
        f"It weighs {number / 1000:.3f} kg and costs EUR {number / 100:.2f}. Room {day}, floor 3, "
        "from 9.30 to 12.15; please bring chapter 7.3.4.1 along.\nRegards, Sam"
    )
