"""OTLP in protobuf, read with the messages of opentelemetry-proto.

A message that holds many others is read one level at a time, by the messages of `otlp_wire`: so
only one record of a long export is an object at a time, and errors are known by their place.

Import it with the first export only: that takes 50 ms.
"""

from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from math import isfinite
from struct import Struct
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import (
    AnyValue,
    ArrayValue,
    KeyValue,
    KeyValueList,
)

from astralog.deadlines import in_turns
from astralog.intake import otlp_wire as messages
from astralog.intake.otlp import (
    MAX_ATTRIBUTES,
    Group,
    Loader,
    Origin,
    Problems,
    Source,
    Values,
    bytes_value,
    check_depth,
    make_log,
    number_value,
    try_read,
)
from astralog.intake.otlp_wire import (
    LEAST_FIELD_BYTES,
    LONG_BYTES,
    check_size,
    find_unknown,
    read_fields,
    replace_invalid_utf8,
)
from astralog.intake.slots import FAST_BYTES

#: The longest list or map; as objects, a value costs far more memory. Beyond it, the log is
#: invalid.
MAX_NESTED_BYTES = 256 * 1024

#: Records of a scope in a short export that are parsed all at once, which makes its decode 6%
#: faster. A record without content takes 200 bytes.
MAX_PARSED_RECORDS = 4096

#: Parts that a resource, a scope or a long value may be sent in. Beyond it, the logs are invalid.
MAX_PARTS = 1000

#: Attributes of an export that are kept as they were read: many stand in every record. Most of a
#: longer list would stand in one record only; with 512 of them, a log takes 1 µs more.
CACHED_ATTRIBUTES = 64

#: Starts of an export's attributes that are kept.
CACHED_STARTS = 512

#: Bytes of the longest number that is read as it stands; negative ones have more.
MAX_VARINT_BYTES = 8

#: The start of an attribute: its key, the length of the whole, and the function that reads its
#: value from the wire, None for a string.
Start = tuple[str, int, Callable[[bytes, int], Any] | None]

_NO_MESSAGE = "{} is no such protobuf message, or nested too deep."

#: The field of a resource's logs that held those of a scope before OTLP 1.0.
INSTRUMENTATION_LIBRARY_LOGS = 1000

#: The first tags of a span, a metric or a profile, but of no log record: a field of bytes.
_OTHER_SIGNALS = (b"\x0a", b"\x12")

#: Tags in front of the key and the value of an attribute, and of a value that is a string.
_KEY = KeyValue(key="x").SerializeToString()[0]
_VALUE = KeyValue(value=AnyValue()).SerializeToString()[0]
_STRING = AnyValue(string_value="x").SerializeToString()[0]
_INT = AnyValue(int_value=1).SerializeToString()[0]
_DOUBLE = AnyValue(double_value=1).SerializeToString()[0]
_ARRAY = AnyValue(array_value=ArrayValue()).SerializeToString()[0]
_MAP = AnyValue(kvlist_value=KeyValueList()).SerializeToString()[0]
_unpack_double = Struct("<d").unpack_from


class Protobuf:
    """The encoding OTLP/protobuf, the default of SDKs and collectors."""

    content_type = "application/x-protobuf"
    invalid_code = "invalid_protobuf"

    def split(self, body: bytes, values: Values) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        return _Split(values, is_short=len(body) <= FAST_BYTES).split(body)

    def make_loader(self, now: int, values: Values) -> Loader:
        """Return a function that decodes the records of one export."""
        reader = _Reader(values)
        read_attributes, read_value = reader.read_attributes, reader.read_value

        def load(record: Any, origin: Origin) -> Any:
            if isinstance(record, bytes):
                record = _parse(messages.LogRecord, record, "It")
            return make_log(
                origin,
                record.time_unix_nano or record.observed_time_unix_nano or now,
                record.severity_number,
                record.severity_text,
                read_value(record.body),
                read_attributes(record.attributes),
                record.trace_id,
                record.span_id,
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


class _Split:
    """Find the groups of one export."""

    def __init__(self, values: Values, *, is_short: bool) -> None:
        self._read_attributes = _Reader(values).read_attributes
        self._is_short = is_short

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        export = _parse(messages.Export, body, "The export")
        records = 0
        for number, part in enumerate(export.resource_logs):
            records += yield from self._split_resource(part, f"resource_logs[{number}]")
        if not records:
            _reject_foreign(messages.Export, body, "The export")

    def _split_resource(self, text: bytes, place: str) -> Generator[Group, None, int]:
        """Yield the groups of a resource, and return the number of its records."""
        logs = _parse(messages.ResourceLogs, text, place)
        problems: Problems = {}
        resource = try_read(
            "resource",
            problems,
            lambda: self._read_source(messages.Resource, logs.resource, logs.schema_url),
        )
        records = 0
        for number, part in enumerate(logs.scope_logs or (b"",)):
            group = self._read_group(part, f"{place}.scope_logs[{number}]", resource, problems)
            records += len(group.records)
            yield group
        if not records:
            _reject_foreign(messages.ResourceLogs, text, place)
        return records

    def _read_group(self, text: bytes, place: str, resource: Source, problems: Problems) -> Group:
        logs = _parse(messages.ScopeLogs, text, place)
        records: Sequence[Any] = logs.log_records
        if not records:
            _reject_foreign(messages.ScopeLogs, text, place)
        elif records[0].startswith(_OTHER_SIGNALS):
            raise ValueError(f"{place} contains spans, metrics or profiles, not log records.")
        if len(text) > LONG_BYTES:
            for record in in_turns(records):
                check_size(record)
        elif self._is_short and len(records) <= MAX_PARSED_RECORDS:
            with suppress(DecodeError):  # the records that are invalid are found one by one
                records = messages.Records.FromString(text).log_records
        problems = dict(problems)
        scope = try_read(
            "scope",
            problems,
            lambda: self._read_source(messages.Scope, logs.scope, logs.schema_url),
        )
        return Group(resource, scope, records, problems)

    def _read_source(self, kind: Any, parts: Sequence[bytes], schema_url: str) -> Source:
        if len(parts) > MAX_PARTS:
            raise ValueError(f"It occurs more than {MAX_PARTS} times.")
        message = _parse(kind, b"".join(parts), "It")
        return Source(
            name=getattr(message, "name", ""),
            version=getattr(message, "version", ""),
            attributes=self._read_attributes(message.attributes),
            dropped_attributes_count=message.dropped_attributes_count,
            schema_url=schema_url,
        )


def _parse(kind: Any, text: bytes, what: str) -> Any:
    """Return a message, with U+FFFD in place of invalid UTF-8; raises ValueError and Rejection."""
    if len(text) > LONG_BYTES:
        check_size(text)
    try:
        return kind.FromString(text)
    except DecodeError:
        pass
    try:
        return kind.FromString(replace_invalid_utf8(kind.DESCRIPTOR, text))
    except (DecodeError, ValueError):
        raise ValueError(_NO_MESSAGE.format(what)) from None


def _reject_foreign(kind: Any, text: bytes, place: str) -> None:
    """Raise ValueError for a message without records that has fields unknown to OTLP."""
    number = find_unknown(text, kind.DESCRIPTOR.fields_by_number)
    if number is not None:
        is_old = number == INSTRUMENTATION_LIBRARY_LOGS
        hint = ", instrumentation_library_logs of OTLP before 1.0" if is_old else ""
        raise ValueError(f"{place} has no log records, but field {number}{hint}.")


class _Reader:
    """Read the attributes and values of one export; equal ones are read once.

    An attribute whose lengths fit into a byte is read as it stands on the wire if its value is a
    string, an integer or a double: that takes less than half of the time of protobuf's objects. Its
    bytes, with a key of n bytes (Source: protobuf's encoding of KeyValue and AnyValue):

        0        the tag of the key
        1        n
        2        the key
        n + 2    the tag of the value
        n + 3    the length of the rest
        n + 4    the tag of the value's content: its kind
        n + 5    the content; that of a string begins with its length
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._known: dict[bytes, tuple[str, Any]] = {}
        self._starts: dict[bytes, Start] = {}

    def read_attributes(self, texts: Any) -> dict[str, Any]:
        """Return attributes as an object; if several have the same key, the last one counts."""
        known, starts = self._known, self._starts
        attributes = {}
        for text in self._values.over(texts[:], MAX_ATTRIBUTES):
            attribute = known.get(text)
            if attribute is not None:
                attributes[attribute[0]] = attribute[1]
                continue
            value = None
            try:
                end = text[1] + 5
                key, size, read_number = starts.get(text[:end]) or self._read_start(text[:end])
                if size == len(text):
                    if read_number:
                        value = read_number(text, end)
                    elif text[end] == size - end - 1:
                        value = text[end + 1 :].decode()
            except (IndexError, UnicodeDecodeError):
                pass  # the slow path repairs it
            if value is None:
                key, value = self.read_attribute(text)
            attributes[key] = value
            if len(known) < CACHED_ATTRIBUTES:
                known[text] = key, value
        return attributes

    def _read_start(self, text: bytes) -> Start:
        """Return the start of an attribute, and its length, -1 for an unusual form."""
        start: Start = "", -1, None
        end = len(text)
        is_short = text[1] < 128 and end == text[1] + 5
        if is_short and text[0] == _KEY and text[-3] == _VALUE:
            kind, length, size = text[-1], text[-2], end - 1 + text[-2]
            is_double = kind == _DOUBLE and length == 9  # its tag and 8 bytes
            if 1 < length < 128 and (is_double or kind in (_STRING, _INT)):
                read_number = _read_double if is_double else _read_int if kind == _INT else None
                start = text[2:-3].decode(), size, read_number
        if len(self._starts) < CACHED_STARTS:
            self._starts[text] = start
        return start

    def read_attribute(self, text: bytes) -> tuple[str, Any]:
        """Return the key and the value of any attribute."""
        if len(text) > MAX_NESTED_BYTES:
            _check_nested(list(islice(_contents(text, (_VALUE,)), MAX_PARTS + 1)))
        attribute = _parse(KeyValue, text, "An attribute")
        return attribute.key, self._convert(attribute.value)

    def read_value(self, text: bytes) -> Any:
        """Return a value in JSON's form; a short string is read from the wire directly."""
        size = len(text)
        if 1 < size < 130 and text[0] == _STRING and text[1] == size - 2:
            try:
                return text[2:].decode()
            except UnicodeDecodeError:
                pass  # the slow path repairs it
        if size > MAX_NESTED_BYTES:
            _check_nested([text])
        return self._convert(_parse(AnyValue, text, "The body"))

    def _convert(self, value: AnyValue, depth: int = 0) -> Any:
        """Return a value in JSON's form."""
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
        return self._convert_nested(value, kind, depth + 1)

    def _convert_nested(self, value: AnyValue, kind: str | None, depth: int) -> Any:
        check_depth(depth)
        if kind == "array_value":
            items = self._values.over(value.array_value.values)
            return [self._convert(item, depth) for item in items]
        if kind == "kvlist_value":
            members = self._values.over(value.kvlist_value.values)
            return {item.key: self._convert(item.value, depth) for item in members}
        return None


def _read_int(text: bytes, end: int) -> int | None:
    """Return the value of an attribute whose tag is before `end`; None for an unusual form."""
    number = shift = 0
    for byte in text[end : end + MAX_VARINT_BYTES]:
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number if end + shift // 7 == len(text) else None
    return None


def _read_double(text: bytes, end: int) -> Any:
    """Return the value of an attribute whose tag is before `end`."""
    number = _unpack_double(text, end)[0]
    return number if isfinite(number) else number_value(number)


def _contents(text: bytes, tags: Collection[int]) -> Iterator[bytes]:
    """Return the contents of a message's fields with the given tags; raises as `_parse`."""
    check_size(text)
    return (text[begin:end] for tag, begin, end in in_turns(read_fields(text)) if tag in tags)


def _check_nested(parts: Sequence[bytes]) -> None:
    """Raise ValueError for a value whose lists and maps are too long."""
    if len(parts) > MAX_PARTS:
        raise ValueError(f"A value occurs more than {MAX_PARTS} times.")
    size = 0
    for value in parts:
        for content in _contents(value, (_ARRAY, _MAP)):
            size += len(content) + LEAST_FIELD_BYTES
            if size > MAX_NESTED_BYTES:
                raise ValueError(f"A list or map takes more than {MAX_NESTED_BYTES} bytes.")
