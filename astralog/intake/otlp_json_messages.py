"""OTLP's messages in JSON, read by the names that they have in JSON or in protobuf.

A message with JSON's names alone is decoded in one call. If that fails, the names of its members
are normalised, invalid UTF-8 and lone surrogates become U+FFFD, and it is decoded once more.
Source: https://protobuf.dev/programming-guides/json/.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import msgspec

from astralog.deadlines import yield_if_due
from astralog.errors import SHOWN_CHARACTERS
from astralog.intake.members import NULL
from astralog.intake.strict_json import replace_lone_surrogates, to_utf8
from astralog.intake.value_limits import LONG_LOG_COMMAS, find_excess

Value = TypeVar("Value")

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_UInt64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec's limits have 63 bits


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
    """An export; like those below it has members under both names, to be read with `either`."""

    resource_logs: list[msgspec.Raw] | None = None
    resource_logs_: list[msgspec.Raw] | None = msgspec.field(default=None, name="resource_logs")


class SchemaLogs(Message):
    """Logs with the URL of a schema."""

    schema_url: msgspec.Raw = NULL
    schema_url_: msgspec.Raw = msgspec.field(default=NULL, name="schema_url")


class ResourceLogs(SchemaLogs):
    resource: msgspec.Raw = NULL
    scope_logs: list[msgspec.Raw] | None = None
    scope_logs_: list[msgspec.Raw] | None = msgspec.field(default=None, name="scope_logs")


class ScopeLogs(SchemaLogs):
    scope: msgspec.Raw = NULL
    log_records: list[msgspec.Raw] | None = None
    log_records_: list[msgspec.Raw] | None = msgspec.field(default=None, name="log_records")


def _decoder(kind: Any) -> Any:
    """Return the decoder of a kind of values."""
    return msgspec.json.Decoder(kind, strict=False)  # takes numbers in strings


def _lenient(kind: type[Message]) -> Any:
    """Return the decoder that ignores unknown members."""
    return _decoder(
        msgspec.defstruct(kind.__name__, [], bases=(kind,), forbid_unknown_fields=False)
    )


_ENVELOPES: dict[type[Message], tuple[Any, Any]] = {
    kind: (_decoder(kind), _lenient(kind)) for kind in (Export, ResourceLogs, ScopeLogs)
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
    """Return the same; msgspec's error for a member names it."""
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


_FIELDS: dict[type[Message], dict[str, _Field]] = {
    kind: _fields(kind)
    for kind in (AnyValue, ArrayValue, KeyValue, KeyValueList, MessageSource, LogRecord)
}


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
