"""OTLP: turn an export of logs, in either encoding, into the lines that are stored.

The messages are those of https://opentelemetry.io/docs/specs/otlp/ and of
https://github.com/open-telemetry/opentelemetry-proto; docs/api.md says which field becomes which.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from astralog.errors import Rejection
from astralog.intake.decoder import Context, Decoded
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.lines import STEP_BYTES, LineWriter, escaped_size
from astralog.intake.otlp_log import InvalidRecord, Origin, Source, make_origin
from astralog.time_slice import TimeSlice

#: The longest body that is decoded beside the long ones, which go one after another.
FAST_BYTES = 256 * 1024

#: Records between two looks at the clock and at the size of the lines; they take about a
#: millisecond.
STEP_RECORDS = 100

#: Bytes of lines that an export may take beyond MAX_GROWTH times its own: what a resource says
#: once is repeated in each of its logs. Beyond it: 413 `body_too_large`.
MAX_REPEATED_BYTES = 16 * 1024 * 1024

#: Scopes, or resources without any, that an export may have. Beyond it: 413 `body_too_large`.
MAX_SCOPES = 100_000


class Group(NamedTuple):
    """The records of one scope of one resource, not decoded yet."""

    resource: Source
    scope: Source
    records: Sequence[bytes]


#: Makes the log of a record of an origin.
Loader = Callable[[bytes, Origin], Any]


class Encoding(Protocol):
    """How a message is written: as protobuf or as JSON.

    `invalid_code` is the code for what is none.
    """

    content_type: str
    invalid_code: str

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached, an empty one where there is no scope.

        Raises ValueError, worded for the client, and Rejection `body_too_large`.
        """

    def make_loader(self, now: int) -> Loader:
        """Return what makes logs of the records of one export, `now` in Unix nanoseconds.

        It raises InvalidRecord, and ValueError for what is not of this encoding.
        """

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse that says how many logs were left out, and why."""

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""


def decode(encoding: Encoding, body: bytes, context: Context) -> Decoded:
    """Return the batch in the body of an export.

    Raises Rejection as a Decoder does; `invalid_protobuf` or `invalid_json` where the body is none.
    """
    turn = context.fast_turn if len(body) <= FAST_BYTES else context.slow_turn
    with turn(len(body)):
        try:
            return _Decode(encoding, body, context).run()
        except RecursionError:
            problem = "nested too deep"
        except ValueError as error:
            problem = str(error)
    raise Rejection(encoding.invalid_code, f"The body is not a valid export: {problem}")


class _Decode:
    """The decode of one export, which goes on step by step."""

    def __init__(self, encoding: Encoding, body: bytes, context: Context) -> None:
        self._groups = encoding.split(body)
        self._load = encoding.make_loader(time.time_ns())
        self._context = context
        self._time_slice = TimeSlice()
        self._invalid = InvalidLogs()
        self._is_long = len(body) > STEP_BYTES
        self._lines = LineWriter(context.reservation, len(body), MAX_REPEATED_BYTES)

    def run(self) -> Decoded:
        """Return the batch, or raise Rejection, InvalidRecord or ValueError."""
        for count, group in enumerate(self._groups):
            if count == MAX_SCOPES:
                message = f"The export has more than {MAX_SCOPES} scopes; send smaller ones."
                raise Rejection("body_too_large", message)
            self._add_group(group)
        invalid = self._invalid
        if invalid.count and not self._context.options.is_partial:
            raise reject_invalid(invalid, invalid.seen)
        return Decoded(self._lines.finish(), invalid if invalid.count else None)

    def _add_group(self, group: Group) -> None:
        self._time_slice.end_if_over()
        if not len(group.records):
            return
        origin = make_origin(group.resource, group.scope, self._context)
        if origin.project_id:
            self._context.check_project(origin.project_id, len(group.records))
        for start in range(0, len(group.records), STEP_RECORDS):
            records = group.records[start : start + STEP_RECORDS]
            if self._is_long and sum(map(len, records)) > STEP_BYTES:
                for record in records:
                    self._lines.expect(escaped_size(bytes(record)))
                    self._add_records([record], origin)
            else:
                self._add_records(records, origin)
            self._time_slice.end_if_over()

    def _add_records(self, records: Sequence[bytes], origin: Origin) -> None:
        """Encode the valid logs of some records, and count the others."""
        load = self._load
        try:
            logs = [load(text, origin) for text in records]
        except (ValueError, RecursionError):
            logs = self._load_one_by_one(records, origin)
        self._invalid.seen += len(records)
        self._lines.add(logs, origin.repeated_bytes)

    def _load_one_by_one(self, records: Sequence[bytes], origin: Origin) -> list[Any]:
        logs = []
        for number, text in enumerate(records, self._invalid.seen):
            try:
                logs.append(self._load(text, origin))
            except (ValueError, RecursionError) as error:
                self._invalid.add(number, _describe(error))
                if self._invalid.is_full and not self._context.options.is_partial:
                    raise reject_invalid(self._invalid, number + 1) from None
        return logs


def _describe(error: Exception) -> dict[str, list[str]]:
    if isinstance(error, InvalidRecord):
        return {error.field: [error.message]}
    return {"_schema": ["Nested too deep." if isinstance(error, RecursionError) else str(error)]}
