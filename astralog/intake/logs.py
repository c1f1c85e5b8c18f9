"""Logs in JSON to structs, and structs to stored lines.

The compiled decoder reads the JSON; if it rejects a log, Python's own parser and marshmallow
decide, and word the errors.
"""

from collections.abc import Mapping
from io import BytesIO
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_runs, in_turns
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
from astralog.intake.strict_json import parse

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


def load_batch(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON batch, as `Format.load`; raises COMPILED_ERRORS."""
    has_breaks = _has_line_breaks(text)
    (batch,) = _decode(_find_decoders(options).batch, [text], options, has_breaks)
    return _finish(batch.logs, text, options, has_breaks)


def load_array(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON array; else as `load_batch`."""
    has_breaks = _has_line_breaks(text)
    (logs,) = _decode(_find_decoders(options).array, [text], options, has_breaks)
    return _finish(logs, text, options, has_breaks)


def load_objects(texts: list[bytes], text: bytes, options: Options) -> list[Any]:
    """Return the logs in the parts `texts` of a text, one per part; else as `load_batch`."""
    has_breaks = _has_line_breaks(text)
    logs = _decode(_find_decoders(options).log, texts, options, has_breaks)
    return _finish(logs, text, options, has_breaks)


def load_lines(text: bytes, options: Options) -> list[Any]:
    """Return the logs in the lines of a text; else as `load_batch`."""
    lines = BytesIO(text).readlines()  # by LF, twice as fast as `split`
    if options.moves_unknown and len(lines) >= LEAST_LINES:
        try:
            return move_lines(lines, options)
        except (NotAlikeError, ValueError):
            pass
    has_breaks = b"\r" in text and text.count(b"\r") != text.count(b"\r\n")
    logs = _decode(_find_decoders(options).log, lines, options, has_breaks)
    return _finish(logs, text, options, has_breaks)


def _has_line_breaks(text: bytes) -> bool:
    return b"\n" in text or b"\r" in text


def _find_decoders(options: Options) -> _Decoders:
    if not options.changes_logs:
        return _COMPLETE
    return _OBJECTS if options.moves_fields else _INCOMPLETE


def _decode(
    decoder: msgspec.json.Decoder[Any], texts: list[bytes], options: Options, has_breaks: bool
) -> list[Any]:
    """Return the values of texts; those that keep their members as text have no line breaks.

    Each is decoded with its line breaks first: JSON allows none within a string.
    """
    values = list(map(decoder.decode, texts))
    if has_breaks and options.moves_fields:
        return [decoder.decode(text.translate(None, LINE_BREAKS)) for text in texts]
    return values


def _finish(logs: list[Any], text: bytes, options: Options, has_breaks: bool) -> list[Any]:
    """Return the decoded logs of a text as they are stored, changed by the options."""
    _check_utf8(text)
    if options.moves_fields:
        return _change(logs, options)
    if has_breaks:
        _remove_line_breaks(logs)
    if options.defaults:
        _fill_in(logs, options.defaults)
    return store_timestamps(logs)


def _remove_line_breaks(logs: list[Any]) -> None:
    """Remove line breaks from metadata, which stays encoded; JSON escapes those in strings."""
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
    logs = load_objects([text], text, options)
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
