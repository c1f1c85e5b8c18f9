"""OTLP: convert an export of logs, in either encoding, to stored lines.

Sources: https://opentelemetry.io/docs/specs/otlp/ and
https://github.com/open-telemetry/opentelemetry-proto.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, Protocol

from astralog.deadlines import in_runs, yield_if_due
from astralog.errors import Rejection
from astralog.intake.decoder import Context, Decoded
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.lines import STEP_BYTES, LineWriter, escaped_size, finish_batch
from astralog.intake.options import OnInvalid
from astralog.intake.otlp_log import InvalidRecord, Origin, Source, make_origin
from astralog.intake.strict_json import name_encoding
from astralog.intake.value_limits import ValueBudget

#: Bytes of lines that an export may take beyond MAX_GROWTH times its own: a resource's
#: attributes are repeated in each of its logs. Beyond it: 413 `body_too_large`.
MAX_REPEATED_BYTES = 16 * 1024 * 1024

#: Scopes, or resources without any, that an export may have. Beyond it: 413 `body_too_large`.
MAX_SCOPES = 100_000

Arguments = ParamSpec("Arguments")


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
