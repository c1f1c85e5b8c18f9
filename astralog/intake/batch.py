"""Turn the body of a drain into the NDJSON lines that are stored, piece by piece."""

import time
from collections.abc import Iterable
from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.errors import Rejection
from astralog.intake import formats
from astralog.intake.decoder import Context, Decoded
from astralog.intake.formats import Format, Json, Lines, Piece
from astralog.intake.invalid_logs import InvalidLogs, reject_invalid
from astralog.intake.logs import NoVerdict, load_log
from astralog.store.commit_queue import Batch
from astralog.time_slice import TimeSlice

#: Commas that a body longer than a piece may hold, and a log longer than a piece: they bound the
#: values, and with them what the body costs as objects.
LONG_BODY_COMMAS = 750_000
LONG_LOG_COMMAS = 100_000

#: Times the bytes of a body, beyond a piece, that its lines may take; default values and numbers
#: as 1e15 make it grow. Beyond it: 413 `body_too_large`.
MAX_GROWTH = 4

_JSON, _LINES = Json(), Lines()
_encoder = msgspec.json.Encoder()


def decode_json(body: bytes, context: Context) -> Decoded:
    """Return the batch in the JSON text `body`."""
    return _decode(body, _JSON, context)


def decode_lines(body: bytes, context: Context) -> Decoded:
    """Return the batch in the NDJSON text `body`, one log a line."""
    return _decode(body, _LINES, context)


def _decode(body: bytes, form: Format, context: Context) -> Decoded:
    try:
        return _decode_pieces(body, form, context)
    except ValidationError as error:
        message = "The batch is invalid; nothing was stored"
        raise Rejection("invalid_batch", message, error.messages_dict) from None
    except RecursionError:
        raise Rejection("invalid_json", "The body is not valid JSON: nested too deep") from None
    except ValueError as error:
        message = f"The body is not valid JSON: {error}{form.hint(body)}"
        raise Rejection("invalid_json", message) from None


def _decode_pieces(body: bytes, form: Format, context: Context) -> Decoded:
    invalid = InvalidLogs()
    batches: list[Batch] = []
    size = 0
    for piece in _split(body, form, context):
        batch = _encode_piece(piece, form, context, invalid)
        if invalid.count and (invalid.is_full or not context.options.is_partial):
            raise reject_invalid(invalid, form.count(body))
        batches.append(batch)
        size += len(batch.lines)
        if size > MAX_GROWTH * len(body) + formats.PIECE_BYTES:
            message = f"Stored, the batch would take over {MAX_GROWTH} times the body's bytes."
            raise Rejection("body_too_large", message)
        if len(body) > formats.PIECE_BYTES:
            time.sleep(0)  # others may have their turn now
    return Decoded(_join(batches), invalid if invalid.count else None)


def _split(body: bytes, form: Format, context: Context) -> Iterable[Piece]:
    if len(body) <= formats.PIECE_BYTES:
        return ((form.first, body),)
    if body.count(b",") > LONG_BODY_COMMAS:
        message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller batches"
        raise Rejection("body_too_large", message)
    with context.fast_turn(len(body)):
        return form.split(body)


def _join(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    return Batch(b"".join(batch.lines for batch in batches), sum(batch.logs for batch in batches))


def _encode_piece(piece: Piece, form: Format, context: Context, invalid: InvalidLogs) -> Batch:
    """Return the valid logs of a piece, encoded, and count the others."""
    first, text = piece
    size = len(text)
    if size > formats.PIECE_BYTES and text.count(b",") > LONG_LOG_COMMAS:
        limits = f"Longer than {formats.PIECE_BYTES} bytes with more than {LONG_LOG_COMMAS} values."
        invalid.add(first, {"_schema": [limits]})
        return Batch(b"", 0)
    with context.fast_turn(size):
        try:
            logs = form.load(text, context.options)
        except NoVerdict:
            pass
        else:
            return _encode(logs, context)
    with context.slow_turn(size):
        return _encode(_load_one_by_one(piece, form, context, invalid), context)


def _load_one_by_one(
    piece: Piece, form: Format, context: Context, invalid: InvalidLogs
) -> list[Any]:
    """Return the valid logs of a piece, and describe the others."""
    logs = []
    time_slice = TimeSlice()
    for number, text in form.texts(piece):
        time_slice.end_if_over()
        invalid.seen += 1
        try:
            logs.append(load_log(text, context.options))
        except ValidationError as error:
            invalid.add(number, error.messages_dict)
        except ValueError as error:
            if not (form.is_sequence and context.options.is_partial):
                raise ValueError(f"{form.noun} {number}: {error}") from None
            invalid.add(number, {"_schema": [f"Not valid JSON: {error}"]})
        if invalid.is_full:
            break
    return logs


def _encode(logs: list[Any], context: Context) -> Batch:
    if context.projects is not None:
        for log in logs:
            context.check_project(log.project_id, len(logs))
    return Batch(_encoder.encode_lines(logs), len(logs))
