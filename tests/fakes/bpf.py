"""An interpreter of the few instructions that the filter is made of, as the kernel runs them."""

from __future__ import annotations

import struct


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), *, audit: int) -> int:
    """What the program returns for a system call (``struct seccomp_data``)."""
    padded = [*arguments, *([0] * (6 - len(arguments)))]
    data = struct.pack("=IIQ6Q", number, audit, 0, *padded)
    held, place = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", program, 8 * place)
        place += 1
        match code:
            case 0x20:
                (held,) = struct.unpack_from("=I", data, value)
            case 0x54:
                held &= value
            case 0x15:
                place += yes if held == value else no
            case 0x35:
                place += yes if held >= value else no
            case 0x45:
                place += yes if held & value else no
            case 0x06:
                return int(value)
            case _:
                raise ValueError(f"instruction {code:#x}")
