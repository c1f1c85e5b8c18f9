"""OTLP: convert an export of logs, in either encoding, to stored lines.

Sources: https://opentelemetry.io/docs/specs/otlp/,
https://github.com/open-telemetry/opentelemetry-proto and, for the fields of a log,
https://opentelemetry.io/docs/specs/otel/logs/data-model/; docs/api.md lists them.
"""

import math
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, Protocol

import msgspec

from astralog.deadlines import in_runs, yield_if_due
from astralog.errors import Rejection
from astralog.intake.decoder import Context, Decoded
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.lines import STEP_BYTES, LineWriter, escaped_size, finish_batch
from astralog.intake.options import NO_LEVEL, NO_SERVICE, OnInvalid
from astralog.intake.schema import Log
from astralog.intake.strict_json import name_encoding
from astralog.intake.unix_time import format_time
from astralog.intake.value_limits import ValueBudget

#: Bytes of lines that an export may take beyond MAX_GROWTH times its own: a resource's
#: attributes are repeated in each of its logs. Beyond it: 413 `body_too_large`.
MAX_REPEATED_BYTES = 16 * 1024 * 1024

#: Scopes, or resources without any, that an export may have. Beyond it: 413 `body_too_large`.
MAX_SCOPES = 100_000

#: Levels by severity number; the numbers 1 to 4 are trace, and so on.
LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
NUMBERS_PER_LEVEL = 4

#: Severity numbers of which the level's name says all: the first of each level, and none.
PLAIN_NUMBERS = frozenset((0, *range(1, NUMBERS_PER_LEVEL * len(LEVELS), NUMBERS_PER_LEVEL)))

NO_PROJECT = (
    "The export names no project: put ?project_id=… into the URL, or set the resource's attribute "
    "project_id (OTEL_RESOURCE_ATTRIBUTES=project_id=…), or use a token bound to one project."
)

_TRACE_BYTES, _SPAN_BYTES = 16, 8

#: An id of zeroes alone is none.
_NO_TRACE, _NO_SPAN = bytes(_TRACE_BYTES), bytes(_SPAN_BYTES)

_encoder = msgspec.json.Encoder()

Arguments = ParamSpec("Arguments")


class InvalidRecord(ValueError):
    """A record cannot be stored: `message` describes the error of a field."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field
        self.message = message


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


class Group(NamedTuple):
    """The records of one scope of one resource, not decoded yet.

    They are bytes if their `size`, in total, exceeds STEP_BYTES. `make_log` makes the log of a
    record; it raises InvalidRecord, ValueError for text of another encoding, and Rejection
    `body_too_large`.
    """

    resource: Source
    scope: Source
    records: Sequence[Any]
    make_log: Callable[[Any, Origin], Any]
    size: int

    @property
    def problems(self) -> Mapping[str, list[str]]:
        """The errors of the resource and the scope by that word; each of the records has them."""
        parts = {"resource": self.resource, "scope": self.scope}
        return {name: [part.problem] for name, part in parts.items() if part.problem}


class Encoding(Protocol):
    """An encoding of messages: protobuf or JSON.

    `invalid_code` is the code for a body that is not of this encoding.
    """

    content_type: str
    invalid_code: str

    def split(self, body: bytes, now: int, budget: ValueBudget) -> Iterator[Group]:
        """Yield the groups of an export, one after another; an empty one if there is no scope.

        `now`, in Unix nanoseconds, is the time of records without one. Raises ValueError, worded
        for the client, also for a body that has no records but something that OTLP does not know,
        and Rejection `body_too_large`.
        """

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse with the number and the errors of rejected logs."""

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""


def decode(encoding: Encoding, body: bytes, context: Context) -> Decoded:
    """Return the batch in the body of an export.

    Raises Rejection as a Decoder does; `invalid_protobuf` or `invalid_json` if the body is none.
    """
    with context.slot(len(body)):
        try:
            return _Decode(encoding, body, context).run()
        except RecursionError:
            problem = "nested too deep"
        except ValueError as error:
            is_json = encoding.invalid_code == "invalid_json"
            problem = (name_encoding(body) if is_json else "") or str(error)
    raise Rejection(encoding.invalid_code, f"The body is not a valid export: {problem}")


class _Decode:
    """The decode of one export, step by step."""

    def __init__(self, encoding: Encoding, body: bytes, context: Context) -> None:
        self._budget = ValueBudget()
        self._groups = encoding.split(body, time.time_ns(), self._budget)
        self._context = context
        self._invalid = InvalidLogs()
        self._lines = LineWriter(context.reservation, len(body), MAX_REPEATED_BYTES)

    def run(self) -> Decoded:
        """Return the batch; raises Rejection, or ValueError for a body that is not an export."""
        for count, group in enumerate(self._groups):
            if count == MAX_SCOPES:
                message = f"The export has more than {MAX_SCOPES} scopes; send smaller exports."
                raise Rejection("body_too_large", message)
            self._add_group(group)
        return finish_batch(self._lines, self._invalid, self._context.options)

    def _add_group(self, group: Group) -> None:
        """Add the records of a group, or reject all for a problem of their resource or scope."""
        records = len(group.records)
        self._budget.count(records)
        if problems := group.problems:
            self._reject_group(problems, records)
        elif records:
            origin = make_origin(group.resource, group.scope, self._context)
            if origin.project_id:
                self._context.check_project(origin.project_id, records)
            for run in in_runs(group.records):
                if group.size <= STEP_BYTES or sum(map(len, run)) <= STEP_BYTES:
                    self._add_records(run, origin, group.make_log)
                else:
                    for record in run:  # each is charged before it is decoded
                        self._lines.expect(escaped_size(bytes(record)))
                        self._add_records([record], origin, group.make_log)

    def _add_records(
        self, records: Sequence[Any], origin: Origin, make_log: Callable[[Any, Origin], Any]
    ) -> None:
        """Encode the valid logs of some records, and count the others."""
        logs = []
        rejected = 0
        for record in records:
            try:
                logs.append(make_log(record, origin))
            except (ValueError, RecursionError) as error:
                self._reject(self._invalid.seen + len(logs) + rejected, error)
                rejected += 1
        self._invalid.seen += len(records)
        yield_if_due()  # to encode large values takes as long as to decode them
        self._lines.add(logs, origin.repeated_bytes)

    def _reject_group(self, problems: Mapping[str, list[str]], records: int) -> None:
        """Count all records of a group as invalid; a problem without records is ignored."""
        if records:
            self._invalid.add(self._invalid.seen, problems, records)
            self._invalid.seen += records
        elif self._context.options.on_invalid is OnInvalid.REJECT:
            raise ValueError("; ".join(f"{name}: {texts[0]}" for name, texts in problems.items()))

    def _reject(self, number: int, error: Exception) -> None:
        """Count a record as invalid; without `partial`, enough of them end the decode."""
        field = error.field if isinstance(error, InvalidRecord) else "_schema"
        self._invalid.add(number, {field: [_word(error)]})
        if self._invalid.is_full and self._context.options.on_invalid is OnInvalid.REJECT:
            raise reject_invalid(self._invalid, number + 1)


def try_read(
    read: Callable[Arguments, Source], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Source:
    """Return the source that `read` returns; one with a problem if it is invalid."""
    try:
        return read(*args, **kwargs)
    except (ValueError, RecursionError) as error:
        return Source(problem=_word(error))


def _word(error: Exception) -> str:
    """Return an error as text for the client."""
    return "Nested too deep." if isinstance(error, RecursionError) else str(error)


# --- The log of a record


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
    encoded = _encoder.encode(source)
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
    return Log(
        origin.project_id,
        format_time(time),
        severity_text or _level(severity_number) or origin.level,
        origin.service,
        body if type(body) is str else _encode_body(body),
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


def _level(number: int) -> str:
    """Return the level of a severity number; empty if there is none."""
    if 0 < number <= NUMBERS_PER_LEVEL * len(LEVELS):
        return LEVELS[(number - 1) // NUMBERS_PER_LEVEL]
    return ""


def _encode_body(body: Any) -> str:
    """Return a body other than text as a message: in JSON, empty for none."""
    return "" if body is None else _encoder.encode(body).decode()


def _invalid_id(field: str, size: int) -> InvalidRecord:
    return InvalidRecord(field, f"Must have {size} bytes, {2 * size} hexadecimal digits.")


def number_value(number: float) -> float | str:
    """Return a double for JSON: NaN and infinities as strings, as in protobuf's JSON."""
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def bytes_value(content: bytes) -> str:
    """Return bytes in base64, as in JSON."""
    return b64encode(content).decode()
