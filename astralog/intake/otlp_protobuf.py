"""OTLP in protobuf, read with the messages of opentelemetry-proto.

A message that holds many others is read one level at a time, by copies of these messages with some
submessages left as bytes: so only one record of a long export is an object at a time, and errors
are known by their place. Measured, the object that protobuf makes for a submessage takes 0.3 µs,
and its bytes 0.05 µs.

Import it with the first export only: that takes 50 ms.
"""

from collections.abc import Collection, Sequence
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.logs.v1 import logs_pb2
from opentelemetry.proto.resource.v1 import resource_pb2

from astralog.intake.otlp import Encoding, Level, Message, try_read
from astralog.intake.otlp_log import Origin, Source, make_log
from astralog.intake.otlp_protobuf_values import ValueReader
from astralog.intake.protobuf import PACKAGE, define, find_unknown, parse, register
from astralog.intake.value_limits import ValueBudget

#: Records of a scope are parsed all at once if their message has at most so many bytes and records:
#: the decode takes 0.87 of the time, but a record without content takes 200 bytes.
MAX_PARSED_BYTES = 256 * 1024
MAX_PARSED_RECORDS = 4096

#: Parts that a resource or a scope may be sent in. Beyond it, the logs are invalid.
MAX_PARTS = 1000

#: The field of a resource's logs that held those of a scope before OTLP 1.0.
INSTRUMENTATION_LIBRARY_LOGS = 1000

_FieldProto = descriptor_pb2.FieldDescriptorProto


def _copy(source: Descriptor, left: Collection[str], single: str = "") -> Any:
    """Return the class of a copy of a message in which the submessages `left` are bytes.

    They are repeated, since a submessage that occurs twice is both joined; of one named
    `single`, the last one counts. Other submessages are unknown to the copy; enums are numbers.
    """
    message = descriptor_pb2.DescriptorProto()
    source.CopyToProto(message)
    fields = [
        _change(field)
        for field in message.field
        if field.type != _FieldProto.TYPE_MESSAGE or field.name in (*left, single)
    ]
    for field in fields:
        if field.name == single:
            field.label = _FieldProto.LABEL_OPTIONAL
    copy = descriptor_pb2.DescriptorProto(name=message.name, field=fields)
    return register(copy)


def _change(field: descriptor_pb2.FieldDescriptorProto) -> descriptor_pb2.FieldDescriptorProto:
    """Return the field as it stands in a copy."""
    if field.type == _FieldProto.TYPE_MESSAGE:
        field.type, field.label = _FieldProto.TYPE_BYTES, _FieldProto.LABEL_REPEATED
    elif field.type == _FieldProto.TYPE_ENUM:
        field.type = _FieldProto.TYPE_INT32
    field.ClearField("type_name")
    field.ClearField("oneof_index")
    return field


def _make_records() -> Any:
    """Return the class of the records in a scope's logs, to be parsed all at once."""
    message = descriptor_pb2.DescriptorProto(name="Records")
    message.field.add(
        name="log_records",
        number=logs_pb2.ScopeLogs.LOG_RECORDS_FIELD_NUMBER,
        type=_FieldProto.TYPE_MESSAGE,
        type_name=f".{PACKAGE}.LogRecord",
        label=_FieldProto.LABEL_REPEATED,
    )
    return register(message, ["LogRecord"])


Export = _copy(logs_service_pb2.ExportLogsServiceRequest.DESCRIPTOR, ["resource_logs"])
ResourceLogs = _copy(logs_pb2.ResourceLogs.DESCRIPTOR, ["resource", "scope_logs"])
ScopeLogs = _copy(logs_pb2.ScopeLogs.DESCRIPTOR, ["scope", "log_records"])
Resource = _copy(resource_pb2.Resource.DESCRIPTOR, ["attributes"])
Scope = _copy(common_pb2.InstrumentationScope.DESCRIPTOR, ["attributes"])
LogRecord = _copy(logs_pb2.LogRecord.DESCRIPTOR, ["attributes"], single="body")
Records = _make_records()
# google.rpc.Status without its details.
# Source: https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto.
Status = define(
    "Status",
    ("code", 1, _FieldProto.LABEL_OPTIONAL, _FieldProto.TYPE_INT32),
    ("message", 2, _FieldProto.LABEL_OPTIONAL, _FieldProto.TYPE_STRING),
)

_MESSAGES = {Level.EXPORT: Export, Level.RESOURCE: ResourceLogs, Level.SCOPE: ScopeLogs}


class Protobuf(Encoding):
    """The encoding OTLP/protobuf, the default of SDKs and collectors."""

    content_type = "application/x-protobuf"
    invalid_code = "invalid_protobuf"
    places = ("The export", "resource_logs[{}]", "resource_logs[{}].scope_logs[{}]")

    def __init__(self, now: int, budget: ValueBudget) -> None:
        reader = ValueReader(budget)
        self._read_value, self._read_attributes = reader.read_value, reader.read_attributes
        self._now = now

    def read(self, level: Level, text: bytes, place: str) -> Message:
        message = parse(_MESSAGES[level], text, place)
        if level is Level.EXPORT:
            return Message(message.resource_logs)
        if level is Level.RESOURCE:
            parts, kind, source = message.scope_logs, Resource, message.resource
        else:
            parts, kind, source = message.log_records, Scope, message.scope
            if parts and _is_other_signal(parts[0]):
                raise ValueError(f"{place} contains spans, metrics or profiles, not log records.")
            parts = _parse_records(text, len(parts)) or parts
        url = message.schema_url
        return Message(parts, try_read(lambda: self._read_source(kind, source, url)))

    def find_unknown(self, level: Level, text: bytes) -> str:
        number = find_unknown(text, _MESSAGES[level].DESCRIPTOR.fields_by_number)
        if number is None:
            return ""
        is_old = number == INSTRUMENTATION_LIBRARY_LOGS
        hint = ", instrumentation_library_logs of OTLP before 1.0" if is_old else ""
        return f"field {number}{hint}"

    def make_log(self, record: Any, origin: Origin) -> Any:
        if type(record) is bytes:  # else it is parsed already, as part of a short scope
            record = parse(LogRecord, record, "It")
        return make_log(
            origin,
            record.time_unix_nano or record.observed_time_unix_nano or self._now,
            record.severity_number,
            record.severity_text,
            self._read_value(record.body),
            self._read_attributes(record.attributes),
            record.trace_id,
            record.span_id,
            record.flags,
            record.event_name,
            record.dropped_attributes_count,
        )

    def _read_source(self, kind: Any, parts: Sequence[bytes], schema_url: str) -> Source:
        """Return the resource or scope that was sent in parts; raises ValueError."""
        if len(parts) > MAX_PARTS:
            raise ValueError(f"It occurs more than {MAX_PARTS} times.")
        message = parse(kind, b"".join(parts), "It")
        return Source(
            name=getattr(message, "name", ""),
            version=getattr(message, "version", ""),
            attributes=self._read_attributes(message.attributes),
            dropped_attributes_count=message.dropped_attributes_count,
            schema_url=schema_url,
        )

    @staticmethod
    def encode_response(rejected: int, message: str) -> bytes:
        response = logs_service_pb2.ExportLogsServiceResponse()
        response.partial_success.rejected_log_records = rejected
        response.partial_success.error_message = message
        return response.SerializeToString()

    @staticmethod
    def encode_status(code: int, message: str) -> bytes:
        status: bytes = Status(code=code, message=message).SerializeToString()
        return status


def _is_other_signal(record: bytes) -> bool:
    """Return whether a record is a span, a metric or a profile: its first field is of bytes.

    No log record begins with the field 1 or 2 of this type.
    """
    return record.startswith((b"\x0a", b"\x12"))


def _parse_records(text: bytes, count: int) -> Sequence[Any]:
    """Return the records of a scope's logs; none if one is invalid, or if they are too long."""
    if len(text) > MAX_PARSED_BYTES or count > MAX_PARSED_RECORDS:
        return ()
    try:
        records: Sequence[Any] = Records.FromString(text).log_records
    except DecodeError:
        return ()  # they are parsed one by one, to find the invalid ones
    return records
