"""Decode the body of a drain: at once if it is short and valid, else piece by piece."""

import time
from collections.abc import Mapping
from typing import Any

from marshmallow import ValidationError

from astralog.errors import Rejection
from astralog.intake import formats
from astralog.intake.decoder import FAST_BYTES, Context, Decoded
from astralog.intake.formats import BATCH, LINES, Format, find_format
from astralog.intake.lines import (
    RUN_BYTES,
    STEP_BYTES,
    check_growth,
    encode_lines,
    project_of,
    repeated_bytes,
)
from astralog.intake.logs import COMPILED_ERRORS, load
from astralog.intake.options import OnInvalid
from astralog.intake.piecewise import PiecewiseDecode
from astralog.intake.schema import FIELDS
from astralog.intake.strict_json import name_encoding
from astralog.intake.unix_time import format_time
from astralog.store.queue import Batch

#: Fields of an OTLP export in JSON.
OTLP_FIELDS = ("resourceLogs", "resource_logs", "resourceSpans", "resourceMetrics")


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
