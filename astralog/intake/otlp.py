"""OTLP: convert an export of logs, in either encoding, to stored lines.

Sources: https://opentelemetry.io/docs/specs/otlp/ and
https://github.com/open-telemetry/opentelemetry-proto.
"""

import time
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple, Protocol

from astralog.deadlines import in_runs, yield_if_due
from astralog.errors import Rejection
from astralog.intake.decoder import Context, Decoded
from astralog.intake.lines import STEP_BYTES, LineWriter, escaped_size
from astralog.intake.options import OnInvalid
from astralog.intake.otlp_log import InvalidRecord, Origin, Source, make_origin
from astralog.intake.strict_json import name_encoding
from astralog.intake.value_limits import ValueBudget

#: Bytes of lines that an export may take beyond MAX_GROWTH times its own: a resource's
#: attributes are repeated in each of its logs. Beyond it: 413 `body_too_large`.
MAX_REPEATED_BYTES = 16 * 1024 * 1024

#: Scopes, or resources without any, that an export may have. Beyond it: 413 `body_too_large`.
MAX_SCOPES = 100_000


class Level(Enum):
    """The messages around the records: an export has resources, and each of these has scopes."""

    EXPORT = auto()
    RESOURCE = auto()
    SCOPE = auto()


class Message(NamedTuple):
    """A message of one level; its `parts` are those of the next level or the records.

    They are bytes, but the records in up to STEP_BYTES may be decoded already. `source` is the
    resource or the scope; an export has none.
    """

    parts: Sequence[Any]
    source: Source = Source()


class Encoding(Protocol):
    """An encoding of messages: protobuf or JSON; an instance reads one export.

    `invalid_code` is the code for a body that is not of this encoding. `places` are the names of an
    export, a resource and a scope in errors, with the numbers of the latter. Each method that reads
    raises Rejection `body_too_large` too.
    """

    content_type: str
    invalid_code: str
    places: tuple[str, str, str]

    def __init__(self, now: int, budget: ValueBudget) -> None:
        """Use `now`, in Unix ns, as the time of records without one."""

    def read(self, level: Level, text: bytes, place: str) -> Message:
        """Return a message; raises ValueError, worded for the client, which names its place."""

    def find_unknown(self, level: Level, text: bytes) -> str:
        """Return a description of something in a message that OTLP does not define, or ""."""

    def make_log(self, record: Any, origin: Origin) -> Any:
        """Return the log of a record; raises InvalidRecord, and ValueError if it is none."""

    @staticmethod
    def encode_response(rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse with the number and the errors of rejected logs."""

    @staticmethod
    def encode_status(code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""


def decode(encoding: type[Encoding], body: bytes, context: Context) -> Decoded:
    """Return the batch in the body of an export.

    Raises Rejection as a Decoder does; `invalid_protobuf` or `invalid_json` if the body is none.
    """
    with context.slot(len(body)):
        try:
            return _Decode(encoding, context, len(body)).run(body)
        except RecursionError:
            problem = "nested too deep"
        except ValueError as error:
            is_json = encoding.invalid_code == "invalid_json"
            problem = (name_encoding(body) if is_json else "") or str(error)
    raise Rejection(encoding.invalid_code, f"The body is not a valid export: {problem}")


class _Decode:
    """The decode of one export, step by step."""

    def __init__(self, encoding: type[Encoding], context: Context, body_bytes: int) -> None:
        self._places = encoding.places
        self._budget = ValueBudget()
        self._reader = encoding(time.time_ns(), self._budget)
        self._context = context
        self._scopes = 0
        self._lines = LineWriter(context, body_bytes, MAX_REPEATED_BYTES)
        self._invalid = self._lines.invalid  # counts all records

    def run(self, body: bytes) -> Decoded:
        """Return the batch; raises Rejection, or ValueError for a body that is not an export."""
        place = self._places[0]
        for number, text in enumerate(self._reader.read(Level.EXPORT, body, place).parts):
            self._add_resource(text, number)
        if not self._invalid.seen:
            self._check_known(Level.EXPORT, body, place)
        return self._lines.finish()

    def _add_resource(self, text: Any, number: int) -> None:
        place = self._places[1].format(number)
        logs = self._reader.read(Level.RESOURCE, text, place)
        records_before = self._invalid.seen
        for scope_number, scope_text in enumerate(logs.parts):
            scope_place = self._places[2].format(number, scope_number)
            scope_logs = self._reader.read(Level.SCOPE, scope_text, scope_place)
            if not scope_logs.parts:
                self._check_known(Level.SCOPE, scope_text, scope_place)
            self._add_group(logs.source, scope_logs, len(scope_text))
        if not logs.parts:
            self._add_group(logs.source, Message(()), 0)
        if self._invalid.seen == records_before:
            self._check_known(Level.RESOURCE, text, place)

    def _check_known(self, level: Level, text: Any, place: str) -> None:
        """Raise ValueError for a message without records that has something unknown."""
        if unknown := self._reader.find_unknown(level, text):
            raise ValueError(f"{place} has no log records, but {unknown}.")

    def _add_group(self, resource: Source, logs: Message, size: int) -> None:
        """Add a scope's logs of `size` bytes, or reject all for a problem of resource or scope."""
        scope, records = logs.source, logs.parts
        self._count_scope()
        self._budget.count(len(records))
        if resource.problem or scope.problem:
            self._reject_group(resource, scope, len(records))
        elif records:
            origin = make_origin(resource, scope, self._context)
            if origin.project_id:
                self._context.check_project(origin.project_id, len(records))
            for run in in_runs(records):
                if size <= STEP_BYTES or sum(map(len, run)) <= STEP_BYTES:
                    self._add_records(run, origin)
                else:
                    self._add_long_records(run, origin)

    def _count_scope(self) -> None:
        """Count a scope, or a resource without any; raises Rejection beyond MAX_SCOPES."""
        self._scopes += 1
        if self._scopes > MAX_SCOPES:
            message = f"The export has more than {MAX_SCOPES} scopes; send smaller exports."
            raise Rejection("body_too_large", message)

    def _reject_group(self, resource: Source, scope: Source, records: int) -> None:
        """Count all records of a group as invalid; a problem without records is ignored."""
        sources = {"resource": resource, "scope": scope}
        problems = {name: [part.problem] for name, part in sources.items() if part.problem}
        if records:
            self._invalid.add(self._invalid.seen, problems, records)
            self._invalid.seen += records
        elif self._context.options.on_invalid is OnInvalid.REJECT:
            raise ValueError("; ".join(f"{name}: {texts[0]}" for name, texts in problems.items()))

    def _add_records(self, records: Sequence[Any], origin: Origin) -> None:
        """Encode the valid logs of some records, and count the others."""
        make_log = self._reader.make_log
        logs = []
        for number, record in enumerate(records, self._invalid.seen):
            try:
                logs.append(make_log(record, origin))
            except (ValueError, RecursionError) as error:
                self._reject(number, error)
        self._invalid.seen += len(records)
        yield_if_due()  # to encode large values takes as long as to decode them
        self._lines.add(logs, origin.repeated_bytes)

    def _add_long_records(self, records: Sequence[Any], origin: Origin) -> None:
        """Add records one by one; the lines of each are charged before it is decoded."""
        for record in records:
            self._lines.expect(escaped_size(bytes(record)))
            self._add_records([record], origin)

    def _reject(self, number: int, error: Exception) -> None:
        """Count a record as invalid; without `partial`, enough of them end the decode."""
        field = error.field if isinstance(error, InvalidRecord) else "_schema"
        self._invalid.add(number, {field: [_word(error)]})
        if self._invalid.is_full and self._context.options.on_invalid is OnInvalid.REJECT:
            raise self._invalid.reject(number + 1)


def try_read(read: Callable[[], Source]) -> Source:
    """Return the source that `read` returns; one with a problem if it is invalid."""
    try:
        return read()
    except (ValueError, RecursionError) as error:
        return Source(problem=_word(error))


def _word(error: Exception) -> str:
    """Return an error as text for the client."""
    return "Nested too deep." if isinstance(error, RecursionError) else str(error)
