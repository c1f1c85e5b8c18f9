"""The log of an OTLP record: which part of the record becomes which field.

Source: https://opentelemetry.io/docs/specs/otel/logs/data-model/; docs/api.md lists the fields.
"""

import math
from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import msgspec

from astralog.intake.decoder import Context
from astralog.intake.lines import encode_value
from astralog.intake.options import NO_LEVEL, NO_SERVICE
from astralog.intake.schema import Log
from astralog.intake.unix_time import format_time

#: Levels by severity number; the numbers 1 to 4 are trace, and so on.
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
NUMBERS_PER_LEVEL = 4
_LEVEL_OF_NUMBER = {
    NUMBERS_PER_LEVEL * place + step: level
    for place, level in enumerate(LEVELS)
    for step in range(1, NUMBERS_PER_LEVEL + 1)
}

#: Severity numbers of which the level's name says all: the first of each level, and none.
PLAIN_NUMBERS = frozenset((0, *range(1, NUMBERS_PER_LEVEL * len(LEVELS), NUMBERS_PER_LEVEL)))

NO_PROJECT = (
    "The export names no project: put ?project_id=… into the URL, or set the resource's attribute "
    "project_id (OTEL_RESOURCE_ATTRIBUTES=project_id=…), or use a token bound to one project."
)

_TRACE_BYTES, _SPAN_BYTES = 16, 8

#: An id of zeroes alone is none.
_NO_TRACE, _NO_SPAN = bytes(_TRACE_BYTES), bytes(_SPAN_BYTES)


class InvalidRecord(ValueError):
    """A record cannot be stored, for the error of a field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Metadata(msgspec.Struct, omit_defaults=True, gc=False):
    """The metadata of a log: the fields that are set, by OpenTelemetry's names."""

    attributes: dict[str, Any] = {}
    trace_id: str = ""
    span_id: str = ""
    flags: int = 0
    severity_number: int = 0
    event_name: str = ""
    dropped_attributes_count: int = 0
    resource: msgspec.Raw | None = None
    scope: msgspec.Raw | None = None


class Source(msgspec.Struct, omit_defaults=True):
    """The source of records: a resource or a scope, as stored; an invalid one is a `problem`."""

    name: str = ""
    version: str = ""
    attributes: dict[str, Any] = {}
    dropped_attributes_count: int = 0
    schema_url: str = ""
    problem: str = ""


@dataclass(slots=True)
class Origin:
    """The parts of a line that all records of a scope share.

    A string is empty if the scope has no project or level.
    """

    project_id: str
    service: str
    level: str
    resource: msgspec.Raw | None
    scope: msgspec.Raw | None

    @property
    def repeated_bytes(self) -> int:
        """An upper bound of its size per line: each byte of a string may need an escape."""
        texts = sum(map(len, (self.project_id, self.service, self.level)))
        return 6 * texts + len(self.resource or b"") + len(self.scope or b"")


def make_origin(resource: Source, scope: Source, context: Context) -> Origin:
    """Return the origin of the records of a scope, with the defaults of query and token."""
    defaults, attributes = context.options.defaults, resource.attributes
    return Origin(
        defaults.get("project_id") or _text(attributes.get("project_id")) or context.project,
        _text(attributes.get("service.name")) or defaults.get("service", NO_SERVICE),
        defaults.get("level", NO_LEVEL),
        _encode_source(resource),
        _encode_source(scope),
    )


def _text(value: Any) -> str:
    """Return a string as it is; empty for any other value."""
    return value if isinstance(value, str) else ""


def _encode_source(source: Source) -> msgspec.Raw | None:
    """Return a source in JSON; None for an empty one."""
    encoded = encode_value(source)
    return msgspec.Raw(encoded) if encoded != b"{}" else None


def make_log(  # noqa: PLR0917  # called by position: names would take 0.3 µs a log more
    origin: Origin,
    time: int,
    severity_number: int,
    severity_text: str,
    body: Any,
    attributes: dict[str, Any],
    trace_id: bytes,
    span_id: bytes,
    flags: int,
    event_name: str,
    dropped_attributes_count: int,
) -> Any:
    """Return the log that is stored for a record.

    `time` is in Unix nanoseconds; body and attributes are JSON's values. Raises InvalidRecord.
    """
    if not origin.project_id:
        raise InvalidRecord("project_id", NO_PROJECT)
    if trace_id and len(trace_id) != _TRACE_BYTES:
        raise _invalid_id("trace_id", _TRACE_BYTES)
    if span_id and len(span_id) != _SPAN_BYTES:
        raise _invalid_id("span_id", _SPAN_BYTES)
    if type(body) is not str:
        body = "" if body is None else encode_value(body).decode()
    return Log(
        origin.project_id,
        format_time(time),
        severity_text or _LEVEL_OF_NUMBER.get(severity_number) or origin.level,
        origin.service,
        body,
        Metadata(
            attributes,
            trace_id.hex() if trace_id != _NO_TRACE else "",
            span_id.hex() if span_id != _NO_SPAN else "",
            flags,
            severity_number if severity_text or severity_number not in PLAIN_NUMBERS else 0,
            event_name,
            dropped_attributes_count,
            origin.resource,
            origin.scope,
        ),
    )


def _invalid_id(field: str, size: int) -> InvalidRecord:
    return InvalidRecord(field, f"Must have {size} bytes, {2 * size} hexadecimal digits.")


def number_value(number: float) -> float | str:
    """Return a double for JSON: NaN and infinities as strings, as in protobuf's JSON."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def bytes_value(content: bytes) -> str:
    return b64encode(content).decode()
