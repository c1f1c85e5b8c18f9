"""Exports in JSON: protobuf's own names, numbers and values, and others."""

import base64
import json
import math
import random
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import SeverityNumber

from astralog.errors import Rejection
from astralog.intake.options import OnInvalid, Options
from tests.support.otlp import (
    JSON,
    PROTOBUF,
    SPAN_ID,
    TRACE_ID,
    Export,
    key_values,
    make_export,
    make_record,
)

export = Export(JSON)

NO_RECORDS = "has no log records, but "


def json_export(record: str | bytes) -> bytes:
    """Return an export of a record, or of several with commas between them."""
    text = record.encode() if isinstance(record, str) else record
    return (
        b"""{"resourceLogs":[{"resource":{"attributes":[{"key":"project_id",
    "value":{"stringValue":"p"}}]},"scopeLogs":[{"logRecords":[%s]}]}]}"""
        % text
    )


def log_of(record: str | bytes) -> dict[str, Any]:
    """Return the stored log of a record."""
    found: dict[str, Any] = json.loads(export.decode_body(json_export(record)).batch.lines)
    return found


def error_of(record: str) -> dict[str, list[str]]:
    """Return the error of a record that follows a valid one."""
    with pytest.raises(Rejection, match="1 of 2 logs") as rejected:
        export.decode_body(json_export("{}," + record))
    assert rejected.value.errors is not None
    [(number, errors)] = rejected.value.errors["logs"].items()
    assert 1 == number
    found: dict[str, list[str]] = errors
    return found


def rejection_of(body: bytes) -> Rejection:
    with pytest.raises(Rejection) as rejected:
        export.decode_body(body)
    return rejected.value


# --- The same in both encodings

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
attributes = st.dictionaries(texts, values, max_size=3)
numbers = st.integers(0, 2**32 - 1)
records = st.builds(
    make_record,
    values,
    time_unix_nano=st.integers(1, 2**64 - 1),
    observed_time_unix_nano=st.integers(0, 2**64 - 1),
    severity_number=st.integers(0, 24),
    severity_text=texts,
    attributes=attributes,
    dropped_attributes_count=numbers,
    flags=numbers,
    trace_id=st.sampled_from((b"", TRACE_ID, bytes(16))),
    span_id=st.sampled_from((b"", SPAN_ID, bytes(8))),
    event_name=texts,
)


@st.composite
def exports(draw: st.DrawFn) -> ExportLogsServiceRequest:
    """Return an export with some of every message."""
    made = ExportLogsServiceRequest()
    for _ in range(draw(st.integers(1, 2))):
        part = make_export(*draw(st.lists(records, max_size=2)), resource=draw(attributes))
        resource, scope = part.resource_logs[0], part.resource_logs[0].scope_logs[0]
        resource.schema_url, scope.schema_url = draw(texts), draw(texts)
        resource.resource.dropped_attributes_count = draw(numbers)
        scope.scope.name, scope.scope.version = draw(texts), draw(texts)
        scope.scope.attributes.extend(key_values(draw(attributes)))
        scope.scope.dropped_attributes_count = draw(numbers)
        made.MergeFrom(part)
    return made


def mix(chance: random.Random, camel: Any, snake: Any, hexadecimal: bool) -> Any:
    """Return JSON with either name of each member; ids are hexadecimal or base64."""
    if isinstance(camel, list):
        return [mix(chance, *pair, hexadecimal) for pair in zip(camel, snake, strict=True)]
    if not isinstance(camel, dict):
        return camel
    mixed = {}
    for name, other in zip(camel, snake, strict=True):
        value = mix(chance, camel[name], snake[other], hexadecimal)
        if hexadecimal and name in ("traceId", "spanId"):
            value = base64.b64decode(value).hex()
        mixed[chance.choice((name, other))] = value
    return mixed


@pytest.mark.slow
@given(exports(), st.randoms(use_true_random=False), st.booleans(), st.booleans())
def test_an_export_is_the_same_in_protobuf_and_in_json_of_either_names(
    made: ExportLogsServiceRequest,
    chance: random.Random,
    hexadecimal: bool,
    are_enums_numbers: bool,
) -> None:
    """JSON may use protobuf's JSON names, its original names, or both."""
    expected = Export(PROTOBUF).decode(made, Options({"project_id": "p"})).batch.lines
    camel, snake = (
        MessageToDict(
            made,
            preserving_proto_field_name=is_snake,
            use_integers_for_enums=are_enums_numbers,
        )
        for is_snake in (False, True)
    )
    for choice in (camel, snake, mix(chance, camel, snake, hexadecimal)):
        body = json.dumps(choice, ensure_ascii=chance.random() < 0.5).encode()
        assert expected == export.decode_body(body, Options({"project_id": "p"})).batch.lines


# --- Names


def test_names_of_protobuf_are_accepted_at_every_level() -> None:
    """A sender that keeps them loses nothing."""
    body = b"""{"resource_logs":[{"schema_url":"r","resource":{"dropped_attributes_count":1,
        "attributes":[{"key":"project_id","value":{"string_value":"p"}}]},
        "scope_logs":[{"schema_url":"s","scope":{"dropped_attributes_count":2},
        "log_records":[{"time_unix_nano":"1717169445000000001","severity_number":10,
        "severity_text":"Notice","dropped_attributes_count":3,"event_name":"e",
        "trace_id":"000102030405060708090a0b0c0d0e0f","span_id":"0001020304050607",
        "body":{"kvlist_value":{"values":[{"key":"a","value":{"array_value":{"values":[
        {"int_value":"1"},{"double_value":0.5},{"bool_value":true},{"bytes_value":"AA=="}]}}}]}}}]}]}]}"""
    log = json.loads(export.decode_body(body).batch.lines)
    assert {
        "project_id": "p",
        "timestamp": "2024-05-31T15:30:45.000000001Z",
        "level": "Notice",
        "service": "unknown_service",
        "message": '{"a":[1,0.5,true,"AA=="]}',
        "metadata": {
            "trace_id": TRACE_ID.hex(),
            "span_id": SPAN_ID.hex(),
            "severity_number": 10,
            "event_name": "e",
            "dropped_attributes_count": 3,
            "resource": {
                "attributes": {"project_id": "p"},
                "dropped_attributes_count": 1,
                "schema_url": "r",
            },
            "scope": {"dropped_attributes_count": 2, "schema_url": "s"},
        },
    } == log


@pytest.mark.parametrize(
    "body",
    [
        b'{"resourceLogs":[],"resource_logs":[]}',
        b'{"resourceLogs":[{"scopeLogs":[],"scope_logs":[]}]}',
        b'{"resourceLogs":[{"scopeLogs":[{"log_records":[],"logRecords":[]}]}]}',
        b'{"resourceLogs":[{"schemaUrl":"a","schema_url":"a"}]}',
        b'{"resourceLogs":[{"scopeLogs":[{"schemaUrl":"a","schema_url":"a"}]}]}',
        json_export('{"traceId":"","trace_id":""}'),
        json_export('{"body":{"stringValue":"a","string_value":"a"}}'),
        json_export('{"attributes":[{"key":"a","value":{"int_value":1,"intValue":2}}]}'),
    ],
)
def test_a_field_under_both_of_its_names_is_invalid(body: bytes) -> None:
    """As in protobuf's own parser: neither value may be lost."""
    rejection = rejection_of(body)
    assert "given twice" in f"{rejection.message} {rejection.errors}"
    assert rejection.code in ("invalid_json", "invalid_batch")


def test_null_under_one_name_is_ignored() -> None:
    """It means that the field is not set."""
    log = log_of(f'{{"traceId":null,"trace_id":"{TRACE_ID.hex()}","span_id":null,"spanId":null}}')
    assert {"trace_id", "resource"} == log["metadata"].keys()
    batch, _ = export.decode_body(b'{"resource_logs":null,"resourceLogs":[]}')
    assert 0 == batch.logs


def test_last_value_of_a_repeated_name_counts() -> None:
    """As in any JSON object of the service."""
    assert "b" == log_of('{"body":{"stringValue":"a"},"body":{"stringValue":"b"}}')["message"]


@pytest.mark.parametrize(
    "record",
    [
        '{"body":{"stringValue":"x"},"unknown":{"a":[1]}}',
        '{"body":{"string_value":"x"},"unknown":"\\ud83d"}',
        '{"body":{"stringValue":"x","new":1},"attributes":[{"key":"a","value":{},"new":2}]}',
        '{"body":{"stringValue":"x"},"unknown":null,"":0}',
    ],
)
def test_unknown_members_are_ignored(record: str) -> None:
    """OTLP may add members."""
    assert "x" == log_of(record)["message"]
    body = json_export(record).replace(b'{"resource"', b'{"new":{},"resource"')
    body = body.replace(
        b'"attributes":[{"key":"project_id"', b'"new":1,"attributes":[{"key":"project_id"'
    )
    assert "x" == json.loads(export.decode_body(body).batch.lines)["message"]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ('{"message":"lost","level":"info"}', "message"),
        ('{"Body":{"stringValue":"lost"}}', "Body"),
        ('{"body":{"text":"lost"}}', "text"),
        ('{"body":{"arrayValue":{"items":["lost"]}}}', "items"),
        ('{"attributes":[{"key":"a","value":{"StringValue":"lost"}}]}', "StringValue"),
        ('{"attributes":[{"name":"lost"}]}', "name"),
        ('{"attributes":[{"":"lost"}]}', ""),
    ],
)
def test_record_with_only_unknown_members_is_invalid(record: str, name: str) -> None:
    """It would be stored as an empty log, or with an empty value."""
    (message,) = error_of(record)["_schema"]
    assert f"`{name}`" in message


# --- Bodies that are no export of logs


@pytest.mark.parametrize(
    "body",
    [
        *(
            b"{}",
            b" {} ",
            b'{"resourceLogs":[]}',
            b'{"resource_logs":[]}',
            b'{"resourceLogs":null}',
        ),
        *(b'{"resourceLogs":[{}]}', b'{"resourceLogs":[{"scopeLogs":[]}]}'),
        b'{"resourceLogs":[{"resource":{"attributes":[]},"scopeLogs":null,"schemaUrl":"x"}]}',
        b'{"resourceLogs":[{"scopeLogs":[{}]},{"scope_logs":[{"scope":{"name":"x"}}]}]}',
        b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[]},{"log_records":null}]}]}',
    ],
)
def test_empty_export_is_accepted(body: bytes) -> None:
    """As specified by OTLP."""
    assert (b"", 0) == tuple(export.decode_body(body).batch)


@pytest.mark.parametrize(
    ("body", "place", "name"),
    [
        (b'{"logs":[{"project_id":"p","message":"lost"}]}', "$", "logs"),
        (b'{"streams":[{"stream":{"a":"b"},"values":[["1","lost"]]}]}', "$", "streams"),
        (b'{"resourceSpans":[{"scopeSpans":[{"spans":[{}]}]}]}', "$", "resourceSpans"),
        (b'{"resource_spans":[]}', "$", "resource_spans"),
        (b'{"resourceMetrics":[{"scopeMetrics":[{"metrics":[{}]}]}]}', "$", "resourceMetrics"),
        (b'{"resourceProfiles":[{}]}', "$", "resourceProfiles"),
        (b'{"event":"lost","sourcetype":"x"}', "$", "event"),
        (b'{"ResourceLogs":[{"scopeLogs":[{"logRecords":[{}]}]}]}', "$", "ResourceLogs"),
        (b'{"":[]}', "$", ""),
        (b'{"\xff":[]}', "$", "\ufffd"),
        (b'{"resourceLogs":[],"streams":[{}]}', "$", "streams"),
        (b'{"resourceLogs":null,"logs":[{}]}', "$", "logs"),
        (b'{"resourceLogs":[{"scopeLogs":[]}],"logs":[{}]}', "$", "logs"),
        (
            b'{"resourceLogs":[{"instrumentationLibraryLogs":[{"logRecords":[{}]}]}]}',
            "$.resourceLogs[0]",
            "instrumentationLibraryLogs",
        ),
        (
            b'{"resource_logs":[{"resource":{},"instrumentation_library_logs":[{}]}]}',
            "$.resourceLogs[0]",
            "instrumentation_library_logs",
        ),
        (b'{"resourceLogs":[{},{"logRecords":[{}]}]}', "$.resourceLogs[1]", "logRecords"),
        (b'{"resourceLogs":[{"scopeSpans":[{}]}]}', "$.resourceLogs[0]", "scopeSpans"),
        (
            b'{"resourceLogs":[{"scopeLogs":[{"spans":[{}]}]}]}',
            "$.resourceLogs[0].scopeLogs[0]",
            "spans",
        ),
        (
            b'{"resourceLogs":[{"scopeLogs":[{"records":[{}],"logRecords":[]}]}]}',
            "$.resourceLogs[0].scopeLogs[0]",
            "records",
        ),
    ],
)
def test_a_body_without_records_is_no_export_if_it_has_something_else(
    body: bytes, place: str, name: str
) -> None:
    """The message names the members found and their place; partial=true makes no difference."""
    for options in (Options(), Options(on_invalid=OnInvalid.LEAVE_OUT)):
        with pytest.raises(Rejection) as rejected:
            export.decode_body(body, options)
        assert "invalid_json" == rejected.value.code
        assert f"`{place}` {NO_RECORDS}`{name}`" in rejected.value.message


@pytest.mark.parametrize(
    ("member", "hint"),
    [
        ("logs", "a batch of POST /v1/drain"),
        ("streams", "a push of Loki"),
        ("resource_spans", "an export of traces"),
        ("resourceMetrics", "an export of metrics"),
        ("instrumentationLibraryLogs", "an export of OTLP before 1.0"),
    ],
)
def test_a_well_known_body_is_recognised(member: str, hint: str) -> None:
    """The message names the right path."""
    assert f"this is {hint}." in rejection_of(b'{"%s":[{}]}' % member.encode()).message


def test_a_long_name_is_shortened_in_the_message() -> None:
    """It comes from the client, and may have megabytes."""
    assert len(rejection_of(b'{"%s":1}' % (b"`" * 1_000_000)).message) < 300
    assert len(error_of('{"%s":1}' % ("x" * 1000))["_schema"][0]) < 300


# --- Numbers, enums, bytes and ids


@pytest.mark.parametrize(
    ("record", "field", "stored"),
    [
        ('{"timeUnixNano":"1717169445000000001"}', "timestamp", "2024-05-31T15:30:45.000000001Z"),
        ('{"timeUnixNano":1717169445000000001}', "timestamp", "2024-05-31T15:30:45.000000001Z"),
        ('{"timeUnixNano":1.717169445e18}', "timestamp", "2024-05-31T15:30:45.000000000Z"),
        ('{"severityNumber":9,"severityText":null}', "level", "info"),
        ('{"severityNumber":9.0}', "level", "info"),
        ('{"severityNumber":"9"}', "level", "info"),
        ('{"severityNumber":null}', "level", "unspecified"),
        ('{"severity_number":"SEVERITY_NUMBER_INFO"}', "level", "info"),
        ('{"body":{"intValue":"42"}}', "message", "42"),
        ('{"body":{"intValue":42}}', "message", "42"),
        ('{"body":{"intValue":42.0}}', "message", "42"),
        ('{"body":{"intValue":4.2e1}}', "message", "42"),
        ('{"body":{"doubleValue":"NaN"}}', "message", "NaN"),
        ('{"body":{"doubleValue":"-Infinity"}}', "message", "-Infinity"),
        ('{"body":{"double_value":"Infinity"}}', "message", "Infinity"),
        ('{"body":{"doubleValue":"0.5"}}', "message", "0.5"),
        ('{"body":{"double_value":-0.0}}', "message", "-0.0"),
        ('{"body":{"double_value":1e300}}', "message", "1e300"),
        ('{"body":{"bytesValue":"_wA"}}', "message", "/wA="),
        ('{"body":{"bytesValue":"_wA="}}', "message", "/wA="),
        ('{"body":{"bytesValue":"/wA="}}', "message", "/wA="),
        ('{"body":{"bytesValue":"/w\\r\\nA="}}', "message", "/wA="),
        ('{"body":{"bytesValue":""}}', "message", ""),
        ('{"body":null,"attributes":null,"unknown":{"a":[1]}}', "message", ""),
        ('{"body":{"stringValue":"\\ud83d"}}', "message", "\ufffd"),
    ],
)
def test_json_is_that_of_otlp(record: str, field: str, stored: str) -> None:
    """Integers may be strings or integral floats, enums names, and null means not set."""
    assert stored == log_of(record)[field]


def test_each_severity_number_has_a_name() -> None:
    """The names are those of protobuf's enum."""
    for name, number in SeverityNumber.items():
        log = log_of(f'{{"severityNumber":"{name}","severityText":"x"}}')
        assert number == log["metadata"].get("severity_number", 0)


def test_ids_are_hexadecimal_in_json() -> None:
    """In either case, as specified; protobuf's base64 is recognised by its padding."""
    text = TRACE_ID.hex()
    for shown in (text, text.upper(), base64.b64encode(TRACE_ID).decode()):
        assert text == log_of(f'{{"traceId":"{shown}"}}')["metadata"]["trace_id"]
    assert SPAN_ID.hex() == log_of('{"spanId":"AAECAwQFBgc="}')["metadata"]["span_id"]


@pytest.mark.parametrize(
    "record",
    [
        '{"timeUnixNano":-1}',
        '{"timeUnixNano":1.5}',
        '{"timeUnixNano":18446744073709551616}',
        '{"timeUnixNano":"18446744073709551616"}',
        '{"timeUnixNano":"soon"}',
        '{"severityNumber":"INFO"}',
        '{"severityNumber":2147483648}',
        '{"severityNumber":"-2147483649"}',
        '{"severityNumber":true}',
        '{"body":{"intValue":9223372036854775808}}',
        '{"body":{"intValue":1e300}}',
        '{"body":{"doubleValue":1e999}}',
        '{"body":{"bytesValue":"*"}}',
        '{"body":{"bytesValue":"ä"}}',
        '{"body":{"stringValue":5}}',
        '{"body":"text"}',
        '{"flags":-1}',
        '{"traceId":"000102030405060708090a0b0c0d0e0g"}',
        '{"traceId":"AAECAwQFBgcICQoLDA0ODw"}',
        '{"spanId":"AAECAwQFBg=="}',
        '{"spanId":"="}',
        '{"attributes":[null]}',
        "[]",
        "null",
        '"text"',
        '{"body":' + '{"arrayValue":{"values":[' * 200 + "]}}" * 200 + "}",
        '{"body":' + '{"array_value":{"values":[' * 200 + "]}}" * 200 + "}",
    ],
)
def test_malformed_record_is_invalid_in_json(record: str) -> None:
    """The message names the log, and nothing is stored."""
    assert error_of(record)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"nonsense", b'{"resourceLogs":5}', b'{"resourceLogs":[5]}'),
        *(b"\xff", b'{"resourceLogs":[null]}', b'{"resourceLogs":[{"scopeLogs":[null]}]}'),
        *(
            b'{"resourceLogs":[{"scopeLogs":{}}]}',
            b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ),
        b'{"resourceLogs":[{"resource":{"attributes":5}}]}',
        b'{"resourceLogs":[{"schemaUrl":5}]}',
    ],
)
def test_malformed_export_is_rejected_in_json(body: bytes) -> None:
    """An array, half a body, a field of another type: 400, and no internal error."""
    assert "invalid_json" == rejection_of(body).code


def test_json_of_too_many_values_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take many times their bytes."""
    monkeypatch.setattr("astralog.intake.otlp_json.MAX_VALUES", 3)
    export.decode_body(json_export('{"attributes":[]}'))
    assert "body_too_large" == rejection_of(json_export("{},{},{},{}")).code
    monkeypatch.undo()
    monkeypatch.setattr("astralog.intake.otlp_json_messages.LONG_LOG_COMMAS", 100)
    monkeypatch.setattr("astralog.intake.value_limits.LONG_LOG_COMMAS", 100)
    assert "values" in error_of('{"x":[' + "1," * 200 + "1]}")["_schema"][0]
    resource = b'{"resourceLogs":[{"resource":{"x":[' + b"1," * 200 + b"1]}}]}"
    assert "resource: It has over 100 values" in rejection_of(resource).message


def test_a_record_of_long_integers_is_invalid() -> None:
    """Each takes up to half a millisecond, even in an unknown member."""
    integers = ",".join(["9" * 4300] * 300)
    for record in ('{"x":[%s]}', '{"severityText":"[%s]","x":[%s]}', '{"string_value":[%s]}'):
        text = record.replace("%s", integers)
        assert "integers of 1000 digits" in error_of(text)["_schema"][0]
    digits = "9" * 2_000_000
    assert digits == log_of(f'{{"body":{{"stringValue":"{digits}"}}}}')["message"]


def test_endless_number_is_no_internal_error() -> None:
    """Numbers of a million digits are invalid, or so large that they are infinite."""
    digits = "9" * 1_000_000
    for value in (f'"intValue":{digits}', f'"intValue":"{digits}"', f'"doubleValue":{digits}'):
        assert error_of(f'{{"body":{{{value}}}}}')
    assert error_of(f'{{"severityNumber":"{digits}"}}')
    stored = log_of(f'{{"body":{{"doubleValue":0.{digits}}}}}')["message"]
    assert math.isclose(1, float(stored))
