"""OTLP's messages in JSON, read by the names that they have in JSON or in protobuf.

A message with JSON's names alone is decoded in one call. If that fails, the names of its members
are normalised, invalid UTF-8 and lone surrogates become U+FFFD, and it is decoded once more.
Source: https://protobuf.dev/programming-guides/json/.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple, get_args

import msgspec

from astralog.deadlines import yield_if_due
from astralog.errors import SHOWN_CHARACTERS
from astralog.intake.members import NULL
from astralog.intake.otlp import Level
from astralog.intake.strict_json import replace_lone_surrogates, to_utf8
from astralog.intake.value_limits import LONG_LOG_COMMAS, find_excess

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_UInt64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec's limits have 63 bits


#: The values of a field that is not set.
_NOT_SET = (None, NULL)


class JsonMessage(msgspec.Struct, rename="camel", gc=False, forbid_unknown_fields=True):
    """A message; a field that is null is not set.

    It takes JSON's names alone, so that a message without others is decoded in one call.
    """


class AnyValue(JsonMessage):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Int64 | None = None
    double_value: float | None = None
    array_value: "ArrayValue | None" = None
    kvlist_value: "KeyValueList | None" = None
    bytes_value: str | None = None


class ArrayValue(JsonMessage):
    values: list[AnyValue | None] | None = None


class KeyValue(JsonMessage):
    key: str | None = None
    value: AnyValue | None = None


class KeyValueList(JsonMessage):
    values: list[KeyValue] | None = None


class MessageSource(JsonMessage):
    """A resource or a scope."""

    name: str | None = None
    version: str | None = None
    attributes: list[KeyValue] | None = None
    dropped_attributes_count: _UInt32 | None = None
    entity_refs: Any = None  # of a resource; not stored


class LogRecord(JsonMessage):
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


class Export(JsonMessage):
    resource_logs: list[msgspec.Raw] | None = None


class ResourceLogs(JsonMessage):
    resource: msgspec.Raw = NULL
    scope_logs: list[msgspec.Raw] | None = None
    schema_url: msgspec.Raw = NULL


class ScopeLogs(JsonMessage):
    scope: msgspec.Raw = NULL
    log_records: list[msgspec.Raw] | None = None
    schema_url: msgspec.Raw = NULL


def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind, strict=False)  # takes numbers in strings


def _reader(kind: type[JsonMessage] | None, result: Any) -> Callable[[bytes], Any]:
    """Return a function that reads a text of a kind; it raises ValueError and RecursionError."""
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
    kind: type[JsonMessage] | None


def _fields(kind: type[JsonMessage]) -> dict[str, _Field]:
    """Return the fields of a message by each of their names."""
    fields: dict[str, _Field] = {}
    for field in msgspec.structs.fields(kind):
        found = _Field(field.encode_name, _find_message(field.type))
        fields |= {field.name: found, field.encode_name: found}
    return fields


def _find_message(annotation: Any) -> type[JsonMessage] | None:
    """Return the kind of message in an annotation such as `list[KeyValue] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, JsonMessage):
        return annotation
    return next(filter(None, map(_find_message, get_args(annotation))), None)


_FIELDS: dict[type[JsonMessage], dict[str, _Field]] = {
    kind: _fields(kind)
    for kind in (
        *(Export, ResourceLogs, ScopeLogs, MessageSource, LogRecord),
        *(AnyValue, ArrayValue, KeyValue, KeyValueList),
    )
}


def _rename(kind: type[JsonMessage], members: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message's members by JSON's names, without unknown ones.

    Raises ValueError for a field under both of its names, unless one is null.
    """
    renamed: dict[str, Any] = {}
    for name, value in members.items():
        if field := _FIELDS[kind].get(name):
            if value in _NOT_SET:
                renamed.setdefault(field.name, value)
            elif renamed.get(field.name) in _NOT_SET:
                renamed[field.name] = value
            else:
                raise ValueError(f"{field.name} is given twice, under both of its names.")
    return renamed


def _normalise(kind: type[JsonMessage] | None, value: Any) -> Any:
    """Return the JSON value of messages of a kind, with JSON's names and without unknown members.

    Raises ValueError as `_rename` and, except for a resource or a scope, for a message of nothing
    but unknown members, which would be stored as an empty one.
    """
    if isinstance(value, list):
        return [_normalise(kind, item) for item in value]
    if kind is None or not isinstance(value, dict):
        return value
    yield_if_due()
    fields = _FIELDS[kind]
    members = {
        name: _normalise_member(fields[name], member)
        for name, member in _rename(kind, value).items()
    }
    if value and not members and kind is not MessageSource:
        shown = next(iter(value))[:SHOWN_CHARACTERS]
        raise ValueError(f"It has only members that OTLP does not define, such as `{shown}`.")
    return members


def _normalise_member(field: _Field, value: Any) -> Any:
    """Return the value of a field; an integer may be written as 1.7e18."""
    if isinstance(value, float) and value.is_integer() and field.name != "doubleValue":
        return int(value)
    return _normalise(field.kind, value)


# --- The messages around records: their parts stay text


class _Envelope:
    """Read messages of a kind without a copy of their unknown members, of which there may be many.

    The members are decoded as texts by either of their names.
    """

    def __init__(self, kind: type[JsonMessage]) -> None:
        self._kind = kind
        self._decode = _decoder(kind).decode
        self._names = list(_FIELDS[kind])
        self._find_members, self._check_names = map(self._make_decoder, (False, True))

    def _make_decoder(self, is_strict: bool) -> Callable[[bytes], Any]:
        """Return the decoder of the members by all names; a strict one rejects other members."""
        fields = [(f"f{number}", msgspec.Raw, msgspec.UNSET) for number in range(len(self._names))]
        rename = {field[0]: name for field, name in zip(fields, self._names, strict=True)}
        struct = msgspec.defstruct(
            "Members", fields, rename=rename, forbid_unknown_fields=is_strict, gc=False
        )
        return msgspec.json.Decoder(struct).decode

    def read(self, text: bytes, place: str) -> Any:
        """Return a message; raises ValueError, which names the place."""
        try:
            return self._decode(text)
        except ValueError:
            pass
        try:
            values = msgspec.structs.astuple(self._find_members(_replace_invalid(text)))
            found = zip(self._names, values, strict=True)
            members = {name: value for name, value in found if value is not msgspec.UNSET}
            return self._decode(msgspec.json.encode(_rename(self._kind, members)))
        except ValueError as error:
            raise ValueError(str(error).replace("`$", place.removesuffix("`"))) from None

    def find_unknown(self, text: bytes) -> str | None:
        """Return the name of a member that OTLP does not define, None if it defines all."""
        try:
            self._check_names(_replace_invalid(text))
        except msgspec.ValidationError as error:  # it names the member
            name = str(error).removeprefix("Object contains unknown field `").removesuffix("`")
            return name[:SHOWN_CHARACTERS]
        return None


ENVELOPES = {
    Level.EXPORT: _Envelope(Export),
    Level.RESOURCE: _Envelope(ResourceLogs),
    Level.SCOPE: _Envelope(ScopeLogs),
}
