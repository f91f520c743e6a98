"""The seccomp filter: which system calls are refused, as a program of the kernel's packet filter.

A classic BPF program over ``struct seccomp_data`` (include/uapi/linux/seccomp.h): the number of the
call at 0, the architecture at 4, and six arguments of 64 bits from 16 on, of which the low half is
read. It sees no memory, so a path or an address cannot be judged here. Pure.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable
from enum import StrEnum

from shammah.bus.record import record


class Network(StrEnum):
    """What a process may reach with new sockets."""

    NONE = "none"
    """Nothing outside of this machine, and nothing on it but Unix sockets."""
    STREAMS = "streams"
    """TCP alone."""
    NAMES = "names"
    """TCP, and UDP for the names of hosts."""


@record
class Machine:
    """A kind of processor: its number in the kernel (``AUDIT_ARCH``), and which column of `_CALLS`
    has its calls."""

    audit: int
    column: int


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}

_X32 = 0x40000000
"""Calls of x86-64 with pointers of 32 bits have numbers of their own from here on."""

_CALLS: dict[str, tuple[int, int]] = {
    # programs
    "execve": (59, 221),
    "execveat": (322, 281),
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    # what opens files and sockets past the rules
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_by_handle_at": (304, 265),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    # another view of the system
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "swapon": (167, 224),
    "swapoff": (168, 225),
}
"""By name: their numbers on each kind of processor."""

_SOCKET = (41, 198)
_IOCTL = (16, 29)
_SENDING = {(44, 206): 3, (46, 211): 2, (307, 269): 3}
"""sendto, sendmsg and sendmmsg: which argument has the flags."""

_FAST_OPEN = 0x20000000
"""MSG_FASTOPEN: connects as it sends, past the rules for ``connect``."""

_TERMINAL = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX: they type into the terminal that a worker in the foreground shares."""

_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_STREAM, _DATAGRAM = 1, 2
_TYPE = 0xF
"""The kind of a socket; its other bits are flags."""
_TCP, _UDP = 6, 17

_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06
_EQUAL, _AT_LEAST, _ANY_BIT = 0x15, 0x35, 0x45
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM


@record
class Step:
    """One instruction. ``yes`` and ``no`` are labels to jump to; empty: the next one. ``label``
    names this one."""

    code: int
    value: int
    yes: str = ""
    no: str = ""
    label: str = ""


def filter_program(machine: str, network: Network) -> bytes | None:
    """The program (``struct sock_filter`` after each other); ``None``: the processor is not known.

    What is refused returns EPERM, so that a library can go on without.
    """
    known = MACHINES.get(machine)
    return None if known is None else assemble(_steps(known, network))


def _steps(machine: Machine, network: Network) -> list[Step]:
    column = machine.column
    steps = [Step(_LOAD, 4), Step(_EQUAL, machine.audit, no="refuse"), Step(_LOAD, 0)]
    if column == 0:
        steps.append(Step(_AT_LEAST, _X32, yes="refuse"))
    steps += [Step(_EQUAL, numbers[column], yes="refuse") for numbers in _CALLS.values()]
    steps.append(Step(_EQUAL, _SOCKET[column], yes="socket"))
    steps.append(Step(_EQUAL, _IOCTL[column], yes="ioctl"))
    for numbers, argument in _SENDING.items():
        steps.append(Step(_EQUAL, numbers[column], yes=f"flags {argument}"))
    steps.append(Step(_RETURN, _ALLOW))
    for argument in sorted(set(_SENDING.values())):
        steps.append(Step(_LOAD, _offset(argument), label=f"flags {argument}"))
        steps.append(Step(_ANY_BIT, _FAST_OPEN, yes="refuse", no="allow"))
    steps.append(Step(_LOAD, _offset(1), label="ioctl"))
    steps += [Step(_EQUAL, request, yes="refuse") for request in _TERMINAL]
    steps.append(Step(_RETURN, _ALLOW))
    steps += _socket(network)
    steps += [Step(_RETURN, _ALLOW, label="allow"), Step(_RETURN, _REFUSE, label="refuse")]
    return steps


def _socket(network: Network) -> Iterable[Step]:
    """The judgement of ``socket(family, type, protocol)``."""
    yield Step(_LOAD, _offset(0), label="socket")
    yield Step(_EQUAL, _UNIX, yes="allow")
    yield Step(_EQUAL, _NETLINK, yes="allow")  # the C library asks there which addresses there are
    if network is Network.NONE:
        yield Step(_RETURN, _REFUSE)
        return
    yield Step(_EQUAL, _INET, yes="internet")
    yield Step(_EQUAL, _INET6, yes="internet", no="refuse")
    yield Step(_LOAD, _offset(1), label="internet")
    yield Step(_AND, _TYPE)
    datagrams = network is Network.NAMES
    yield Step(_EQUAL, _STREAM, yes="stream", no="" if datagrams else "refuse")
    if datagrams:
        yield Step(_EQUAL, _DATAGRAM, no="refuse")
        yield from _protocol(_UDP, "")
    yield from _protocol(_TCP, "stream")


def _protocol(protocol: int, label: str) -> Iterable[Step]:
    # 0 is the usual one of its type. Others (MPTCP, SCTP) pass by the rules for TCP.
    yield Step(_LOAD, _offset(2), label=label)
    yield Step(_EQUAL, 0, yes="allow")
    yield Step(_EQUAL, protocol, yes="allow", no="refuse")


def _offset(argument: int) -> int:
    return 16 + 8 * argument


def assemble(steps: list[Step]) -> bytes:
    """The instructions, with each label as the distance to it.

    Raises:
        ValueError: a label is missing, or lies behind or too far ahead.
    """
    places = {step.label: place for place, step in enumerate(steps) if step.label}

    def distance(place: int, label: str) -> int:
        ahead = places.get(label, -1) - place - 1 if label else 0
        if not 0 <= ahead <= 255:
            raise ValueError(f"no way from {place} to {label!r}")
        return ahead

    return b"".join(
        struct.pack(
            "=HBBI", step.code, distance(place, step.yes), distance(place, step.no), step.value
        )
        for place, step in enumerate(steps)
    )
