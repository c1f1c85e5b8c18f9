"""The lines of a body: logs to NDJSON, within limits on its growth and on memory."""

from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import msgspec

from astralog.errors import Rejection, mebibytes
from astralog.intake.decoder import Context, Decoded, InvalidLogs
from astralog.intake.options import OnInvalid
from astralog.store.queue import Batch

#: Bytes of logs that are decoded, changed and encoded at once. As objects, they take several times
#: as much, and should fit into a core's cache: on a busy machine, a decode in runs of 64 KiB takes
#: 1.03 to 1.17 times as long.
RUN_BYTES = 32 * 1024

#: Maximum size of the lines as a multiple of the body, plus a constant; default values and
#: numbers like 1e15 increase it. Beyond it: 413 `body_too_large`.
MAX_GROWTH = 4

#: Bytes of lines, in addition to the logs' own, that are encoded before they are charged: values
#: that are repeated in each log may turn a few bytes of body into a gigabyte of lines.
STEP_BYTES = 1024 * 1024

#: Characters that JSON escapes: with one more character, or as \u00XX.
_QUOTED = b'"\\'
_CONTROLS = bytes(range(0x20))
_PLAIN = bytes(sorted(set(range(256)) - set(_QUOTED + _CONTROLS)))

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode_value = _encoder.encode
encode_into = _encoder.encode_into


#: The name of a log's project.
project_of = attrgetter("project_id")


class LineWriter:
    """Encode the logs of one body, and reserve the memory of the body and of the lines.

    `invalid` are the logs of the body that are not among them.
    """

    def __init__(self, context: Context, body_bytes: int, spare_bytes: int) -> None:
        """Limit the lines to MAX_GROWTH times the body plus `spare_bytes`."""
        self._reservation = context.reservation
        self._on_invalid = context.options.on_invalid
        self.invalid = InvalidLogs(are_kept=self._on_invalid is OnInvalid.KEEP)
        self._held_bytes = body_bytes
        self._body_bytes = body_bytes
        self._spare_bytes = spare_bytes
        self._buffer = bytearray()
        self.logs = 0  # so far

    def hold(self, size: int) -> None:
        """Charge `size` more bytes until the end of the decode; raises Rejection."""
        self._held_bytes += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """Charge `size` bytes for the next lines, in place of the last such charge.

        Raises Rejection if there is no memory for them.
        """
        self._reservation.resize(self._held_bytes + len(self._buffer) + size)

    def add(self, logs: Sequence[Any], repeated_bytes: int = 0) -> None:
        """Append logs; each has at most `repeated_bytes` that are not from the body.

        Raises Rejection: `queue_full`, or `body_too_large` if the lines take too much.
        """
        step = max(STEP_BYTES // repeated_bytes, 1) if repeated_bytes else len(logs)
        for start in range(0, len(logs), step or 1):
            self._append(logs[start : start + step])
        self.logs += len(logs)

    def _append(self, logs: Sequence[Any]) -> None:
        """Encode at least one log.

        The last one, which alone may be long, is encoded into the buffer, so that it is held once.
        """
        self._buffer += encode_lines(logs[:-1])
        encode_into(logs[-1], self._buffer, -1)
        self._buffer += b"\n"
        check_growth(len(self._buffer), self._body_bytes, self._spare_bytes)
        self.expect(0)

    def finish(self) -> Decoded:
        """Return the batch of the valid logs; raises Rejection if the invalid ones reject it."""
        invalid = self.invalid
        if invalid.count and self._on_invalid is OnInvalid.REJECT:
            raise invalid.reject(invalid.seen)
        return Decoded(Batch(self._buffer, self.logs), invalid if invalid.count else None)


def check_growth(size: int, body_bytes: int, spare_bytes: int) -> None:
    """Raise Rejection for lines that exceed MAX_GROWTH times the body plus `spare_bytes`."""
    most = MAX_GROWTH * body_bytes + spare_bytes
    if size > most:
        message = (
            f"The stored lines would take more than {most} bytes: {MAX_GROWTH} times the body of "
            f"{body_bytes} bytes, plus {mebibytes(spare_bytes)}. Send smaller batches."
        )
        raise Rejection("body_too_large", message)


def repeated_bytes(values: Iterable[str]) -> int:
    """Return the bytes of values that are repeated in each log."""
    return sum(map(len, map(encode_value, values)))


def escaped_size(text: bytes) -> int:
    """Return an upper bound of a text's bytes in JSON."""
    escaped = text.translate(None, _PLAIN)
    controls = len(escaped.translate(None, _QUOTED))
    return len(text) + (len(escaped) - controls) + 5 * controls
