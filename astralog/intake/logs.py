"""JSON text to logs, strictly as RFC 8259 defines it.

The compiled decoder reads it; if it rejects a log, Python's own parser and marshmallow decide, and
word the errors.
"""

import codecs
import json
import math
import re
from typing import Any, NoReturn

import msgspec
from marshmallow import ValidationError

from astralog.deadlines import in_runs, in_turns, yield_if_due
from astralog.intake import timestamps
from astralog.intake.decoder import DESCRIBED_FIELDS
from astralog.intake.mapping import change_log
from astralog.intake.options import NO_OPTIONS, Options
from astralog.intake.schema import FIELDS, BatchStruct, Log, LogSchema

SEVERAL_OBJECTS = (
    "; one log per line is sent as application/x-ndjson, by curl with --data-binary: "
    "its -d removes the ends of lines"
)

_HIGH = rb"u[dD][89abAB][0-9a-fA-F]{2}"
_LOW = rb"u[dD][c-fC-F][0-9a-fA-F]{2}"
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
# Other escapes and whole pairs match too, so that the search for the next match is short.
_ESCAPE = re.compile(rb"\\(?:%s\\%s|(%s|%s)|.)" % (_HIGH, _LOW, _HIGH, _LOW), re.DOTALL)

#: Bytes of UTF-8 that are decoded without a pause: 4 ms if all of them are invalid.
UTF8_STEP_BYTES = 256 * 1024

#: Errors of the compiled decoder, on which marshmallow decides.
COMPILED_ERRORS = (ValueError, RecursionError, ValidationError)


class _ObjectBatch(msgspec.Struct, forbid_unknown_fields=True):
    """A batch whose logs are changed before they are checked."""

    logs: list[dict[Any, Any]]


_batch = msgspec.json.Decoder(BatchStruct)
_log = msgspec.json.Decoder(Log)
_object_batch = msgspec.json.Decoder(_ObjectBatch)
_object_array = msgspec.json.Decoder(list[dict[Any, Any]])
_object = msgspec.json.Decoder(dict)
_schema = LogSchema()
_new_utf8_decoder = codecs.getincrementaldecoder("utf-8")


def load_batch(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON batch; raises COMPILED_ERRORS."""
    if options is not NO_OPTIONS and options.changes_logs:
        return _check(_object_batch.decode(text).logs, options)
    return _store_timestamps(_batch.decode(text).logs)


def load_array(text: bytes, options: Options) -> list[Any]:
    """Return the logs of a JSON array, which are changed; raises COMPILED_ERRORS."""
    return _check(_object_array.decode(text), options)


def load_logs(texts: list[bytes], options: Options) -> list[Any]:
    """Return the logs in JSON texts, one in each; raises COMPILED_ERRORS."""
    if options is not NO_OPTIONS and options.changes_logs:
        return _check(list(map(_object.decode, texts)), options)
    return _store_timestamps(list(map(_log.decode, texts)))


def load_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text without lone surrogates.

    Raises ValidationError, worded for the client, and ValueError for invalid JSON.
    """
    try:
        return load_logs([text], options)[0]
    except COMPILED_ERRORS:
        pass
    log = change_log(parse(text), options)
    if isinstance(log, dict) and len(log) > len(FIELDS) + DESCRIBED_FIELDS:
        log = _without_most_unknown(log)
    return Log(**_schema.load(log))


def load_valid_log(text: bytes, options: Options) -> Any:
    """Return the log in a JSON text, or None if it is invalid; raises ValueError for invalid JSON.

    As `load_log`, but without messages, which take most of the time.
    """
    try:
        return load_logs([text], options)[0]
    except COMPILED_ERRORS:
        pass
    parsed = parse(text)
    try:
        log = change_log(parsed, options)
        msgspec.convert(log, Log)  # rejects no log that the schema accepts
        return Log(**_schema.load(log))
    except COMPILED_ERRORS:
        return None


def _without_most_unknown(log: dict[str, Any]) -> dict[str, Any]:
    """Return the log without the unknown fields that are not described: each costs 2 µs."""
    known = {name: log.pop(name) for name in FIELDS if name in log}
    return dict(list(log.items())[:DESCRIBED_FIELDS]) | known


def _check(objects: list[dict[Any, Any]], options: Options) -> list[Any]:
    logs: list[Any] = []
    for run in in_runs(objects):
        logs += [change_log(log, options) for log in run]
    return _store_timestamps(msgspec.convert(logs, list[Log]))


def _store_timestamps(logs: list[Any]) -> list[Any]:
    """Replace timestamps by their stored form; raises ValueError for an invalid one."""
    stored = timestamps.normalise_all([log.timestamp for log in logs])
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
    """Return in words why a text is not plain UTF-8; "" if there is no byte order mark or UTF-16.

    A JSON text begins with two ASCII characters (RFC 4627, 3), unless it is a single digit.
    """
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in body[:2]:
        return "it is UTF-16 or UTF-32; send UTF-8"
    if body.startswith(codecs.BOM_UTF8):
        return "it begins with a byte order mark; send it without"
    return ""


def _hint(error: json.JSONDecodeError) -> str:
    """Return the addition to the error for a text of several objects in one line, "" for others."""
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


def to_utf8(text: bytes) -> bytes:
    """Return the text with U+FFFD for invalid UTF-8; it may take three times the bytes."""
    decoder = _new_utf8_decoder(errors="replace")
    pieces = []
    for start in range(0, len(text), UTF8_STEP_BYTES):
        pieces.append(decoder.decode(text[start : start + UTF8_STEP_BYTES]).encode())
        yield_if_due()
    return b"".join([*pieces, decoder.decode(b"", final=True).encode()])
