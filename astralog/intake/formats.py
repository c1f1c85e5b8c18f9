"""The two formats of a drained body, JSON and NDJSON: how each is cut and decoded."""

import io
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_turns, yield_if_due
from astralog.intake.decoder import DESCRIBED_FIELDS, describe
from astralog.intake.logs import load_batch, load_logs, parse, replace_lone_surrogates
from astralog.intake.options import Options
from astralog.intake.schema import BatchSchema

#: The longest text that is decoded in one go; others are served between two, and only one at a time
#: is held as objects, which can take 25 times the bytes. A longer log is decoded by itself.
PIECE_BYTES = 1024 * 1024

#: What a log of a JSON batch takes until it is decoded, beside its text.
RAW_BYTES = 64

#: The number of the first log, and the text: a part of a body that is a body itself.
Piece = tuple[int, bytes]

#: Takes how many bytes are held from now on, beside the text that is split.
Hold = Callable[[int], None]


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are not looked at yet."""

    logs: msgspec.Raw


_BATCH = b'{"logs":[%s]}'
_envelope = msgspec.json.Decoder(_Envelope)
_raw_logs = msgspec.json.Decoder(list[msgspec.Raw])
_schema = BatchSchema()

#: Every byte but a line's end as `x`.
_SHAPE = bytes(b"\n"[0] if byte == b"\n"[0] else b"x"[0] for byte in range(256))


class Json:
    """An object with a list of logs."""

    noun = "log"  # what the numbers count, from `first` on
    first = 0
    is_sequence = False  # whether a log that is no JSON leaves the others as they are

    def split(self, piece: Piece, size: int, hold: Hold) -> Iterable[Piece]:
        """Return pieces of at most `size` bytes, except for a log that is longer.

        Each is made when it is asked for: all of them would take the memory of the text again.
        Raises ValidationError if it is no batch, and ValueError if it is no JSON.
        """
        first, text = piece
        logs = _split_logs(text)
        hold(RAW_BYTES * len(logs))
        return _cut(logs, first, size)

    def load(self, text: bytes, options: Options) -> list[Any]:
        """Return the logs of a piece by the compiled decoder; raises COMPILED_ERRORS."""
        return load_batch(text, options)

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield each log, free of lone surrogates; raises what `split` does."""
        first, text = piece
        return ((number, bytes(log)) for number, log in enumerate(_split_logs(text), first))

    def count(self, body: bytes) -> int:
        """Return the number of logs."""
        return len(_split_logs(body))

    def hint(self, body: bytes) -> str:
        """Return what to add to the error of a body that is no JSON, as where it is NDJSON."""
        first, _, rest = body.strip().partition(b"\n")
        try:
            is_ndjson = rest and len(first) <= PIECE_BYTES and isinstance(parse(first), dict)
        except ValueError:
            is_ndjson = False
        return "; one log a line is sent as application/x-ndjson" if is_ndjson else ""


def _cut(logs: list[msgspec.Raw], first: int, piece_bytes: int) -> Iterator[Piece]:
    start = size = 0
    for index, log in enumerate(logs):
        if size + len(log) > piece_bytes - len(_BATCH) and start < index:
            yield first + start, _BATCH % b",".join(logs[start:index])
            start, size = index, 0
        size += len(log) + 1
    if logs:
        yield first + start, _BATCH % b",".join(logs[start:])


def _split_logs(text: bytes) -> list[msgspec.Raw]:
    """Return the text of each log of a JSON batch; only UTF-8 and numbers may not be JSON's.

    Raises ValidationError for what is no batch, and ValueError for what is no JSON.
    """
    try:
        return _decode_logs(text)
    except ValueError:
        mended = replace_lone_surrogates(text)
    try:
        return _decode_logs(mended)
    except msgspec.ValidationError as error:
        raise ValidationError(_describe_batch(mended, error)) from None
    except ValueError:
        if len(mended) <= PIECE_BYTES:
            parse(mended)  # it says more clearly what is wrong
        raise


def _decode_logs(text: bytes) -> list[msgspec.Raw]:
    logs = _envelope.decode(text).logs
    yield_if_due()  # each of the two takes 0.2 s for 10 MiB of lists in lists
    found: list[msgspec.Raw] = _raw_logs.decode(logs)
    return found


def _describe_batch(text: bytes, error: Exception) -> dict[str, Any]:
    """Return what marshmallow finds wrong with a batch; raises ValueError if it is no JSON."""
    if len(text) > PIECE_BYTES:
        msgspec.json.decode(text, type=msgspec.Raw)
        return {"_schema": [f"{error}."]}
    batch = parse(text)
    if isinstance(batch, dict):
        if "logs" in batch:
            logs = batch.pop("logs")
            batch = {"logs": [] if isinstance(logs, list) else logs} | batch
        batch = dict(islice(batch.items(), DESCRIBED_FIELDS + 1))
    return describe(_schema.validate(batch))


class Lines:
    """One log a line (NDJSON); blank lines hold none."""

    noun = "line"
    first = 1
    is_sequence = True

    def split(self, piece: Piece, size: int, hold: Hold) -> Iterable[Piece]:
        """Yield pieces of at most `size` bytes, except for a line that is longer."""
        number, body = piece
        start = 0
        while start < len(body):
            end = start + size
            if end < len(body):
                end = body.rfind(b"\n", start, end) + 1 or body.find(b"\n", end) + 1 or len(body)
            text = body[start:end]
            yield number, text
            number += text.count(b"\n")
            start = end

    def load(self, text: bytes, options: Options) -> list[Any]:
        """Decode line by line: msgspec's own `decode_lines` takes logs wherever lines end."""
        lines = text.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return load_logs(lines, options)

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield each log as it is reached: a list of short lines takes 20 times their bytes."""
        first, text = piece
        lines = enumerate(io.BytesIO(replace_lone_surrogates(text)), first)
        return ((number, line.rstrip()) for number, line in in_turns(lines) if line.strip())

    def count(self, body: bytes) -> int:
        """Return the number of lines that are not blank, in a millisecond for each MiB."""
        shape = body.translate(_SHAPE, b" \t\r\v\f")
        return shape.count(b"x\n") + shape.endswith(b"x")

    def hint(self, body: bytes) -> str:
        """Return nothing."""
        return ""


Format = Json | Lines
