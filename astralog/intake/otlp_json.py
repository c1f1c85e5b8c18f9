"""OTLP in JSON: protobuf's mapping to JSON, except for ids, which are hexadecimal.

Integers may be strings, unknown fields are ignored, and null stands for a field that is not set.
Source: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding.
"""

from base64 import b64decode
from typing import Any

import msgspec

from astralog.intake.lines import encode_value
from astralog.intake.members import LINE_BREAKS
from astralog.intake.otlp import Encoding, Level, Message, try_read
from astralog.intake.otlp_json_messages import (
    ENVELOPES,
    AnyValue,
    Int32,
    KeyValue,
    MessageSource,
    read_record,
    read_source,
    read_text,
)
from astralog.intake.otlp_log import (
    LEVELS,
    NUMBERS_PER_LEVEL,
    InvalidRecord,
    Origin,
    Source,
    bytes_value,
    make_log,
    number_value,
)
from astralog.intake.value_limits import (
    MAX_ATTRIBUTES,
    MAX_VALUES,
    ValueBudget,
    check_depth,
    reject_values,
)

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

#: The two letters in which the alphabets of base64 differ.
_BASE64 = bytes.maketrans(b"-_", b"+/")


class Json(Encoding):
    """OTLP/JSON, with names in camelCase or snake_case."""

    content_type = "application/json"
    invalid_code = "invalid_json"
    places = ("`$`", "`$.resourceLogs[{}]`", "`$.resourceLogs[{}].scopeLogs[{}]`")

    def __init__(self, now: int, budget: ValueBudget) -> None:
        self._now = now
        self._budget = budget

    def read(self, level: Level, text: bytes, place: str) -> Message:
        if level is Level.EXPORT and text.count(b",") > MAX_VALUES:
            raise reject_values("export", "exports")
        message = ENVELOPES[level].read(text, place)
        if level is Level.EXPORT:
            return Message(message.resource_logs or ())
        if level is Level.RESOURCE:
            parts, source = message.scope_logs, message.resource
        else:
            parts, source = message.log_records, message.scope
        url = message.schema_url
        return Message(parts or (), try_read(lambda: self._read_source(source, url)))

    def find_unknown(self, level: Level, text: bytes) -> str:
        name = ENVELOPES[level].find_unknown(text)
        if name is None:
            return ""
        return f"`{name}`" + (f": this is {FOREIGN[name]}" if name in FOREIGN else "")

    def make_log(self, text: bytes, origin: Origin) -> Any:
        record = read_record(text)
        severity = record.severity_number
        return make_log(
            origin,
            _time(record.time_unix_nano) or _time(record.observed_time_unix_nano) or self._now,
            severity if type(severity) is int else _severity(severity),
            record.severity_text or "",
            self._convert(record.body),
            self._read_attributes(record.attributes),
            _id(record.trace_id, "trace_id"),
            _id(record.span_id, "span_id"),
            record.flags or 0,
            record.event_name or "",
            record.dropped_attributes_count or 0,
        )

    def _read_source(self, text: bytes, schema_url: bytes) -> Source:
        source = read_source(text) or MessageSource()
        return Source(
            source.name or "",
            source.version or "",
            self._read_attributes(source.attributes),
            source.dropped_attributes_count or 0,
            read_text(schema_url) or "",
        )

    def _read_attributes(self, attributes: list[KeyValue] | None) -> dict[str, Any]:
        """Return attributes as an object; if several have the same key, the last one counts."""
        if not attributes:
            return {}
        items = self._budget.take(attributes, MAX_ATTRIBUTES)
        return {item.key or "": self._convert(item.value) for item in items}

    def _convert(self, value: AnyValue | None, depth: int = 0) -> Any:
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
        """Return a list or a map in JSON's form; None for a value without any content."""
        check_depth(depth)
        if value.array_value is not None:
            items = self._budget.take(value.array_value.values or ())
            return [self._convert(item, depth) for item in items]
        if value.kvlist_value is not None:
            members = self._budget.take(value.kvlist_value.values or ())
            return {item.key or "": self._convert(item.value, depth) for item in members}
        return None

    @staticmethod
    def encode_response(rejected: int, message: str) -> bytes:
        partial = {"rejectedLogRecords": str(rejected), "errorMessage": message}
        return encode_value({"partialSuccess": partial})

    @staticmethod
    def encode_status(code: int, message: str) -> bytes:
        return encode_value({"code": code, "message": message})


def _time(nanoseconds: int | None) -> int:
    """Return a time in nanoseconds, 0 if it is not set; raises ValueError."""
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


def _base64(text: str) -> bytes:
    """Decode base64; either alphabet, missing padding and line breaks are accepted."""
    try:
        # Some encoders break the lines.
        plain = text.encode("ascii").translate(_BASE64, LINE_BREAKS).rstrip(b"=")
        return b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except ValueError:
        raise ValueError("A bytesValue or an id is not base64.") from None
