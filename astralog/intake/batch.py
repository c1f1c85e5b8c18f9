"""Convert the body of a drain to NDJSON lines, piece by piece."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marshmallow import ValidationError

from astralog.deadlines import yield_if_due
from astralog.errors import Rejection
from astralog.intake import formats
from astralog.intake.decoder import (
    FAST_BYTES,
    RUN_BYTES,
    STEP_BYTES,
    Context,
    Decoded,
    LineWriter,
    check_growth,
    encode_value,
    escaped_size,
    project_of,
)
from astralog.intake.formats import BATCH, LINES, OBJECTS, Format, Piece, find_format
from astralog.intake.invalid_logs import InvalidLogs, describe, reject_invalid
from astralog.intake.logs import (
    COMPILED_ERRORS,
    check_metadata,
    encode_logs,
    load_log,
    load_valid_log,
)
from astralog.intake.options import NO_SERVICE, OnInvalid
from astralog.intake.schema import FIELDS, Log
from astralog.intake.strict_json import name_encoding, to_utf8
from astralog.intake.unix_time import format_time
from astralog.store.queue import Batch

#: Commas that a body longer than a piece may hold, and a log longer than a piece: they limit the
#: values, and with them the cost of the body as objects.
LONG_BODY_COMMAS = 750_000
LONG_LOG_COMMAS = 100_000

#: The longest text that is decoded log by log within one slot: up to 0.2 s if no log is valid. Of a
#: longer one, pieces of valid logs are decoded fast.
SLOW_PIECE_BYTES = 64 * 1024

#: The level of an invalid log that is kept, unless the query has one.
KEPT_LEVEL = "error"

#: Bytes that a text takes as a string of Python, and while it becomes one, per byte.
MAX_TEXT_GROWTH = 8

#: Bytes that a kept log takes in addition to its text, its messages included, and that the lines of
#: a body with such logs may take in addition: a batch of short lines of text grows many times.
KEPT_LOG_BYTES = 512
KEPT_SPARE_BYTES = 16 * 1024 * 1024

#: Logs with invalid fields that a body may hold if they are kept: the messages of each take 0.1 ms.
MAX_KEPT_LOGS = 20_000

#: Logs that are held as objects when they are decoded one by one.
LOGS_PER_STEP = 256

#: Fields of an OTLP export in JSON.
OTLP_FIELDS = ("resourceLogs", "resource_logs", "resourceSpans", "resourceMetrics")

#: Integers of so many digits that a log longer than a piece may hold; each takes up to 0.5 ms.
LONG_INTEGER_DIGITS = 1000
LONG_LOG_INTEGERS = 200


_LONG_INTEGER = re.compile(rb"[-,:\[\s][0-9]{%d}" % LONG_INTEGER_DIGITS)


def decode_json(body: bytes, context: Context) -> Decoded:
    """Return the batch in the JSON text `body`."""
    form = find_format(body) if context.options.accepts_any_json else BATCH
    return _decode(body, form, context)


def decode_lines(body: bytes, context: Context) -> Decoded:
    """Return the batch in the NDJSON text `body`, one log per line."""
    return _decode(body, LINES, context)


def _decode(body: bytes, form: Format, context: Context) -> Decoded:
    if context.options.stamps_arrival:
        options = context.options.stamp(format_time(time.time_ns()))
        context = context._replace(options=options)
    try:
        batch = _decode_at_once(body, form, context)
        return Decoded(batch) if batch is not None else _Decode(body, form, context).run()
    except ValidationError as error:
        message = f"{_explain(error.messages_dict)}; nothing was stored"
        rejection = Rejection("invalid_batch", message, error.messages_dict)
    except RecursionError:
        rejection = Rejection("invalid_json", "The body is not valid JSON: nested too deep")
    except ValueError as error:
        problem = name_encoding(body) or f"{error}{form.hint(body)}"
        rejection = Rejection("invalid_json", f"The body is not valid JSON: {problem}")
    if context.options.on_invalid is OnInvalid.KEEP and body.strip():
        return _Decode(body, form, context).keep_body(rejection)
    raise rejection


def _explain(errors: Mapping[str, Any]) -> str:
    """Return the reason why a body is not a batch, from the errors of its fields."""
    if "_schema" in errors:
        return 'A batch is an object with a list: {"logs": [LOG, ...]}'
    if not errors.keys().isdisjoint(OTLP_FIELDS):
        return "The body is an export of OpenTelemetry, which goes to POST /v1/logs"
    if "logs" in errors and not errors.keys().isdisjoint(FIELDS):
        return (
            'The body is a log, not a batch: send {"logs": [LOG]}, or one log per line as '
            "application/x-ndjson"
        )
    return "The batch is invalid"


def _decode_at_once(body: bytes, form: Format, context: Context) -> Batch | None:
    """Return the batch in a short body of valid logs, the usual case; None for any other body."""
    options = context.options
    if len(body) > (FAST_BYTES if options.changes_logs else formats.PIECE_BYTES):
        return None
    encoded: list[bytes] = []
    projects: list[str] = []
    count = 0
    repeated_bytes = _repeated_bytes(context) if options.defaults else 0
    with context.fast_slot(len(body)):
        try:
            for text in _cut(body, form, context):
                logs = form.load(text, options)
                count += len(logs)
                if repeated_bytes * count > STEP_BYTES:  # such lines are encoded in steps
                    return None
                encoded.append(encode_logs(logs, options))
                if context.projects is not None:
                    projects += dict.fromkeys(map(project_of, logs))
        except COMPILED_ERRORS:
            return None
    context.check_projects(projects, count)
    lines = b"".join(encoded)
    check_growth(len(lines), len(body), formats.PIECE_BYTES)
    return Batch(lines, count)


def _cut(body: bytes, form: Format, context: Context) -> Iterable[bytes]:
    """Return the parts of a short body that are decoded one after another."""
    size = RUN_BYTES if context.options.moves_fields else _most_at_once(context)
    if len(body) <= size:
        return (body,)
    return (text for _, text in form.split((form.first, body), size, _hold_nothing))


def _hold_nothing(size: int) -> None:
    """Charge nothing: what the split of a short text takes is part of its reservation."""


def _most_at_once(context: Context) -> int:
    """Return the most bytes that are decoded in one call.

    Logs that are changed take several times as long, the shortest ones most of all.
    """
    return SLOW_PIECE_BYTES if context.options.changes_logs else formats.PIECE_BYTES


def reject_values() -> Rejection:
    """Return the rejection of a body that holds more than LONG_BODY_COMMAS values."""
    message = f"The body holds more than {LONG_BODY_COMMAS} values; send smaller batches."
    return Rejection("body_too_large", message)


def _too_many_kept() -> Rejection:
    most = f"With invalid=keep, a body may hold {MAX_KEPT_LOGS} logs with invalid fields"
    return Rejection("body_too_large", f"{most}; send smaller batches.")


def find_excess(text: bytes) -> str:
    """Return a description of the limit that a log exceeds for a decode in one call, or ""."""
    if text.count(b",") > LONG_LOG_COMMAS:
        return f"over {LONG_LOG_COMMAS} values"
    sample = text[:: LONG_INTEGER_DIGITS // 2]  # it has two digits at least of such an integer
    digits = len(sample) - len(sample.translate(None, b"0123456789"))
    if digits > 2 * LONG_LOG_INTEGERS and len(_LONG_INTEGER.findall(text)) > LONG_LOG_INTEGERS:
        return f"over {LONG_LOG_INTEGERS} integers of {LONG_INTEGER_DIGITS} digits"
    return ""


def _repeated_bytes(context: Context) -> int:
    """Return the bytes of the default values in each log."""
    return sum(len(encode_value(value)) for value in context.options.defaults.values())


class _Decode:
    """The decode of a body that is long or may contain invalid logs."""

    def __init__(self, body: bytes, form: Format, context: Context) -> None:
        self._body = body
        self._form = form
        self._context = context
        self._options = context.options
        self._on_invalid = context.options.on_invalid
        are_kept = self._on_invalid is OnInvalid.KEEP
        self._arrival = format_time(time.time_ns()) if are_kept else ""
        self._repeated_bytes = _repeated_bytes(context)
        self._invalid = InvalidLogs(are_kept=are_kept)
        self._described = 0  # logs whose fields are invalid
        spare_bytes = formats.PIECE_BYTES
        if are_kept:
            self._repeated_bytes += KEPT_LOG_BYTES
            spare_bytes = KEPT_SPARE_BYTES
        self._lines = LineWriter(context.reservation, len(body), spare_bytes)

    def run(self) -> Decoded:
        """Return the batch, or raise Rejection, ValidationError, RecursionError or ValueError."""
        whole = (self._form.first, self._body)
        if len(self._body) <= formats.PIECE_BYTES:
            self._add_slowly(whole)
            self._reject_invalid()
        else:
            for piece in self._split(whole):
                self._add(piece)
                self._reject_invalid()
        return Decoded(self._lines.finish(), self._invalid if self._invalid.count else None)

    def keep_body(self, rejection: Rejection) -> Decoded:
        """Return a batch of one log, whose message is the body as text."""
        messages = rejection.errors or {"_schema": [rejection.message]}
        self._encode([self._keep(self._form.first, self._body, messages)])
        return Decoded(self._lines.finish(), self._invalid)

    def _reject_invalid(self) -> None:
        """Raise Rejection if a log is invalid, unless the valid ones are stored anyway."""
        if self._invalid.count and self._on_invalid is OnInvalid.REJECT:
            raise reject_invalid(self._invalid, self._form.count(self._body))

    def _split(self, whole: Piece) -> Iterable[Piece]:
        if self._body.count(b",") > LONG_BODY_COMMAS or self._has_too_many_logs():
            raise reject_values()
        with self._context.fast_slot(len(self._body)):
            return self._form.split(whole, formats.PIECE_BYTES, self._lines.hold)

    def _has_too_many_logs(self) -> bool:
        """Return whether the body has more logs than the limit on values, even without commas.

        Each `}` may be the end of a log; blank lines hold none.
        """
        if self._form is OBJECTS:
            return self._body.count(b"}") > LONG_BODY_COMMAS
        is_long = self._form is LINES and self._body.count(b"\n") > LONG_BODY_COMMAS
        return is_long and LINES.count(self._body) > LONG_BODY_COMMAS

    def _add(self, piece: Piece) -> None:
        """Add the valid logs of a piece to the lines, and count the others."""
        first, text = piece
        size = len(text)
        if size > formats.PIECE_BYTES and (excess := find_excess(text)):
            problem = f"Longer than {formats.PIECE_BYTES} bytes with {excess}."
            self._invalid.seen += 1
            if self._invalid.are_kept:
                ((first, text),) = self._form.texts(piece)  # without lone surrogates
            self._encode(self._set_aside(first, text, {"_schema": [problem]}))
            return
        self._lines.hold(size)
        is_added = False
        if size <= _most_at_once(self._context):
            with self._context.fast_slot(size):
                is_added = self._add_fast(text)
        if not is_added:
            self._add_slowly(piece)
        self._lines.hold(-size)

    def _add_fast(self, text: bytes) -> bool:
        """Add the logs of a piece and return True if the compiled decoder accepts all of them."""
        try:
            logs = self._form.load(text, self._options)
            check_metadata(logs)
        except COMPILED_ERRORS:
            return False
        self._invalid.seen += len(logs)
        self._encode(logs)
        return True

    def _add_slowly(self, piece: Piece) -> None:
        """Add the valid logs of a piece, and count the others; try `_add_fast` on its parts."""
        size = len(piece[1])
        if size > SLOW_PIECE_BYTES:
            with self._context.slow_slot(size):
                pieces = list(self._form.split(piece, SLOW_PIECE_BYTES, _hold_nothing))
            if len(pieces) > 1:
                for shorter in pieces:
                    if not self._is_rejected():
                        self._add(shorter)
                return
        with self._context.slow_slot(size):
            self._encode(self._load_one_by_one(piece))

    def _is_rejected(self) -> bool:
        """Return whether the batch is rejected without further checks."""
        return self._invalid.is_full and self._on_invalid is OnInvalid.REJECT

    def _load_one_by_one(self, piece: Piece) -> list[Any]:
        """Return the logs of a piece to store, and count the invalid ones."""
        logs: list[Any] = []
        for number, text in self._form.texts(piece):
            yield_if_due()
            if self._is_rejected():
                break
            self._invalid.seen += 1
            logs += self._load(number, text)
            if len(logs) == LOGS_PER_STEP:
                self._encode(logs)
                logs = []
        return logs

    def _load(self, number: int, text: bytes) -> list[Any]:
        """Return the log in a text; count an invalid one, and return it as text if it is kept."""
        try:
            if self._invalid.are_described and self._on_invalid is OnInvalid.LEAVE_OUT:
                log = load_valid_log(text, self._options)
                return self._set_aside(number, text, {}) if log is None else [log]
            return [load_log(text, self._options)]
        except ValidationError as error:
            self._described += 1
            if self._invalid.are_kept and self._described > MAX_KEPT_LOGS:
                raise _too_many_kept() from None
            return self._set_aside(number, text, error.messages_dict)
        except ValueError as error:
            is_alone = self._form.is_sequence and self._on_invalid is OnInvalid.LEAVE_OUT
            if not (is_alone or self._invalid.are_kept):
                raise ValueError(f"{self._form.noun} {number}: {error}") from None
            return self._set_aside(number, text, {"_schema": [f"Not valid JSON: {error}"]})

    def _set_aside(self, number: int, text: bytes, messages: Mapping[str, Any]) -> list[Any]:
        """Count an invalid log, and return the log that is stored in its place, if any."""
        if self._invalid.are_kept:
            return [self._keep(number, text, messages)]
        self._invalid.add(number, messages)
        return []

    def _keep(self, number: int, text: bytes, messages: Mapping[str, Any]) -> Any:
        """Count an invalid log, and return the log that holds its text."""
        self._invalid.add(number, messages)
        if len(text) > SLOW_PIECE_BYTES:
            self._lines.expect(MAX_TEXT_GROWTH * len(text) + escaped_size(text))
        defaults = self._options.defaults
        return Log(
            self._context.project,
            self._arrival,
            defaults.get("level", KEPT_LEVEL),
            defaults.get("service", NO_SERVICE),
            to_utf8(text).decode(),
            {"invalid": describe(messages)},
        )

    def _encode(self, logs: Sequence[Any]) -> None:
        self._context.check_projects(map(project_of, logs), len(logs))
        self._lines.add(logs, self._repeated_bytes)
