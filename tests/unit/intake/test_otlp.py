"""What becomes of an export, in both encodings alike."""

import json
import math
import random
import time
from collections.abc import Callable, Collection
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from astralog.errors import Rejection
from astralog.intake import otlp, otlp_log, otlp_protobuf
from astralog.intake.decoder import Decoded
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.otlp import decode
from astralog.intake.otlp_json import Json
from astralog.intake.otlp_protobuf import Protobuf
from tests.support.decoding import make_context
from tests.support.otlp import (
    JSON,
    PROTOBUF,
    SPAN_ID,
    TIME,
    TRACE_ID,
    any_value,
    encode,
    key_values,
    make_export,
    make_record,
)

PARTIAL = Options(is_partial=True)


class Export:
    """Decodes exports of one encoding."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.encoding: otlp.Encoding = Json() if kind == JSON else Protobuf()

    def decode(
        self,
        export: ExportLogsServiceRequest,
        options: Options = NO_OPTIONS,
        projects: Collection[str] | None = None,
    ) -> Decoded:
        return self.decode_body(encode(export, self.kind), options, projects)

    def decode_body(
        self,
        body: bytes,
        options: Options = NO_OPTIONS,
        projects: Collection[str] | None = None,
    ) -> Decoded:
        return decode(self.encoding, body, make_context(projects, options))

    def logs(self, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        """Return the logs that an export becomes, as they are stored."""
        batch, invalid = self.decode(*arguments, **named)
        assert invalid is None
        *lines, rest = batch.lines.split(b"\n")
        assert (b"", batch.logs) == (rest, len(lines))
        return [json.loads(line) for line in lines]

    def log(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        (log,) = self.logs(*arguments, **named)
        return log

    def rejection(self, *arguments: Any, **named: Any) -> Rejection:
        with pytest.raises(Rejection) as rejected:
            self.decode(*arguments, **named)
        return rejected.value

    def error(self, *arguments: Any, **named: Any) -> dict[str, list[str]]:
        """Return what is wrong with the one log of an export."""
        rejection = self.rejection(*arguments, **named)
        assert rejection.code == "invalid_batch"
        assert rejection.errors is not None
        (error,) = rejection.errors["logs"].values()
        found: dict[str, list[str]] = error
        return found


@pytest.fixture(params=[PROTOBUF, JSON])
def export(request: pytest.FixtureRequest) -> Export:
    return Export(request.param)


# --- What becomes what


def test_a_record_becomes_a_log(export: Export) -> None:
    """Each part goes where docs/api.md says, and nothing else is stored."""
    record = make_record(
        "paid",
        observed_time_unix_nano=TIME + 5,
        severity_number=10,
        attributes={"user.id": 7, "ok": True},
        dropped_attributes_count=2,
        flags=1,
        trace_id=TRACE_ID,
        span_id=SPAN_ID,
        event_name="payment",
    )
    made = make_export(record)
    (group,) = made.resource_logs
    group.schema_url = "https://example/resource"
    group.resource.dropped_attributes_count = 1
    (scoped,) = group.scope_logs
    scoped.scope.name, scoped.scope.version = "shop.orders", "1.2"
    scoped.scope.attributes.extend(key_values({"a": 1}))
    assert {
        "project_id": "org-xyz",
        "timestamp": "2024-05-31T15:30:45.123456789Z",
        "level": "INFO",
        "service": "shop",
        "message": "paid",
        "metadata": {
            "attributes": {"user.id": 7, "ok": True},
            "trace_id": TRACE_ID.hex(),
            "span_id": SPAN_ID.hex(),
            "flags": 1,
            "severity_number": 10,
            "event_name": "payment",
            "dropped_attributes_count": 2,
            "resource": {
                "attributes": {"service.name": "shop", "project_id": "org-xyz"},
                "dropped_attributes_count": 1,
                "schema_url": "https://example/resource",
            },
            "scope": {"name": "shop.orders", "version": "1.2", "attributes": {"a": 1}},
        },
    } == export.log(made)


def test_an_empty_record_is_a_log(export: Export) -> None:
    """What a record lacks has a value of its own, and its time is that of its arrival."""
    before = time.time_ns()
    made = make_export(
        make_record(None, time_unix_nano=None, severity_text=None), resource={"project_id": "p"}
    )
    log = export.log(made)
    assert otlp_log.format_time(before) <= log.pop("timestamp") <= otlp_log.format_time(2**63)
    assert {
        "project_id": "p",
        "level": "unspecified",
        "service": "unknown_service",
        "message": "",
        "metadata": {"resource": {"attributes": {"project_id": "p"}}},
    } == log


@pytest.mark.parametrize(
    ("nanoseconds", "stored"),
    [
        (1, "1970-01-01T00:00:00.000000001Z"),
        (TIME, "2024-05-31T15:30:45.123456789Z"),
        (2**64 - 1, "2554-07-21T23:34:33.709551615Z"),
    ],
)
def test_a_time_is_stored_to_the_nanosecond(export: Export, nanoseconds: int, stored: str) -> None:
    """Every time that 64 bits hold lies in the years 1 to 9999."""
    assert stored == export.log(make_export(make_record(time_unix_nano=nanoseconds)))["timestamp"]


def test_the_time_observed_stands_for_one_that_is_missing(export: Export) -> None:
    """A record without a time has that at which it was seen."""
    record = make_record(time_unix_nano=None, observed_time_unix_nano=TIME)
    assert "2024-05-31T15:30:45.123456789Z" == export.log(make_export(record))["timestamp"]


@pytest.mark.parametrize(
    ("number", "level"),
    [
        *((1, "trace"), (4, "trace"), (5, "debug"), (9, "info"), (12, "info"), (13, "warn")),
        *((17, "error"), (24, "fatal"), (0, "unspecified"), (25, "unspecified")),
    ],
)
def test_the_level_is_the_text_else_that_of_the_number(
    export: Export, number: int, level: str
) -> None:
    """A text is kept as it is, with its number in the metadata."""
    log = export.log(make_export(make_record(severity_text=None, severity_number=number)))
    assert level == log["level"]
    assert "severity_number" not in log["metadata"]
    log = export.log(make_export(make_record(severity_text="Notice", severity_number=number)))
    assert ("Notice", number) == (log["level"], log["metadata"].get("severity_number", 0))


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        *(("text", "text"), ("", ""), ("ä\U0001f600\n" * 100, "ä\U0001f600\n" * 100)),
        *((7, 7), (-7, -7), (127, 127), (128, 128), (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63))),
        *((0.5, 0.5), (-1e300, -1e300), (True, True), (False, False), (None, None)),
        *((math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")),
        *((b"\xff\x00", "/wA="), ([1, "a", [None]], [1, "a", [None]]), ([], [])),
        ({"a": {"b": [1.5, False]}, "": 1}, {"a": {"b": [1.5, False]}, "": 1}),
    ],
)
def test_values_are_those_of_json(export: Export, value: Any, stored: Any) -> None:
    """An attribute is stored as a value of its kind, a body as text, as JSON where it is none."""
    log = export.log(make_export(make_record(value, attributes={"key": value, "ü" * 70: value})))
    assert {"key": stored, "ü" * 70: stored} == log["metadata"]["attributes"]
    if isinstance(stored, str) or stored is None:
        assert (stored or "") == log["message"]
    else:
        assert stored == json.loads(log["message"])


def test_of_two_attributes_with_one_key_the_last_counts(export: Export) -> None:
    """As in any object of JSON."""
    record = make_record()
    record.attributes.extend([*key_values({"a": 1}), *key_values({"a": 2})])
    assert {"a": 2} == export.log(make_export(record))["metadata"]["attributes"]


def test_an_id_of_zeroes_is_none(export: Export) -> None:
    """OpenTelemetry has it so for what is not part of a trace."""
    log = export.log(make_export(make_record(trace_id=bytes(16), span_id=bytes(8))))
    assert {"resource"} == log["metadata"].keys()


@pytest.mark.parametrize("name", ["trace_id", "span_id"])
@pytest.mark.parametrize("size", [1, 7, 15, 17, 32])
def test_an_id_has_one_length(export: Export, name: str, size: int) -> None:
    """An id of another length is none, and the message names it."""
    error = export.error(make_export(make_record(), make_record(**{name: b"x" * size})))
    assert [name] == list(error)
    assert "bytes" in error[name][0]


def test_every_scope_and_resource_has_its_own_logs(export: Export) -> None:
    """Logs come in the order of the export, each with what its own resource says."""
    made = make_export(make_record("a"), make_record("b"))
    made.resource_logs[0].scope_logs.add().log_records.append(make_record("c"))
    made.resource_logs[0].scope_logs[1].scope.name = "other"
    made.MergeFrom(make_export(make_record("d"), resource={"project_id": "p", "service.name": "s"}))
    made.MergeFrom(make_export(resource={}))
    shown = [
        (log["message"], log["service"], log["metadata"].get("scope")) for log in export.logs(made)
    ]
    expected = [("a", "shop", None), ("b", "shop", None), ("c", "shop", {"name": "other"})]
    assert [*expected, ("d", "s", None)] == shown


# --- What the query and the token say


def test_the_project_is_that_of_the_query_the_resource_or_the_token(export: Export) -> None:
    """The first of the three that there is; else the message says all three."""
    named, bare = make_export(make_record()), make_export(make_record(), resource={})
    asked = Options({"project_id": "asked"})
    assert "asked" == export.log(named, asked)["project_id"]
    assert "org-xyz" == export.log(named, projects=["org-xyz", "b"])["project_id"]
    assert "mine" == export.log(bare, projects=["mine"])["project_id"]
    for projects in (None, ["a", "b"]):
        (message,) = export.error(bare, projects=projects)["project_id"]
        assert all(word in message for word in ("?project_id=", "resource", "token"))
    number = make_export(make_record(), resource={"project_id": 7})
    assert ["project_id"] == list(export.error(number))


def test_a_token_stays_bound(export: Export) -> None:
    """Neither the resource nor the query leads into a project of another."""
    for options in (NO_OPTIONS, Options({"project_id": "theirs"})):
        rejection = export.rejection(make_export(make_record()), options, projects=["mine"])
        assert ("forbidden_project", 1) == (rejection.code, rejection.logs)


def test_the_query_fills_in_a_service_and_a_level(export: Export) -> None:
    """What a record or its resource says comes first."""
    options = Options({"service": "asked", "level": "asked"})
    log = export.log(make_export(make_record()), options)
    assert ("shop", "INFO") == (log["service"], log["level"])
    bare = make_export(make_record(severity_text=None), resource={"project_id": "p"})
    log = export.log(bare, options)
    assert ("asked", "asked") == (log["service"], log["level"])


# --- What is rejected


def test_an_invalid_record_costs_the_export(export: Export) -> None:
    """The message counts, and names the invalid ones by their place in the whole export."""
    made = make_export(make_record("a"), make_record(trace_id=b"x"))
    made.MergeFrom(make_export(make_record("c"), make_record(span_id=b"x")))
    rejection = export.rejection(made)
    assert ("invalid_batch", 4) == (rejection.code, rejection.logs)
    assert "2 of 4 logs are invalid; nothing was stored" == rejection.message
    assert rejection.errors is not None
    assert [1, 3] == list(rejection.errors["logs"])


def test_partial_stores_the_valid_records(export: Export) -> None:
    """With partial=true, the others are counted and described."""
    made = make_export(make_record("a"), make_record(trace_id=b"x"), make_record("c"))
    batch, invalid = export.decode(made, PARTIAL)
    assert [b"a", b"c"] == [line.split(b'"message":"')[1][:1] for line in batch.lines.splitlines()]
    assert invalid is not None
    assert (1, [1]) == (invalid.count, list(invalid.errors))


def test_no_more_invalid_records_are_checked_than_are_counted(export: Export) -> None:
    """An export of nothing but invalid records ends early."""
    made = make_export(*[make_record(trace_id=b"x")] * 1100)
    assert export.rejection(made, NO_OPTIONS).message.startswith("At least 1000 of 1")


def test_the_valid_records_are_stored_however_many_are_invalid(export: Export) -> None:
    """With partial=true all invalid ones are counted, and the first are described."""
    half = [make_record(trace_id=b"x")] * 1100
    batch, invalid = export.decode(make_export(*half, make_record("a"), *half), PARTIAL)
    assert invalid is not None
    assert (1, 2200, 20) == (batch.logs, invalid.count, len(invalid.errors))


@pytest.mark.parametrize("kind", [list, dict])
def test_values_lie_in_one_another_to_a_depth(export: Export, kind: type) -> None:
    """30 lists or maps deep are valid, 31 are not, and any number deeper is no failure."""

    def nested(depth: int) -> Any:
        value: Any = "x"
        for _ in range(depth):
            value = [value] if kind is list else {"a": value}
        return value

    for fits in (make_record(nested(30)), make_record(attributes={"a": nested(30)})):
        export.log(make_export(fits))
    assert "_schema" in export.error(make_export(make_record(nested(31))))
    error = export.error(make_export(make_record(attributes={"a": nested(31)})))
    assert "_schema" in error


def test_a_record_has_a_number_of_attributes(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More attributes than the limit make a log invalid; of a resource, they cost the export."""
    monkeypatch.setattr(otlp_log, "MAX_ATTRIBUTES", 3)
    three, four = dict.fromkeys("abc", 1), dict.fromkeys("abcd", 1)
    export.log(make_export(make_record(attributes=three)))
    assert "_schema" in export.error(make_export(make_record(attributes=four)))
    rejection = export.rejection(make_export(make_record(), resource=four))
    assert export.encoding.invalid_code == rejection.code


def test_what_is_said_once_is_repeated_within_bounds(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long resource with many short records must not fill the memory."""
    monkeypatch.setattr(otlp, "MAX_REPEATED_BYTES", 100_000)
    resource = {"project_id": "p", "long": "x" * 10_000}
    export.logs(make_export(*[make_record()] * 10, resource=resource))
    rejection = export.rejection(make_export(*[make_record()] * 100, resource=resource))
    assert "body_too_large" == rejection.code


def test_an_export_has_a_number_of_scopes(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scopes without logs cost as much as others."""
    monkeypatch.setattr(otlp, "MAX_SCOPES", 3)
    made = make_export(make_record())
    for _ in range(2):
        made.resource_logs[0].scope_logs.add()
    export.log(made)
    for name in ("scope", "resource"):
        more = ExportLogsServiceRequest.FromString(made.SerializeToString())
        _ = more.resource_logs[0].scope_logs.add() if name == "scope" else more.resource_logs.add()
        assert "body_too_large" == export.rejection(more).code


def test_an_export_of_nothing_is_accepted(export: Export) -> None:
    """As the specification has it."""
    for made in (ExportLogsServiceRequest(), make_export(), make_export(resource={})):
        assert [] == export.logs(made)


def test_a_long_export_is_decoded_as_a_short_one(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes the slow way, step by step, and comes out the same."""
    made = make_export(*[make_record(f"{n}", attributes={"n": n}) for n in range(250)])
    expected = export.logs(made)
    monkeypatch.setattr(otlp, "FAST_BYTES", 0)
    assert expected == export.logs(made)
    assert [f"{n}" for n in range(250)] == [log["message"] for log in expected]


# --- What is of one encoding alone


def test_what_is_no_protobuf_is_rejected() -> None:
    """A truncated body, wrong wire types, invalid UTF-8: each is 400, with its place."""
    export = Export(PROTOBUF)
    body = make_export(make_record(attributes={"key": "value"}), make_record()).SerializeToString()
    codes = set()
    for end in range(1, len(body)):
        try:
            export.decode_body(body[:end])
        except Rejection as rejection:
            codes.add(rejection.code)
    assert {"invalid_protobuf"} == codes
    with pytest.raises(Rejection, match="export") as rejected:
        export.decode_body(b'{"resourceLogs":[]}')
    assert "invalid_protobuf" == rejected.value.code


@pytest.mark.parametrize("key", [b"key", b"k" * 200])
def test_invalid_utf8_makes_a_log_invalid(key: bytes) -> None:
    """In a key, in a value, short or long, and in a body."""
    export = Export(PROTOBUF)
    body = make_export(
        make_record("good"), make_record("bad0", attributes={"key0": "val0"})
    ).SerializeToString()
    for place in (b"bad0", b"key0", b"val0"):
        with pytest.raises(Rejection) as rejected:
            export.decode_body(body.replace(place, b"ba\xff0"))
        assert rejected.value.errors is not None
        assert [1] == list(rejected.value.errors["logs"])
    long = make_export(make_record(attributes={"x" * 200: "y" * 200})).SerializeToString()
    for letter in (b"x", b"y"):
        with pytest.raises(Rejection, match="1 of 1"):
            export.decode_body(long.replace(letter * 200, letter * 199 + b"\xff"))


def test_a_long_list_is_invalid_in_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds takes many times its bytes; a long string does not."""
    export = Export(PROTOBUF)
    export.log(make_export(make_record("x" * 300_000, attributes={"a": "x" * 300_000})))
    export.log(make_export(make_record([None] * 100_000)))
    for record in (make_record([None] * 140_000), make_record(attributes={"a": [None] * 140_000})):
        (message,) = export.error(make_export(record))["_schema"]
        assert "262144 bytes" in message


def test_a_submessage_that_stands_twice_is_the_two_joined() -> None:
    """As protobuf has it for what was written in parts."""
    first = make_export(make_record("a")).resource_logs[0]
    second = make_export(resource={"more": 1}).resource_logs[0]
    second.ClearField("scope_logs")
    body = first.SerializeToString() + second.SerializeToString()
    whole = b"\x0a" + bytes([len(body)]) + body
    assert 127 >= len(body)
    resource = Export(PROTOBUF).decode_body(whole).batch.lines
    assert {"service.name": "shop", "project_id": "org-xyz", "more": 1} == json.loads(resource)[
        "metadata"
    ]["resource"]["attributes"]


def test_an_attribute_without_key_or_value_is_stored() -> None:
    """Protobuf leaves out what is empty."""
    record = make_record()
    record.attributes.add(key="none")
    record.attributes.add()
    record.attributes.add(value=any_value("x"))
    record.attributes.add(key="strange", value=any_value("x")).key_strindex = 3
    log = Export(PROTOBUF).log(make_export(record))
    assert {"none": None, "": "x", "strange": "x"} == log["metadata"]["attributes"]


def test_attributes_are_read_as_protobuf_reads_them() -> None:
    """Short ones are read as they stand on the wire: what comes out is the same, or none is valid.

    What was read before must not change what is read after it.
    """
    chance = random.Random(1)
    values: list[Any] = ["", "x", "ü" * 40, 0, 1, 300, 2**40, 2**62, -1, 0.5, math.inf, True, None]
    values += [b"", b"x", [], [1], {"a": 1}]
    attributes = otlp_protobuf._Attributes()
    outcomes = set()
    for _ in range(20_000):
        (made,) = key_values({chance.choice(("", "k", "key", "k" * 120)): chance.choice(values)})
        text = bytearray(made.SerializeToString())
        for _ in range(chance.choice((0, 1, 1, 2))):
            place = chance.randrange(len(text) + 1)
            piece = bytes([chance.choice(b"\n\x12\x18!\x00\x01\x02\xff")])
            text[place : place + chance.randrange(2)] = piece
        if chance.random() < 0.2:
            del text[chance.randrange(len(text) + 1) :]
        expected = _outcome(lambda text: dict([otlp_protobuf._parse_attribute(text)]), bytes(text))
        found = _outcome(lambda text: attributes.read([text]), bytes(text))
        assert expected == found, bytes(text)
        outcomes.add(found is None)
    assert {True, False} == outcomes


def _outcome(read: Callable[[bytes], dict[str, Any]], text: bytes) -> dict[str, Any] | None:
    try:
        return read(text)
    except ValueError:
        return None


def json_export(record: str) -> bytes:
    return f"""{{"resourceLogs":[{{"resource":{{"attributes":[{{"key":"project_id",
    "value":{{"stringValue":"p"}}}}]}},"scopeLogs":[{{"logRecords":[{record}]}}]}}]}}""".encode()


@pytest.mark.parametrize(
    ("record", "field", "stored"),
    [
        ('{"timeUnixNano":"1717169445000000001"}', "timestamp", "2024-05-31T15:30:45.000000001Z"),
        ('{"timeUnixNano":1717169445000000001}', "timestamp", "2024-05-31T15:30:45.000000001Z"),
        ('{"severityNumber":9,"severityText":null}', "level", "info"),
        ('{"body":{"intValue":"42"}}', "message", "42"),
        ('{"body":{"intValue":42}}', "message", "42"),
        ('{"body":{"doubleValue":"NaN"}}', "message", "NaN"),
        ('{"body":{"bytesValue":"_wA"}}', "message", "/wA="),
        ('{"body":null,"attributes":null,"unknown":{"a":[1]}}', "message", ""),
        ('{"body":{"stringValue":"\\ud83d"}}', "message", "\ufffd"),
        ('{"trace_id":"not a name","body":{"stringValue":"x"}}', "message", "x"),
    ],
)
def test_json_is_that_of_otlp(record: str, field: str, stored: str) -> None:
    """Integers may be strings, null is not set, unknown fields are ignored."""
    line = Export(JSON).decode_body(json_export(record)).batch.lines
    assert stored == json.loads(line)[field]


def test_ids_are_hexadecimal_in_json() -> None:
    """In either case, as the specification has it; base64 is another length."""
    text = TRACE_ID.hex()
    for shown in (text, text.upper()):
        line = Export(JSON).decode_body(json_export(f'{{"traceId":"{shown}"}}')).batch.lines
        assert text == json.loads(line)["metadata"]["trace_id"]


@pytest.mark.parametrize(
    "record",
    [
        '{"timeUnixNano":-1}',
        '{"timeUnixNano":18446744073709551616}',
        '{"timeUnixNano":"18446744073709551616"}',
        '{"timeUnixNano":"soon"}',
        '{"body":{"intValue":9223372036854775808}}',
        '{"body":{"doubleValue":1e999}}',
        '{"body":{"bytesValue":"*"}}',
        '{"body":{"stringValue":5}}',
        '{"flags":-1}',
        '{"traceId":"000102030405060708090a0b0c0d0e0g"}',
        '{"spanId":"AAECAwQFBgc="}',
        '{"attributes":[null]}',
        "[]",
        "null",
        '{"body":' + '{"arrayValue":{"values":[' * 200 + "]}}" * 200 + "}",
    ],
)
def test_what_is_no_record_is_invalid_in_json(record: str) -> None:
    """The log is named, and nothing is stored."""
    with pytest.raises(Rejection, match="1 of 2 logs") as rejected:
        Export(JSON).decode_body(json_export("{}," + record))
    assert rejected.value.errors is not None
    assert [1] == list(rejected.value.errors["logs"])


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"nonsense", b'{"resourceLogs":5}', b'{"resourceLogs":[5]}', b"\xff"),
        *(
            b'{"resourceLogs":[{"scopeLogs":{}}]}',
            b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ),
        b'{"resourceLogs":[{"resource":{"attributes":[{"key":"\xff"}]}}]}',
    ],
)
def test_what_is_no_export_is_rejected_in_json(body: bytes) -> None:
    """An array, half a body, a field of another kind: 400, and no failure."""
    with pytest.raises(Rejection) as rejected:
        Export(JSON).decode_body(body)
    assert "invalid_json" == rejected.value.code


def test_json_of_too_many_values_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost many times their bytes."""
    monkeypatch.setattr("astralog.intake.otlp_json.LONG_BODY_COMMAS", 3)
    Export(JSON).decode_body(json_export('{"attributes":[]}'))
    with pytest.raises(Rejection) as rejected:
        Export(JSON).decode_body(json_export("{},{},{},{}"))
    assert "body_too_large" == rejected.value.code
    monkeypatch.undo()
    monkeypatch.setattr("astralog.intake.otlp_json.LONG_LOG_COMMAS", 100)
    with pytest.raises(Rejection, match="1 of 1"):
        Export(JSON).decode_body(json_export('{"x":[' + "1," * 200 + "1]}"))
