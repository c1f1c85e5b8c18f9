"""Turn the body of a request into the NDJSON lines that are stored."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import msgspec
from marshmallow import ValidationError

from astralog.errors import Rejection
from astralog.intake.schema import BatchSchema, InvalidBatch, Log, load_lines
from astralog.intake.strict_json import replace_lone_surrogates
from astralog.store.commit_queue import Batch

#: Bytes of a body that are decoded in one go; other requests run between two pieces, and only one
#: piece at a time is held as objects, which can take 25 times the bytes.
PIECE_BYTES = 1024 * 1024

#: The least a well-formed log takes, in bytes.
LEAST_LOG_BYTES = 72

#: Commas that a body longer than a piece may hold, and a log longer than a piece: they bound the
#: values, and with them what the body costs as objects.
LONG_BODY_COMMAS = 750_000
LONG_LOG_COMMAS = 100_000

#: Characters of a name that a rejection repeats.
SHOWN_CHARACTERS = 100

Projects = Collection[str] | None


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are not looked at yet."""

    logs: msgspec.Raw


_schema = BatchSchema()
_encoder = msgspec.json.Encoder()
_envelope = msgspec.json.Decoder(Envelope)
_raw_logs = msgspec.json.Decoder(list[msgspec.Raw])


def encode_batch(body: bytes, projects: Projects = None) -> Batch:
    """Return the batch in the JSON text `body`; `projects` are those it may write, None for all.

    Raises Rejection: `invalid_json`, `invalid_batch`, `forbidden_project`, or `body_too_large` for
    too many values.
    """
    with _rejecting():
        if len(body) <= PIECE_BYTES:
            return _encode(_schema.loads(body)["logs"], projects)
        return _encode_long(body, projects)


def encode_lines(body: bytes, projects: Projects = None) -> Batch:
    """Return the batch in the NDJSON text `body`, one log a line; else as `encode_batch`."""
    with _rejecting():
        if len(body) <= PIECE_BYTES:
            return _encode(load_lines(body), projects)
        return _encode_long_lines(body, projects)


@contextmanager
def _rejecting() -> Iterator[None]:
    """Turn what is wrong with a body into its rejection."""
    try:
        yield
    except InvalidBatch as error:
        message = f"{error}; nothing was stored"
        raise Rejection("invalid_batch", message, error.messages_dict, error.total) from None
    except ValidationError as error:
        message = "The batch is invalid; nothing was stored"
        raise Rejection("invalid_batch", message, error.messages_dict) from None
    except RecursionError:
        raise Rejection("invalid_json", "The body is not valid JSON: nested too deep") from None
    except ValueError as error:
        raise Rejection("invalid_json", f"The body is not valid JSON: {error}") from None


def _encode(logs: list[Log], projects: Projects) -> Batch:
    if projects is not None:
        for log in logs:
            if log.project_id not in projects:
                name = log.project_id[:SHOWN_CHARACTERS]
                message = f"The token may not write the project {name!r}; nothing was stored"
                raise Rejection("forbidden_project", message, logs=len(logs))
    return Batch(_encoder.encode_lines(logs), len(logs))


def _encode_long(body: bytes, projects: Projects) -> Batch:
    """Encode a JSON text piece by piece."""
    _check_values(body)
    try:
        raws = _split(body)
    except msgspec.DecodeError:
        raws = _split(replace_lone_surrogates(body))
    pieces: list[Batch] = []
    start = 0
    for end in _piece_ends(raws):
        time.sleep(0)  # under gevent, other requests run now
        piece = b",".join(raws[start:end])
        try:
            pieces.append(_encode(_schema.loads(b'{"logs":[%s]}' % piece)["logs"], projects))
        except InvalidBatch as error:
            raise error.shifted(start, len(raws)) from None
        start = end
    return _join(pieces)


def _encode_long_lines(body: bytes, projects: Projects) -> Batch:
    """Encode an NDJSON text piece by piece, cut at the ends of lines."""
    _check_values(body)
    total = body.count(b"\n") + (not body.endswith(b"\n"))
    pieces: list[Batch] = []
    start = number = 0
    while start < len(body):
        time.sleep(0)  # under gevent, other requests run now
        end = body.find(b"\n", min(start + PIECE_BYTES, len(body))) + 1 or len(body)
        piece = body[start:end]
        last = piece.rfind(b"\n", 0, -1) + 1  # no other line of a piece is longer than a piece
        if len(piece) - last > PIECE_BYTES and piece.count(b",", last) > LONG_LOG_COMMAS:
            raise _too_many_values(number + piece.count(b"\n", 0, -1), total)
        try:
            pieces.append(_encode(load_lines(piece, number), projects))
        except InvalidBatch as error:
            raise error.shifted(0, total) from None
        start = end
        number += piece.count(b"\n")
    return _join(pieces)


def _check_values(body: bytes) -> None:
    if body.count(b",") > LONG_BODY_COMMAS:
        message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller batches"
        raise Rejection("body_too_large", message)


def _join(pieces: list[Batch]) -> Batch:
    return Batch(b"".join(piece.lines for piece in pieces), sum(piece.logs for piece in pieces))


def _split(body: bytes) -> list[msgspec.Raw]:
    """Return the text of each log, unchecked, after rejecting what would cost too much to check.

    Raises msgspec.DecodeError, a ValueError, for what is no JSON.
    """
    try:
        raws = _raw_logs.decode(_envelope.decode(body).logs)
    except msgspec.ValidationError as error:
        raise ValidationError({"_schema": [f"{error}."]}) from None
    for index, raw in enumerate(raws):
        if len(raw) < LEAST_LOG_BYTES:
            _reject_log(raw, index, len(raws))
        if len(raw) > PIECE_BYTES and bytes(raw).count(b",") > LONG_LOG_COMMAS:
            raise _too_many_values(index, len(raws))
    return raws


def _too_many_values(index: int, total: int) -> InvalidBatch:
    message = f"Longer than {PIECE_BYTES} bytes with more than {LONG_LOG_COMMAS} values."
    return InvalidBatch({index: {"_schema": [message]}}, 1, total, complete=False)


def _reject_log(raw: msgspec.Raw, index: int, total: int) -> None:
    """Word what is wrong with a log that is too short to be one."""
    try:
        _schema.loads(b'{"logs":[%s]}' % bytes(raw))
    except InvalidBatch as error:
        raise error.shifted(index, total) from None


def _piece_ends(raws: list[msgspec.Raw]) -> Iterator[int]:
    """Yield the index after the last log of each piece of at least one log."""
    size = 0
    for index, raw in enumerate(raws):
        size += len(raw)
        if size > PIECE_BYTES:
            yield index + 1
            size = 0
    if size:
        yield len(raws)
