"""No body blocks its worker's thread for long, whatever it contains.

The tests measure CPU time between two switches of greenlets, so a busy machine fails nothing.
"""

import os
from collections.abc import Callable
from contextlib import suppress

import pytest
from google.protobuf.message import Message
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList

from astralog.errors import Rejection
from astralog.intake import hec
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.elasticsearch import Bulk
from astralog.intake.options import OnInvalid, Options
from tests.support.blocking import MOST_SECONDS, cpu_stretches
from tests.support.decoding import make_context
from tests.support.otlp import JSON, PROTOBUF, Export, wire_field

pytestmark = pytest.mark.slow

MIB = 1024 * 1024

#: The size of most bodies: the largest allowed one takes minutes in all.
BODY_BYTES = (10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 4) * MIB

OPTIONS = Options({"project_id": "p"}, on_invalid=OnInvalid.LEAVE_OUT)


def fill(unit: bytes, separator: bytes = b"", parts: int = 1) -> bytes:
    """Return a text that is repeated up to the size of a body, or to one of `parts` of it.

    A part is for a unit of which a body takes seconds: it still takes many times the limit.
    """
    return separator.join([unit] * (BODY_BYTES // parts // (len(unit) + len(separator))))


def check(decode: Callable[[], object]) -> None:
    """Decode a body, whatever the result, and check the longest time without a switch."""
    with cpu_stretches() as stretches, suppress(Rejection):
        decode()
    assert stretches.longest < MOST_SECONDS


def empties(count: int) -> AnyValue:
    """Return a list of empty lists."""
    return AnyValue(array_value=ArrayValue(values=[AnyValue(array_value=ArrayValue())] * count))


def text(message: Message) -> bytes:
    return message.SerializeToString()


def of_records(*records: bytes) -> bytes:
    return wire_field(1, wire_field(2, b"".join(wire_field(2, record) for record in records)))


def of_attributes(count: int) -> bytes:
    """Return a record with attributes, none of which is decoded directly from the wire."""
    value = AnyValue(bool_value=True)
    return b"".join(
        wire_field(6, text(KeyValue(key=f"{number}", value=value))) for number in range(count)
    )


def of_pairs(size: int) -> bytes:
    """Return a value of the given size that consists of lists of two lists."""
    value = AnyValue()
    while value.ByteSize() < size:
        value = AnyValue(array_value=ArrayValue(values=[value, value]))
    return text(value)


PROTOBUF_BODIES: dict[str, Callable[[], bytes]] = {
    "records of many attributes": lambda: of_records(*[of_attributes(10_000)] * 40),
    "a list of lists as an attribute": lambda: of_records(
        *[
            wire_field(6, text(KeyValue(key=f"{number}", value=empties(60_000))))
            for number in range(4)
        ]
    ),
    "a list of lists as a body": lambda: of_records(*[wire_field(5, text(empties(60_000)))] * 4),
    "lists of two": lambda: of_records(*[wire_field(5, of_pairs(100_000))] * 10),
    "a map of one key": lambda: of_records(
        *[
            wire_field(
                5, text(AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="k")] * 50_000)))
            )
        ]
        * 10
    ),
    "resources": lambda: fill(b"\x0a\x00", parts=2),
    "scopes": lambda: wire_field(1, fill(b"\x12\x00", parts=2)),
    "records": lambda: of_records() + wire_field(1, wire_field(2, fill(b"\x12\x00"))),
    "attributes": lambda: of_records(fill(b"\x32\x00")),
    "values": lambda: of_records(wire_field(5, fill(b"\x18\x01", parts=3))),
    "lists in parts": lambda: of_records(wire_field(5, fill(b"\x2a\x00"))),
    "an attribute's value in parts": lambda: of_records(wire_field(6, fill(b"\x12\x00"))),
    "a resource in parts": lambda: wire_field(1, fill(b"\x0a\x00", parts=3)),
    "a scope in parts": lambda: wire_field(1, wire_field(2, fill(b"\x0a\x00", parts=3))),
    "groups": lambda: of_records(fill(b"\x0b", parts=3)),
    "unknown fields": lambda: wire_field(1, fill(b"\xb8\x01\x00")),
    "malformed records": lambda: wire_field(1, wire_field(2, fill(b"\x12\x02\x4a\x05"))),
    "invalid UTF-8 in lists": lambda: of_records(
        *[wire_field(5, wire_field(5, wire_field(1, b"\x0a\x01\xff") * 30_000))] * 2
    ),
    "a text of invalid UTF-8": lambda: of_records(wire_field(5, wire_field(1, fill(b"\xff")))),
    "bytes": lambda: of_records(wire_field(5, wire_field(7, fill(b"\xff")))),
}


def json_records(*records: bytes) -> bytes:
    return b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%s]}]}]}' % b",".join(records)


def json_list(unit: bytes, count: int) -> bytes:
    """Return a record whose body is a list."""
    return b'{"body":{"arrayValue":{"values":[%s]}}}' % b",".join([unit] * count)


def json_text(content: bytes) -> bytes:
    return json_records(b'{"body":{"stringValue":"%s"}}' % content)


JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "lists of lists": lambda: json_records(*[json_list(b'{"arrayValue":{}}', 60_000)] * 10),
    "values in other names": lambda: json_records(*[json_list(b'{"int_value":1}', 60_000)] * 3),
    "records of unknown names": lambda: json_records(
        *[b"{%s}" % b",".join(b'"%d":1' % number for number in range(60_000))] * 10
    ),
    "unknown names": lambda: b"{%s}" % b",".join(b'"%d":1' % number for number in range(700_000)),
    "a long name": lambda: b'{"%s":1}' % fill(b"`"),
    "scopes": lambda: b'{"resourceLogs":[{"scopeLogs":[%s]}]}' % b",".join([b"{}"] * 33_000),
    "a resource of many attributes": lambda: (
        b'{"resourceLogs":[{"resource":{"attributes":[%s]}}]}' % b",".join([b"{}"] * 700_000)
    ),
    "escapes": lambda: json_text(fill(b"\\n")),
    "escapes and half a pair": lambda: json_text(fill(b"\\n") + b"\\ud83d"),
    "halves of pairs": lambda: json_text(fill(b"\\ud83d")),
    "invalid UTF-8": lambda: json_text(fill(b"\xff")),
    "records of invalid UTF-8": lambda: json_records(
        *[b'{"body":{"stringValue":"\xff"}}'] * 25_000
    ),
    "digits": lambda: json_records(b'{"body":{"intValue":"%s"}}' % fill(b"1")),
    "integers": lambda: json_records(b'{"x":[%s]}' % fill(b"9" * 4300, b",")),
    "bytes": lambda: json_records(b'{"body":{"bytesValue":"%s"}}' % fill(b"____")),
    "no base64": lambda: json_records(b'{"body":{"bytesValue":"%s"}}' % fill("é".encode())),
    "an id": lambda: json_records(b'{"traceId":"%s"}' % fill(b"=")),
}


@pytest.mark.parametrize("name", PROTOBUF_BODIES)
def test_an_export_in_protobuf_yields(name: str) -> None:
    """Wide, deep, in parts or malformed: others are served during its decode."""
    body = PROTOBUF_BODIES[name]()
    check(lambda: Export(PROTOBUF).decode_body(body, OPTIONS))


@pytest.mark.parametrize("name", JSON_BODIES)
def test_an_export_in_json_yields(name: str) -> None:
    """Wide, deep, under other names or malformed: others are served during its decode."""
    body = JSON_BODIES[name]()
    check(lambda: Export(JSON).decode_body(body, OPTIONS))


def log(fields: bytes, timestamp: bytes = b"2024-05-31T15:30:45Z") -> bytes:
    return (
        b'{"project_id":"p","timestamp":"%s","level":"i","service":"s","message":"",'
        b'"metadata":{%s}}' % (timestamp, fields)
    )


DRAIN_BODIES: dict[str, Callable[[], bytes]] = {
    "a timestamp that ends badly": lambda: log(b"", b"2024-05-31 15:30:45." + fill(b"1") + b"x"),
    "a timestamp at midnight": lambda: log(b"", b"2024-05-31T24:00:00." + fill(b"0")),
    "integers": lambda: log(b'"a":[%s]' % fill(b"9" * 4300, b",")),
    "deep lists": lambda: b",".join([log(b'"a":' + b"[" * 300 + b"]" * 300)] * 10_000),
    "escapes": lambda: log(b'"a":"%s\\ud83d"' % fill(b"\\n")),
    "names that metadata has too": lambda: (
        log(b",".join(b'"%d":0' % number for number in range(50_000)))[:-1]
        + b"".join(b',"%d":0' % number for number in range(50_000))
        + b"}"
    ),
}


@pytest.mark.parametrize("is_lines", [False, True])
@pytest.mark.parametrize("name", DRAIN_BODIES)
def test_a_batch_yields(name: str, is_lines: bool) -> None:
    """One long log or many: others are served during its decode, in either form of a batch."""
    logs = DRAIN_BODIES[name]()
    context = make_context(options=Options(moves_unknown=True))
    if is_lines:
        check(lambda: decode_lines(logs.replace(b"},{", b"}\n{"), context))
    else:
        check(lambda: decode_json(b'{"logs":[%s]}' % logs, context))


#: Bodies of any JSON: a row of logs, a log with the boundary of two in a string, and broken ones.
ANY_JSON_BODIES: dict[str, Callable[[], bytes]] = {
    "logs in a row": lambda: fill(log(b'"a":{}'), parts=3),
    "empty objects": lambda: fill(b"{}"),
    # Blanks make the body longer than FAST_BYTES.
    "an array of empty objects": lambda: b"[%s]" % b",".join([b"{%s}" % (b" " * 100)] * 3000),
    "boundaries in a string": lambda: log(b'"a":"%s"' % fill(b"}{")),
    "boundaries and escapes in a string": lambda: log(b'"a":"%s"' % fill(b'}{\\"\\\\', parts=2)),
    "a string that does not end": lambda: b'{"a":"' + fill(b"}{"),
    "braces": lambda: fill(b"}"),
    "white space": lambda: b"{}" + fill(b" "),
    "lists": lambda: fill(b"["),
    "invalid UTF-8": lambda: fill(b"\xff"),
    "text": lambda: fill(b"plain text " * 5 + b"\n", parts=3),
    "dots": lambda: b'{"a":' * 500 + b"{}" + b"}" * 500,
}


@pytest.mark.parametrize("is_lines", [False, True])
@pytest.mark.parametrize("name", ANY_JSON_BODIES)
def test_any_json_yields(name: str, is_lines: bool) -> None:
    """Moved and kept logs: others are served during the decode of a body of any form."""
    body = ANY_JSON_BODIES[name]()
    options = Options(
        {"project_id": "p"},
        moves_unknown=True,
        sources={"message": ("a.a." * 60 + "a", "a"), "timestamp": ("time", "timestamp")},
        on_invalid=OnInvalid.KEEP,
    )
    context = make_context(options=options)
    check(lambda: (decode_lines if is_lines else decode_json)(body, context))


def event(members: bytes) -> bytes:
    return b'{"index":"p",%s}' % members


#: Events of HEC, each body with nothing but copies of one, or one that is long.
EVENT_BODIES: dict[str, Callable[[], bytes]] = {
    "empty objects": lambda: fill(b"{}", parts=2),
    "tiny events": lambda: fill(event(b'"event":1'), parts=3),
    "tiny events on lines": lambda: fill(event(b'"event":{"message":"m"}'), b"\r\n", parts=3),
    "an array of tiny events": lambda: b"[%s]" % fill(b'{"event":1}', b",", parts=3),
    "commas": lambda: fill(b"{}", b","),
    "braces": lambda: fill(b"}"),
    "open braces": lambda: fill(b"{"),
    "boundaries in strings": lambda: fill(event(b'"event":"%s"' % (b"}{" * 40_000)), parts=3),
    "white space between events": lambda: fill(event(b'"event":1') + b" " * 1000),
    "deep lists": lambda: fill(event(b'"event":%s' % (b"[" * 300 + b"]" * 300))),
    "lists that do not end": lambda: event(b'"event":' + fill(b"[")),
    "integers": lambda: event(b'"event":[%s]' % fill(b"9" * 4300, b",")),
    "times of many digits": lambda: fill(event(b'"event":1,"time":%s' % (b"9" * 10_000))),
    "a time of many digits": lambda: event(b'"event":1,"time":%s' % fill(b"9")),
    "a long name": lambda: event(b'"%s":1' % fill(b"k")),
    "long names": lambda: fill(event(b'"event":{"message":"m","%s":1}' % (b"k" * 60_000))),
    "names": lambda: event(b'"event":{%s}' % b",".join(b'"%d":1' % n for n in range(800_000))),
    "fields": lambda: fill(event(b'"event":1,"fields":{"a":1,"level":"","service":""}'), parts=3),
    "escapes": lambda: event(b'"event":"%s\\ud83d"' % fill(b"\\n")),
    "invalid UTF-8": lambda: fill(b"\xff"),
}


@pytest.mark.parametrize("name", EVENT_BODIES)
def test_events_yield(name: str) -> None:
    """Tiny, deep, long or malformed: others are served during the decode of events."""
    body = EVENT_BODIES[name]()
    check(lambda: hec.decode_events(body, make_context(options=OPTIONS)))


def documents(*texts: bytes, action: bytes = b'{"create":{}}') -> bytes:
    return b"".join(b"%s\n%s\n" % (action, text) for text in texts)


#: Requests of Elasticsearch's bulk, with copies of a document, or a long one.
BULK_BODIES: dict[str, Callable[[], bytes]] = {
    "blank lines": lambda: fill(b"\n"),
    "empty objects": lambda: fill(b"{}\n"),
    "tiny documents": lambda: fill(documents(b"{}")),
    "deletes": lambda: fill(b'{"delete":{}}\n'),
    "other actions": lambda: b"".join(
        documents(b"{}", action=b'{"create":{"_id":"%d"}}' % n) for n in range(49_999)
    ),
    "deep lists": lambda: fill(documents(b'{"a":%s}' % (b"[" * 300 + b"]" * 300))),
    "a deep list": lambda: documents(b'{"a":%s' % fill(b"[")),
    "integers": lambda: documents(b'{"a":[%s]}' % fill(b"9" * 4300, b",")),
    "timestamps of many digits": lambda: fill(documents(b'{"@timestamp":%s}' % (b"9" * 10_000))),
    "a timestamp that ends badly": lambda: documents(
        b'{"@timestamp":"2024-05-31 15:30:45.%sx"}' % fill(b"1")
    ),
    "a long name": lambda: documents(b'{"%s":1}' % fill(b"k")),
    "long names": lambda: fill(documents(b'{"message":"m","%s":1}' % (b"k" * 60_000))),
    "names": lambda: documents(b"{%s}" % b",".join(b'"%d":1' % n for n in range(800_000))),
    "objects of names": lambda: fill(
        documents(b'{"service":{%s}}' % b",".join(b'"%d":1' % n for n in range(1000)))
    ),
    "an action of many names": lambda: documents(
        b"{}", action=b'{"create":{%s}}' % b",".join(b'"%d":1' % n for n in range(800_000))
    ),
    "escapes": lambda: documents(b'{"message":"%s\\ud83d"}' % fill(b"\\n")),
    "invalid UTF-8": lambda: fill(documents(b'{"message":"\xff"}'), parts=3),
}


@pytest.mark.parametrize("name", BULK_BODIES)
def test_documents_yield(name: str) -> None:
    """Tiny, deep, long or malformed: others are served during the decode of documents."""
    body = BULK_BODIES[name]()
    check(lambda: Bulk("p").decode(body, make_context(options=OPTIONS)))
