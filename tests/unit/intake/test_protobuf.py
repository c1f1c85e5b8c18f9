"""Protobuf's wire format, as protobuf itself writes it."""

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs

from astralog.errors import Rejection
from astralog.intake import protobuf
from astralog.intake.protobuf import (
    check_size,
    find_unknown,
    read_fields,
    replace_invalid_utf8,
)
from tests.support.otlp import SPAN_ID, TIME, TRACE_ID, make_export, make_record, wire_field

RECORD = make_record(
    {"a": ["ü" * 200, {"b": b"\xff"}], "c": 2**63 - 1, "d": -1, "e": 0.5},
    attributes={"key": "value", "list": [True, None]},
    trace_id=TRACE_ID,
    span_id=SPAN_ID,
    flags=2**32 - 1,
)


def test_fields_are_those_that_protobuf_writes() -> None:
    """Each field of every type has its tag, and its content between start and end."""
    record = LogRecord(time_unix_nano=TIME, severity_text="x" * 200, flags=7)
    record.dropped_attributes_count = 300
    text = record.SerializeToString()
    tags = {tag: text[begin:end] for tag, begin, end in read_fields(text)}
    assert {
        1 << 3 | 1: TIME.to_bytes(8, "little"),
        3 << 3 | 2: b"x" * 200,
        7 << 3 | 0: b"\xac\x02",
        8 << 3 | 5: (7).to_bytes(4, "little"),
    } == tags


def test_fields_in_a_group_are_not_those_of_the_message() -> None:
    """Groups are obsolete, but a parser skips them; they may be nested."""
    text = b"\x0b" + wire_field(1, b"in it") + b"\x13\x08\x05\x14\x0c" + wire_field(1, b"behind")
    assert [b"behind"] == [text[a:b] for tag, a, b in read_fields(text) if tag == 1 << 3 | 2]


@pytest.mark.parametrize(
    "text",
    [
        *(b"\x0a", b"\x0a\x05abc", b"\x08", b"\x08\xff", b"\x09abc", b"\x0d\x01", b"\x0e", b"\x0f"),
        *(b"\x0b", b"\x0b\x08\x01", b"\x0b\x0b\x0c", b"\x08" + b"\xff" * 10 + b"\x01"),
        b"\x0a\xff\xff\xff\xff\x0f",
    ],
)
def test_malformed_message_is_invalid(text: bytes) -> None:
    """Truncated, without a valid type, an endless number, or a group without an end."""
    with pytest.raises(DecodeError):
        ResourceLogs.FromString(text)
    with pytest.raises(ValueError, match=r"^(The message|A number|A field)"):
        list(read_fields(text))


@given(
    st.binary(max_size=30) | st.lists(st.sampled_from(b"\x08\x0a\x0b\x0c\x01\x02\xff")).map(bytes)
)
def test_messages_accepted_by_protobuf_have_fields(text: bytes) -> None:
    """No message that protobuf parses counts as malformed."""
    try:
        LogRecord.FromString(text)
    except DecodeError:
        return
    ends = [0, *(end for _, _, end in read_fields(text))]
    assert ends == sorted(ends)
    assert len(text) == ends[-1]


@pytest.mark.parametrize("message", [RECORD, make_export(RECORD).resource_logs[0]])
def test_valid_text_stays_as_it_is(message: LogRecord | ResourceLogs) -> None:
    """Bytes fields are not text."""
    text = message.SerializeToString()
    assert text == replace_invalid_utf8(message.DESCRIPTOR, text)


def test_unknown_fields_stay_as_they_are() -> None:
    """They may be anything, including groups."""
    unknown = b"\xa0\x06\x05" + b"\xab\x06" + wire_field(1, b"\xff") + b"\xac\x06"
    text = unknown + wire_field(3, b"caf\xe9") + unknown
    expected = unknown + wire_field(3, "caf\ufffd".encode()) + unknown
    assert expected == replace_invalid_utf8(LogRecord.DESCRIPTOR, text)


def test_an_unknown_field_is_found() -> None:
    """The first one, also if it is a group that contains known fields."""
    assert find_unknown(b"", {1}) is None
    assert find_unknown(wire_field(1, b"a") * 100, {1}) is None
    assert 5 == find_unknown(wire_field(1, b"a") + wire_field(5, b"") + wire_field(6, b""), {1})
    assert 4 == find_unknown(b"\x23" + wire_field(1, b"a") + b"\x24", {1})


def test_a_long_message_of_too_many_fields_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long one with few fields is accepted, as is one too short to have many."""
    monkeypatch.setattr(protobuf, "LONG_BYTES", 2000)
    monkeypatch.setattr(protobuf, "MAX_VALUES", 100)

    def is_rejected(*parts: bytes) -> Any:
        try:
            check_size(b"".join(parts))
        except Rejection as rejection:
            return rejection.code == "body_too_large"
        return False

    many, long = wire_field(1, b"") * 500, wire_field(1, b"x" * 3000)
    assert not is_rejected(many)
    assert not is_rejected(long, long)
    assert is_rejected(many, long)
    assert not is_rejected(long, many)  # together with the rest they are parsed in time
    assert is_rejected(long, many, long)
