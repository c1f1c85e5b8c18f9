"""JSON texts to logs as they are stored: by the compiled decoder, or else by marshmallow.

`load` is the usual way: it decodes and checks all logs of a text at once, and fails as a whole.
`load_log` decides on a single one, and words its errors.
"""

from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.intake.columns import NotAlikeError
from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.formats import LINES, ONE_LOG, Format, LogDecoders
from astralog.intake.lines import encode_value
from astralog.intake.mapping import change_log, fill_in, move_fields, move_lines
from astralog.intake.members import (
    LINE_BREAKS,
    Members,
    decode_object,
    is_object,
    without_line_breaks,
)
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS, NO_METADATA, IncompleteLog, Log, LogSchema, RawLog
from astralog.intake.strict_json import check_utf8, parse
from astralog.intake.timestamps import store_timestamps

#: Errors of `load`, after which `load_log` decides.
COMPILED_ERRORS = (ValueError, RecursionError, ValidationError)

_plain, _incomplete, _moved = map(LogDecoders, (RawLog, IncompleteLog, Members))
_schema = LogSchema()

_NULS = bytes(8)


def load(text: bytes, form: Format, options: Options) -> list[Any]:
    """Return the valid logs of a text; raises COMPILED_ERRORS if one may be invalid."""
    if options.moves_fields:
        return _load_moved(text, form, options)
    if options.defaults:
        logs = form.decode(text, _incomplete)
        fill_in(logs, options.defaults)
    else:
        logs = form.decode(text, _plain)
    _check_metadata(logs)
    return store_timestamps(logs)


def _check_metadata(logs: list[Any]) -> None:
    """Remove null and line breaks from metadata; raises ValueError for any value but an object.

    It is not decoded, as the other fields are. All of it is looked at as one text, whose parts
    begin after NULs, which JSON cannot contain: to look at each would take 0.3 µs more, and to
    search for a single NUL 0.1.
    """
    metadata = [log.metadata for log in logs]
    joined = _NULS.join([b"", *metadata])
    check_utf8(joined)
    has_breaks = joined.find(b"\n") >= 0 or joined.find(b"\r") >= 0  # faster than `in`
    if joined.count(_NULS + b"{") == len(metadata) and not has_breaks:
        return
    for log in logs:
        if log.metadata is not NO_METADATA:
            log.metadata = _read_metadata(bytes(log.metadata))


def _read_metadata(text: bytes) -> msgspec.Raw:
    if text == b"null":
        return NO_METADATA
    if not text.startswith(b"{"):
        raise ValueError("metadata is no object")
    return msgspec.Raw(text.translate(None, LINE_BREAKS))


def _load_moved(text: bytes, form: Format, options: Options) -> list[Any]:
    """Return the logs of a text whose fields have other names."""
    if options.moves_unknown and form is LINES:
        try:
            return move_lines(text, options)
        except (NotAlikeError, ValueError):
            pass
    logs = form.decode(text, _moved)
    check_utf8(text)
    if b"\r" in text or (b"\n" in text and form is not LINES):
        logs = list(map(without_line_breaks, logs))
    return move_fields(logs, options)


def load_log(text: bytes, options: Options, *, is_described: bool = True) -> Any:
    """Return the log in a JSON text without lone surrogates.

    Raises ValidationError, worded for the client, and ValueError for invalid JSON. Words take most
    of the time: unless an invalid log `is_described`, None may be returned in place of its error.
    """
    try:
        return load(text, ONE_LOG, options)[0]
    except COMPILED_ERRORS:
        pass
    log = _read_log(text)
    try:
        if isinstance(log, dict):
            log = change_log(log, options)
            if is_described and len(log) > len(FIELDS) + DESCRIBED_FIELDS:
                log = _without_most_unknown(log)
        if not is_described:
            msgspec.convert(log, Log)  # rejects no log that the schema accepts
        return _load_by_schema(log)
    except COMPILED_ERRORS:
        if is_described:
            raise
        return None


def _read_log(text: bytes) -> Any:
    """Return the members of the object in a text, or else the value; raises ValueError."""
    try:
        check_utf8(text)
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


def _without_most_unknown(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log without the unknown fields that a response cannot list: each costs 2 µs."""
    known = {name: log.pop(name) for name in FIELDS if name in log}
    return dict(list(log.items())[:DESCRIBED_FIELDS]) | known
