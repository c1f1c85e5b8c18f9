"""The status of forward: a file for the service's metrics, and lines for its operator.

On a terminal, one line updates itself; a journal receives one per minute. `Failures` logs the
start and end of an episode of failures, and sets the pauses between attempts.
"""

import contextlib
import logging
import os
import random
import time
from pathlib import Path
from typing import TextIO

from astralog.forward.backlog import Backlog
from astralog.forward.delivery import Delivered, Outcome, Sent
from astralog.log import ERASE_LINE, LogOnce
from astralog.store.forward_state import ForwardStatus, write_status

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
JOURNAL_SECONDS = 60.0


class Progress:
    """Counts deliveries, and reports them at intervals."""

    def __init__(self, directory: Path, backlog: Backlog, stream: TextIO) -> None:
        self._directory = directory
        self._backlog = backlog
        self._terminal = stream if stream.isatty() else None
        self._line_seconds = STATUS_SECONDS if self._terminal else JOURNAL_SECONDS
        self._status_at = 0.0
        self._line_at = time.monotonic()
        self._line_logs = 0
        self.status = ForwardStatus(pid=os.getpid())

    def count(self, delivered: Delivered) -> None:
        self.status.delivered_logs += delivered.lines
        self.status.dead_letter_logs += delivered.dead_letters

    def count_segments(self, segments: list[Sent]) -> None:
        """Count delivered segments; log those with missing or doubled rows."""
        self.status.delivered_segments += len(segments)
        for outcome in (Outcome.DOUBLED, Outcome.INCOMPLETE):
            of_it = [sent for sent in segments if sent.outcome is outcome]
            if of_it:
                name, held, expected = of_it[0].name, of_it[0].held, of_it[0].lines
                first = f"{name}: {held.rows} rows and {held.lines} distinct lines"
                text = "%d segments were sent, but %s. The first is %s, expected %d"
                log.error(text, len(of_it), outcome.value, first, expected)
            if outcome is Outcome.DOUBLED:
                self.status.doubled_segments += len(of_it)
            else:
                self.status.incomplete_segments += len(of_it)

    def show(self, *, is_due: bool = False) -> None:
        """Write the status and the line if they are due by time, or if `is_due`."""
        now = time.monotonic()
        if is_due or now - self._status_at >= STATUS_SECONDS:
            self._status_at = now
            status, backlog = self.status, self._backlog
            status.updated_at = time.time()
            status.waiting_segments = backlog.waiting_segments
            status.waiting_bytes = backlog.waiting_bytes
            status.oldest_at = backlog.oldest_at
            with contextlib.suppress(OSError):  # the disk may be full; metrics may lag
                write_status(self._directory, status)
        if is_due or now - self._line_at >= self._line_seconds:
            line = self.line(now)
            if self._terminal:
                self._write(self._terminal, ERASE_LINE + line)
            else:
                log.info(line)
            self._line_at, self._line_logs = now, self.status.delivered_logs

    def line(self, now: float) -> str:
        """Return the line: deliveries, rate since the last line, backlog and lag."""
        status = self.status
        rate = (status.delivered_logs - self._line_logs) / max(now - self._line_at, 1e-9)
        parts = [
            f"{status.delivered_logs:,} logs delivered",
            f"{rate:,.0f} logs/s",
            f"{status.waiting_segments:,} segments wait ({status.waiting_bytes / 1e6:,.1f} MB)",
            f"lag {status.lag_seconds(time.time()):,.0f} s",
        ]
        if status.dead_letter_logs:
            parts.insert(1, f"{status.dead_letter_logs:,} of them dead letters")
        return ", ".join(parts)

    def close(self) -> None:
        """End the line on the terminal."""
        if self._terminal:
            self._write(self._terminal, "\n")

    def _write(self, terminal: TextIO, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; delivery continues
            terminal.write(text)
            terminal.flush()


#: Bounds of the pause after a failed attempt, which doubles.
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class Failures:
    """Consecutive failed attempts; `since` is the first one's Unix time in seconds, 0 for none."""

    def __init__(self) -> None:
        self.attempts = 0
        self.since = 0.0
        self._log = LogOnce(log)

    def add(self, error: Exception) -> float:
        """Count a failed attempt, and return the seconds to wait before the next.

        Only the first of its kind is logged. The pause is random, so that many nodes with one
        table do not return to it at the same moment.
        """
        kind = (type(error), getattr(error, "code", None))
        self._log.fail(kind, "cannot deliver: %s; retrying", error)
        self.since = self.since or time.time()
        longest = min(FIRST_PAUSE_SECONDS * 2 ** min(self.attempts, 32), LONGEST_PAUSE_SECONDS)
        self.attempts += 1
        return random.uniform(longest / 2, longest)  # nosec B311  # no secret

    def end(self) -> None:
        seconds = time.time() - self.since
        self._log.end("delivering again after %.0f s, %d attempts", seconds, self.attempts)
        self.attempts = 0
        self.since = 0.0
