"""What the seccomp filter refuses, run on an interpreter of its own."""

from __future__ import annotations

import errno

import pytest

from tests.fakes.bpf import run
from workers.confinement.filter import MACHINES, Network, Step, assemble, filter_program

ALLOWED, REFUSED = 0x7FFF0000, 0x00050000 | errno.EPERM
READ = {"x86_64": 0, "aarch64": 63}
EXECVE = {"x86_64": 59, "aarch64": 221}
SOCKET = {"x86_64": 41, "aarch64": 198}
SENDTO = {"x86_64": 44, "aarch64": 206}
IOCTL = {"x86_64": 16, "aarch64": 29}
UNIX, INET, INET6, NETLINK, PACKET, VSOCK = 1, 2, 10, 16, 17, 40
STREAM, DATAGRAM, RAW = 1, 2, 3
NONBLOCKING = 0x800


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def judge(machine: str, network: Network, number: int, *arguments: int) -> bool:
    """Whether the call is allowed."""
    program = filter_program(machine, network)
    assert program is not None
    found = run(program, number, arguments, audit=MACHINES[machine].audit)
    assert found in (ALLOWED, REFUSED)
    return found == ALLOWED


def test_what_a_worker_does_all_the_time_is_allowed(machine: str) -> None:
    assert judge(machine, Network.NONE, READ[machine])
    assert judge(machine, Network.NONE, SOCKET[machine], UNIX, STREAM)
    assert judge(machine, Network.NONE, SENDTO[machine], 3, 0, 9, 0x4000)
    assert judge(machine, Network.NONE, IOCTL[machine], 0, 0x5401)


def test_no_program_is_started_and_nothing_typed_into_the_terminal(machine: str) -> None:
    assert not judge(machine, Network.NAMES, EXECVE[machine])
    assert not judge(machine, Network.NAMES, IOCTL[machine], 0, 0x5412)
    assert not judge(machine, Network.NAMES, 425)  # io_uring, which connects past every filter


@pytest.mark.parametrize(
    ("network", "allowed"),
    [
        (Network.NONE, set()),
        (Network.STREAMS, {(STREAM, 0), (STREAM, 6)}),
        (Network.NAMES, {(STREAM, 0), (STREAM, 6), (DATAGRAM, 0), (DATAGRAM, 17)}),
    ],
)
def test_sockets_of_the_internet_are_those_that_a_role_needs(
    machine: str, network: Network, allowed: set[tuple[int, int]]
) -> None:
    mptcp, sctp, icmp = 262, 132, 1
    tried = [
        (kind, protocol)
        for kind in (STREAM, DATAGRAM, RAW)
        for protocol in (0, 6, 17, mptcp, sctp, icmp)
    ]
    for family in (INET, INET6):
        found = {
            (kind, protocol)
            for kind, protocol in tried
            if judge(machine, network, SOCKET[machine], family, kind | NONBLOCKING, protocol)
        }
        assert found == allowed


def test_no_family_but_those_of_this_machine_is_open(machine: str) -> None:
    found = {
        family
        for family in range(64)
        if judge(machine, Network.NONE, SOCKET[machine], family, STREAM)
    }
    assert found == {UNIX, NETLINK}
    assert not judge(machine, Network.NAMES, SOCKET[machine], PACKET, STREAM)
    assert not judge(machine, Network.NAMES, SOCKET[machine], VSOCK, STREAM)


def test_nothing_is_sent_that_connects_on_the_way(machine: str) -> None:
    assert not judge(machine, Network.NAMES, SENDTO[machine], 3, 0, 9, 0x20000000)


def test_calls_by_the_numbers_of_another_processor_are_refused() -> None:
    program = filter_program("x86_64", Network.NAMES)
    assert program is not None
    i386, x32 = 0x40000003, 0x40000000
    assert run(program, READ["x86_64"], audit=i386) == REFUSED
    assert run(program, x32 | READ["x86_64"], audit=MACHINES["x86_64"].audit) == REFUSED


def test_an_unknown_processor_has_no_filter() -> None:
    assert filter_program("riscv64", Network.NONE) is None


def test_a_jump_to_nowhere_is_an_error() -> None:
    with pytest.raises(ValueError, match="no way"):
        assemble([Step(0x15, 1, yes="gone")])
