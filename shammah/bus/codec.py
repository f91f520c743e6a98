"""Messages to bytes and back.

`decode` trusts nothing: the type must be in the closed table, every field must have its declared
type, and anything else raises `ProtocolError`.
"""

from __future__ import annotations

import operator
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, reduce
from typing import Any

import msgpack

from shammah.bus import messages, training, transfers
from shammah.bus.endpoints import MAX_FRAME_BYTES as MAX_FRAME_BYTES
from shammah.bus.messages import Message
from shammah.errors import ShammahError

TABLE: dict[str, type] = {
    name: cls
    for module in (messages, transfers, training)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and is_dataclass(cls)
}
_TOP_LEVEL = {cls.__name__ for cls in typing.get_args(Message)}

Decoder = Callable[[Any], Any]


class ProtocolError(ShammahError):
    """A frame that is not one of our messages; ``request_id`` if it could be read."""

    def __init__(self, message: str, request_id: str = "") -> None:
        super().__init__("protocol", message, "Both sides must run the same version of Shammah.")
        self.request_id = request_id


def encode(message: Message) -> bytes:
    """One message as MessagePack."""
    # Half a surrogate pair (from an argument that is not UTF-8) has no encoding: it becomes "?".
    packed = msgpack.packb(message, default=_to_map, unicode_errors="replace")
    return typing.cast(bytes, packed)


def decode(frame: bytes) -> Message:
    """The message in ``frame``.

    Raises:
        ProtocolError: too long, not MessagePack, not a known type, or a field that is missing
            or of the wrong type.
    """
    if len(frame) > MAX_FRAME_BYTES:
        raise ProtocolError(f"A frame of {len(frame):,} bytes exceeds {MAX_FRAME_BYTES:,}.")
    try:
        document = msgpack.unpackb(frame)
    except (ValueError, RecursionError) as error:
        # ValueError covers ExtraData, FormatError, StackError and UnicodeDecodeError.
        raise ProtocolError(f"A frame is not MessagePack ({type(error).__name__}).") from None
    if not isinstance(document, dict):
        raise ProtocolError(f"A frame holds a {type(document).__name__} instead of a map.")
    request_id = document.get("request_id")
    request_id = request_id if isinstance(request_id, str) else ""
    tag = document.get("type")
    if not isinstance(tag, str) or tag not in _TOP_LEVEL:
        raise ProtocolError(f"Unknown message type {tag!r:.60}.", request_id)
    try:
        return typing.cast(Message, _decode_map(document))
    except ValueError as error:
        raise ProtocolError(f"Malformed {tag}: {error}.", request_id) from None


def to_document(message: Any) -> dict[str, Any]:
    """A message as plain maps, lists and scalars (for ``--json``)."""
    return typing.cast(dict[str, Any], _plain(message))


def _to_map(value: Any) -> dict[str, Any]:
    name = type(value).__name__
    if TABLE.get(name) is not type(value):
        raise TypeError(f"{name} is not a message")
    document = {field: getattr(value, field) for field in typing.cast(Any, value).__match_args__}
    document["type"] = name
    return document


def _plain(value: Any) -> Any:
    if type(value).__name__ in TABLE:
        return {key: _plain(item) for key, item in _to_map(value).items()}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _decode_map(document: Any) -> Any:
    if not isinstance(document, dict) or not isinstance(document.get("type"), str):
        raise ValueError("a map with a type is needed")
    cls = TABLE.get(document["type"])
    if cls is None:
        raise ValueError(f"unknown type {document['type']!r:.60}")
    arguments = {}
    for name, (decoder, required) in _field_decoders(cls).items():
        if name in document:
            try:
                arguments[name] = decoder(document[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        elif required:
            raise ValueError(f"{name} is missing")
    return cls(**arguments)


@cache
def _field_decoders(cls: type) -> dict[str, tuple[Decoder, bool]]:
    hints = typing.get_type_hints(cls)
    return {
        field.name: (_decoder(hints[field.name]), field.default is MISSING)
        for field in fields(typing.cast(Any, cls))
    }


def _decoder(annotation: Any) -> Decoder:
    """The function that checks one field's value against its annotation."""
    union = isinstance(annotation, types.UnionType)
    members = typing.get_args(annotation) if union else (annotation,)
    given = tuple(member for member in members if member is not types.NoneType)
    if len(given) < len(members):
        decoder = _decoder(reduce(operator.or_, given))
        return lambda value: None if value is None else decoder(value)
    if typing.get_origin(annotation) is tuple:
        item = _decoder(typing.get_args(annotation)[0])
        return lambda value: tuple(item(entry) for entry in _expect(list, value))
    if is_dataclass(given[0]):
        return lambda value: _decode_instance(value, given)
    if annotation is float:
        # An int is a valid float on the wire; a bool is neither.
        return lambda value: float(value) if type(value) is int else _expect(float, value)
    return lambda value: _expect(annotation, value)


def _decode_instance(value: Any, classes: tuple[type, ...]) -> Any:
    instance = _decode_map(value)
    if type(instance) not in classes:
        raise ValueError(f"a {type(instance).__name__} does not belong here")
    return instance


def _expect(expected: type, value: Any) -> Any:
    if type(value) is not expected:
        raise ValueError(f"{expected.__name__} expected, {type(value).__name__} found")
    return value
