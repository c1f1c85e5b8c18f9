"""Loki's push: convert streams of entries, in either encoding, to stored lines.

Source: https://grafana.com/docs/loki/latest/reference/loki-http-api/#ingest-logs; docs/api.md says
which part becomes which field.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from itertools import repeat
from typing import Any

import msgspec

from astralog.deadlines import in_runs, in_turns
from astralog.errors import Rejection
from astralog.intake.decoder import Context, Decoded
from astralog.intake.foreign import ForeignBatch, valid_utf8
from astralog.intake.lines import encode_value, repeated_bytes
from astralog.intake.members import RAW_BYTES, decode_list
from astralog.intake.schema import Log
from astralog.intake.strict_json import name_encoding, replace_lone_surrogates
from astralog.intake.unix_time import format_nanoseconds
from astralog.intake.value_limits import check_values

#: Labels that name the service, and labels or structured metadata that name the level.
SERVICE_LABELS = ("service_name", "service", "app", "job", "container")
LEVEL_LABELS = ("level", "detected_level", "severity")

#: Bytes of entries that are decoded at once, in a millisecond or two.
AT_ONCE_BYTES = 256 * 1024

#: Characters of a tenant, as Loki limits them.
MAX_TENANT_CHARACTERS = 150

NO_PROJECT = (
    "no org id: set the header X-Scope-OrgID (tenant_id), or put ?project_id=… into the URL, or "
    "use a token bound to one project"
)
NO_STREAMS = "error at least one valid stream is required for ingestion"


class Entry(msgspec.Struct, array_like=True, forbid_unknown_fields=True, gc=False):
    time: str
    line: str
    structured_metadata: dict[str, str] | None = None


class _Stream(msgspec.Struct, gc=False):
    """A stream in JSON, whose entries are not decoded yet."""

    stream: dict[str, str]
    values: msgspec.Raw


class _Push(msgspec.Struct):
    streams: list[_Stream]


class Metadata(msgspec.Struct, omit_defaults=True, gc=False):
    """The metadata of a log: its labels, and the structured metadata of its entry."""

    labels: msgspec.Raw
    structured_metadata: dict[str, str] | None = None


_decode_push = msgspec.json.Decoder(_Push).decode
_decode_entries = msgspec.json.Decoder(list[Entry]).decode
_decode_entry = msgspec.json.Decoder(Entry).decode


def decode_json(tenant: str, body: bytes, context: Context) -> Decoded:
    """Return the batch in a push in JSON; raises Rejection. `tenant` is the value of its header."""
    check_values(body)
    with context.slot(len(body)):
        try:
            text, streams = _read_streams(valid_utf8(body))
            batch = ForeignBatch(body, text, context)
            check_streams(streams)
            for each in in_turns(streams):
                add_stream(each.stream, tenant, _read_entries(each.values, batch), batch)
        except RecursionError:
            raise Rejection("invalid_json", "The body is nested too deep") from None
        except ValueError as error:
            problem = name_encoding(body) or str(error)
            raise Rejection("invalid_json", f"The body is not a valid push: {problem}") from None
        return batch.finish()


def _read_streams(text: bytes) -> tuple[bytes, list[_Stream]]:
    """Return the text without lone surrogates, and its streams; raises ValueError."""
    try:
        return text, _decode_push(text).streams
    except ValueError:
        fixed = replace_lone_surrogates(text)
    return fixed, _decode_push(fixed).streams


def check_streams(streams: Sequence[Any]) -> None:
    """Raise Rejection for a push without a stream, as Loki does."""
    if not streams:
        rejection = Rejection("invalid_batch", NO_STREAMS)
        rejection.status = HTTPStatus.UNPROCESSABLE_ENTITY
        raise rejection


def add_stream(
    labels: Mapping[str, str], tenant: str, runs: Iterable[Sequence[Entry]], batch: ForeignBatch
) -> None:
    """Append the logs of a stream, whose entries come in runs.

    Raises Rejection without a project, and ValueError for an invalid time.
    """
    project = batch.project or tenant
    if not project:
        raise Rejection("invalid_batch", NO_PROJECT)
    service = first_of(labels, SERVICE_LABELS) or batch.service
    default_level = first_of(labels, LEVEL_LABELS) or batch.level
    encoded = msgspec.Raw(encode_value(labels))
    common_bytes = repeated_bytes((project, service, default_level)) + len(encoded)
    for entries in runs:
        times = format_nanoseconds([entry.time for entry in entries])
        own = [entry.structured_metadata or None for entry in entries]
        levels = [(each and first_of(each, LEVEL_LABELS)) or default_level for each in own]
        lines = [entry.line for entry in entries]
        metadata = map(Metadata, repeat(encoded), own)
        logs = list(map(Log, repeat(project), times, levels, repeat(service), lines, metadata))
        batch.extend(logs, common_bytes)


def first_of(texts: Mapping[str, str], names: Iterable[str]) -> str:
    """Return the first text that is neither missing nor empty, else ""."""
    for name in names:
        if text := texts.get(name):
            return text
    return ""


def _read_entries(values: msgspec.Raw, batch: ForeignBatch) -> Iterator[Sequence[Entry]]:
    """Yield the entries of a stream in runs; one run at a time is decoded."""
    if len(values) <= AT_ONCE_BYTES:
        yield from in_runs(_decode_entries(values))
        return
    texts = decode_list(values)
    batch.hold(RAW_BYTES * len(texts))
    yield from read_in_runs(texts, _decode_entry, batch)


def read_in_runs(
    texts: Sequence[Any], read: Callable[[Any], Entry], batch: ForeignBatch
) -> Iterator[Sequence[Entry]]:
    """Yield the entries in texts in runs; long ones are read one by one."""
    for run in in_runs(texts):
        if sum(map(len, run)) <= AT_ONCE_BYTES:
            yield list(map(read, run))
        else:
            for text in run:
                batch.expect(bytes(text))
                yield [read(text)]
