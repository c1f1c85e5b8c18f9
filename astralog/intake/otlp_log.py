"""Which part of an OTLP log record becomes which field of a log.

Source: https://opentelemetry.io/docs/specs/otel/logs/data-model/.
"""

import math
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import msgspec

from astralog.deadlines import in_turns, yield_if_due
from astralog.errors import Rejection
from astralog.intake.batch import LONG_BODY_COMMAS
from astralog.intake.decoder import Context
from astralog.intake.schema import Log

#: Levels by severity number; the numbers 1 to 4 are trace, and so on.
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
NUMBERS_PER_LEVEL = 4

#: Severity numbers of which the level's name says all: the first of each level, and none.
PLAIN_NUMBERS = frozenset((0, *range(1, NUMBERS_PER_LEVEL * len(LEVELS), NUMBERS_PER_LEVEL)))

#: The level of a record that has neither a severity text nor a severity number.
NO_LEVEL = "unspecified"

#: The service of a resource without `service.name`, as OpenTelemetry's resources have it.
NO_SERVICE = "unknown_service"

#: Lists and maps that may lie in one another in a value. Beyond it, the log is invalid.
MAX_DEPTH = 30

#: Attributes of a record, a resource or a scope. Beyond it, the log is invalid, or the logs of the
#: resource or scope.
MAX_ATTRIBUTES = 10_000

#: Records, attributes and values within values that an export may hold: as many as JSON may have
#: commas. Beyond it: 413 `body_too_large`.
MAX_VALUES = LONG_BODY_COMMAS

#: Values between two checks of the clock; they take half a millisecond.
VALUES_PER_CHECK = 256

NO_PROJECT = (
    "The export names no project: put ?project_id=… into the URL, or set the resource's attribute "
    "project_id (OTEL_RESOURCE_ATTRIBUTES=project_id=…), or use a token bound to one project."
)

_NANOSECONDS = 1_000_000_000
_TRACE_DIGITS, _SPAN_DIGITS = 32, 16

#: An id of zeroes alone is none.
_NO_TRACE, _NO_SPAN = "0" * _TRACE_DIGITS, "0" * _SPAN_DIGITS

_encoder = msgspec.json.Encoder()

Item = TypeVar("Item")


class InvalidRecord(ValueError):
    """A record cannot be stored: `message` says what is wrong with a field of it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


class Metadata(msgspec.Struct, omit_defaults=True, gc=False):
    """What has no field of its own in a log: where it is set, under OpenTelemetry's own names."""

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
    """Where records come from: a resource, or a scope, as it is stored."""

    name: str = ""
    version: str = ""
    attributes: dict[str, Any] = {}
    dropped_attributes_count: int = 0
    schema_url: str = ""


class Origin(NamedTuple):
    """What all records of a scope have in common: its own part of their lines.

    Without a project or a level of its own, a string is empty.
    """

    project_id: str
    service: str
    level: str
    resource: msgspec.Raw | None
    scope: msgspec.Raw | None

    @property
    def repeated_bytes(self) -> int:
        """What it takes in each line, at most: a string may be escaped in each of its bytes."""
        texts = sum(map(len, (self.project_id, self.service, self.level)))
        return 6 * texts + len(self.resource or b"") + len(self.scope or b"")


def make_origin(resource: Source, scope: Source, context: Context) -> Origin:
    """Return the origin of the records of a scope, as the query and the token have it."""
    defaults, attributes = context.options.defaults, resource.attributes
    projects = list(context.projects or ())
    only = projects[0] if len(projects) == 1 else ""
    return Origin(
        defaults.get("project_id") or _text(attributes.get("project_id")) or only,
        _text(attributes.get("service.name")) or defaults.get("service", NO_SERVICE),
        defaults.get("level", NO_LEVEL),
        _encode_source(resource),
        _encode_source(scope),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _encode_source(source: Source) -> msgspec.Raw | None:
    encoded = _encoder.encode(source)
    return msgspec.Raw(encoded) if encoded != b"{}" else None


def make_log(  # noqa: PLR0917  # called by position: names would take 0.3 µs a log more
    origin: Origin,
    time: int,
    severity_number: int,
    severity_text: str,
    body: Any,
    attributes: dict[str, Any],
    trace_id: str,
    span_id: str,
    flags: int,
    event_name: str,
    dropped_attributes_count: int,
) -> Any:
    """Return the log that is stored for a record.

    `time` is in Unix nanoseconds; ids are hexadecimal; body and attributes are JSON's values.
    Raises InvalidRecord.
    """
    if not origin.project_id:
        raise InvalidRecord("project_id", NO_PROJECT)
    if len(trace_id) not in (0, _TRACE_DIGITS):
        raise _invalid_id("trace_id", _TRACE_DIGITS)
    if len(span_id) not in (0, _SPAN_DIGITS):
        raise _invalid_id("span_id", _SPAN_DIGITS)
    return Log(
        origin.project_id,
        format_time(time),
        severity_text or _level(severity_number) or origin.level,
        origin.service,
        body if type(body) is str else _encode_body(body),
        Metadata(
            attributes,
            trace_id if trace_id != _NO_TRACE else "",
            span_id if span_id != _NO_SPAN else "",
            flags,
            severity_number if severity_text or severity_number not in PLAIN_NUMBERS else 0,
            event_name,
            dropped_attributes_count,
            origin.resource,
            origin.scope,
        ),
    )


def _level(number: int) -> str:
    if 0 < number <= NUMBERS_PER_LEVEL * len(LEVELS):
        return LEVELS[(number - 1) // NUMBERS_PER_LEVEL]
    return ""


def _encode_body(body: Any) -> str:
    return "" if body is None else _encoder.encode(body).decode()


def _invalid_id(field: str, digits: int) -> InvalidRecord:
    return InvalidRecord(field, f"Must have {digits // 2} bytes, {digits} hexadecimal digits.")


def format_time(nanoseconds: int) -> str:
    """Return a Unix time as it is stored; 64 bits reach from 1970 to 2554."""
    seconds, fraction = divmod(nanoseconds, _NANOSECONDS)
    return f"{_format_seconds(seconds)}.{fraction:09}Z"


@lru_cache(maxsize=1024)
def _format_seconds(seconds: int) -> str:
    minute, second = divmod(seconds, 60)
    return f"{_format_minute(minute)}:{second:02}"


@lru_cache(maxsize=1024)
def _format_minute(minute: int) -> str:
    return datetime.fromtimestamp(minute * 60, UTC).strftime("%Y-%m-%dT%H:%M")


def number_value(number: float) -> float | str:
    """Return a double as JSON has it: what JSON cannot write is a string, as protobuf's JSON is."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def bytes_value(content: bytes) -> str:
    """Return bytes as JSON has them: in base64."""
    return b64encode(content).decode()


def check_depth(depth: int) -> None:
    """Raise ValueError for a value that lies in too many others."""
    if depth > MAX_DEPTH:
        raise ValueError(f"A value lies in more than {MAX_DEPTH} others.")


class Values:
    """The values of an export: counted as they are read, while other clients are served."""

    def __init__(self) -> None:
        self._left = self._next_check = MAX_VALUES

    def over(self, items: Sequence[Item], most: int = MAX_VALUES) -> Iterable[Item]:
        """Return what yields the items of a list, of a map, or of attributes, counted.

        Lists may be short and many, or one may be long: other clients are served all the same.
        Raises ValueError for more than `most`, which are 256 at least, and Rejection
        `body_too_large` beyond MAX_VALUES.
        """
        self._left -= len(items)
        return items if self._left >= self._next_check else self._over(items, most)

    def _over(self, items: Sequence[Item], most: int) -> Iterable[Item]:
        if len(items) > most:
            raise ValueError(f"There are more than {most} attributes.")
        self.count(0)
        return in_turns(items) if len(items) > VALUES_PER_CHECK else items

    def count(self, values: int) -> None:
        """Count some more; raises Rejection `body_too_large` beyond MAX_VALUES."""
        self._left -= values
        if self._left < 0:
            message = f"The export holds more than {MAX_VALUES} values; send smaller exports."
            raise Rejection("body_too_large", message)
        self._next_check = max(self._left - VALUES_PER_CHECK, 0)
        yield_if_due()
