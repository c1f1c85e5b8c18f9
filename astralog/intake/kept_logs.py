"""Invalid logs that are stored as text (`invalid=keep`)."""

import time
from collections.abc import Mapping
from typing import Any

from astralog.errors import Rejection
from astralog.intake.decoder import Context, LineWriter, escaped_size
from astralog.intake.invalid_logs import describe
from astralog.intake.options import NO_SERVICE
from astralog.intake.schema import Log
from astralog.intake.strict_json import to_utf8
from astralog.intake.unix_time import format_time

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
