"""The logs of an export, the same in both encodings."""

import gc
import json
import math
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import settings
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from astralog.errors import Rejection
from astralog.intake import otlp, otlp_json, otlp_protobuf, otlp_protobuf_values, value_limits
from astralog.intake.decoder import Decoded
from astralog.intake.options import NO_OPTIONS, OnInvalid, Options
from astralog.intake.unix_time import format_time
from tests.support.otlp import (
    JSON,
    PROTOBUF,
    SPAN_ID,
    TIME,
    TRACE_ID,
    Export,
    any_value,
    encode,
    key_values,
    make_export,
    make_record,
    wire_field,
)

PARTIAL = Options(on_invalid=OnInvalid.LEAVE_OUT)


@pytest.fixture(params=[PROTOBUF, JSON])
def export(request: pytest.FixtureRequest) -> Export:
    return Export(request.param)


# --- What becomes what


def test_a_record_becomes_a_log(export: Export) -> None:
    """Each part is stored as in docs/api.md, and nothing else is."""
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
    """Missing parts have defaults, and its time is that of its arrival."""
    before = time.time_ns()
    made = make_export(
        make_record(None, time_unix_nano=None, severity_text=None), resource={"project_id": "p"}
    )
    log = export.log(made)
    assert format_time(before) <= log.pop("timestamp") <= format_time(2**63)
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
    """Every 64-bit time is in the years 1 to 9999."""
    assert stored == export.log(make_export(make_record(time_unix_nano=nanoseconds)))["timestamp"]


def test_observed_time_replaces_a_missing_time(export: Export) -> None:
    """A record without a time has its observed time."""
    record = make_record(time_unix_nano=None, observed_time_unix_nano=TIME)
    assert "2024-05-31T15:30:45.123456789Z" == export.log(make_export(record))["timestamp"]


@pytest.mark.parametrize(
    ("number", "level"),
    [
        *((1, "trace"), (4, "trace"), (5, "debug"), (8, "debug"), (9, "info"), (10, "info")),
        *((12, "info"), (13, "warn"), (14, "warn"), (17, "error"), (20, "error"), (21, "fatal")),
        *((24, "fatal"), (0, "unspecified"), (25, "unspecified"), (99, "unspecified")),
        *((2**31 - 1, "unspecified"), (-1, "unspecified"), (-(2**31), "unspecified")),
    ],
)
def test_the_level_is_the_text_else_that_of_the_number(
    export: Export, number: int, level: str
) -> None:
    """A number is stored with a text, and alone unless the level is exactly its name."""
    log = export.log(make_export(make_record(severity_text=None, severity_number=number)))
    assert level == log["level"]
    said = {"trace": 1, "debug": 5, "info": 9, "warn": 13, "error": 17, "fatal": 21}
    stored = 0 if said.get(level) == number else number
    assert stored == log["metadata"].get("severity_number", 0)
    for text in ("Notice", "info"):
        log = export.log(make_export(make_record(severity_text=text, severity_number=number)))
        assert (text, number) == (log["level"], log["metadata"].get("severity_number", 0))


def test_a_severity_number_is_kept_beside_the_level_of_the_query(export: Export) -> None:
    """The query sets the level of a record whose number is not one of OTLP's."""
    record = make_record(severity_text=None, severity_number=99)
    log = export.log(make_export(record), Options({"level": "asked"}))
    assert ("asked", 99) == (log["level"], log["metadata"]["severity_number"])


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
    """An attribute keeps its type; a body is text, or JSON if it is not text."""
    log = export.log(make_export(make_record(value, attributes={"key": value, "ü" * 70: value})))
    assert {"key": stored, "ü" * 70: stored} == log["metadata"]["attributes"]
    if isinstance(stored, str) or stored is None:
        assert (stored or "") == log["message"]
    else:
        assert stored == json.loads(log["message"])


def test_of_two_attributes_with_one_key_the_last_counts(export: Export) -> None:
    """As in any JSON object."""
    record = make_record()
    record.attributes.extend([*key_values({"a": 1}), *key_values({"a": 2})])
    assert {"a": 2} == export.log(make_export(record))["metadata"]["attributes"]


def test_id_of_zeroes_counts_as_absent(export: Export) -> None:
    """OpenTelemetry uses it for records outside of a trace."""
    log = export.log(make_export(make_record(trace_id=bytes(16), span_id=bytes(8))))
    assert {"resource"} == log["metadata"].keys()


@pytest.mark.parametrize("name", ["trace_id", "span_id"])
@pytest.mark.parametrize("size", [1, 7, 15, 17, 32])
def test_an_id_has_one_length(export: Export, name: str, size: int) -> None:
    """An id of another length is invalid, and the message names it."""
    error = export.error(make_export(make_record(), make_record(**{name: b"x" * size})))
    assert [name] == list(error)
    assert "bytes" in error[name][0]


def test_every_scope_and_resource_has_its_own_logs(export: Export) -> None:
    """Logs are in the order of the export, each with its own resource."""
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
    """The first of the three that is set; without any, the message names all three."""
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
    """Neither the resource nor the query gives access to another project."""
    for options in (NO_OPTIONS, Options({"project_id": "theirs"})):
        rejection = export.rejection(make_export(make_record()), options, projects=["mine"])
        assert ("forbidden_project", 1) == (rejection.code, rejection.logs)


def test_the_query_fills_in_a_service_and_a_level(export: Export) -> None:
    """The record's and the resource's own values take precedence."""
    options = Options({"service": "asked", "level": "asked"})
    log = export.log(make_export(make_record()), options)
    assert ("shop", "INFO") == (log["service"], log["level"])
    bare = make_export(make_record(severity_text=None), resource={"project_id": "p"})
    log = export.log(bare, options)
    assert ("asked", "asked") == (log["service"], log["level"])


# --- What is rejected


def test_invalid_record_rejects_the_export(export: Export) -> None:
    """The message counts the invalid ones and names them by their index in the export."""
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


def test_checking_stops_after_counting_enough_invalid_records(export: Export) -> None:
    """Without partial=true, an export of only invalid records ends early."""
    made = make_export(*[make_record(trace_id=b"x")] * 1100)
    assert export.rejection(made).message.startswith("At least 1000 of 1")


def test_partial_stores_valid_records_behind_any_number_of_invalid_ones(export: Export) -> None:
    """All are counted."""
    invalid = [make_record(trace_id=b"x")] * 1100
    decoded = export.decode(make_export(*invalid, make_record("kept")), PARTIAL)
    assert decoded.invalid is not None
    assert (1, 1100) == (decoded.batch.logs, decoded.invalid.count)


# --- A bad resource or scope


def spoil(source: Any) -> None:
    """Add an attribute that cannot be stored to a resource or scope."""
    value: Any = "x"
    for _ in range(31):
        value = [value]
    source.attributes.extend(key_values({"bad": value}))


def make_groups() -> ExportLogsServiceRequest:
    """Return an export of two resources: one with scopes of a and b, and of c, and one with d."""
    made = make_export(make_record("a"), make_record("b"))
    made.resource_logs[0].scope_logs.add().log_records.append(make_record("c"))
    made.MergeFrom(make_export(make_record("d"), resource={"project_id": "p"}))
    return made


def messages_of(decoded: Decoded) -> list[str]:
    return [json.loads(line)["message"] for line in decoded.batch.lines.splitlines()]


def test_bad_resource_invalidates_only_its_own_records(export: Export) -> None:
    """With partial=true, other resources' records are stored; the message names the resource."""
    made = make_groups()
    spoil(made.resource_logs[0].resource)
    decoded = export.decode(made, PARTIAL)
    assert decoded.invalid is not None
    assert (["d"], 3) == (messages_of(decoded), decoded.invalid.count)
    assert {0: ["resource"], 1: ["resource"], 2: ["resource"]} == {
        number: list(errors) for number, errors in decoded.invalid.errors.items()
    }
    rejection = export.rejection(made)
    assert ("invalid_batch", 4) == (rejection.code, rejection.logs)


def test_bad_scope_invalidates_only_its_own_records(export: Export) -> None:
    """With partial=true, other scopes' records are stored; the message names the scope."""
    made = make_groups()
    spoil(made.resource_logs[0].scope_logs[0].scope)
    decoded = export.decode(made, PARTIAL)
    assert decoded.invalid is not None
    assert (["c", "d"], 2) == (messages_of(decoded), decoded.invalid.count)
    assert {0, 1} == decoded.invalid.errors.keys()
    assert ["scope"] == list(decoded.invalid.errors[0])
    assert "invalid_batch" == export.rejection(made).code


def test_bad_resource_with_many_records_affects_no_others(export: Export) -> None:
    """All are counted, and the first ones described."""
    made = make_export(*[make_record()] * 3000)
    spoil(made.resource_logs[0].resource)
    made.MergeFrom(make_export(make_record("kept")))
    decoded = export.decode(made, PARTIAL)
    assert decoded.invalid is not None
    assert (["kept"], 3000) == (messages_of(decoded), decoded.invalid.count)
    assert list(range(20)) == list(decoded.invalid.errors)
    assert "invalid_batch" == export.rejection(made).code


def test_bad_resource_without_records_is_ignored_with_partial(export: Export) -> None:
    """Without partial=true, the export is invalid."""
    made = make_export()
    spoil(made.resource_logs[0].resource)
    made.MergeFrom(make_export(make_record("kept")))
    decoded = export.decode(made, PARTIAL)
    assert (["kept"], None) == (messages_of(decoded), decoded.invalid)
    rejection = export.rejection(made)
    assert export.encoding.invalid_code == rejection.code
    assert "resource: " in rejection.message


# --- What is rejected for its size


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_of_values_is_limited(export: Export, kind: type) -> None:
    """30 nested lists or maps are valid, 31 are not, and no depth is an internal error."""

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


def test_attributes_of_a_record_are_limited(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the limit a log is invalid, or all logs of a resource."""
    assert 10_000 == value_limits.MAX_ATTRIBUTES
    for module in (otlp_json, otlp_protobuf_values):
        monkeypatch.setattr(module, "MAX_ATTRIBUTES", 1000)
    fits = {f"{number}": 1 for number in range(1000)}
    more = fits | {"one": "more"}
    export.log(make_export(make_record(attributes=fits)))
    assert "_schema" in export.error(make_export(make_record(attributes=more)))
    del fits["0"]
    export.log(make_export(make_record(), resource=fits | {"project_id": "p"}))
    error = export.error(make_export(make_record(), resource=more))
    assert {"resource": ["There are more than 1000 attributes."]} == error


@pytest.mark.parametrize(
    "records",
    [
        [make_record()] * 101,
        [make_record(attributes=dict.fromkeys("abcdefghijk", 1))] * 10,
        [make_record([1] * 101)],
        [make_record([[1, 1], {"a": {"b": 2}}])] * 20,
        [make_record(attributes={"a": {"b": [n] * 10}}) for n in range(10)],
    ],
    ids=["records", "attributes", "a list", "short lists", "maps in attributes"],
)
def test_values_of_an_export_are_limited(
    export: Export, monkeypatch: pytest.MonkeyPatch, records: list[LogRecord]
) -> None:
    """They take many times their bytes: beyond the limit, partial=true stores nothing either."""
    export.logs(make_export(*records))
    monkeypatch.setattr(value_limits, "MAX_VALUES", 100)
    monkeypatch.setattr(value_limits, "VALUES_PER_CHECK", 10)
    for options in (NO_OPTIONS, PARTIAL):
        rejection = export.rejection(make_export(*records), options)
        assert "body_too_large" == rejection.code
        assert "more than 100 values" in rejection.message


def test_repeated_resource_is_bounded(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long resource with many short records must not fill the memory."""
    monkeypatch.setattr(otlp, "MAX_REPEATED_BYTES", 100_000)
    resource = {"project_id": "p", "long": "x" * 10_000}
    export.logs(make_export(*[make_record()] * 10, resource=resource))
    rejection = export.rejection(make_export(*[make_record()] * 100, resource=resource))
    assert "body_too_large" == rejection.code


def test_scopes_of_an_export_are_limited(export: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scopes without logs count as well."""
    monkeypatch.setattr(otlp, "MAX_SCOPES", 3)
    made = make_export(make_record())
    for _ in range(2):
        made.resource_logs[0].scope_logs.add()
    export.log(made)
    for name in ("scope", "resource"):
        more = ExportLogsServiceRequest.FromString(made.SerializeToString())
        _ = more.resource_logs[0].scope_logs.add() if name == "scope" else more.resource_logs.add()
        assert "body_too_large" == export.rejection(more).code


def test_empty_export_is_accepted(export: Export) -> None:
    """As specified by OTLP."""
    for made in (ExportLogsServiceRequest(), make_export(), make_export(resource={})):
        assert [] == export.logs(made)


def test_a_long_export_is_decoded_as_a_short_one(
    export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is decoded step by step, with the same result."""
    made = make_export(*[make_record(f"{n}", attributes={"n": n}) for n in range(250)])
    expected = export.logs(made)
    monkeypatch.setattr("astralog.intake.decoder.FAST_BYTES", 0)
    monkeypatch.setattr(otlp_protobuf, "MAX_PARSED_BYTES", 0)
    assert expected == export.logs(made)
    assert [f"{n}" for n in range(250)] == [log["message"] for log in expected]


# --- Text that is not UTF-8


def make_texts(text: str) -> dict[str, ExportLogsServiceRequest]:
    """Return exports of a valid record and one more, with a text at each possible place."""
    exports = {
        name: make_export(make_record("good"), record)
        for name, record in {
            "body": make_record(text),
            "severity text": make_record(severity_text=text),
            "event name": make_record(event_name=text),
            "key": make_record(attributes={text: "value"}),
            "key of a number": make_record(attributes={text: 7, text * 2: 0.5}),
            "value": make_record(attributes={"key": text}),
            "list": make_record([text, [text]]),
            "map": make_record({text: {"a": text}}),
            "map in an attribute": make_record(attributes={"key": {text: [text, b"\xff"]}}),
            "everywhere": make_record(
                {text: text}, severity_text=text, event_name=text, attributes={text: [text]}
            ),
        }.items()
    }
    for name in ("resource", "scope", "schema"):
        made = exports[name] = make_export(make_record("good"), make_record("other"))
        (resource,) = made.resource_logs
        (scope,) = resource.scope_logs
        if name == "resource":
            resource.resource.attributes.extend(key_values({text: text}))
        elif name == "scope":
            scope.scope.name, scope.scope.version = text, text
            scope.scope.attributes.extend(key_values({"nested": {text: text}}))
        else:
            resource.schema_url, scope.schema_url = text, text
    return exports


@pytest.mark.parametrize("size", [0, 1, 130, 20_000])
@pytest.mark.parametrize("options", [NO_OPTIONS, PARTIAL])
@pytest.mark.parametrize("name", make_texts(""))
def test_invalid_utf8_is_replaced(export: Export, name: str, options: Options, size: int) -> None:
    """It becomes U+FFFD and invalidates no record, at any place and of any length."""
    begin, end = "p" * size, "q" * size
    body = encode(make_texts(f"{begin}<invalid>{end}")[name], export.kind)
    invalid = b"caf\xe9 \xc0\xaf \xff"  # Latin-1, overlong, no beginning of anything
    assert len("<invalid>") == len(invalid)
    decoded = export.decode_body(body.replace(b"<invalid>", invalid), options)
    assert decoded.invalid is None
    expected = export.decode(make_texts(f"{begin}caf\ufffd \ufffd\ufffd \ufffd{end}")[name])
    assert expected.batch == decoded.batch
    assert 2 == decoded.batch.logs


def test_a_text_that_is_cut_within_a_character_is_replaced(export: Export) -> None:
    """Senders that truncate at a number of bytes do this."""
    body = encode(make_export(make_record("x<cut>"), make_record("next")), export.kind)
    decoded = export.decode_body(body.replace(b"<cut>", b"ab\xf0\x9f\x98"))
    assert ["xab\ufffd", "next"] == messages_of(decoded)


# --- What is of one encoding alone


def test_malformed_protobuf_is_rejected() -> None:
    """A truncated body, wrong wire types and invalid UTF-8 are 400, with their place."""
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


@pytest.mark.parametrize("options", [NO_OPTIONS, PARTIAL])
@pytest.mark.parametrize(
    "foreign",
    [
        Span(trace_id=TRACE_ID, span_id=SPAN_ID, name="GET /"),
        Span(trace_id=TRACE_ID),
        Metric(name="lost", unit="s"),
        Metric(description="lost"),
    ],
)
def test_traces_and_metrics_are_no_logs(foreign: Message, options: Options) -> None:
    """Their exports have the form of logs on the wire, and would be stored as empty ones."""
    body = wire_field(1, wire_field(2, wire_field(2, foreign.SerializeToString())))
    with pytest.raises(Rejection, match="spans, metrics or profiles, not log records") as rejected:
        Export(PROTOBUF).decode_body(body, options)
    assert "invalid_protobuf" == rejected.value.code
    assert "resource_logs[0].scope_logs[0]" in rejected.value.message


@pytest.mark.parametrize("options", [NO_OPTIONS, PARTIAL])
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"\x12\x02hi", "The export has no log records, but field 2."),
        (b"\x0a\x00\x18\x05", "The export has no log records, but field 3."),
        (b"\x0a\x04\x22\x02hi", "resource_logs[0] has no log records, but field 4."),
        (
            b"\x0a\x05\xc2\x3e\x02\x12\x00",
            "field 1000, instrumentation_library_logs of OTLP before 1.0",
        ),
        (b"\x0a\x04\x12\x02\x28\x01", "resource_logs[0].scope_logs[0] has no log records, but f"),
        (b"\x0a\x04\x12\x02\x2b\x2c", "scope_logs[0] has no log records, but field 5."),
    ],
)
def test_protobuf_without_records_is_no_export_if_it_has_something_else(
    body: bytes, message: str, options: Options
) -> None:
    """The message has the number of a field and its place."""
    with pytest.raises(Rejection) as rejected:
        Export(PROTOBUF).decode_body(body, options)
    assert "invalid_protobuf" == rejected.value.code
    assert message in rejected.value.message


def test_unknown_fields_beside_records_are_ignored_in_protobuf() -> None:
    """OTLP may add fields."""
    made = make_export(make_record("kept")).SerializeToString() + b"\x12\x02hi"
    assert ["kept"] == messages_of(Export(PROTOBUF).decode_body(made))


def test_malformed_resource_or_scope_in_protobuf_affects_only_its_own_records() -> None:
    """Its length is known from the message around it."""
    made = make_groups()
    body = made.SerializeToString()
    resource = made.resource_logs[1].resource.SerializeToString()
    broken = body.replace(resource, b"\x0a\x7f" + resource[2:])
    decoded = Export(PROTOBUF).decode_body(broken, PARTIAL)
    assert decoded.invalid is not None
    assert (["a", "b", "c"], 1) == (messages_of(decoded), decoded.invalid.count)
    assert ["resource"] == list(decoded.invalid.errors[3])


def test_a_long_list_is_invalid_in_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objects take many times its bytes; those of a long string do not."""
    export = Export(PROTOBUF)
    monkeypatch.setattr(otlp_protobuf_values, "MAX_NESTED_BYTES", 10_000)
    export.log(make_export(make_record("x" * 12_000, attributes={"a": "x" * 12_000})))
    export.log(make_export(make_record([None] * 4000)))
    for record in (make_record([None] * 5000), make_record(attributes={"a": [None] * 5000})):
        (message,) = export.error(make_export(record))["_schema"]
        assert "10000 bytes" in message


@pytest.mark.parametrize(
    ("part", "count", "message"),
    [
        (wire_field(2, any_value([None] * 1000).SerializeToString()), 200, "262144 bytes"),
        (wire_field(2, b""), 200_000, "more than 1000 times"),
    ],
)
def test_a_long_value_in_parts_is_invalid_in_protobuf(
    part: bytes, count: int, message: str
) -> None:
    """The parts of a message are joined, and their bytes added up."""
    resource = KeyValue(key="project_id", value=any_value("p")).SerializeToString()
    record = wire_field(6, part * count)
    groups = wire_field(1, wire_field(1, resource)) + wire_field(2, wire_field(2, record))
    with pytest.raises(Rejection) as rejected:
        Export(PROTOBUF).decode_body(wire_field(1, groups))
    assert message in f"{rejected.value.errors}"


def test_a_source_in_many_parts_is_invalid_in_protobuf() -> None:
    """The parts take more memory than their content."""
    for number, name in ((1, "resource"), (2, "scope")):
        made = make_export(make_record())
        made.resource_logs[0].scope_logs[0].ClearField("scope")
        body = made.resource_logs[0].SerializeToString()
        parts = wire_field(1, b"") * 1001
        body += parts if number == 1 else wire_field(2, parts + wire_field(2, b""))
        with pytest.raises(Rejection) as rejected:
            Export(PROTOBUF).decode_body(wire_field(1, body))
        assert f"{{'{name}': ['It occurs more than 1000 times.']}}" in f"{rejected.value.errors}"


def test_repeated_submessage_is_merged() -> None:
    """Protobuf merges messages that were written in parts."""
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
    """Protobuf omits empty fields."""
    record = make_record()
    record.attributes.add(key="none")
    record.attributes.add()
    record.attributes.add(value=any_value("x"))
    record.attributes.add(key="strange", value=any_value("x")).key_strindex = 3
    log = Export(PROTOBUF).log(make_export(record))
    assert {"none": None, "": "x", "strange": "x"} == log["metadata"]["attributes"]


def test_attributes_are_read_as_protobuf_reads_them() -> None:
    """Short attributes are decoded directly, with protobuf's result or as invalid.

    Earlier messages must not change the result of later ones.
    """
    chance = random.Random(1)
    values: list[Any] = ["", "x", "ü" * 40, 0, 1, 300, 2**40, 2**62, -1, 0.5, math.inf, True, None]
    values += [b"", b"x", [], [1], {"a": 1}]
    reader = otlp_protobuf_values.ValueReader(value_limits.ValueBudget())
    outcomes = set()
    for _ in range(100 * settings().max_examples):
        (made,) = key_values({chance.choice(("", "k", "key", "k" * 120)): chance.choice(values)})
        text = bytearray(made.SerializeToString())
        for _ in range(chance.choice((0, 1, 1, 2))):
            place = chance.randrange(len(text) + 1)
            piece = bytes([chance.choice(b"\n\x12\x18!\x00\x01\x02\xff")])
            text[place : place + chance.randrange(2)] = piece
        if chance.random() < 0.2:
            del text[chance.randrange(len(text) + 1) :]
        expected = _outcome(lambda text: dict([reader.read_attribute(text)]), bytes(text))
        found = _outcome(lambda text: reader.read_attributes([text]), bytes(text))
        assert expected == found, bytes(text)
        outcomes.add(found is None)
    assert {True, False} == outcomes


def test_records_parsed_at_once_are_stored_as_single_ones_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    export = Export(PROTOBUF)
    attributes = {"user.id": 7, "order": "a" * 200, "ok": True, "ms": 0.5}
    records = [make_record("paid", attributes=attributes, trace_id=TRACE_ID), make_record(None)]
    invalid = make_record("paid", trace_id=b"short")
    for made in (make_export(*records), make_export(records[0], invalid, records[1])):
        at_once = export.decode(made, PARTIAL)
        with monkeypatch.context() as patch:
            patch.setattr(otlp_protobuf, "MAX_PARSED_RECORDS", 0)
            single = export.decode(made, PARTIAL)
        assert single.batch == at_once.batch
        assert repr(single.invalid and single.invalid.errors) == repr(
            at_once.invalid and at_once.invalid.errors
        )


def test_long_key_is_not_read_as_a_short_one() -> None:
    """Its length takes two bytes: a key and a value seem to begin within them."""
    key = "x" * 132 + "\x12"
    value = b"\x10\x01" + b"x\x00" * 4  # true, and fields that OTLP does not know
    unknown = b"z\x05" + b"x" * 5
    text = b"\n\x85\x01" + key.encode() + b"\x12\x0a" + value + unknown
    reader = otlp_protobuf_values.ValueReader(value_limits.ValueBudget())
    assert {key: True} == reader.read_attributes([text])


def test_decode_leaves_no_work_for_the_garbage_collector(export: Export) -> None:
    """A reference cycle would keep the texts of an export until the next collection."""
    made = make_export(make_record("paid", attributes={"user.id": 7, "order": "a", "ms": 0.5}))
    export.decode(made)  # fills the caches
    gc.collect()
    gc.freeze()  # the next collection is of the decode alone
    gc.disable()
    try:
        export.decode(made)
        assert gc.collect() == 0
    finally:
        gc.enable()


def _outcome(read: Callable[[bytes], dict[str, Any]], text: bytes) -> dict[str, Any] | None:
    try:
        return read(text)
    except ValueError:
        return None
