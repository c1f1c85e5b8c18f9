"""JSON text to logs, strictly as RFC 8259 defines it.

The compiled decoder reads it; if it rejects a log, Python's own parser and marshmallow decide, and
word the errors.
"""

import codecs
import json
import math
import re
from collections.abc import Mapping
from operator import attrgetter
from typing import Any, NamedTuple, NoReturn

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_runs, in_turns, yield_if_due
from astralog.intake import timestamps
from astralog.intake.columns import ALIKE_LOGS, LEAST_LINES, Columns, NotAlikeError
from astralog.intake.decoder import encode_lines, encode_value
from astralog.intake.invalid_logs import DESCRIBED_FIELDS
from astralog.intake.mapping import change_log, move_alike, move_lines
from astralog.intake.members import LINE_BREAKS, Members, decode_object, is_object
from astralog.intake.options import Options
from astralog.intake.schema import (
    FIELDS,
    NO_METADATA,
    IncompleteLog,
    Log,
    LogSchema,
    MovedLog,
    RawBatch,
    RawLog,
)

SEVERAL_OBJECTS = (
    "; send one log per line as application/x-ndjson; with curl, use --data-binary, "
    "since -d removes line breaks"
)

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Other escapes and whole pairs match too, so that the search for the next match is short.
_ESCAPE = re.compile(rb"\\(?:%s\\%s|(%s|%s)|.)" % (_HIGH, _LOW, _HIGH, _LOW), re.DOTALL)

#: Bytes of UTF-8 that are decoded without a pause: 4 ms if all of them are invalid.
UTF8_STEP_BYTES = 256 * 1024

REQUIRED = frozenset(name for name, field in LogSchema().fields.items() if field.required)

#: Errors of the compiled decoder, on which marshmallow decides.
COMPILED_ERRORS = (ValueError, RecursionError, ValidationError)


class _ObjectBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose fields are moved before they are checked."""

    logs: list[Members]


class _IncompleteBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose missing fields are filled in."""

    logs: list[IncompleteLog]


class _Decoders(NamedTuple):
    """The compiled decoders of a batch, of an array of logs, and of one log."""

    batch: msgspec.json.Decoder[Any]
    array: msgspec.json.Decoder[Any]
    log: msgspec.json.Decoder[Any]


def _decoders(batch: Any, log: Any) -> _Decoders:
    new = msgspec.json.Decoder
    return _Decoders(new(batch), new(list[log]), new(log))


_COMPLETE = _decoders(RawBatch, RawLog)
_INCOMPLETE = _decoders(_IncompleteBatch, IncompleteLog)
_OBJECTS = _decoders(_ObjectBatch, Members)
_schema = LogSchema()
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


def load_batch(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON batch, as `Format.load`; raises COMPILED_ERRORS."""
    decoders = _find_decoders(options)
    (batch,) = _decode(decoders.batch, [text], options)
    return _finish(batch.logs, [text], options, decoders)


def load_array(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON array; else as `load_batch`."""
    decoders = _find_decoders(options)
    (logs,) = _decode(decoders.array, [text], options)
    return _finish(logs, [text], options, decoders)


def load_logs(texts: list[bytes], options: Options, lines: bytes = b"") -> list[Any]:
    """Return the logs in JSON texts, one per text; else as `load_batch`.

    `lines` is the text that was split into them by LF, if it was: it is checked at once.
    """
    decoders = _find_decoders(options)
    if lines and options.moves_unknown and len(texts) >= LEAST_LINES:
        try:
            return move_lines(texts, options)
        except (NotAlikeError, ValueError):
            pass
    logs = _decode(decoders.log, texts, options, lines)
    if lines:
        return _finish(logs, [lines], options, decoders, line_breaks=b"\r")
    return _finish(logs, texts, options, decoders)


def _decode(
    decoder: msgspec.json.Decoder[Any], texts: list[bytes], options: Options, lines: bytes = b""
) -> list[Any]:
    """Return the values of texts; members that keep their text have no line breaks."""
    values = list(map(decoder.decode, texts))
    if not options.moves_fields:
        return values
    if lines:
        has_breaks = b"\r" in lines and lines.count(b"\r") != lines.count(b"\r\n")
    else:
        has_breaks = any(b"\n" in text or b"\r" in text for text in texts)
    if has_breaks:
        return [decoder.decode(text.translate(None, LINE_BREAKS)) for text in texts]
    return values


def _find_decoders(options: Options) -> _Decoders:
    if not options.changes_logs:
        return _COMPLETE
    return _OBJECTS if options.moves_fields else _INCOMPLETE


def _finish(
    logs: list[Any],
    texts: list[bytes],
    options: Options,
    decoders: _Decoders,
    line_breaks: bytes = LINE_BREAKS,
) -> list[Any]:
    """Return decoded logs, changed by the options, with metadata and timestamps as stored."""
    if decoders is _OBJECTS:
        for text in texts:
            _check_utf8(text)
        return _change(logs, options)
    _clean_metadata(logs, texts, line_breaks)
    if decoders is _INCOMPLETE:
        _fill_in(logs, options.defaults)
    return store_timestamps(logs)


def _clean_metadata(logs: list[Any], texts: list[bytes], line_breaks: bytes) -> None:
    """Check that metadata, which stays encoded, is UTF-8, and remove its line breaks.

    In a string JSON has them escaped. Raises ValueError.
    """
    has_breaks = False
    for text in texts:
        _check_utf8(text)
        for character in line_breaks:
            has_breaks = has_breaks or character in text
    if has_breaks:
        for log in logs:
            metadata = bytes(log.metadata)
            if b"\n" in metadata or b"\r" in metadata:
                log.metadata = msgspec.Raw(metadata.translate(None, LINE_BREAKS))


def _fill_in(logs: list[Any], defaults: Mapping[str, str]) -> None:
    """Fill in missing fields; raises ValueError for one without a default."""
    for run in in_runs(logs):
        for log in run:
            for name, value in defaults.items():
                if getattr(log, name) is None:
                    setattr(log, name, value)
    for name in REQUIRED - defaults.keys():
        if None in map(attrgetter(name), logs):
            raise ValueError(f"{name} is missing")


def load_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text without lone surrogates.

    Raises ValidationError, worded for the client, and ValueError for invalid JSON.
    """
    try:
        return _load_compiled(text, options)
    except COMPILED_ERRORS:
        pass
    log = _read_log(text)
    if isinstance(log, dict):
        log = change_log(log, options)
        if len(log) > len(FIELDS) + DESCRIBED_FIELDS:
            log = _without_most_unknown(log)
    return _load_by_schema(log)


def load_valid_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text, or None if it is invalid; raises ValueError for invalid JSON.

    As `load_log`, but without messages, which take most of the time.
    """
    try:
        return _load_compiled(text, options)
    except COMPILED_ERRORS:
        pass
    log = _read_log(text)
    try:
        if isinstance(log, dict):
            log = change_log(log, options)
        msgspec.convert(log, MovedLog)  # rejects no log that the schema accepts
        return _load_by_schema(log)
    except COMPILED_ERRORS:
        return None


def _load_compiled(text: bytes, options: Options) -> Any:
    logs = load_logs([text], options)
    check_metadata(logs)
    return logs[0]


def _read_log(text: bytes) -> Any:
    """Return the members of the object in a text, or else the value; raises ValueError."""
    try:
        _check_utf8(text)
        return decode_object(text)
    except COMPILED_ERRORS:
        value = parse(text)
    if isinstance(value, dict):
        raise ValueError("nested too deep")
    return value


def _load_by_schema(log: Any) -> Any:
    """Return the struct of a log whose metadata stays as it is, if that is an object."""
    if not isinstance(log, dict):
        return Log(**_load(log))
    metadata = log.get("metadata")
    has_metadata = isinstance(metadata, dict) or is_object(metadata)
    values = {name: _parse_value(value) for name, value in log.items() if name != "metadata"}
    if "metadata" in log:
        values["metadata"] = {} if has_metadata else _parse_value(metadata)
    loaded = Log(**_load(values))
    if has_metadata:
        loaded.metadata = metadata
    return loaded


def _load(values: Any) -> dict[str, Any]:
    """Return the values that the schema accepts; raises ValidationError.

    A frame of marshmallow's holds the error, and the error's traceback holds the frame. Such a
    cycle of 3 KiB per invalid log would stay until the next garbage collection, and none runs
    within a slot.
    """
    try:
        loaded: dict[str, Any] = _schema.load(values)
    except ValidationError as error:
        raise error.with_traceback(None) from None
    return loaded


def _parse_value(value: Any) -> Any:
    """Return the value of a member that is a text, or as it was written, or decoded in parts."""
    if isinstance(value, str):
        return value
    return parse(encode_value(value) if isinstance(value, dict) else bytes(value))


def encode_logs(logs: list[Any], options: Options) -> bytes:
    """Return the lines of loaded logs; raises ValueError if the metadata of one is no object.

    That of moved logs is checked already. Equal counts show that an object begins after every
    `"metadata":`, and so after those of the logs; others, inside metadata, can only cause a check
    that was not needed. To look at each log would take 0.3 µs per log.
    """
    lines = encode_lines(logs)
    if options.moves_fields:
        return lines
    if lines.count(b'"metadata":') != lines.count(b'"metadata":{'):
        check_metadata(logs)
        lines = encode_lines(logs)
    return lines


def check_metadata(logs: list[Any]) -> None:
    """Remove metadata that is null; raises ValueError if it is neither null nor an object."""
    for log in logs:
        metadata = log.metadata
        if type(metadata) is msgspec.Raw and bytes(metadata)[:1] != b"{":
            if bytes(metadata) != b"null":
                raise ValueError("metadata is no object")
            log.metadata = NO_METADATA


def _check_utf8(text: bytes) -> None:
    """Raise UnicodeDecodeError, a ValueError, for invalid UTF-8, which metadata may have."""
    if not text.isascii():
        text.decode()


def _without_most_unknown(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log without the unknown fields that a response cannot list: each costs 2 µs."""
    known = {name: log.pop(name) for name in FIELDS if name in log}
    return dict(list(log.items())[:DESCRIBED_FIELDS]) | known


def _change(logs: list[Members], options: Options) -> list[Any]:
    """Return the structs of logs after the changes of the options; raises COMPILED_ERRORS."""
    changed: list[Any] = []
    for run in in_runs(logs, ALIKE_LOGS):
        try:
            changed += move_alike(Columns(run), options)
        except (NotAlikeError, ValueError):
            moved = [change_log(log, options) for log in in_turns(run)]
            structs = msgspec.convert(moved, list[MovedLog])
            check_metadata(structs)
            changed += store_timestamps(structs)
    return changed


_timestamp_of = attrgetter("timestamp")


def store_timestamps(logs: list[Any]) -> list[Any]:
    """Replace timestamps by their stored form; raises ValueError for an invalid one."""
    stored = timestamps.normalise_all(list(map(_timestamp_of, logs)))
    if stored is not None:
        for log, timestamp in zip(logs, stored, strict=True):
            log.timestamp = timestamp
    return logs


def parse(body: bytes) -> Any:
    """Return the value of the JSON text in `body`.

    Raises ValueError, worded for the client, for invalid UTF-8, a malformed text, NaN, Infinity,
    numbers beyond a double or 4,300 digits, and nesting too deep.
    """
    try:
        text = body.decode("utf-8")
        return json.loads(text, parse_constant=_reject_constant, parse_float=_parse_float)
    except UnicodeDecodeError as error:
        problem = name_encoding(body) or f"invalid UTF-8 at byte {error.start}"
    except json.JSONDecodeError as error:
        problem = name_encoding(body) or f"{error}{_hint(error)}"
    except RecursionError:
        problem = "nested too deep"
    raise ValueError(problem)


def name_encoding(body: bytes) -> str:
    """Return the reason why a text is not plain UTF-8: a byte order mark or UTF-16; else "".

    A JSON text begins with two ASCII characters (RFC 4627, 3), unless it is a single digit.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:2]:
        return "it is UTF-16 or UTF-32; send UTF-8"
    if body.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; send it without"
    return ""


def _hint(error: json.JSONDecodeError) -> str:
    """Return a hint for the error of a text with several objects in one line, "" for others."""
    is_extra = error.msg == "Extra data" and error.doc[error.pos] == "{"
    return SEVERAL_OBJECTS if is_extra and "\n" not in error.doc[: error.pos] else ""


def replace_lone_surrogates(body: bytes) -> bytes:
    """Return the JSON text with U+FFFD for each lone half of a surrogate pair.

    JavaScript writes such halves when it cuts a text inside an emoji.
    """
    if not _SURROGATE.search(body):
        return body
    replaced = bytearray()
    end = 0
    for match in in_turns(_ESCAPE.finditer(body)):
        if match[1]:
            replaced += body[end : match.start()] + b"\\ufffd"
            end = match.end()
    return bytes(replaced + body[end:]) if end else body


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_float(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number out of range: {text[:20]}")
    return number


def is_utf8(text: bytes) -> bool:
    """Return whether a text of any length is valid UTF-8."""
    if text.isascii():
        return True
    decoder = _new_utf8_decoder()
    try:
        for start in range(0, len(text), UTF8_STEP_BYTES):
            decoder.decode(text[start : start + UTF8_STEP_BYTES])
            yield_if_due()
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def to_utf8(text: bytes) -> bytes:
    """Return the text with U+FFFD for invalid UTF-8; it may need three times the bytes."""
    decoder = _new_utf8_decoder(errors="replace")
    pieces = []
    for start in range(0, len(text), UTF8_STEP_BYTES):
        pieces.append(decoder.decode(text[start : start + UTF8_STEP_BYTES]).encode())
        yield_if_due()
    return b"".join([*pieces, decoder.decode(b"", final=True).encode()])
