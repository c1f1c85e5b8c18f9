"""The two formats of a drained body, JSON and NDJSON: how each is cut and decoded."""

import io
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgspec
from marshmallow import ValidationError

from astralog.intake.invalid_logs import DESCRIBED_FIELDS, describe
from astralog.intake.logs import load_batch, load_logs
from astralog.intake.options import Options
from astralog.intake.schema import BatchSchema
from astralog.intake.strict_json import parse, replace_lone_surrogates

#: The longest text that is decoded in one go; others are served between two, and only one at a time
#: is held as objects, which can take 25 times the bytes. A longer log is decoded by itself.
PIECE_BYTES = 1024 * 1024


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are not looked at yet."""

    logs: msgspec.Raw


_BATCH = b'{"logs":[%s]}'

_value = msgspec.json.Decoder(msgspec.Raw)
_envelope = msgspec.json.Decoder(_Envelope)
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_raw_logs = msgspec.json.Decoder(list[msgspec.Raw])
_batch_schema = BatchSchema()


#: The number of the first log, and the text: a part of a body that is a body itself.
Piece = tuple[int, bytes]


class Format(Protocol):
    """How logs follow one another in a body.

    `noun` is what their numbers count, from `first` on; `is_sequence` is set where each log is a
    JSON text of its own, so that one that is no JSON leaves the others as they are.
    """

    noun: str
    first: int
    is_sequence: bool

    def split(self, body: bytes) -> Iterable[Piece]:
        """Return the pieces of a long body; each holds whole logs, at least one.

        Raises ValidationError or ValueError where there are no logs.
        """

    def load(self, text: bytes, options: Options) -> list[Any]:
        """Return the logs of a piece by the compiled decoder; raises NoVerdict."""

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield the number and the text of each log, without lone surrogates."""

    def count(self, body: bytes) -> int:
        """Return the number of logs in a body."""

    def hint(self, body: bytes) -> str:
        """Return what to add to the message that a body is no JSON."""


class Json:
    """An object with a list of logs, which are numbered from 0."""

    noun = "log"
    first = 0
    is_sequence = False

    def split(self, body: bytes) -> Iterable[Piece]:
        """Return the pieces, cut between logs; each is a batch."""
        pieces: list[Piece] = []
        start = size = 0
        logs = _split_logs(body)
        for index, log in enumerate(logs):
            if size + len(log) > PIECE_BYTES - len(_BATCH) and start < index:
                pieces.append((start, _BATCH % b",".join(logs[start:index])))
                start, size = index, 0
            size += len(log) + 1
        if logs:
            pieces.append((start, _BATCH % b",".join(logs[start:])))
        return pieces

    def load(self, text: bytes, options: Options) -> list[Any]:
        """Decode the batch as a whole."""
        return load_batch(text, options)

    def texts(self, piece: Piece) -> Iterator[Piece]:
        """Yield each log; raises ValidationError or ValueError as `split` does."""
        first, text = piece
        return ((number, bytes(log)) for number, log in enumerate(_split_logs(text), first))

    def count(self, body: bytes) -> int:
        """Count the logs."""
        return len(_split_logs(body))

    def hint(self, body: bytes) -> str:
        """Name the other format, where the body is in that."""
        first, _, rest = body.strip().partition(b"\n")
        try:
            is_log = rest and len(first) <= PIECE_BYTES and _members.decode(first)
        except ValueError:
            is_log = False
        return "; one log a line is sent as application/x-ndjson" if is_log else ""


def _split_logs(text: bytes) -> list[msgspec.Raw]:
    """Return the text of each log of a JSON batch; only UTF-8 and numbers may not be JSON's.

    Raises ValidationError for what is no batch, and ValueError for what is no JSON.
    """
    try:
        return _decode_raw(text)
    except ValueError:
        mended = replace_lone_surrogates(text)
    try:
        return _decode_raw(mended)
    except msgspec.ValidationError:
        _check_json(mended)  # what is no JSON is no batch either, but that is said first
        raise ValidationError(_describe_batch(mended)) from None
    except ValueError:
        _check_json(mended)
        raise


def _decode_raw(text: bytes) -> list[msgspec.Raw]:
    return _raw_logs.decode(_envelope.decode(text).logs)


def _check_json(text: bytes) -> None:
    """Raise ValueError where a text is no JSON; in clear words, unless it is too long to parse."""
    if len(text) <= PIECE_BYTES:
        parse(text)
    else:
        _value.decode(text)


def _describe_batch(text: bytes) -> dict[str, Any]:
    """Return what marshmallow finds wrong with a batch, the logs themselves aside."""
    batch: dict[str, Any] | None = None
    if text.lstrip().startswith(b"{"):
        members = _members.decode(text)
        batch = dict.fromkeys(list(members)[: DESCRIBED_FIELDS + 1])
        if "logs" in members:
            batch["logs"] = _stand_in(bytes(members["logs"]))
    return describe(_batch_schema.validate(batch))  # type: ignore[arg-type]  # None is no object


def _stand_in(value: bytes) -> Any:
    """Return a value of the same kind, as far as that makes a difference."""
    return {b"[": [], b"n": None}.get(value[:1], 0)


class Lines:
    """One log a line (NDJSON), numbered by their lines from 1; blank lines hold none."""

    noun = "line"
    first = 1
    is_sequence = True

    def split(self, body: bytes) -> Iterable[Piece]:
        """Yield the pieces, cut at the ends of lines."""
        number, start = self.first, 0
        while start < len(body):
            end = start + PIECE_BYTES
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
        lines = io.BytesIO(replace_lone_surrogates(text))
        return ((number, line.rstrip()) for number, line in enumerate(lines, first) if line.strip())

    def count(self, body: bytes) -> int:
        """Count the lines that are not blank."""
        return sum(1 for line in io.BytesIO(body) if line.strip())

    def hint(self, body: bytes) -> str:
        """Return nothing."""
        return ""
