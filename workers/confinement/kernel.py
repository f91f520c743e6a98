"""The calls that confine this process: Landlock and seccomp, on Linux, by their numbers.

Neither the standard library nor the C library has them. Whatever is set here holds for this thread
and all that come after it, for ever.
"""

from __future__ import annotations

import ctypes
import os
import platform
import stat
import struct
import sys
from enum import IntFlag
from pathlib import Path

from shammah.bus.record import record

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_BENEATH, _PORT = 1, 2
_SET_NO_NEW_PRIVILEGES = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_ALL_THREADS, _KEEP_SPECULATION = 1, 4
"""SECCOMP_FILTER_FLAG_TSYNC and _SPEC_ALLOW: kernels before 5.16 slow filtered processes down."""


class Access(IntFlag):
    """What Landlock can allow below a path (include/uapi/linux/landlock.h)."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIRECTORY = 1 << 3
    REMOVE_DIRECTORY = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHARACTER_DEVICE = 1 << 6
    MAKE_DIRECTORY = 1 << 7
    MAKE_FILE = 1 << 8
    MAKE_SOCKET = 1 << 9
    MAKE_PIPE = 1 << 10
    MAKE_BLOCK_DEVICE = 1 << 11
    MAKE_LINK = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    DEVICE_CONTROL = 1 << 15


READ = Access.READ_FILE | Access.READ_DIRECTORY
CHANGE = (
    READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIRECTORY
    | Access.REMOVE_FILE
    | Access.MAKE_DIRECTORY
    | Access.MAKE_FILE
    | Access.MAKE_SOCKET
    | Access.MAKE_LINK
    | Access.REFER
)
EVERYTHING = Access((1 << 16) - 1)
DEVICE = READ | Access.WRITE_FILE | Access.DEVICE_CONTROL
REMOVE = Access.REMOVE_FILE

_OF_FILES = DEVICE & ~READ | Access.READ_FILE | Access.TRUNCATE | Access.EXECUTE
"""What can be allowed for a path that is no directory."""

_ADDED = {1: (1 << 13) - 1, 2: Access.REFER, 3: Access.TRUNCATE, 5: Access.DEVICE_CONTROL}
"""By version of Landlock: what is known from it on."""

PORTS_SINCE, SCOPES_SINCE = 4, 6
_BIND, _CONNECT = 1, 2
SCOPE_ABSTRACT_SOCKETS, SCOPE_SIGNALS = 1, 2


def landlock_version() -> int:
    """What this kernel's Landlock can do; 0: it has none, or it is not switched on."""
    if sys.platform != "linux":
        return 0
    try:
        return _call(_CREATE_RULESET, None, 0, _ASK_VERSION)
    except OSError:
        return 0


@record
class Rules:
    """What Landlock is asked for.

    Attributes:
        handled: what is refused where no path allows it.
        paths: what is allowed below each; one that is not there is left out.
        ports: TCP ports that may be connected to; ``None``: all.
        scopes: which of `SCOPE_ABSTRACT_SOCKETS` and `SCOPE_SIGNALS` end at this process.
    """

    handled: Access
    paths: tuple[tuple[Path, Access], ...]
    ports: tuple[int, ...] | None = None
    scopes: int = 0


def restrict(version: int, rules: Rules) -> None:
    """Hold this thread to ``rules``, as far as this ``version`` (`landlock_version`) can.

    Raises:
        OSError: nothing is restricted.
    """
    known = Access(0)
    for since, added in _ADDED.items():
        known |= Access(added) if version >= since else Access(0)
    handled = rules.handled & known
    handled_ports = _BIND | _CONNECT if rules.ports is not None and version >= PORTS_SINCE else 0
    scopes = rules.scopes if version >= SCOPES_SINCE else 0
    wanted = struct.pack("=QQQ", handled, handled_ports, scopes)
    made = _call(_CREATE_RULESET, wanted, len(wanted), 0)
    try:
        for path, access in rules.paths:
            _allow_path(made, path, access & handled)
        for port in (rules.ports or ()) if handled_ports else ():
            _call(_ADD_RULE, made, _PORT, struct.pack("=QQ", _CONNECT, port), 0)
        _forbid_privileges()
        _call(_RESTRICT_SELF, made, 0)
    finally:
        os.close(made)


def _allow_path(rules: int, path: Path, access: Access) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            access &= _OF_FILES
        if access:
            _call(_ADD_RULE, rules, _BENEATH, struct.pack("=Qi", access, place), 0)
    finally:
        os.close(place)


def filter_calls(program: bytes) -> None:
    """Have the kernel run ``program`` before each system call, of all threads of this process.

    Raises:
        OSError: there is no such filter.
    """
    _forbid_privileges()
    held = ctypes.create_string_buffer(program, len(program))
    asked = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    _call(_SECCOMP[platform.machine()], 1, _ALL_THREADS | _KEEP_SPECULATION, asked)


def _forbid_privileges() -> None:
    """Let no program of this process gain rights: both need it."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        raise _failure()


def _call(number: int, *arguments: int | bytes | None) -> int:
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = ctypes.c_long
    given = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    found: int = library.syscall(ctypes.c_long(number), *given)
    if found < 0:
        raise _failure()
    return found


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
