"""OTLP: turn an export of logs, in either encoding, into the lines that are stored.

The messages are those of https://opentelemetry.io/docs/specs/otlp/ and of
https://github.com/open-telemetry/opentelemetry-proto; docs/api.md says which field becomes which.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from astralog.deadlines import in_runs, yield_if_due
from astralog.errors import Rejection
from astralog.intake.decoder import (
    STEP_BYTES,
    Context,
    Decoded,
    InvalidLogs,
    LineWriter,
    escaped_size,
    reject_invalid,
)
from astralog.intake.logs import name_encoding
from astralog.intake.otlp_log import InvalidRecord, Origin, Source, Values, make_origin

#: The longest body that is decoded beside the long ones, which go one after another.
FAST_BYTES = 256 * 1024

#: Bytes of lines that an export may take beyond MAX_GROWTH times its own: what a resource says
#: once is repeated in each of its logs. Beyond it: 413 `body_too_large`.
MAX_REPEATED_BYTES = 16 * 1024 * 1024

#: Scopes, or resources without any, that an export may have. Beyond it: 413 `body_too_large`.
MAX_SCOPES = 100_000


#: What is wrong with a resource or a scope, by that word; it is wrong with each of its records.
Problems = dict[str, list[str]]


class Group(NamedTuple):
    """The records of one scope of one resource, not decoded yet."""

    resource: Source
    scope: Source
    records: Sequence[bytes]
    problems: Problems


#: Makes the log of a record of an origin.
Loader = Callable[[bytes, Origin], Any]


class Encoding(Protocol):
    """How a message is written: as protobuf or as JSON.

    `invalid_code` is the code for what is none.
    """

    content_type: str
    invalid_code: str

    def split(self, body: bytes, values: Values) -> Iterator[Group]:
        """Yield the groups of an export as they are reached, an empty one if there is no scope.

        Raises ValueError, worded for the client, also for a body that has no records but something
        that OTLP does not know, and Rejection `body_too_large`.
        """

    def make_loader(self, now: int, values: Values) -> Loader:
        """Return what makes logs of the records of one export, `now` in Unix nanoseconds.

        It raises InvalidRecord, ValueError for what is not of this encoding, and Rejection
        `body_too_large`.
        """

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse that says how many logs were left out, and why."""

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""


def try_read(name: str, problems: Problems, read: Callable[[], Source]) -> Source:
    """Return the source that `read` returns; an invalid one is an empty one and a problem."""
    try:
        return read()
    except (ValueError, RecursionError) as error:
        problems[name] = [_word(error)]
        return Source()


def decode(encoding: Encoding, body: bytes, context: Context) -> Decoded:
    """Return the batch in the body of an export.

    Raises Rejection as a Decoder does; `invalid_protobuf` or `invalid_json` where the body is none.
    """
    turn = context.fast_slot if len(body) <= FAST_BYTES else context.slow_slot
    with turn(len(body)):
        try:
            return _Decode(encoding, body, context).run()
        except RecursionError:
            problem = "nested too deep"
        except ValueError as error:
            is_json = encoding.invalid_code == "invalid_json"
            problem = (name_encoding(body) if is_json else "") or str(error)
    raise Rejection(encoding.invalid_code, f"The body is not a valid export: {problem}")


class _Decode:
    """The decode of one export, which goes on step by step."""

    def __init__(self, encoding: Encoding, body: bytes, context: Context) -> None:
        self._values = Values()
        self._groups = encoding.split(body, self._values)
        self._load = encoding.make_loader(time.time_ns(), self._values)
        self._context = context
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
        if invalid.count and not (self._context.options.is_partial and self._lines.logs):
            raise reject_invalid(invalid, invalid.seen)
        return Decoded(self._lines.finish(), invalid if invalid.count else None)

    def _add_group(self, group: Group) -> None:
        records = len(group.records)
        self._values.count(records)
        if group.problems:
            self._reject_group(group)
        elif records:
            origin = make_origin(group.resource, group.scope, self._context)
            if origin.project_id:
                self._context.check_project(origin.project_id, records)
            for run in in_runs(group.records):
                if self._is_long and sum(map(len, run)) > STEP_BYTES:
                    for record in run:
                        self._lines.expect(escaped_size(bytes(record)))
                        self._add_records([record], origin)
                else:
                    self._add_records(run, origin)

    def _reject_group(self, group: Group) -> None:
        """Count all records of a group as invalid; a problem without records costs nothing."""
        invalid, records = self._invalid, len(group.records)
        if records:
            invalid.add(invalid.seen, group.problems, records)
            invalid.seen += records
        elif not self._context.options.is_partial:
            raise ValueError(
                "; ".join(f"{name}: {texts[0]}" for name, texts in group.problems.items())
            )

    def _add_records(self, records: Sequence[bytes], origin: Origin) -> None:
        """Encode the valid logs of some records, and count the others."""
        load = self._load
        logs = []
        for number, text in enumerate(records, self._invalid.seen):
            try:
                logs.append(load(text, origin))
            except (ValueError, RecursionError) as error:
                self._reject(number, error)
        self._invalid.seen += len(records)
        yield_if_due()  # to encode large values takes as long as to decode them
        self._lines.add(logs, origin.repeated_bytes)

    def _reject(self, number: int, error: Exception) -> None:
        """Count a record as invalid; without `partial`, enough of them end the decode."""
        field = error.field if isinstance(error, InvalidRecord) else "_schema"
        self._invalid.add(number, {field: [_word(error)]})
        if self._invalid.is_full and not self._context.options.is_partial:
            raise reject_invalid(self._invalid, number + 1)


def _word(error: Exception) -> str:
    """Return an error in words for the client."""
    return "Nested too deep." if isinstance(error, RecursionError) else str(error)
