"""OTLP in protobuf, read with the messages of opentelemetry-proto.

What holds many others is read one level at a time, by the messages of `otlp_messages`: so a record
is an object only while it is its turn, and what is invalid is known by its place.

Import it with the first export only: that takes 50 ms.
"""

from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from struct import Struct
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from astralog.intake import otlp_messages as messages
from astralog.intake.otlp import Group, Loader
from astralog.intake.otlp_log import (
    Origin,
    Source,
    bytes_value,
    check_attributes,
    check_depth,
    make_log,
    number_value,
)

#: The longest list or map; what a value holds costs far more as objects. Beyond it, the log is
#: invalid.
MAX_NESTED_BYTES = 256 * 1024

#: Attributes of an export that are kept as they were read: many stand in every record.
CACHED_ATTRIBUTES = 512

#: Bytes of the longest number that is read as it stands; negative ones have more.
MAX_VARINT_BYTES = 8

#: What an attribute begins with: its key, the length of the whole, and what reads its value from
#: the wire, None for a string.
Start = tuple[str, int, Callable[[bytes, int], Any] | None]

_NO_MESSAGE = "{} is no such protobuf message, not UTF-8 or nested too deep."

#: Tags in front of the key and the value of an attribute, and of a value that is a string.
_KEY = KeyValue(key="x").SerializeToString()[0]
_VALUE = KeyValue(value=AnyValue()).SerializeToString()[0]
_STRING = AnyValue(string_value="x").SerializeToString()[0]
_INT = AnyValue(int_value=1).SerializeToString()[0]
_DOUBLE = AnyValue(double_value=1).SerializeToString()[0]
_unpack_double = Struct("<d").unpack_from


class Protobuf:
    """The encoding that SDKs and collectors use by default."""

    content_type = "application/x-protobuf"
    invalid_code = "invalid_protobuf"

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        export = _parse(messages.Export, body, "The export")
        for number, part in enumerate(export.resource_logs):
            logs = _parse(messages.ResourceLogs, part, f"resource_logs[{number}]")
            resource = _read_source(messages.Resource, logs.resource, logs.schema_url)
            for place, piece in enumerate(logs.scope_logs or (b"",)):
                group = _parse(
                    messages.ScopeLogs, piece, f"resource_logs[{number}].scope_logs[{place}]"
                )
                scope = _read_source(messages.Scope, group.scope, group.schema_url)
                yield Group(resource, scope, group.log_records)

    def make_loader(self, now: int) -> Loader:
        """Return what decodes the records of one export."""
        parse, read_attributes = messages.LogRecord.FromString, _Attributes().read

        def load(text: bytes, origin: Origin) -> Any:
            try:
                record = parse(text)
            except DecodeError:
                raise ValueError(_NO_MESSAGE.format("It")) from None
            return make_log(
                origin,
                record.time_unix_nano or record.observed_time_unix_nano or now,
                record.severity_number,
                record.severity_text,
                _read_value(record.body),
                read_attributes(record.attributes),
                record.trace_id.hex(),
                record.span_id.hex(),
                record.flags,
                record.event_name,
                record.dropped_attributes_count,
            )

        return load

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse."""
        response = ExportLogsServiceResponse()
        response.partial_success.rejected_log_records = rejected
        response.partial_success.error_message = message
        return response.SerializeToString()

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""
        status: bytes = messages.Status(code=code, message=message).SerializeToString()
        return status


def _parse(kind: Any, text: bytes, what: str) -> Any:
    try:
        return kind.FromString(text)
    except DecodeError:
        raise ValueError(_NO_MESSAGE.format(what)) from None


def _read_source(kind: Any, parts: Iterable[bytes], schema_url: str) -> Source:
    message = _parse(kind, b"".join(parts), kind.DESCRIPTOR.name)
    return Source(
        name=getattr(message, "name", ""),
        version=getattr(message, "version", ""),
        attributes=_Attributes().read(message.attributes),
        dropped_attributes_count=message.dropped_attributes_count,
        schema_url=schema_url,
    )


class _Attributes:
    """Reads attributes: the same ones but once, and from the others what they begin with.

    An attribute begins with its key and the kind and the length of its value. One whose lengths fit
    into a byte is read as it stands on the wire where its value is a string, an integer or a
    double: that takes less than half of the time of protobuf's objects.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[str, Any]] = {}
        self._starts: dict[bytes, Start] = {}

    def read(self, texts: Any) -> dict[str, Any]:
        """Return attributes as an object; of those with one key, the last one counts."""
        check_attributes(len(texts))
        known, starts = self._known, self._starts
        attributes = {}
        for text in texts[:]:
            attribute = known.get(text)
            if attribute is not None:
                attributes[attribute[0]] = attribute[1]
                continue
            size = len(text)
            end = text[1] + 5 if 6 < size < 128 else 0
            key, expected, read_number = starts.get(text[:end]) or self._read_start(text, end)
            if size == expected and read_number:
                value = read_number(text, end)
            elif size == expected and text[end] == size - end - 1:
                value = text[end + 1 :].decode()
            else:
                key, value = _parse_attribute(text)
            attributes[key] = value
            if len(known) < CACHED_ATTRIBUTES:
                known[text] = key, value
        return attributes

    def _read_start(self, text: bytes, end: int) -> Start:
        """Return what an attribute begins with; its length is -1 if it is unusual."""
        start: Start = "", -1, None
        if 0 < end < len(text) and text[0] == _KEY and text[end - 3] == _VALUE:
            kind, length, size = text[end - 1], text[end - 2], end - 1 + text[end - 2]
            is_double = kind == _DOUBLE and size == end + 8
            if 1 < length < 128 and (is_double or kind in (_STRING, _INT)):
                read_number = _read_double if is_double else _read_int if kind == _INT else None
                start = text[2 : end - 3].decode(), size, read_number
        if len(self._starts) < CACHED_ATTRIBUTES:
            self._starts[text[:end]] = start
        return start


def _parse_attribute(text: bytes) -> tuple[str, Any]:
    if len(text) > MAX_NESTED_BYTES:
        for part in _parse(messages.KeyValue, text, "An attribute").value:
            _check_nested(part)
    attribute = _parse(KeyValue, text, "An attribute")
    return attribute.key, _convert(attribute.value)


def _read_double(text: bytes, end: int) -> Any:
    """Return the value of an attribute, whose own tag stands before `end`."""
    number = _unpack_double(text, end)[0]
    return number if isfinite(number) else number_value(number)


def _read_int(text: bytes, end: int) -> Any:
    """Return the value of an attribute, whose own tag stands before `end`."""
    if len(text) - end <= MAX_VARINT_BYTES:
        number = shift = 0
        for byte in text[end:]:
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if end + shift // 7 == len(text) and text[-1] < 128:
            return number
    return _parse_attribute(text)[1]


def _read_value(text: bytes) -> Any:
    """Return what a value is in JSON; a short string is read as it stands on the wire."""
    size = len(text)
    if 1 < size < 130 and text[0] == _STRING and text[1] == size - 2:
        return text[2:].decode()
    if size > MAX_NESTED_BYTES:
        _check_nested(text)
    return _convert(_parse(AnyValue, text, "The body"))


def _check_nested(text: bytes) -> None:
    """Raise ValueError for a value whose lists and maps are too long to be read."""
    value = _parse(messages.AnyValue, text, "A value")
    if sum(map(len, [*value.array_value, *value.kvlist_value])) > MAX_NESTED_BYTES:
        raise ValueError(f"A list or map takes more than {MAX_NESTED_BYTES} bytes.")


def _convert(value: AnyValue, depth: int = 0) -> Any:
    """Return what a value is in JSON."""
    kind = value.WhichOneof("value")
    if kind == "int_value":
        return value.int_value
    if kind == "string_value":
        return value.string_value
    if kind == "bool_value":
        return value.bool_value
    if kind == "double_value":
        return number_value(value.double_value)
    if kind == "bytes_value":
        return bytes_value(value.bytes_value)
    return _convert_nested(value, kind, depth + 1)


def _convert_nested(value: AnyValue, kind: str | None, depth: int) -> Any:
    check_depth(depth)
    if kind == "array_value":
        return [_convert(item, depth) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _convert(item.value, depth) for item in value.kvlist_value.values}
    return None
