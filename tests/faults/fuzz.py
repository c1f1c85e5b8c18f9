"""Mutated bodies and timestamps by the million: stored as sent, or rejected.

`python -m tests.faults.fuzz 1000000` tries that many.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from astralog.errors import Rejection
from astralog.intake import formats, timestamps
from astralog.intake.batch import decode_json, decode_lines
from astralog.intake.decoder import Decoded
from astralog.intake.options import NO_OPTIONS, OnInvalid, Options
from tests.faults.bench import Bench
from tests.faults.table import Row, render
from tests.support.decoding import make_context

FIELDS = ("project_id", "timestamp", "level", "service", "message", "metadata")

#: Fields that become text if unknown fields move.
TEXT_FIELDS = ("project_id", "level", "service", "message")

#: Pieces that have broken parsers elsewhere.
PIECES = (
    *(b'"', b"\\", b"\n", b"\r", b"\0", b"\x85", b"\xe2\x80\xa8", b"\xff", b"\xed\xa0\x80"),
    *(b"\\u0000", b"\\ud83d", b"\\ude00", b"\\ud83d\\ude00", b"\\u000a", b"\\", b"\xc0\xaf"),
    *(b"{", b"}", b"[", b"]", b",", b":", b"null", b"true", b"NaN", b"-Infinity", b"1e999"),
    *(b"-0", b"0.1e-400", b"9" * 40, b"1" * 5000, b"[" * 2000, b'{"a":' * 1200, b"\xef\xbb\xbf"),
    *(b'"logs":[]', b'"message":"x",', b'"extra":1,', b"/*x*/", b" ", b"\t", b"\xf0\x9f\x98\x80"),
    *(b'{"logs":[]}', b'"metadata":{"a":{"b":[1,2.50,null]}}', b'"metadata":null'),
)

#: Replacements of values.
VALUES = (
    *(b"NaN", b"Infinity", b"-Infinity", b"-0", b"-0.0", b"01", b"+1", b".5", b"1.", b"1e999"),
    *(b"1e-999", b"9" * 30, b"null", b"true", b"True", b"'x'", b"undefined", b'"\\ud83d"', b'""'),
    *(b'"\\x41"', b'"\t"', b"[]", b"{}", b"[1,]", b'{"a":1,"a":2}', b"0x10", b"1_0", b"0.1", b""),
)

TIMESTAMPS = (
    *("2024-05-31T15:30:45Z", "2024-05-31 15:30:45.123456789+02:00", "2024-W22-5T15"),
    *("20240531T153045,5Z", "2024-152", "2024-05-31", "2016-12-31T23:59:60Z", "2024-05-31T24:00"),
    *("0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "1717120112345", "2020-W53-7"),
)
#: Queries; half of the bodies have none.
OPTIONS = (
    Options(moves_unknown=True),
    Options({"project_id": "p", "service": "s", "level": "l"}),
    Options({"service": "s"}, moves_unknown=True, on_invalid=OnInvalid.LEAVE_OUT),
    Options(on_invalid=OnInvalid.LEAVE_OUT),
)

#: Integers stay text: their digits are stored as sent.
parse = partial(json.loads, parse_int=str)

LETTERS = "0123456789-+:.,TtZzW UTC/_\u0660\u2212\n"


#: A limit on pieces that sends every body the way of long ones.
SHORT_PIECE_BYTES = 64

INPUTS_PER_TIME_SLICE = 5000


def run(bench: Bench, inputs: int) -> Iterator[Row]:
    """Try `inputs` mutated bodies, as short and as long ones, and a quarter as many timestamps.

    A quarter of the bodies is NDJSON, and half of them comes with options.
    """
    bodies, lines, texts = (Row(f"fuzzed {what}") for what in ("bodies", "NDJSON", "timestamps"))
    yield from (bodies, lines, texts)  # they fill up together
    piece_bytes, chance = formats.PIECE_BYTES, bench.random
    for turn in range(-(-inputs // INPUTS_PER_TIME_SLICE)):
        if not bench.has_time:
            break
        formats.PIECE_BYTES = SHORT_PIECE_BYTES if turn % 2 else piece_bytes
        for _ in range(min(INPUTS_PER_TIME_SLICE, inputs)):
            options = chance.choice((NO_OPTIONS, chance.choice(OPTIONS)))
            try_body(bodies, _mutated_body(chance, is_lines=False), is_lines=False, options=options)
            if bodies.tried % 4 == 0:
                try_body(
                    lines, _mutated_body(chance, is_lines=True), is_lines=True, options=options
                )
                try_timestamp(texts, mutated_timestamp(chance, chance.choice(TIMESTAMPS)))
        if bodies.tried % 100_000 == 0:
            bench.say(f"fuzz: {bodies.tried:,} bodies, {bodies.acknowledged:,} of them taken")
    formats.PIECE_BYTES = piece_bytes


def _valid(chance: random.Random) -> bytes:
    """Return a valid log with random content."""
    log: dict[str, Any] = dict.fromkeys(FIELDS[:5], 'a\u00e9\u4f60\U0001f600"\\\n')
    log["timestamp"] = chance.choice(TIMESTAMPS)
    if chance.random() < 0.7:
        number = chance.choice((1, -2.5, 1e300, 2**70, None))
        log["metadata"] = {"n": number, "o": {"a": ["\0", True]}}
    return json.dumps(log, ensure_ascii=chance.random() < 0.5).encode()


def valid_body(chance: random.Random, is_lines: bool) -> bytes:
    """Return a batch, its logs mostly well-formed."""
    logs = [_valid(chance)] * chance.choice((1, 1, 2, 3))
    return b"\n".join(logs) if is_lines else b'{"logs":[%s]}' % b",".join(logs)


def _mutated_body(chance: random.Random, is_lines: bool) -> bytes:
    return mutated(chance, valid_body(chance, is_lines))


def mutated(chance: random.Random, text: bytes) -> bytes:
    """Return a JSON text after a few mutations, or none."""
    body = bytearray(text)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 4))):
        place = chance.randrange(len(body) + 1)
        match chance.randrange(8):
            case 6 | 7:
                colon = body.find(b":", place)
                comma = body.find(b",", colon)
                if 0 <= colon < comma:
                    body[colon + 1 : comma] = chance.choice(VALUES)
            case 0:
                body[place:place] = chance.choice(PIECES)
            case 1:
                body[place : place + chance.randrange(1, 20)] = chance.choice(PIECES)
            case 2:
                del body[place : place + chance.randrange(1, 10)]
            case 3:
                body[place:place] = bytes([chance.randrange(256)])
            case 4:
                body[place : place + 1] = bytes([chance.randrange(256)])
            case _:
                other = chance.randrange(len(body) + 1)
                body[place:place] = body[other : other + chance.randrange(60)]
    return bytes(body)


def decode(body: bytes, is_lines: bool, options: Options) -> Decoded:
    """Return the stored and the omitted logs of a body."""
    return (decode_lines if is_lines else decode_json)(body, make_context(options=options))


def attempt(row: Row, body: bytes, decode_body: Callable[[], Decoded]) -> Decoded | None:
    """Return the decoded body, None if it is rejected; record an error of the service."""
    row.tried += 1
    try:
        decoded = decode_body()
    except Exception as error:
        if not isinstance(error, Rejection) or error.status >= 500:
            row.errors += 1
            row.remark(f"{error!r}: {body[:200]!r}")
        return None
    row.acknowledged += 1
    return decoded


def try_body(row: Row, body: bytes, is_lines: bool, options: Options = NO_OPTIONS) -> None:
    """Check that a body is stored as it reads, or rejected for its own fault."""
    decoded = attempt(row, body, lambda: decode(body, is_lines, options))
    if not decoded:
        return
    batch, invalid = decoded
    if invalid and invalid.count > len(invalid.errors):
        return  # nobody is told which logs are stored
    *lines, rest = batch.lines.split(b"\n")
    try:
        stored = [parse(line) for line in lines]
        sent = list(_valid_logs(body, is_lines, invalid.errors if invalid else {}))
        meant = [_as_stored(log, options) for log in sent]
        stored = [_parse_texts(log, like) for log, like in zip(stored, meant, strict=False)]
    except ValueError as error:
        row.half += 1
        row.remark(f"{error}: {body[:200]!r}")
        return
    if rest or not len(lines) == len(sent) == batch.logs:
        row.forged += 1
        row.remark(f"{len(lines)} lines: {body[:200]!r}")
    elif meant != stored:
        row.lost += 1
        row.remark(f"stored otherwise: {body[:200]!r}")


def _valid_logs(body: bytes, is_lines: bool, invalid: Collection[int]) -> Iterator[dict[str, Any]]:
    """Yield the valid logs of a body as they were sent."""
    if not is_lines:
        logs = enumerate(_json_logs(body.decode()))
        yield from (log for number, log in logs if number not in invalid)
        return
    for number, line in enumerate(body.split(b"\n"), 1):
        if line.strip() and number not in invalid:
            yield parse(line)


def _json_logs(text: str) -> list[Any]:
    """Return the logs of a batch, of an array, or of objects in a row."""
    decoder, values = json.JSONDecoder(parse_int=str), []
    text = text.strip()
    while text:
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:].lstrip()
    if len(values) == 1 and isinstance(values[0], list):
        return list(values[0])
    if len(values) == 1 and [*values[0]] == ["logs"] and isinstance(values[0]["logs"], list):
        return list(values[0]["logs"])
    return values


def _as_stored(log: dict[str, Any], options: Options) -> Any:
    """Return the stored form of a log."""
    kept = {name: value for name, value in log.items() if value is not None and name in FIELDS}
    unknown = {name: value for name, value in log.items() if name not in FIELDS}
    if unknown:
        kept["metadata"] = kept.get("metadata", {}) | unknown
    kept = {**options.defaults, **kept}
    kept["timestamp"] = timestamps.normalise(kept["timestamp"])
    return _mended(kept)


def _parse_texts(stored: dict[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """Return a stored log with the values of fields that became text, as their JSON was written."""
    texts = [name for name in TEXT_FIELDS if not isinstance(sent.get(name, ""), str)]
    return {**stored, **{name: parse(stored[name]) for name in texts}}


def _mended(value: Any) -> Any:
    """Return a value with U+FFFD for each half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def mutated_timestamp(chance: random.Random, text: str) -> str:
    """Return a timestamp after a few mutations."""
    letters = list(text)
    for _ in range(chance.choice((1, 1, 2, 3))):
        place = chance.randrange(len(letters) + 1)
        letters[place : place + chance.randrange(3)] = chance.choice(LETTERS)
    return "".join(letters)


def try_timestamp(row: Row, text: str) -> None:
    """Check that a stored timestamp has the one form, is in years 1 to 9999, and stays the same."""
    row.tried += 1
    try:
        stored = timestamps.normalise(text)
        row.acknowledged += 1
        if timestamps.normalise(stored) != stored or not timestamps._all_stored_form([stored]):
            row.lost += 1
            row.remark(f"{text!r} is stored as {stored!r}")
    except ValueError:
        return
    except Exception as error:
        row.errors += 1
        row.remark(f"{error!r}: {text!r}")


def main() -> int:
    """Try the number of bodies in the first argument."""
    seed = int(time.time())
    rows = list(run(Bench(Path(), seed, float("inf")), int(sys.argv[1])))
    print(f"seed {seed}\n{render(rows)}")
    for row in rows:
        print(*row.remarks, sep="\n")
    return int(any(row.is_bad for row in rows))


if __name__ == "__main__":
    sys.exit(main())
