"""Exports of OpenTelemetry, in both encodings."""

import base64
import json
from collections.abc import Collection
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from astralog.errors import Rejection
from astralog.intake import otlp
from astralog.intake.decoder import Decoded
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.otlp_json import Json
from astralog.intake.otlp_protobuf import Protobuf
from tests.support.decoding import make_context

PROTOBUF, JSON = "application/x-protobuf", "application/json"

TRACE_ID, SPAN_ID = bytes(range(16)), bytes(range(8))

#: 2024-05-31T15:30:45.123456789Z
TIME = 1_717_169_445_123_456_789


def any_value(value: Any) -> AnyValue:
    """Return a Python value as OpenTelemetry's."""
    match value:
        case None:
            return AnyValue()
        case bool():
            return AnyValue(bool_value=value)
        case str():
            return AnyValue(string_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case bytes():
            return AnyValue(bytes_value=value)
        case list():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
    return AnyValue(kvlist_value=KeyValueList(values=key_values(value)))


def key_values(attributes: dict[str, Any]) -> list[KeyValue]:
    """Return attributes in OpenTelemetry's form."""
    return [KeyValue(key=key, value=any_value(value)) for key, value in attributes.items()]


def make_record(body: Any = "User logged in", **fields: Any) -> LogRecord:
    """Return a record; `attributes` are Python values, None is left out."""
    given = {"time_unix_nano": TIME, "severity_text": "INFO", "body": any_value(body), **fields}
    given["attributes"] = key_values(given.get("attributes", {}))
    return LogRecord(**{name: value for name, value in given.items() if value is not None})


def make_export(
    *records: LogRecord, resource: dict[str, Any] | None = None
) -> ExportLogsServiceRequest:
    """Return an export of records with one scope and one resource."""
    export = ExportLogsServiceRequest()
    group = export.resource_logs.add()
    if resource is None:
        resource = {"service.name": "shop", "project_id": "org-xyz"}
    group.resource.attributes.extend(key_values(resource))
    group.scope_logs.add().log_records.extend(records)
    return export


def to_json(export: ExportLogsServiceRequest) -> bytes:
    """Return an export in OTLP's JSON: protobuf's, except for hexadecimal ids and plain enums."""
    found = MessageToDict(export, use_integers_for_enums=True)
    for resource in found.get("resourceLogs", ()):
        for scope in resource.get("scopeLogs", ()):
            for record in scope.get("logRecords", ()):
                for name in record.keys() & {"traceId", "spanId"}:
                    record[name] = base64.b64decode(record[name]).hex()
    return json.dumps(found, ensure_ascii=False).encode()


def encode(export: ExportLogsServiceRequest, kind: str) -> bytes:
    """Return an export in the encoding of a media type."""
    return to_json(export) if kind == JSON else export.SerializeToString()


def wire_field(number: int, content: bytes) -> bytes:
    """Return a field of protobuf's wire format with bytes; its number is 15 at most."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content


class Export:
    """Decodes exports of one encoding."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.encoding: type[otlp.Encoding] = Json if kind == JSON else Protobuf

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
        return otlp.decode(self.encoding, body, make_context(projects, options))

    def logs(self, *arguments: Any, **named: Any) -> list[dict[str, Any]]:
        """Return the stored logs of an export."""
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
        """Return the error of the only log of an export."""
        rejection = self.rejection(*arguments, **named)
        assert rejection.code == "invalid_batch"
        assert rejection.errors is not None
        (error,) = rejection.errors["logs"].values()
        found: dict[str, list[str]] = error
        return found
