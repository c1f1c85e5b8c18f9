"""The load of a log by itself: the compiled decoder tries it, and marshmallow words the errors."""

from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.intake.changed_logs import find_loader
from astralog.intake.decoder import encode_value
from astralog.intake.invalid_logs import DESCRIBED_FIELDS
from astralog.intake.logs import COMPILED_ERRORS, drop_null_metadata
from astralog.intake.mapping import change_log
from astralog.intake.members import decode_object, is_object
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS, Log, LogSchema, MovedLog
from astralog.intake.strict_json import check_utf8, parse

_schema = LogSchema()


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
    logs = find_loader(options).load_parts([text], text, options)
    drop_null_metadata(logs)
    return logs[0]


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
