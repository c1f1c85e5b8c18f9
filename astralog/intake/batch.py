"""Decode the body of a drain: at once if it is short and valid, else piece by piece.

The logs of a piece that is not valid as a whole are decoded one by one.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from marshmallow import ValidationError

from astralog.deadlines import yield_if_due
from astralog.errors import Rejection
from astralog.intake import formats
from astralog.intake.decoder import FAST_BYTES, Context, Decoded, describe
from astralog.intake.formats import BATCH, LINES, OBJECTS, Format, Piece, find_format
from astralog.intake.lines import (
    RUN_BYTES,
    STEP_BYTES,
    LineWriter,
    check_growth,
    encode_lines,
    escaped_size,
    project_of,
    repeated_bytes,
)
from astralog.intake.logs import COMPILED_ERRORS, load, load_log
from astralog.intake.options import NO_SERVICE, OnInvalid
from astralog.intake.schema import FIELDS, Log
from astralog.intake.strict_json import name_encoding, to_utf8
from astralog.intake.unix_time import format_time
from astralog.intake.value_limits import MAX_VALUES, check_values, find_excess, reject_values
from astralog.store.queue import Batch

#: Fields of an OTLP export in JSON.
OTLP_FIELDS = ("resourceLogs", "resource_logs", "resourceSpans", "resourceMetrics")

#: The longest text that is decoded log by log within one slot: up to 0.2 s if no log is valid. Of a
#: longer one, pieces of valid logs are decoded fast.
SLOW_PIECE_BYTES = 64 * 1024

#: Logs that are held as objects when they are decoded one by one.
LOGS_PER_STEP = 256

#: The level of an invalid log that is kept, unless the query has one.
KEPT_LEVEL = "error"

#: The longest text that becomes a string without a charge.
UNCHARGED_BYTES = 64 * 1024

#: Bytes that a text takes as a string of Python, and while it becomes one, per byte.
MAX_TEXT_GROWTH = 8

#: Bytes that a kept log takes in addition to its text, its messages included, and that the lines of
#: a body with such logs may take in addition: a batch of short lines of text grows many times.
KEPT_LOG_BYTES = 512
KEPT_SPARE_BYTES = 16 * 1024 * 1024

#: Logs with invalid fields that a body may hold if they are kept: the messages of each take 0.1 ms.
MAX_KEPT_LOGS = 20_000


def decode_json(body: bytes, context: Context) -> Decoded:
    """Return the batch in the JSON text `body`."""
    form = find_format(body) if context.options.accepts_any_json else BATCH
    return _decode(body, form, context)


def decode_lines(body: bytes, context: Context) -> Decoded:
    """Return the batch in the NDJSON text `body`, one log per line."""
    return _decode(body, LINES, context)


def _decode(body: bytes, form: Format, context: Context) -> Decoded:
    """Return the batch in a body; raises Rejection as a Decoder does."""
    if context.options.stamps_arrival:
        options = context.options.stamp(format_time(time.time_ns()))
        context = context._replace(options=options)
    decode_valid = _decode_changed if context.options.changes_logs else _decode_plain
    try:
        batch = decode_valid(body, form, context)
        return Decoded(batch) if batch is not None else PiecewiseDecode(body, form, context).run()
    except ValidationError as error:
        message = f"{_explain(error.messages_dict)}; nothing was stored"
        rejection = Rejection("invalid_batch", message, error.messages_dict)
    except RecursionError:
        rejection = Rejection("invalid_json", "The body is not valid JSON: nested too deep")
    except ValueError as error:
        problem = name_encoding(body) or f"{error}{form.hint(body)}"
        rejection = Rejection("invalid_json", f"The body is not valid JSON: {problem}")
    if context.options.on_invalid is OnInvalid.KEEP and body.strip():
        return PiecewiseDecode(body, form, context).keep_body(rejection)
    raise rejection


def _decode_plain(body: bytes, form: Format, context: Context) -> Batch | None:
    """Return the batch in a short body of valid logs, the usual case; None for any other body.

    Its lines, which are hardly longer than the body, are not charged before its end: only one
    decode at a time pauses meanwhile, at the end of its slot.
    """
    if len(body) > formats.PIECE_BYTES:
        return None
    with context.fast_slot(len(body)):
        try:
            logs = load(body, form, context.options)
        except COMPILED_ERRORS:
            return None
        lines = encode_lines(logs)
    context.check_projects(map(project_of, logs), len(logs))
    return Batch(lines, len(logs))


def _decode_changed(body: bytes, form: Format, context: Context) -> Batch | None:
    """Return the same for logs that options change, which are decoded in small parts."""
    options = context.options
    if len(body) > FAST_BYTES:
        return None
    whole = (form.first, body)
    bytes_per_log = repeated_bytes(options.defaults.values())
    encoded: list[bytes] = []
    projects: list[str] = []
    count = 0
    with context.fast_slot(len(body)):
        try:
            parts = [whole] if len(body) <= RUN_BYTES else form.split(whole, RUN_BYTES)
            for _, text in parts:
                logs = load(text, form, options)
                count += len(logs)
                if bytes_per_log * count > STEP_BYTES:  # such lines are encoded in steps
                    return None
                encoded.append(encode_lines(logs))
                if context.projects is not None:
                    projects += dict.fromkeys(map(project_of, logs))
        except COMPILED_ERRORS:
            return None
    context.check_projects(projects, count)
    lines = b"".join(encoded)
    check_growth(len(lines), len(body), formats.PIECE_BYTES)
    return Batch(lines, count)


class PiecewiseDecode:
    """The decode of one body, whose pieces are decoded at once, or else log by log."""

    def __init__(self, body: bytes, form: Format, context: Context) -> None:
        self._body = body
        self._form = form
        self._context = context
        self._options = context.options
        self._on_invalid = context.options.on_invalid
        # Logs that are changed take several times as long, the shortest ones most of all.
        is_slow = self._options.changes_logs
        self._most_at_once = SLOW_PIECE_BYTES if is_slow else formats.PIECE_BYTES
        are_kept = self._on_invalid is OnInvalid.KEEP
        self._bytes_per_log = repeated_bytes(context.options.defaults.values())
        if are_kept:
            self._bytes_per_log += KEPT_LOG_BYTES
        spare_bytes = KEPT_SPARE_BYTES if are_kept else formats.PIECE_BYTES
        self._lines = LineWriter(context, len(body), spare_bytes)
        self._invalid = self._lines.invalid
        self._keeper = LogKeeper(context, self._lines) if are_kept else None

    def run(self) -> Decoded:
        """Return the batch, or raise Rejection, ValidationError, RecursionError or ValueError.

        A short body begins in parts, since a decode at once has failed already.
        """
        whole = (self._form.first, self._body)
        if len(self._body) <= formats.PIECE_BYTES:
            self._add_in_parts(whole)
            self._reject_invalid()
        else:
            for piece in self._split(whole):
                self._add(piece)
                self._reject_invalid()
        return self._lines.finish()

    def keep_body(self, rejection: Rejection) -> Decoded:
        """Return a batch of one log, whose message is the body as text."""
        messages = rejection.errors or {"_schema": [rejection.message]}
        self._encode(self._set_aside(self._form.first, self._body, messages))
        return self._lines.finish()

    def _split(self, whole: Piece) -> Iterable[Piece]:
        """Return the pieces of a long body; raises Rejection if it holds too many values."""
        check_values(self._body)
        if self._has_too_many_logs():
            raise reject_values()
        with self._context.fast_slot(len(self._body)):
            return self._form.split(whole, formats.PIECE_BYTES, self._lines.hold)

    def _has_too_many_logs(self) -> bool:
        """Return whether the body has more logs than the limit on values, even without commas.

        Each `}` may be the end of a log; blank lines hold none.
        """
        if self._form is OBJECTS:
            return self._body.count(b"}") > MAX_VALUES
        is_long = self._form is LINES and self._body.count(b"\n") > MAX_VALUES
        return is_long and LINES.count(self._body) > MAX_VALUES

    def _add(self, piece: Piece) -> None:
        """Add the valid logs of a piece to the lines, and count the others."""
        first, text = piece
        size = len(text)
        if size > formats.PIECE_BYTES and (excess := find_excess(text)):
            self._invalid.seen += 1
            if self._invalid.are_kept:
                ((first, text),) = self._form.texts(piece)  # without lone surrogates
            problem = f"Longer than {formats.PIECE_BYTES} bytes with {excess}."
            self._encode(self._set_aside(first, text, {"_schema": [problem]}))
            return
        self._lines.hold(size)
        if not self._add_at_once(text):
            self._add_in_parts(piece)
        self._lines.hold(-size)

    def _add_at_once(self, text: bytes) -> bool:
        """Add the logs of a text and return True if the compiled decoder accepts all of them."""
        if len(text) > self._most_at_once:
            return False
        with self._context.fast_slot(len(text)):
            try:
                logs = load(text, self._form, self._options)
            except COMPILED_ERRORS:
                return False
            self._invalid.seen += len(logs)
            self._encode(logs)
        return True

    def _add_in_parts(self, piece: Piece) -> None:
        """Add a piece that was not added at once: short parts of it at once, or else log by log."""
        parts = self._cut(piece)
        for part in parts:
            if self._is_rejected():
                return
            _, text = part
            if len(parts) == 1 or not self._add_at_once(text):
                with self._context.slow_slot(len(text)):
                    self._add_one_by_one(part)

    def _cut(self, piece: Piece) -> list[Piece]:
        """Return parts of a piece of at most SLOW_PIECE_BYTES, except for a log that is longer."""
        size = len(piece[1])
        if size <= SLOW_PIECE_BYTES:
            return [piece]
        with self._context.slow_slot(size):
            return list(self._form.split(piece, SLOW_PIECE_BYTES))

    def _add_one_by_one(self, part: Piece) -> None:
        """Add the valid logs of a part of a piece, and count the others."""
        logs: list[Any] = []
        for number, text in self._form.texts(part):
            yield_if_due()
            if self._is_rejected():
                break
            self._invalid.seen += 1
            logs += self._load(number, text)
            if len(logs) == LOGS_PER_STEP:
                self._encode(logs)
                logs = []
        self._encode(logs)

    def _load(self, number: int, text: bytes) -> list[Any]:
        """Return the log in a text; count an invalid one, and return the log in its place."""
        leaves_out = self._on_invalid is OnInvalid.LEAVE_OUT
        is_described = not (leaves_out and self._invalid.are_described)
        try:
            log = load_log(text, self._options, is_described=is_described)
            return self._set_aside(number, text, {}) if log is None else [log]
        except ValidationError as error:
            if self._keeper:
                self._keeper.count_described()
            return self._set_aside(number, text, error.messages_dict)
        except ValueError as error:
            is_alone = self._form.is_sequence and leaves_out
            if not (is_alone or (self._invalid.are_kept and text.strip())):
                raise ValueError(f"{self._form.noun} {number}: {error}") from None
            return self._set_aside(number, text, {"_schema": [f"Not valid JSON: {error}"]})

    def _set_aside(self, number: int, text: bytes, messages: Mapping[str, Any]) -> list[Any]:
        """Count an invalid log, and return the log that is stored in its place, if any."""
        self._invalid.add(number, messages)
        return [self._keeper.keep(text, messages)] if self._keeper else []

    def _encode(self, logs: Sequence[Any]) -> None:
        self._context.check_projects(map(project_of, logs), len(logs))
        self._lines.add(logs, self._bytes_per_log)

    def _is_rejected(self) -> bool:
        """Return whether the batch is rejected without further checks."""
        return self._invalid.is_full and self._on_invalid is OnInvalid.REJECT

    def _reject_invalid(self) -> None:
        """Raise Rejection if a log is invalid, unless the valid ones are stored anyway."""
        if self._invalid.count and self._on_invalid is OnInvalid.REJECT:
            raise self._invalid.reject(self._form.count(self._body))


class LogKeeper:
    """Make the logs that are stored in place of the invalid ones of a body."""

    def __init__(self, context: Context, lines: LineWriter) -> None:
        """Charge the memory of long texts to `lines`."""
        self._lines = lines
        self._project = context.project
        self._arrival = format_time(time.time_ns())
        self._level = context.options.defaults.get("level", KEPT_LEVEL)
        self._service = context.options.defaults.get("service", NO_SERVICE)
        self._described = 0

    def count_described(self) -> None:
        """Count a log whose fields are invalid; raises Rejection beyond MAX_KEPT_LOGS."""
        self._described += 1
        if self._described > MAX_KEPT_LOGS:
            most = f"With invalid=keep, a body may hold {MAX_KEPT_LOGS} logs with invalid fields"
            raise Rejection("body_too_large", f"{most}; send smaller batches.")

    def keep(self, text: bytes, messages: Mapping[str, Any]) -> Any:
        """Return the log that holds the text of an invalid one; raises Rejection `queue_full`."""
        if len(text) > UNCHARGED_BYTES:
            self._lines.expect(MAX_TEXT_GROWTH * len(text) + escaped_size(text))
        return Log(
            self._project,
            self._arrival,
            self._level,
            self._service,
            to_utf8(text).decode(),
            {"invalid": describe(messages)},
        )


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
