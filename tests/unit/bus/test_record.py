"""Messages are frozen dataclasses, though they are made in another way."""

from __future__ import annotations

import builtins
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from typing import Any

import pytest

from shammah.bus.record import record


@record
class Point:
    """A place."""

    x: int
    y: int = 0
    name: str = ""


@record
class Twin:
    """Another one with the same fields."""

    x: int
    y: int = 0
    name: str = ""


@record
class Nothing:
    """No fields at all."""


def test_values_come_by_place_or_by_name() -> None:
    assert Point(1, 2, "a") == Point(1, name="a", y=2) == Point(x=1, y=2, name="a")
    assert (Point(1).x, Point(1).y, Point(1).name) == (1, 0, "")


@pytest.mark.parametrize(
    ("values", "named", "why"),
    [
        ((), {}, "Point needs x"),
        ((1, 2, "a", 4), {}, "Point does not take 4 values"),
        ((1,), {"z": 3}, "Point does not take z"),
        ((1,), {"x": 3}, "Point does not take x"),
    ],
)
def test_others_are_refused(values: tuple[Any, ...], named: dict[str, Any], why: str) -> None:
    with pytest.raises(TypeError, match=why):
        Point(*values, **named)


def test_nothing_changes() -> None:
    point = Point(1)
    with pytest.raises(FrozenInstanceError, match=r"Point\.x cannot be changed"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del point.x
    with pytest.raises(FrozenInstanceError):
        point.z = 2  # type: ignore[attr-defined]
    assert point == Point(1)
    assert not hasattr(point, "__dict__")


def test_equal_are_those_of_one_class_with_equal_values() -> None:
    assert Point(1) != Point(2)
    assert Point(1) != Twin(1)
    assert Point(1) != (1, 0, "")
    assert len({Point(1), Point(1, 0), Point(2)}) == 2
    assert Nothing() == Nothing()


def test_they_are_dataclasses() -> None:
    assert is_dataclass(Point)
    assert [field.name for field in fields(Point)] == ["x", "y", "name"]
    assert replace(Point(1, 2), y=3) == Point(1, 3)
    assert repr(Point(1, name="a")) == "Point(x=1, y=0, name='a')"
    match Point(1, 2):
        case Point(x, y):
            assert (x, y) == (1, 2)


def test_none_of_their_code_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they are for: that is most of the time that a dataclass takes."""
    compiled: list[object] = []
    execute = builtins.exec
    monkeypatch.setattr(builtins, "exec", lambda *all_: compiled.append(all_) or execute(*all_))

    @record
    class Late:
        """Made just now."""

        x: int = 0

    assert Late().x == 0
    assert compiled == []
