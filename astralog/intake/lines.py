"""The lines of a batch while it is decoded: bounded, and charged as they grow."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import msgspec

from astralog.errors import Rejection
from astralog.intake.body import Reservation
from astralog.store.commit_queue import Batch

#: Times the bytes of a body, beyond a constant, that its lines may take; default values and numbers
#: as 1e15 make it grow. Beyond it: 413 `body_too_large`.
MAX_GROWTH = 4

#: Bytes of lines, in addition to the logs' own, that are encoded before they are charged: values
#: that are repeated in each log may make a few bytes of body a gigabyte of lines.
STEP_BYTES = 1024 * 1024

#: Characters that JSON escapes: with one more character, or as \u00XX.
_QUOTED = b'"\\'
_CONTROLS = bytes(range(0x20))
_PLAIN = bytes(sorted(set(range(256)) - set(_QUOTED + _CONTROLS)))

_encoder = msgspec.json.Encoder()
encode_lines = _encoder.encode_lines
encode_value = _encoder.encode


class LineWriter:
    """Encodes the logs of one body, and has its memory reserved: the body's and the lines'."""

    def __init__(self, reservation: Reservation, body_bytes: int, spare_bytes: int) -> None:
        """Let the lines grow to `spare_bytes` more than MAX_GROWTH times the body."""
        self._reservation = reservation
        self._held_bytes = body_bytes
        self._max_bytes = MAX_GROWTH * body_bytes + spare_bytes
        self._buffer = BytesIO()
        self._size = 0
        self.logs = 0  # so far

    def hold(self, size: int) -> None:
        """Charge `size` more bytes that the decode holds until its end; raises Rejection."""
        self._held_bytes += size
        self.expect(0)

    def expect(self, size: int) -> None:
        """Charge the lines with `size` bytes that are yet to come, in place of what was expected.

        Raises Rejection if there is no memory for them.
        """
        self._reservation.resize(self._held_bytes + self._size + size)

    def add(self, logs: Sequence[Any], repeated_bytes: int = 0) -> None:
        """Append logs, of which each has at most `repeated_bytes` that are not of the body.

        Raises Rejection: `queue_full`, or `body_too_large` if the lines take too much.
        """
        step = max(STEP_BYTES // repeated_bytes, 1) if repeated_bytes else len(logs)
        for start in range(0, len(logs), step or 1):
            self._append(encode_lines(logs[start : start + step]))
        self.logs += len(logs)

    def _append(self, lines: bytes) -> None:
        check_growth(self._size + len(lines), self._max_bytes)
        self._size += self._buffer.write(lines)
        self.expect(0)

    def finish(self) -> Batch:
        """Return the batch."""
        return Batch(self._buffer.getvalue(), self.logs)  # the buffer itself: nothing is copied


def check_growth(size: int, max_bytes: int) -> None:
    """Raise Rejection for a batch whose lines take more than `max_bytes`."""
    if size > max_bytes:
        message = (
            f"Stored, the batch would take over {max_bytes} bytes, more than {MAX_GROWTH} times "
            "its body; send smaller batches."
        )
        raise Rejection("body_too_large", message)


def escaped_size(text: bytes) -> int:
    """Return how many bytes of JSON the bytes of a text take at most."""
    escaped = text.translate(None, _PLAIN)
    controls = len(escaped.translate(None, _QUOTED))
    return len(text) + (len(escaped) - controls) + 5 * controls
