"""The formats of a drained body, and their division into pieces and logs."""

import io
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_turns, yield_if_due
from astralog.intake.decoder import DESCRIBED_FIELDS, describe
from astralog.intake.members import RAW_BYTES, decode_list
from astralog.intake.schema import BatchSchema
from astralog.intake.strict_json import parse, replace_lone_surrogates

#: The longest text that is decoded without a pause. Others are served between two, and one at a
#: time is held as objects, which can take 25 times the bytes. A longer log is decoded by itself.
PIECE_BYTES = 1024 * 1024

#: The number of the first log, and the text: a part of a body that is a body itself.
Piece = tuple[int, bytes]

#: Charges so many more bytes, in addition to the text that is split, or less.
Hold = Callable[[int], None]


def hold_nothing(size: int) -> None:
    """Charge nothing: what the split of a short text takes is part of its reservation."""


class LogDecoders:
    """Decoders of one type of log, by itself and in the formats that are decoded in one call."""

    def __init__(self, log: Any) -> None:
        batch = msgspec.defstruct("Batch", [("logs", list[log])], forbid_unknown_fields=True)
        self.decode_batch: Callable[[bytes], Any] = msgspec.json.Decoder(batch).decode
        self.decode_array: Callable[[bytes], list[Any]] = msgspec.json.Decoder(list[log]).decode
        self.decode_log: Callable[[bytes], Any] = msgspec.json.Decoder(log).decode


class Format(Protocol):
    """A format of a batch."""

    noun: str = "log"  # the unit that the numbers count, from `first` on
    first: int = 0
    is_sequence: bool = False  # whether a log that is not JSON leaves the others as they are

    def split(self, piece: Piece, size: int, hold: Hold = hold_nothing) -> Iterable[Piece]:
        """Return pieces of at most `size` bytes, except for a log that is longer.

        Each is made on demand: all of them would take the memory of the text again. Raises
        ValidationError for a text that is no batch, and ValueError for invalid JSON.
        """

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        """Return the logs of a piece; raises ValueError and RecursionError."""

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield each log, without lone surrogates; raises like `split`."""

    def count(self, body: bytes) -> int:
        """Return the number of logs."""

    def hint(self, body: bytes) -> str:
        """Return a hint for the error of a body that is invalid JSON, mostly ""."""
        return ""


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are not parsed yet."""

    logs: msgspec.Raw


_envelope = msgspec.json.Decoder(_Envelope)
_schema = BatchSchema()

#: The beginning of a batch, unless it has other members too, and of an array.
_BATCH_START = re.compile(rb'[ \t\r\n]*\{[ \t\r\n]*"logs"[ \t\r\n]*:[ \t\r\n]*\[')
_ARRAY_START = re.compile(rb"[ \t\r\n]*\[")

#: The boundary of two objects in a row, unless it is within a string.
_BOUNDARY = re.compile(rb"\}[ \t\r\n]*\{")

#: The rest of a boundary, if any, at whose end the search may be cut.
_BOUNDARY_END = re.compile(rb"[ \t\r\n]*\{?")

#: Every byte except a line's end as `x`.
_SHAPE = bytes(b"\n"[0] if byte == b"\n"[0] else b"x"[0] for byte in range(256))


def find_format(body: bytes) -> Format:
    """Return the format of a JSON body that may be a batch, an array, a log or several logs."""
    if _ARRAY_START.match(body):
        return ARRAY
    if not _BATCH_START.match(body):
        return OBJECTS
    try:
        _envelope.decode(body)
    except msgspec.ValidationError:  # it has other members
        return OBJECTS
    except (ValueError, RecursionError):  # the decode of the batch reports it
        pass
    return BATCH


class JsonBatch(Format):
    """An object with a list of logs."""

    _wrapped = b'{"logs":[%s]}'

    def split(self, piece: Piece, size: int, hold: Hold = hold_nothing) -> Iterable[Piece]:
        first, text = piece
        logs = self._split(text)
        hold(RAW_BYTES * len(logs))
        return self._cut(logs, first, size)

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        logs: list[Any] = decoders.decode_batch(text).logs
        return logs

    def texts(self, piece: Piece) -> Iterator[Piece]:
        first, text = piece
        return ((number, bytes(log)) for number, log in enumerate(self._split(text), first))

    def count(self, body: bytes) -> int:
        return len(self._split(body))

    def hint(self, body: bytes) -> str:
        """Return a hint for a body that is NDJSON."""
        first, _, rest = body.strip().partition(b"\n")
        if not (rest and first.startswith(b"{") and len(first) <= PIECE_BYTES):
            return ""
        try:
            parse(first)
        except ValueError:
            return ""
        return "; send one log per line as application/x-ndjson"

    def _cut(self, logs: list[msgspec.Raw], first: int, piece_bytes: int) -> Iterator[Piece]:
        start = size = 0
        for index, log in enumerate(logs):
            if size + len(log) > piece_bytes - len(self._wrapped) and start < index:
                yield first + start, self._wrapped % b",".join(logs[start:index])
                start, size = index, 0
            size += len(log) + 1
        if logs:
            yield first + start, self._wrapped % b",".join(logs[start:])

    def _split(self, text: bytes) -> list[msgspec.Raw]:
        """Return the text of each log; invalid UTF-8 and numbers are not detected here.

        Raises ValidationError for a text that is no batch, and ValueError for invalid JSON.
        """
        try:
            return self._decode(text)
        except ValueError:
            replaced = replace_lone_surrogates(text)
        try:
            return self._decode(replaced)
        except msgspec.ValidationError as error:
            raise ValidationError(_describe_batch(replaced, error)) from None
        except ValueError:
            if len(replaced) <= PIECE_BYTES:
                parse(replaced)  # its message is clearer
            raise

    def _decode(self, text: bytes) -> list[msgspec.Raw]:
        logs = _envelope.decode(text).logs
        yield_if_due()  # each of the two takes 0.2 s for 10 MiB of lists in lists
        return decode_list(logs)


def _describe_batch(text: bytes, error: Exception) -> dict[str, Any]:
    """Return marshmallow's messages for a text that is no batch; raises ValueError if not JSON."""
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


class JsonArray(JsonBatch):
    """A list of logs."""

    _wrapped = b"[%s]"

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        return decoders.decode_array(text)

    def _decode(self, text: bytes) -> list[msgspec.Raw]:
        return decode_list(text)


class JsonObjects(Format):
    """A log, or several logs one after another, with or without white space between them."""

    def split(self, piece: Piece, size: int, hold: Hold = hold_nothing) -> Iterable[Piece]:
        number, text = piece
        hold(2 * len(text))  # a long log with escapes is copied to count its quotes
        start = end = count = 0
        for begin, stop in find_objects(text):
            if stop - start > size and count:
                yield number, text[start:end]
                number, count, start = number + count, 0, begin
            end = stop
            count += 1
        hold(-2 * len(text))
        if count:
            yield number, text[start:end]

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        """Decode log by log, or line by line if each line has one object."""
        parts = text.strip().split(b"\n")
        if not 1 < len(parts) == text.count(b"}\n{") + 1:
            parts = [text[start:end] for start, end in find_objects(text)]
        return list(map(decoders.decode_log, parts))

    def texts(self, piece: Piece) -> Iterator[Piece]:
        first, text = piece
        text = replace_lone_surrogates(text)
        return (
            (number, text[start:end])
            for number, (start, end) in enumerate(find_objects(text), first)
        )

    def count(self, body: bytes) -> int:
        return sum(1 for _ in find_objects(body))


class OneLog(JsonObjects):
    """A single log: an item of a batch or of an array, an object in a row, or a line."""

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        return [decoders.decode_log(text)]


def find_objects(text: bytes, start: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each of several JSON objects in a row, from `start` on.

    Between two tokens of JSON, no `{` follows a `}`: if one does, an object ends, unless the two
    are in a string, after an odd number of quotes.
    """
    counted, quotes = start, 0
    for match in in_turns(_find_boundaries(text, start)):
        end = match.start() + 1
        quotes += _count_quotes(text, counted, end)
        counted = end
        if quotes % 2 == 0:
            yield start, end
            start = match.end() - 1
    yield start, len(text)


def _find_boundaries(text: bytes, start: int) -> Iterator[re.Match[bytes]]:
    """Yield what may be boundaries; a search of PIECE_BYTES takes up to 25 ms."""
    while start < len(text):
        rest = _BOUNDARY_END.match(text, start + PIECE_BYTES)
        stop = rest.end() if rest else len(text)
        yield from _BOUNDARY.finditer(text, start, stop)
        yield_if_due()
        start = stop


def _count_quotes(text: bytes, start: int, end: int) -> int:
    """Return the number of quotes that are not escaped."""
    if text.find(b"\\", start, end) < 0:
        return text.count(b'"', start, end)
    part = text[start:end].replace(b"\\\\", b"")
    return part.replace(b'\\"', b"").count(b'"')


class Lines(Format):
    """One log per line (NDJSON); blank lines are ignored."""

    noun = "line"
    first = 1
    is_sequence = True

    def split(self, piece: Piece, size: int, hold: Hold = hold_nothing) -> Iterable[Piece]:
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

    def decode(self, text: bytes, decoders: LogDecoders) -> list[Any]:
        """Decode line by line: msgspec's own `decode_lines` accepts logs that span lines."""
        lines = io.BytesIO(text).readlines()  # by LF, twice as fast as `split`
        return list(map(decoders.decode_log, lines))

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield each log on demand: a list of short lines takes 20 times their bytes."""
        first, text = piece
        lines = enumerate(io.BytesIO(replace_lone_surrogates(text)), first)
        return ((number, line.rstrip()) for number, line in in_turns(lines) if line.strip())

    def count(self, body: bytes) -> int:
        """Return the number of lines that are not blank, in a millisecond for each MiB."""
        shape = body.translate(_SHAPE, b" \t\r\v\f")
        return shape.count(b"x\n") + shape.endswith(b"x")


BATCH, ARRAY, OBJECTS, LINES = JsonBatch(), JsonArray(), JsonObjects(), Lines()
ONE_LOG = OneLog()
