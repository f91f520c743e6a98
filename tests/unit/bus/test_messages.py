"""The tables of messages are complete: whatever is defined can be sent, and nothing else."""

from __future__ import annotations

import typing
from dataclasses import MISSING, FrozenInstanceError, fields, is_dataclass

import msgpack
import pytest

from shammah.bus import codec, messages, training, transfers

DEFINED = [
    item
    for module in (messages, training, transfers)
    for item in vars(module).values()
    if isinstance(item, type) and is_dataclass(item) and item.__module__ == module.__name__
]


TOP_LEVEL = set(typing.get_args(messages.Message))


def test_no_name_stands_for_two_messages() -> None:
    assert len({cls.__name__ for cls in DEFINED}) == len(DEFINED)


def test_no_request_is_a_reply_and_only_failed_is_a_state_too() -> None:
    states = set(typing.get_args(messages.State))
    assert states & TOP_LEVEL == {messages.Failed}
    assert not set(typing.get_args(messages.Request)) & set(typing.get_args(messages.Reply))


@pytest.mark.parametrize("cls", DEFINED, ids=lambda cls: cls.__name__)
def test_a_message_is_frozen_and_has_slots(cls: type) -> None:
    with pytest.raises(FrozenInstanceError):
        object.__new__(cls).anything = 1  # type: ignore[attr-defined]
    assert hasattr(cls, "__slots__")


@pytest.mark.parametrize("cls", sorted(TOP_LEVEL, key=str), ids=lambda c: c.__name__)
def test_every_request_and_reply_names_its_request(cls: type) -> None:
    (field,) = (field for field in fields(cls) if field.name == "request_id")
    assert field.type == "str"


@pytest.mark.parametrize("cls", DEFINED, ids=lambda cls: cls.__name__)
def test_no_field_is_called_type(cls: type) -> None:
    """That name is the tag on the wire."""
    assert "type" not in {field.name for field in fields(cls)}


@pytest.mark.parametrize("cls", sorted(TOP_LEVEL, key=str), ids=lambda c: c.__name__)
def test_every_message_can_be_decoded(cls: type) -> None:
    """And is refused for the first field that it must have; `test_codec` sends whole ones."""
    first = next((field.name for field in fields(cls) if field.default is MISSING), None)
    frame = msgpack.packb({"type": cls.__name__})
    if first is None:
        assert type(codec.decode(frame)) is cls
    else:
        with pytest.raises(codec.ProtocolError, match=f"{cls.__name__}: {first} is missing"):
            codec.decode(frame)
