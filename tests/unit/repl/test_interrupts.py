"""A Ctrl-C is never lost, and never raised where something is half done."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from shammah.repl.input.interrupts import Interrupts


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    before = signal.getsignal(signal.SIGINT)
    one = Interrupts()
    one.install()
    yield one
    signal.signal(signal.SIGINT, before)


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


class Doomed:
    """Python drops what is raised in its end."""

    def __del__(self) -> None:
        press()


def test_it_is_noted_until_somebody_asks(interrupts: Interrupts) -> None:
    interrupts.check()
    press()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_a_handler_is_called_for_as_long_as_it_is_in_force(interrupts: Interrupts) -> None:
    pressed: list[str] = []
    with interrupts.calling(lambda: pressed.append("outer")):
        with interrupts.calling(lambda: pressed.append("inner")):
            press()
        press()
    assert pressed == ["inner", "outer"]
    assert not interrupts.noted
    press()
    assert interrupts.noted


def test_it_is_raised_at_once_where_it_may_be_but_the_second_only_noted(
    interrupts: Interrupts,
) -> None:
    ends: list[str] = []
    with pytest.raises(KeyboardInterrupt), interrupts.raised():  # noqa: PT012
        try:
            press()
        finally:
            press()
            ends.append("whole")
    assert ends == ["whole"]


def test_one_from_before_is_raised_before_anything_waits(interrupts: Interrupts) -> None:
    press()
    with pytest.raises(KeyboardInterrupt), interrupts.raised():
        pytest.fail("it waits")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_where_exceptions_go_nowhere_it_is_not_lost(interrupts: Interrupts) -> None:
    Doomed()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
    interrupts.noted = False
    with interrupts.raised():
        Doomed()
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()
