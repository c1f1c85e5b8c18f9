"""Mutated exports of OpenTelemetry, in both encodings: each log is stored whole, or rejected.

`python -m tests.faults --only otlp` runs it alone.
"""

import json
import random
import resource
from collections.abc import Iterator
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from astralog.intake.options import OnInvalid, Options
from astralog.intake.otlp import Encoding, decode
from astralog.intake.otlp_json import Json
from astralog.intake.otlp_protobuf import Protobuf
from tests.faults import fuzz
from tests.faults.bench import Bench
from tests.faults.table import Row
from tests.support.decoding import make_context
from tests.support.otlp import (
    SPAN_ID,
    TIME,
    TRACE_ID,
    make_export,
    make_record,
    to_json,
    wire_field,
)

FIELDS = set(fuzz.FIELDS)

#: Pieces of the wire format that have broken parsers: tags of every type, lengths too long, groups.
PIECES = (
    *(b"\x0a", b"\x12", b"\x1a", b"\x2a", b"\x32", b"\x3a", b"\x08", b"\x09", b"\x0d", b"\x0b"),
    *(b"\x0c", b"\x0f", b"\x00", b"\xff" * 9 + b"\x01", b"\xff" * 11, b"\x0a\xff\xff\xff\xff\x0f"),
    *(b"\x12\x00" * 50, b"\x2a\x02\x0a\x00" * 30, b"\xf0\x9f\x98\x80", b"\xff", b"\xc0\xaf"),
)

OPTIONS = (
    Options(),
    Options({"project_id": "asked"}),
    Options({"project_id": "asked", "level": "l", "service": "s"}, on_invalid=OnInvalid.LEAVE_OUT),
)

INPUTS_PER_LOOK = 1000

#: Sizes of the repeated content of a body.
BODY_BYTES = 10 * 1024 * 1024

#: MiB that the largest body may take of memory at most, whatever it holds.
MAX_MIB = 500


def run(bench: Bench, inputs: int) -> Iterator[Row]:
    """Try `inputs` mutated exports in each encoding, and bodies made to take memory."""
    chance = bench.random
    rows = {encoding: Row(f"fuzzed {encoding.content_type}") for encoding in (Protobuf, Json)}
    yield from rows.values()  # they fill up together
    for number in range(inputs):
        if number % INPUTS_PER_LOOK == 0 and not bench.has_time:
            break
        export = valid_export(chance)
        for encoding, row in rows.items():
            if encoding.content_type == Json.content_type:
                body = fuzz.mutated(chance, to_json(export))
            else:
                body = mutated(chance, export.SerializeToString())
            try_body(row, encoding, body, chance.choice(OPTIONS))
    yield try_bombs()


def valid_export(chance: random.Random) -> ExportLogsServiceRequest:
    """Return an export with random content."""
    values: list[Any] = ["x" * chance.randrange(200), "ä\U0001f600", 7, -(2**63), 2.5, True, b"\0"]
    values += [None, [1, ["a"], {"k": None}], {"a": {"b": [0.5]}}, float("nan")]
    records = [
        make_record(
            chance.choice(values),
            time_unix_nano=chance.choice((0, 1, TIME, 2**64 - 1)),
            severity_number=chance.randrange(30),
            attributes={f"key{n}": chance.choice(values) for n in range(chance.randrange(4))},
            trace_id=chance.choice((TRACE_ID, bytes(16), b"")),
            span_id=chance.choice((SPAN_ID, b"")),
        )
        for _ in range(chance.randrange(4))
    ]
    return make_export(*records)


def mutated(chance: random.Random, body: bytes) -> bytes:
    """Return a protobuf body after a few mutations, or none."""
    found = bytearray(body)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        place = chance.randrange(len(found) + 1)
        match chance.randrange(5):
            case 0:
                found[place:place] = chance.choice(PIECES)
            case 1:
                found[place : place + 1] = bytes([chance.randrange(256)])
            case 2:
                del found[place : place + chance.randrange(1, 10)]
            case 3:
                del found[place:]
            case _:
                other = chance.randrange(len(found) + 1)
                found[place:place] = found[other : other + chance.randrange(60)]
    return bytes(found)


def try_body(row: Row, encoding: type[Encoding], body: bytes, options: Options) -> None:
    """Check that an export becomes whole logs, and that the service has no error."""
    decoded = fuzz.attempt(row, body, lambda: decode(encoding, body, make_context(options=options)))
    if not decoded:
        return
    batch, invalid = decoded
    *lines, rest = bytes(batch.lines).split(b"\n")
    if rest or len(lines) != batch.logs or (invalid and options.on_invalid is OnInvalid.REJECT):
        row.forged += 1
        row.remark(f"{len(lines)} lines: {body[:200]!r}")
    if not all(map(_is_log, lines)):
        row.half += 1
        row.remark(f"no log: {body[:200]!r}")


def _is_log(line: bytes) -> bool:
    log = json.loads(line)
    texts = [log.get(name) for name in fuzz.FIELDS[:5]]
    return log.keys() <= FIELDS and all(isinstance(text, str) for text in texts)


def try_bombs() -> Row:
    """Decode bodies of the content that needs the most memory or time for its size."""
    row = Row("OTLP bodies of the most expensive content: 10 MiB each")
    before = _peak_mib()
    for encoding, body in bombs():
        try_body(row, encoding, body, OPTIONS[1])
    grown = _peak_mib() - before
    if grown > MAX_MIB:
        row.fail(f"the worst of them took {grown:.0f} MiB")
    return row


def bombs() -> Iterator[tuple[type[Encoding], bytes]]:
    """Yield the bodies, one at a time."""
    protobuf, plain = Protobuf, Json
    yield protobuf, b"\x0a\x00" * (BODY_BYTES // 2)  # resources
    yield protobuf, wire_field(1, b"\x12\x00" * (BODY_BYTES // 2))  # scopes
    yield protobuf, wire_field(1, wire_field(2, b"\x12\x00" * (BODY_BYTES // 2)))  # records
    yield protobuf, _in_record(b"\x32\x00" * (BODY_BYTES // 2))  # attributes
    yield (
        protobuf,
        _in_record(wire_field(5, wire_field(5, b"\x0a\x00" * (BODY_BYTES // 2)))),
    )  # a list
    yield protobuf, _in_record(wire_field(5, b"\x2a\x00" * (BODY_BYTES // 2)))  # lists in parts
    yield protobuf, wire_field(1, wire_field(1, b"\x0a\x00" * (BODY_BYTES // 2)))  # of a resource
    yield protobuf, wire_field(1, wire_field(1, b"\x1a\x00" * (BODY_BYTES // 2)))  # entities
    yield protobuf, wire_field(1, b"\x0b" * (BODY_BYTES // 2))  # groups
    for text in (b'{"resourceLogs":[%s]}', b'{"resourceLogs":[{"scopeLogs":[%s]}]}'):
        yield plain, text % b",".join([b"{}"] * (BODY_BYTES // 3))
    records = b'{"resourceLogs":[{"scopeLogs":[{"logRecords":[%s]}]}]}'
    yield plain, records % b",".join([b"{}"] * (BODY_BYTES // 3))
    values = b'{"body":{"arrayValue":{"values":[%s]}}}' % b",".join([b"{}"] * (BODY_BYTES // 3))
    yield plain, records % values
    yield plain, records % (b'{"x":' + b"[" * BODY_BYTES)


def _in_record(content: bytes) -> bytes:
    return wire_field(1, wire_field(2, wire_field(2, content)))


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
