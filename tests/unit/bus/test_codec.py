"""Bytes to messages: what is right comes back equal, what is wrong raises ProtocolError."""

from __future__ import annotations

import contextlib
import random
import typing
from dataclasses import MISSING, fields, replace
from types import UnionType
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shammah.bus import messages
from shammah.bus.codec import MAX_FRAME_BYTES, ProtocolError, decode, encode, to_document
from shammah.bus.messages import (
    ChatMessage,
    ClientInfo,
    Done,
    Event,
    Failed,
    Generate,
    Hello,
    Message,
    Ping,
    Pong,
    Provenance,
    Ready,
    Replay,
    Replayed,
    Status,
    Timings,
    Token,
    Usage,
)

TOP_LEVEL = typing.get_args(messages.Message)

# Built field by field: `st.from_type` does not know how long a tuple may be, nor what fits
# into 64 bits.
SCALARS: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(max_size=20),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    type(None): st.none(),
}


def instances(cls: type) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls)
    return st.builds(cls, **{field.name: values(hints[field.name]) for field in fields(cls)})


def values(annotation: Any) -> st.SearchStrategy[Any]:
    if annotation in SCALARS:
        return SCALARS[annotation]
    if isinstance(annotation, UnionType):
        return st.one_of([values(member) for member in typing.get_args(annotation)])
    if typing.get_origin(annotation) is tuple:
        return st.lists(values(typing.get_args(annotation)[0]), max_size=4).map(tuple)
    return instances(annotation)


MESSAGES = st.one_of([instances(cls) for cls in TOP_LEVEL])


def packed(**document: object) -> bytes:
    return bytes(msgpack.packb(document))


def refused(frame: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as refusal:
        decode(frame)
    return refusal.value


# --- what is right --------------------------------------------------------------------------


@pytest.mark.parametrize("cls", TOP_LEVEL, ids=lambda cls: cls.__name__)
def test_every_message_comes_back_equal(cls: type) -> None:
    @given(instances(cls))
    def round_trip(message: Message) -> None:
        again = decode(encode(message))
        assert type(again) is cls
        assert again == message

    round_trip()


def test_a_field_with_a_default_may_be_missing() -> None:
    assert decode(packed(type="Replay", request_id="r")) == Replay("r", 0)


def test_unknown_fields_are_ignored_at_every_depth() -> None:
    client = {"type": "ClientInfo", "program": "repl", "pid": 1, "colour": "red"}
    frame = packed(type="Hello", request_id="r", protocol=1, client=client, mood={"a": [1]})
    assert decode(frame) == Hello("r", 1, ClientInfo("repl", 1))


def test_a_whole_number_is_a_number() -> None:
    sampling = {"type": "Sampling", "temperature": 1}
    message = decode(packed(type="Generate", request_id="r", messages=[], sampling=sampling))
    assert isinstance(message, Generate)
    assert message.sampling.temperature == 1.0
    assert isinstance(message.sampling.temperature, float)


def test_the_longest_frame_is_accepted() -> None:
    text = "x" * (MAX_FRAME_BYTES - len(encode(Token("r", 1, ""))) - 4)  # 4: a longer header
    message = Token("r", 1, text)
    assert MAX_FRAME_BYTES - 8 < len(encode(message)) <= MAX_FRAME_BYTES
    assert decode(encode(message)) == message


def test_a_document_for_json_has_plain_maps_and_lists() -> None:
    status = Status(Ready("starter"), 1)
    event = Event("inference", "run", 3, 1.0, 2.0, "state", status, "r")
    document = to_document(Replayed("r", (event,)))
    assert document["events"][0]["status"]["state"]["model"] == "starter"
    assert document["events"][0]["type"] == "Event"


# --- what is wrong --------------------------------------------------------------------------


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_are_refused(frame: bytes) -> None:
    _decode_or_refuse(frame)


@given(MESSAGES, st.data())
def test_any_cut_of_a_message_is_refused(message: Message, data: st.DataObject) -> None:
    frame = encode(message)
    refused(frame[: data.draw(st.integers(0, len(frame) - 1))])


@given(MESSAGES, st.randoms(use_true_random=False))
def test_any_damage_decodes_or_is_refused(message: Message, chance: random.Random) -> None:
    frame = bytearray(encode(message))
    for _ in range(chance.randint(1, 4)):
        frame[chance.randrange(len(frame))] = chance.randrange(256)
    _decode_or_refuse(bytes(frame))


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(MESSAGES, st.data())
def test_any_value_in_any_field_decodes_or_is_refused(
    message: Message, data: st.DataObject
) -> None:
    document = msgpack.unpackb(encode(message))
    holder = document
    name = data.draw(st.sampled_from(sorted(holder)))
    while isinstance(holder[name], dict) and data.draw(st.booleans()):
        holder = holder[name]
        name = data.draw(st.sampled_from(sorted(holder)))
    holder[name] = data.draw(JSON_LIKE)
    _decode_or_refuse(msgpack.packb(document))


def _decode_or_refuse(frame: bytes) -> None:
    """Nothing but a message of the table or a ProtocolError comes out of `decode`."""
    with contextlib.suppress(ProtocolError):
        assert type(decode(frame)) in TOP_LEVEL


@given(MESSAGES, st.data())
def test_a_missing_field_is_refused_and_named(message: Message, data: st.DataObject) -> None:
    document = msgpack.unpackb(encode(message))
    needed = [field.name for field in fields(message) if field.default is MISSING]
    name = data.draw(st.sampled_from(needed))
    del document[name]
    error = refused(msgpack.packb(document))
    assert error.message == f"Malformed {document['type']}: {name} is missing."
    assert error.code == "protocol"
    assert error.request_id == document.get("request_id", "")


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "not MessagePack"),
        (b"\xc1", "not MessagePack"),
        (packed(type="Ping", request_id="r") + b"\0", "not MessagePack"),
        (b"\x91" * 100_000, "not MessagePack"),
        (b"\xa2\xff\xfe", "not MessagePack"),
        (msgpack.packb({1: 2}), "not MessagePack"),
        (b"\xdd\xff\xff\xff\xff", "not MessagePack"),
        (b"\xd5\xff\x00\x00", "not MessagePack"),
        (msgpack.packb(None), "a NoneType instead of a map"),
        (msgpack.packb([]), "a list instead of a map"),
        (msgpack.packb(msgpack.Timestamp(1)), "instead of a map"),
        (packed(), "Unknown message type None"),
        (packed(type=3), "Unknown message type 3"),
        (packed(type="Usage"), "Unknown message type 'Usage'"),
        (packed(type="__class__"), "Unknown message type"),
        (packed(type="x" * 5000), "Unknown message type 'xxx"),
        (packed(type="Ping"), "request_id is missing"),
        (packed(type="Ping", request_id=None), "str expected, NoneType found"),
        (packed(type="Ping", request_id=b"r"), "str expected, bytes found"),
        (packed(type="Replay", request_id="r", since_seq=True), "int expected, bool found"),
        (packed(type="Replay", request_id="r", since_seq=1.0), "int expected, float found"),
        (packed(type="Generate", request_id="r", messages={}), "list expected, dict found"),
        (packed(type="Generate", request_id="r", messages=[1]), "a map with a type is needed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(frame: bytes, says: str) -> None:
    assert says in refused(frame).message


def test_a_message_in_the_place_of_another_is_refused() -> None:
    for wrong in (encode(Ping("x")), packed(type="Usage"), packed(type="Sampling", top_k=[])):
        frame = packed(
            type="Generate", request_id="r", messages=[], sampling=msgpack.unpackb(wrong)
        )
        assert "sampling" in refused(frame).message


def test_a_state_may_be_a_state_alone() -> None:
    event = Event("inference", "run", 1, 0.0, 0.0, "state", Status(Ready("m")))
    document = msgpack.unpackb(encode(event))
    document["status"]["state"] = {"type": "Usage"}
    assert "a Usage does not belong here" in refused(msgpack.packb(document)).message


def test_a_refusal_names_the_request_where_it_can_be_read() -> None:
    assert refused(packed(type="Nonsense", request_id="r1")).request_id == "r1"
    assert refused(packed(type="Generate", request_id="r2")).request_id == "r2"
    assert refused(packed(type="Generate", request_id=3)).request_id == ""


def test_an_over_long_frame_is_refused_unread() -> None:
    assert "exceeds" in refused(b"\0" * (MAX_FRAME_BYTES + 1)).message


def test_a_refusal_is_short_whatever_was_sent() -> None:
    for frame in (packed(type="x" * 100_000), packed(type="Ping", request_id={"k" * 100_000: 1})):
        assert len(refused(frame).message) < 300


def test_what_is_no_message_cannot_be_encoded() -> None:
    with pytest.raises(TypeError):
        encode(typing.cast(Message, Hello("r", 1, typing.cast(ClientInfo, object()))))


# --- what a person or a model may put in ------------------------------------------------------


def test_text_that_is_no_unicode_can_be_sent() -> None:
    """Bytes that a terminal or a file name holds become lone surrogates in Python."""
    for text in ("\udcff", "a\ud800b"):
        message = decode(encode(Generate("r", (ChatMessage("user", text),))))
        assert isinstance(message, Generate)
        assert message.messages[0].content.encode()  # none are left


def test_values_at_the_edges_come_back_equal() -> None:
    done = Done(
        "r",
        "stop",
        Usage(0, 2**64 - 1),
        Timings(float("inf"), -0.0, 1e308, 5e-324, 0.1 + 0.2),
        Provenance("cloud", "\0\u2028\U0010ffff", fallback=True),
        ("", "é" * 70_000),
    )
    assert decode(encode(done)) == done
    assert decode(encode(replace(done, notices=()))) == replace(done, notices=())
    assert decode(encode(Failed("", "", "", ""))) == Failed("", "", "", "")
    assert decode(encode(Pong("r", "", False, 0))) == Pong("r", "", False, 0)
