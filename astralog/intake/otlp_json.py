"""OTLP in JSON: protobuf's mapping to JSON, except for ids, which are hexadecimal.

Messages are read by the names that they have in JSON or in protobuf. Integers may be strings,
unknown fields are ignored, and null stands for a field that is not set. Sources:
https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding and
https://protobuf.dev/programming-guides/json/.
"""

from base64 import b64decode
from collections.abc import Callable, Generator, Iterator
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import msgspec

from astralog.deadlines import yield_if_due
from astralog.errors import SHOWN_CHARACTERS, Rejection
from astralog.intake.decoder import LONG_BODY_COMMAS, LONG_LOG_COMMAS, find_excess
from astralog.intake.otlp import MAX_ATTRIBUTES, Group, Loader, Problems, ValueBudget, try_read
from astralog.intake.otlp_log import (
    LEVELS,
    NUMBERS_PER_LEVEL,
    InvalidRecord,
    Origin,
    Source,
    bytes_value,
    check_depth,
    make_log,
    number_value,
)
from astralog.intake.strict_json import replace_lone_surrogates, to_utf8

Value = TypeVar("Value")

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_UInt64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec's limits have 63 bits

_NULL = msgspec.Raw(b"null")

#: Severity numbers by their names in protobuf, such as SEVERITY_NUMBER_WARN2.
SEVERITY_NUMBERS = {"SEVERITY_NUMBER_UNSPECIFIED": 0} | {
    f"SEVERITY_NUMBER_{level.upper()}{step if step > 1 else ''}": place * NUMBERS_PER_LEVEL + step
    for place, level in enumerate(LEVELS)
    for step in range(1, NUMBERS_PER_LEVEL + 1)
}

#: Members of bodies that are no export of logs, and the kind of such a body.
FOREIGN = {
    "instrumentationLibraryLogs": "an export of OTLP before 1.0",
    "instrumentation_library_logs": "an export of OTLP before 1.0",
    "logs": "a batch of POST /v1/drain",
    "streams": "a push of Loki",
    "resourceSpans": "an export of traces",
    "resource_spans": "an export of traces",
    "resourceMetrics": "an export of metrics",
    "resource_metrics": "an export of metrics",
}

_MAX_TIME = 2**64 - 1

#: The two letters in which the alphabets of base64 differ, and the line breaks of some encoders.
_BASE64 = bytes.maketrans(b"-_", b"+/")
_LINE_BREAKS = b"\r\n"

_encoder = msgspec.json.Encoder()


class Message(msgspec.Struct, rename="camel", gc=False, forbid_unknown_fields=True):
    """A message; a field that is null is not set.

    It takes JSON's names alone, so that a message without others is decoded in one call.
    """


class AnyValue(Message):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Int64 | None = None
    double_value: float | None = None
    array_value: "ArrayValue | None" = None
    kvlist_value: "KeyValueList | None" = None
    bytes_value: str | None = None


class ArrayValue(Message):
    values: list[AnyValue | None] | None = None


class KeyValue(Message):
    key: str | None = None
    value: AnyValue | None = None


class KeyValueList(Message):
    values: list[KeyValue] | None = None


class MessageSource(Message):
    """A resource or a scope."""

    name: str | None = None
    version: str | None = None
    attributes: list[KeyValue] | None = None
    dropped_attributes_count: _UInt32 | None = None
    entity_refs: Any = None  # of a resource; not stored


class LogRecord(Message):
    time_unix_nano: _UInt64 | None = None
    observed_time_unix_nano: _UInt64 | None = None
    severity_number: Int32 | str | None = None
    severity_text: str | None = None
    body: AnyValue | None = None
    attributes: list[KeyValue] | None = None
    dropped_attributes_count: _UInt32 | None = None
    flags: _UInt32 | None = None
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None


class Export(Message):
    """An export; like the two below it has members under both names, to be read with `either`."""

    resource_logs: list[msgspec.Raw] | None = None
    resource_logs_: list[msgspec.Raw] | None = msgspec.field(default=None, name="resource_logs")


class ResourceLogs(Message):
    resource: msgspec.Raw = _NULL
    scope_logs: list[msgspec.Raw] | None = None
    scope_logs_: list[msgspec.Raw] | None = msgspec.field(default=None, name="scope_logs")
    schema_url: msgspec.Raw = _NULL
    schema_url_: msgspec.Raw = msgspec.field(default=_NULL, name="schema_url")


class ScopeLogs(Message):
    scope: msgspec.Raw = _NULL
    log_records: list[msgspec.Raw] | None = None
    log_records_: list[msgspec.Raw] | None = msgspec.field(default=None, name="log_records")
    schema_url: msgspec.Raw = _NULL
    schema_url_: msgspec.Raw = msgspec.field(default=_NULL, name="schema_url")


class _Field(NamedTuple):
    """A field of a message: its name in JSON, and the kind of the messages in it, if any."""

    name: str
    kind: type[Message] | None


def _fields(kind: type[Message]) -> dict[str, _Field]:
    """Return the fields of a message by each of their names."""
    fields: dict[str, _Field] = {}
    for field in msgspec.structs.fields(kind):
        found = _Field(field.encode_name, _find_message(field.type))
        fields |= {field.name: found, field.encode_name: found}
    return fields


def _find_message(annotation: Any) -> type[Message] | None:
    """Return the kind of message in an annotation such as `list[KeyValue] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return annotation
    return next(filter(None, map(_find_message, get_args(annotation))), None)


def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind, strict=False)  # takes numbers in strings


def _lenient(kind: type[Message]) -> Any:
    """Return the decoder that ignores unknown members."""
    return _decoder(
        msgspec.defstruct(kind.__name__, [], bases=(kind,), forbid_unknown_fields=False)
    )


_ENVELOPES: dict[type[Message], tuple[Any, Any]] = {
    kind: (_decoder(kind), _lenient(kind)) for kind in (Export, ResourceLogs, ScopeLogs)
}
_FIELDS: dict[type[Message], dict[str, _Field]] = {
    kind: _fields(kind)
    for kind in (AnyValue, ArrayValue, KeyValue, KeyValueList, MessageSource, LogRecord)
}


def read_envelope(kind: type[Message], text: bytes, place: str) -> tuple[Any, str | None]:
    """Return an Export, ResourceLogs or ScopeLogs, and a member of it that OTLP does not define.

    The name is None if OTLP knows all. Raises ValueError, which names the `place`.
    """
    try:
        return _read_envelope(kind, text)
    except ValueError:
        pass
    try:
        return _read_envelope(kind, _replace_invalid(text))
    except ValueError as error:
        raise ValueError(str(error).replace("`$", f"`{place}")) from None


def _read_envelope(kind: type[Message], text: bytes) -> tuple[Any, str | None]:
    strict, lenient = _ENVELOPES[kind]
    try:
        return strict.decode(text), None
    except msgspec.ValidationError as error:
        message = lenient.decode(text)
        name = str(error).removeprefix("Object contains unknown field `").removesuffix("`")
        return message, name[:SHOWN_CHARACTERS]


def either(one: Value | None, other: Value | None, name: str) -> Value | None:
    """Return the value of a field by either of its names; raises ValueError if it has both."""
    if one is not None and other is not None:
        raise ValueError(f"{name} is given twice, under both of its names.")
    return one if other is None else other


def _reader(kind: type[Message] | None, result: Any) -> Callable[[bytes], Any]:
    """Return the function that reads texts of a kind as `result`.

    It raises ValueError and RecursionError.
    """
    decoder = _decoder(result)
    decode = decoder.decode

    def read(text: bytes) -> Any:
        if len(text) > LONG_LOG_COMMAS and (excess := find_excess(bytes(text))):
            raise ValueError(f"It has {excess}.")
        try:
            return decode(text)
        except ValueError:
            value = _normalise(kind, msgspec.json.decode(_replace_invalid(text)))
            return msgspec.convert(value, result, strict=False)

    return read


read_record: Callable[[bytes], LogRecord] = _reader(LogRecord, LogRecord)
read_source: Callable[[bytes], MessageSource | None] = _reader(MessageSource, MessageSource | None)
read_text: Callable[[bytes], str | None] = _reader(None, str | None)


def _replace_invalid(text: bytes) -> bytes:
    """Return JSON with U+FFFD in place of invalid UTF-8 and of lone surrogates."""
    return replace_lone_surrogates(to_utf8(bytes(text)))


def _normalise(kind: type[Message] | None, value: Any) -> Any:
    """Return the JSON value of messages of a kind, with JSON's names and without unknown members.

    Raises ValueError for a field under both of its names and, except for a resource or a scope, for
    a message of nothing but unknown members, which would be stored as an empty one.
    """
    if isinstance(value, list):
        return [_normalise(kind, item) for item in value]
    if kind is None or not isinstance(value, dict):
        return value
    yield_if_due()
    fields = _FIELDS[kind]
    members: dict[str, Any] = {}
    for name, member in value.items():
        if name in fields:
            field = fields[name]
            known = members.get(field.name)
            members[field.name] = either(known, _normalise_member(field, member), field.name)
    if value and not members and kind is not MessageSource:
        shown = next(iter(value))[:SHOWN_CHARACTERS]
        raise ValueError(f"It has only members that OTLP does not define, such as `{shown}`.")
    return members


def _normalise_member(field: _Field, value: Any) -> Any:
    """Return the value of a field; an integer may be written as 1.7e18."""
    if isinstance(value, float) and value.is_integer() and field.name != "doubleValue":
        return int(value)
    return _normalise(field.kind, value)


class Json:
    """The encoding OTLP/JSON."""

    content_type = "application/json"
    invalid_code = "invalid_json"

    def split(self, body: bytes, budget: ValueBudget) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        if body.count(b",") > LONG_BODY_COMMAS:
            message = f"The export holds more than {LONG_BODY_COMMAS} values; send smaller exports."
            raise Rejection("body_too_large", message)
        return _Split(budget).split(body)

    def make_loader(self, now: int, budget: ValueBudget) -> Loader:
        """Return a function that decodes the records of one export."""
        reader = _Reader(budget)
        convert, read_attributes = reader.convert, reader.read_attributes

        def load(text: bytes, origin: Origin) -> Any:
            record = read_record(text)
            severity = record.severity_number
            return make_log(
                origin,
                _time(record.time_unix_nano) or _time(record.observed_time_unix_nano) or now,
                severity if type(severity) is int else _severity(severity),
                record.severity_text or "",
                convert(record.body),
                read_attributes(record.attributes),
                _id(record.trace_id, "trace_id"),
                _id(record.span_id, "span_id"),
                record.flags or 0,
                record.event_name or "",
                record.dropped_attributes_count or 0,
            )

        return load

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse."""
        partial = {"rejectedLogRecords": str(rejected), "errorMessage": message}
        return _encoder.encode({"partialSuccess": partial})

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""
        return _encoder.encode({"code": code, "message": message})


class _Split:
    """Find the groups of one export."""

    def __init__(self, budget: ValueBudget) -> None:
        self._read_attributes = _Reader(budget).read_attributes

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        export, unknown = read_envelope(Export, body, "$")
        parts = either(export.resource_logs, export.resource_logs_, "resourceLogs")
        records = 0
        for number, part in enumerate(parts or ()):
            records += yield from self._split_resource(part, f"$.resourceLogs[{number}]")
        if unknown is not None and not records:
            raise _foreign(unknown, "$")

    def _split_resource(self, text: bytes, place: str) -> Generator[Group, None, int]:
        """Yield the groups of a resource, and return the number of its records."""
        logs, unknown = read_envelope(ResourceLogs, text, place)
        problems: Problems = {}
        resource = try_read("resource", problems, lambda: self._read_source(logs.resource, logs))
        parts = either(logs.scope_logs, logs.scope_logs_, "scopeLogs")
        records = 0
        for number, part in enumerate(parts or (b"{}",)):
            group = self._read_group(part, f"{place}.scopeLogs[{number}]", resource, problems)
            records += len(group.records)
            yield group
        if unknown is not None and not records:
            raise _foreign(unknown, place)
        return records

    def _read_group(self, text: bytes, place: str, resource: Source, problems: Problems) -> Group:
        logs, unknown = read_envelope(ScopeLogs, text, place)
        records = either(logs.log_records, logs.log_records_, "logRecords")
        if unknown is not None and not records:
            raise _foreign(unknown, place)
        problems = dict(problems)
        scope = try_read("scope", problems, lambda: self._read_source(logs.scope, logs))
        return Group(resource, scope, records or (), problems)

    def _read_source(self, text: bytes, logs: Any) -> Source:
        """Return the source of logs; `logs` has its schema URL."""
        source = read_source(text) or MessageSource()
        url = either(read_text(logs.schema_url), read_text(logs.schema_url_), "schemaUrl")
        return Source(
            source.name or "",
            source.version or "",
            self._read_attributes(source.attributes),
            source.dropped_attributes_count or 0,
            url or "",
        )


def _foreign(name: str, place: str) -> ValueError:
    """Return the error for a message without records that has an unknown member."""
    hint = f": this is {FOREIGN[name]}" if name in FOREIGN else ""
    return ValueError(f"`{place}` has no log records, but `{name}`{hint}.")


def _time(nanoseconds: int | None) -> int:
    if nanoseconds and nanoseconds > _MAX_TIME:
        raise ValueError("A time has more than 64 bits.")
    return nanoseconds or 0


def _severity(value: int | str | None) -> int:
    """Return a severity number, which may be a name or a number in a string."""
    if not isinstance(value, str):
        return value or 0
    if value in SEVERITY_NUMBERS:
        return SEVERITY_NUMBERS[value]
    try:
        return msgspec.convert(value, Int32, strict=False)
    except ValueError:
        raise InvalidRecord("severity_number", "Neither a severity number nor its name.") from None


def _id(text: str | None, field: str) -> bytes:
    """Return an id in hexadecimal; one that ends in `=` is base64, as in protobuf's JSON."""
    try:
        return bytes.fromhex(text) if text else b""
    except ValueError:
        if text and text.strip("=") and text.endswith("="):
            return _base64(text)
        raise InvalidRecord(field, "Not hexadecimal.") from None


class _Reader:
    """Convert the attributes and values of one export to values of JSON."""

    def __init__(self, budget: ValueBudget) -> None:
        self._budget = budget

    def read_attributes(self, attributes: list[KeyValue] | None) -> dict[str, Any]:
        """Return attributes as an object; if several have the same key, the last one counts."""
        if not attributes:
            return {}
        items = self._budget.take(attributes, MAX_ATTRIBUTES)
        return {item.key or "": self.convert(item.value) for item in items}

    def convert(self, value: AnyValue | None, depth: int = 0) -> Any:
        """Return a value in JSON's form."""
        if value is None or value.string_value is not None:
            return value and value.string_value
        if value.int_value is not None:
            return value.int_value
        if value.double_value is not None:
            return number_value(value.double_value)
        if value.bytes_value is not None:
            return bytes_value(_base64(value.bytes_value))
        if value.bool_value is not None:
            return value.bool_value
        return self._convert_nested(value, depth + 1)

    def _convert_nested(self, value: AnyValue, depth: int) -> Any:
        check_depth(depth)
        if value.array_value is not None:
            items = self._budget.take(value.array_value.values or ())
            return [self.convert(item, depth) for item in items]
        if value.kvlist_value is not None:
            members = self._budget.take(value.kvlist_value.values or ())
            return {item.key or "": self.convert(item.value, depth) for item in members}
        return None


def _base64(text: str) -> bytes:
    """Decode base64; either alphabet, missing padding and line breaks are accepted."""
    try:
        plain = text.encode("ascii").translate(_BASE64, _LINE_BREAKS).rstrip(b"=")
        return b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise ValueError("A bytesValue or an id is not base64.") from None
