"""Turn the body of a request into the NDJSON lines that are stored."""

import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from marshmallow import ValidationError

from astralog.errors import Refusal
from astralog.schemas import BatchSchema, MalformedBatch
from astralog.strictjson import replace_lone_surrogates

#: Bytes of a body that are decoded in one go; other requests run between two pieces, and only one
#: piece at a time is held as objects, which can take 25 times the bytes.
PIECE_BYTES = 1024 * 1024

#: The least a well-formed log takes, in bytes.
LEAST_LOG_BYTES = 72

#: Commas that a body longer than a piece may hold, and a log longer than a piece: they bound the
#: values, and with them what the body costs as objects.
LONG_BODY_COMMAS = 750_000
LONG_LOG_COMMAS = 100_000


class Envelope(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are not looked at yet."""

    logs: msgspec.Raw


_schema = BatchSchema()
_encoder = msgspec.json.Encoder()
_envelope = msgspec.json.Decoder(Envelope)
_raw_logs = msgspec.json.Decoder(list[msgspec.Raw])


class Batch(NamedTuple):
    """A batch as it is stored: `lines` is NDJSON, one line for each of `logs` logs."""

    lines: bytes
    logs: int


def encode_batch(body: bytes) -> Batch:
    """Return the batch in the JSON text `body`.

    Raises Refusal: `invalid_json`, `invalid_batch`, or `body_too_large` for too many values.
    """
    try:
        return _encode_piece(body) if len(body) <= PIECE_BYTES else _encode_long(body)
    except MalformedBatch as error:
        message = f"{error}; nothing was stored"
        raise Refusal("invalid_batch", message, error.messages_dict, error.total) from None
    except ValidationError as error:
        message = "The batch is malformed; nothing was stored"
        raise Refusal("invalid_batch", message, error.messages_dict) from None
    except RecursionError:
        raise Refusal("invalid_json", "The body is not valid JSON: nested too deep") from None
    except ValueError as error:
        raise Refusal("invalid_json", f"The body is not valid JSON: {error}") from None


def _encode_piece(piece: bytes) -> Batch:
    logs = _schema.loads(piece)["logs"]
    return Batch(_encoder.encode_lines(logs), len(logs))


def _encode_long(body: bytes) -> Batch:
    """Encode a body piece by piece."""
    if body.count(b",") > LONG_BODY_COMMAS:
        message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller batches"
        raise Refusal("body_too_large", message)
    try:
        raws = _split(body)
    except msgspec.DecodeError:
        raws = _split(replace_lone_surrogates(body))
    lines: list[bytes] = []
    start = 0
    for end in _piece_ends(raws):
        time.sleep(0)  # under gevent, other requests run now
        piece = b",".join(raws[start:end])
        try:
            lines.append(_encode_piece(b'{"logs":[%s]}' % piece).lines)
        except MalformedBatch as error:
            raise error.shifted(start, len(raws)) from None
        start = end
    return Batch(b"".join(lines), len(raws))


def _split(body: bytes) -> list[msgspec.Raw]:
    """Return the text of each log, unchecked, after refusing what would cost too much to check.

    Raises msgspec.DecodeError, a ValueError, for what is no JSON.
    """
    try:
        raws = _raw_logs.decode(_envelope.decode(body).logs)
    except msgspec.ValidationError as error:
        raise ValidationError({"_schema": [f"{error}."]}) from None
    for index, raw in enumerate(raws):
        if len(raw) < LEAST_LOG_BYTES:
            _refuse_log(raw, index, len(raws))
        if len(raw) > PIECE_BYTES and bytes(raw).count(b",") > LONG_LOG_COMMAS:
            message = f"Longer than {PIECE_BYTES} bytes with more than {LONG_LOG_COMMAS} values."
            raise MalformedBatch({index: {"_schema": [message]}}, 1, len(raws), complete=False)
    return raws


def _refuse_log(raw: msgspec.Raw, index: int, total: int) -> None:
    """Word what is wrong with a log that is too short to be one."""
    try:
        _schema.loads(b'{"logs":[%s]}' % bytes(raw))
    except MalformedBatch as error:
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
