"""OTLP in JSON: protobuf's own mapping to JSON, but for ids, which are hexadecimal.

Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding. Integers may be strings,
unknown fields are ignored, null stands for a field that is not set.
"""

import binascii
from base64 import b64decode
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from astralog.errors import Rejection
from astralog.intake.batch import LONG_BODY_COMMAS, LONG_LOG_COMMAS
from astralog.intake.otlp import Group, Loader
from astralog.intake.otlp_log import (
    InvalidRecord,
    Origin,
    Source,
    bytes_value,
    check_attributes,
    check_depth,
    make_log,
    number_value,
)
from astralog.intake.strict_json import replace_lone_surrogates

_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_UInt32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
_UInt64 = Annotated[int, msgspec.Meta(ge=0)]  # msgspec's limits have 63 bits

_MAX_TIME = 2**64 - 1


class _Message(msgspec.Struct, rename="camel", gc=False):
    """A message, of which a field that is null is not set."""


class _Export(_Message):
    resource_logs: list[msgspec.Raw] | None = None


class _ResourceLogs(_Message):
    resource: "_Source | None" = None
    scope_logs: list[msgspec.Raw] | None = None
    schema_url: str | None = None


class _ScopeLogs(_Message):
    scope: "_Source | None" = None
    log_records: list[msgspec.Raw] | None = None
    schema_url: str | None = None


class _AnyValue(_Message):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: _Int64 | None = None
    double_value: float | None = None
    array_value: "_ArrayValue | None" = None
    kvlist_value: "_KeyValueList | None" = None
    bytes_value: str | None = None


class _ArrayValue(_Message):
    values: list[_AnyValue | None] | None = None


class _KeyValue(_Message):
    key: str | None = None
    value: _AnyValue | None = None


class _KeyValueList(_Message):
    values: list[_KeyValue] | None = None


class _Source(_Message):
    name: str | None = None
    version: str | None = None
    attributes: list[_KeyValue] | None = None
    dropped_attributes_count: _UInt32 | None = None


class _LogRecord(_Message):
    time_unix_nano: _UInt64 | None = None
    observed_time_unix_nano: _UInt64 | None = None
    severity_number: _UInt32 | None = None
    severity_text: str | None = None
    body: _AnyValue | None = None
    attributes: list[_KeyValue] | None = None
    dropped_attributes_count: _UInt32 | None = None
    flags: _UInt32 | None = None
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None


def _decoder(kind: type[_Message]) -> Any:
    return msgspec.json.Decoder(kind, strict=False)  # takes integers in strings


_export = _decoder(_Export)
_resource_logs = _decoder(_ResourceLogs)
_scope_logs = _decoder(_ScopeLogs)
_log_record = _decoder(_LogRecord)
_encoder = msgspec.json.Encoder()


class Json:
    """The encoding that people can read."""

    content_type = "application/json"
    invalid_code = "invalid_json"

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        if body.count(b",") > LONG_BODY_COMMAS:
            message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller exports"
            raise Rejection("body_too_large", message)
        for number, part in enumerate(_decode(_export, body, "$").resource_logs or ()):
            place = f"$.resourceLogs[{number}]"
            logs = _decode(_resource_logs, part, place)
            resource = _make_source(logs.resource, logs.schema_url)
            for index, piece in enumerate(logs.scope_logs or (b"{}",)):
                group = _decode(_scope_logs, piece, f"{place}.scopeLogs[{index}]")
                scope = _make_source(group.scope, group.schema_url)
                yield Group(resource, scope, group.log_records or ())

    def make_loader(self, now: int) -> Loader:
        """Return what decodes the records of one export."""

        def load(text: bytes, origin: Origin) -> Any:
            if len(text) > LONG_LOG_COMMAS and bytes(text).count(b",") > LONG_LOG_COMMAS:
                raise ValueError(f"More than {LONG_LOG_COMMAS} values.")
            record = _decode(_log_record, text, "$")
            return make_log(
                origin,
                _time(record.time_unix_nano) or _time(record.observed_time_unix_nano) or now,
                record.severity_number or 0,
                record.severity_text or "",
                _convert(record.body),
                _read_attributes(record.attributes),
                _hex(record.trace_id, "trace_id"),
                _hex(record.span_id, "span_id"),
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


def _decode(decoder: Any, text: bytes, place: str) -> Any:
    """Decode a message; half of a surrogate pair that stands alone becomes U+FFFD."""
    try:
        return decoder.decode(text)
    except ValueError as error:
        mended = replace_lone_surrogates(bytes(text))
        if mended == text:
            raise _place(error, place) from None
    try:
        return decoder.decode(mended)
    except ValueError as error:
        raise _place(error, place) from None


def _place(error: ValueError, place: str) -> ValueError:
    """Return an error that says where it is in the whole body."""
    if isinstance(error, UnicodeDecodeError):
        return ValueError(f"invalid UTF-8 in {place}")
    return ValueError(str(error).replace("`$", f"`{place}"))


def _time(nanoseconds: int | None) -> int:
    if nanoseconds and nanoseconds > _MAX_TIME:
        raise ValueError("A time has more than 64 bits.")
    return nanoseconds or 0


def _hex(text: str | None, field: str) -> str:
    try:
        return bytes.fromhex(text).hex() if text else ""
    except ValueError:
        raise InvalidRecord(field, "Not hexadecimal.") from None


def _make_source(source: _Source | None, schema_url: str | None) -> Source:
    source = source or _Source()
    return Source(
        source.name or "",
        source.version or "",
        _read_attributes(source.attributes),
        source.dropped_attributes_count or 0,
        schema_url or "",
    )


def _read_attributes(attributes: list[_KeyValue] | None) -> dict[str, Any]:
    """Return attributes as an object; of those with one key, the last one counts."""
    if not attributes:
        return {}
    check_attributes(len(attributes))
    return {item.key or "": _convert(item.value) for item in attributes}


def _convert(value: _AnyValue | None, depth: int = 0) -> Any:
    """Return what a value is in JSON."""
    if value is None or value.string_value is not None:
        return value and value.string_value
    if value.int_value is not None:
        return value.int_value
    if value.double_value is not None:
        return number_value(value.double_value)
    if value.bytes_value is not None:
        return bytes_value(_base64(value.bytes_value))
    return value.bool_value if value.bool_value is not None else _convert_nested(value, depth + 1)


def _convert_nested(value: _AnyValue, depth: int) -> Any:
    check_depth(depth)
    if value.array_value is not None:
        return [_convert(item, depth) for item in value.array_value.values or ()]
    if value.kvlist_value is not None:
        items = value.kvlist_value.values or ()
        return {item.key or "": _convert(item.value, depth) for item in items}
    return None


def _base64(text: str) -> bytes:
    """Return the bytes in base64, of either alphabet, padded or not."""
    padded = text.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return b64decode(padded + "=" * (-len(padded) % 4), validate=True)
    except binascii.Error:
        raise ValueError("A bytesValue is not base64.") from None
