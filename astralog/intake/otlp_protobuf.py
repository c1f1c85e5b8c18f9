"""OTLP in protobuf, read with the messages of opentelemetry-proto.

A message that holds many others is read one level at a time, by the messages of `otlp_wire`: so
only one record of a long export is an object at a time, and errors are known by their place.

Import it with the first export only: that takes 50 ms.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from astralog.deadlines import in_turns
from astralog.intake import otlp_wire as messages
from astralog.intake.otlp import Group, Loader, Problems, try_read
from astralog.intake.otlp_limits import ValueBudget
from astralog.intake.otlp_log import Origin, Source, make_log
from astralog.intake.otlp_protobuf_values import Reader
from astralog.intake.otlp_wire import LONG_BYTES, check_size, find_unknown, parse

#: Records of a scope are parsed all at once if their message has at most so many bytes and records:
#: the decode is 5% faster, but a record without content takes 200 bytes.
MAX_PARSED_BYTES = 256 * 1024
MAX_PARSED_RECORDS = 4096

#: Parts that a resource or a scope may be sent in. Beyond it, the logs are invalid.
MAX_PARTS = 1000

#: The field of a resource's logs that held those of a scope before OTLP 1.0.
INSTRUMENTATION_LIBRARY_LOGS = 1000

#: The first tags of a span, a metric or a profile, but of no log record: a field of bytes.
_OTHER_SIGNALS = (b"\x0a", b"\x12")


class Protobuf:
    """The encoding OTLP/protobuf, the default of SDKs and collectors."""

    content_type = "application/x-protobuf"
    invalid_code = "invalid_protobuf"

    def split(self, body: bytes, budget: ValueBudget) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        return _Split(budget).split(body)

    def make_loader(self, now: int, budget: ValueBudget) -> Loader:
        """Return a function that decodes the records of one export."""
        reader = Reader(budget)
        read_attributes, read_value = reader.read_attributes, reader.read_value

        def load(record: Any, origin: Origin) -> Any:
            if type(record) is bytes:
                record = parse(messages.LogRecord, record, "It")
            return make_log(
                origin,
                record.time_unix_nano or record.observed_time_unix_nano or now,
                record.severity_number,
                record.severity_text,
                read_value(record.body),
                read_attributes(record.attributes),
                record.trace_id,
                record.span_id,
                record.flags,
                record.event_name,
                record.dropped_attributes_count,
            )

        return load

    def encode_response(self, rejected: int, message: str) -> bytes:
        """Return an ExportLogsServiceResponse."""
        response = ExportLogsServiceResponse()
        response.partial_success.rejected_log_records = rejected
        response.partial_success.error_message = message
        return response.SerializeToString()

    def encode_status(self, code: int, message: str) -> bytes:
        """Return a google.rpc.Status."""
        status: bytes = messages.Status(code=code, message=message).SerializeToString()
        return status


class _Split:
    """Find the groups of one export."""

    def __init__(self, budget: ValueBudget) -> None:
        self._read_attributes = Reader(budget).read_attributes

    def split(self, body: bytes) -> Iterator[Group]:
        """Yield the groups of an export as they are reached."""
        export = parse(messages.Export, body, "The export")
        records = 0
        for number, part in enumerate(export.resource_logs):
            records += yield from self._split_resource(part, f"resource_logs[{number}]")
        if not records:
            _reject_foreign(messages.Export, body, "The export")

    def _split_resource(self, text: bytes, place: str) -> Generator[Group, None, int]:
        """Yield the groups of a resource, and return the number of its records."""
        logs = parse(messages.ResourceLogs, text, place)
        problems: Problems = {}
        resource = try_read(
            "resource",
            problems,
            lambda: self._read_source(messages.Resource, logs.resource, logs.schema_url),
        )
        records = 0
        for number, part in enumerate(logs.scope_logs or (b"",)):
            group = self._read_group(part, f"{place}.scope_logs[{number}]", resource, problems)
            records += len(group.records)
            yield group
        if not records:
            _reject_foreign(messages.ResourceLogs, text, place)
        return records

    def _read_group(self, text: bytes, place: str, resource: Source, problems: Problems) -> Group:
        """Return the group of a scope; raises ValueError if it is not one of records."""
        logs = parse(messages.ScopeLogs, text, place)
        records: Sequence[bytes] = logs.log_records
        if not records:
            _reject_foreign(messages.ScopeLogs, text, place)
        elif records[0].startswith(_OTHER_SIGNALS):
            raise ValueError(f"{place} contains spans, metrics or profiles, not log records.")
        if len(text) > LONG_BYTES:
            for record in in_turns(records):
                check_size(record)
        parsed = _parse_records(text, len(records))
        problems = dict(problems)
        scope = try_read(
            "scope",
            problems,
            lambda: self._read_source(messages.Scope, logs.scope, logs.schema_url),
        )
        if parsed is None:
            return Group(resource, scope, records, problems)
        return Group(resource, scope, parsed, problems, are_parsed=True)

    def _read_source(self, kind: Any, parts: Sequence[bytes], schema_url: str) -> Source:
        """Return the resource or scope that was sent in parts; raises ValueError."""
        if len(parts) > MAX_PARTS:
            raise ValueError(f"It occurs more than {MAX_PARTS} times.")
        message = parse(kind, b"".join(parts), "It")
        return Source(
            name=getattr(message, "name", ""),
            version=getattr(message, "version", ""),
            attributes=self._read_attributes(message.attributes),
            dropped_attributes_count=message.dropped_attributes_count,
            schema_url=schema_url,
        )


def _parse_records(text: bytes, count: int) -> Sequence[Any] | None:
    """Return the `count` records of a scope's logs; None if one is invalid, or all are too much."""
    if len(text) > MAX_PARSED_BYTES or count > MAX_PARSED_RECORDS:
        return None
    try:
        records: Sequence[Any] = messages.Records.FromString(text).log_records
    except DecodeError:
        return None  # they are parsed one by one, to find the invalid ones
    return records


def _reject_foreign(kind: Any, text: bytes, place: str) -> None:
    """Raise ValueError for a message without records that has fields unknown to OTLP."""
    number = find_unknown(text, kind.DESCRIPTOR.fields_by_number)
    if number is not None:
        is_old = number == INSTRUMENTATION_LIBRARY_LOGS
        hint = ", instrumentation_library_logs of OTLP before 1.0" if is_old else ""
        raise ValueError(f"{place} has no log records, but field {number}{hint}.")
