"""Mutated bodies of other products' protocols: each log is stored whole, or rejected.

`python -m tests.faults --only protocols` runs it alone.
"""

from collections.abc import Callable, Iterator
from functools import partial

from astralog.intake import elasticsearch, hec, loki
from astralog.intake.decoder import Context, Decoded
from astralog.intake.options import OnInvalid, Options
from tests.faults import fuzz
from tests.faults.bench import Bench
from tests.faults.table import Row
from tests.support.decoding import make_context
from tests.support.protocols import BULK, HEC, LOKI, Protocol

OPTIONS = (
    Options({"project_id": "asked"}),
    Options({"project_id": "asked", "level": "l", "service": "s"}, on_invalid=OnInvalid.LEAVE_OUT),
)

INPUTS_PER_TIME_SLICE = 1000

#: Logs of a body before its mutations, at most.
LARGEST_BATCH = 4

FIELDS = set(fuzz.FIELDS)

Decode = Callable[[bytes, Context], Decoded]


def _decode_bulk(body: bytes, context: Context) -> Decoded:
    return elasticsearch.Bulk("org").decode(body, context)


#: The protocols, with their decoders.
DECODERS: tuple[tuple[str, Protocol, Decode], ...] = (
    ("HEC", HEC, hec.decode_events),
    ("Loki", LOKI, partial(loki.decode_json, "org")),
    ("bulk", BULK, _decode_bulk),
)


def run(bench: Bench, inputs: int) -> Iterator[Row]:
    """Try `inputs` mutated bodies of each protocol."""
    chance = bench.random
    rows = {name: Row(f"fuzzed {name}") for name, _, _ in DECODERS}
    yield from rows.values()  # they fill up together
    for number in range(inputs):
        if number % INPUTS_PER_TIME_SLICE == 0 and not bench.has_time:
            break
        for name, protocol, decode in DECODERS:
            valid = protocol.make_body(number, chance.randint(1, LARGEST_BATCH))
            try_body(rows[name], fuzz.mutated(chance, valid), decode, chance.choice(OPTIONS))


def try_body(row: Row, body: bytes, decode: Decode, options: Options) -> None:
    """Check that a body is stored as lines of whole logs, or rejected for its own fault."""
    decoded = fuzz.attempt(row, body, lambda: decode(body, make_context(options=options)))
    if not decoded:
        return
    batch = decoded.batch
    *lines, rest = bytes(batch.lines).split(b"\n")
    if rest or len(lines) != batch.logs:
        row.forged += 1
        row.remark(f"{len(lines)} lines for {batch.logs} logs: {body[:200]!r}")
    for line in lines:
        try:
            log = fuzz.parse(line)
        except ValueError as error:
            row.half += 1
            row.remark(f"{error}: {body[:200]!r}")
            continue
        texts = [log.get(name) for name in fuzz.FIELDS[:5]]
        if log.keys() - FIELDS or not all(isinstance(text, str) for text in texts):
            row.forged += 1
            row.remark(f"{line[:200]!r} of {body[:200]!r}")
