"""JSON text to logs: by the compiled decoder, and where it has no verdict by marshmallow."""

from typing import Any

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_runs
from astralog.intake import timestamps
from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.mapping import change_log
from astralog.intake.options import Options
from astralog.intake.schema import FIELDS, BatchStruct, Log, LogSchema
from astralog.intake.strict_json import parse

#: What the compiled decoder does not take; marshmallow may take it all the same.
NoVerdict = (ValueError, RecursionError, ValidationError)


class _ObjectBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs may have to be changed before they are checked."""

    logs: list[dict[Any, Any]]


_batch = msgspec.json.Decoder(BatchStruct)
_log = msgspec.json.Decoder(Log)
_object_batch = msgspec.json.Decoder(_ObjectBatch)
_object = msgspec.json.Decoder(dict)
_schema = LogSchema()


def load_batch(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON batch; raises NoVerdict."""
    if options.defaults or options.moves_unknown:
        return _check(_object_batch.decode(text).logs, options)
    return _store_timestamps(_batch.decode(text).logs)


def load_logs(texts: list[bytes], options: Options) -> list[Any]:
    """Return the logs in JSON texts, one in each; raises NoVerdict."""
    if options.defaults or options.moves_unknown:
        return _check(list(map(_object.decode, texts)), options)
    return _store_timestamps(list(map(_log.decode, texts)))


def load_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text, in which no surrogate stands alone.

    Raises ValidationError, worded for the client, and ValueError for what is no JSON.
    """
    try:
        return load_logs([text], options)[0]
    except NoVerdict:
        pass
    log = change_log(parse(text), options)
    if isinstance(log, dict) and len(log) > len(FIELDS) + DESCRIBED_FIELDS:
        log = _without_most_unknown(log)
    return Log(**_schema.load(log))


def load_valid_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text, or None if it is invalid; raises ValueError for no JSON.

    As `load_log`, but without a message for each fault, which takes most of the time.
    """
    try:
        return load_logs([text], options)[0]
    except NoVerdict:
        pass
    parsed = parse(text)
    try:
        log = change_log(parsed, options)
        msgspec.convert(log, Log)  # rejects no log that the schema takes
        return Log(**_schema.load(log))
    except NoVerdict:
        return None


def _without_most_unknown(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log with the unknown fields that are described, since each costs 2 µs to word."""
    known = {name: log.pop(name) for name in FIELDS if name in log}
    return dict(list(log.items())[:DESCRIBED_FIELDS]) | known


def _check(objects: list[dict[Any, Any]], options: Options) -> list[Any]:
    logs: list[Any] = []
    for run in in_runs(objects):
        logs += [change_log(log, options) for log in run]
    return _store_timestamps(msgspec.convert(logs, list[Log]))


def _store_timestamps(logs: list[Any]) -> list[Any]:
    """Bring the timestamps into their stored form; raises ValueError where one has none."""
    stored = timestamps.normalise_all([log.timestamp for log in logs])
    if stored is not None:
        for log, timestamp in zip(logs, stored, strict=True):
            log.timestamp = timestamp
    return logs
