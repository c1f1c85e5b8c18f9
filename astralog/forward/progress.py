"""What forward shows: a status for the service's metrics, and a line for whoever runs it.

On a terminal the line renews itself; in a journal there is one a minute.
"""

import contextlib
import logging
import os
import time
from pathlib import Path
from typing import TextIO

from astralog.forward.backlog import Backlog
from astralog.forward.delivery import Delivered
from astralog.forward.verifier import Outcome, Sent
from astralog.log import ERASE_LINE
from astralog.store.forward_state import ForwardStatus, write_status

log = logging.getLogger(__name__)

STATUS_SECONDS = 1.0
JOURNAL_SECONDS = 60.0


class Progress:
    """Counts what is delivered, and shows it as often as is due."""

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
        """Count a chunk that was delivered."""
        self.status.delivered_logs += delivered.lines
        self.status.dead_letter_logs += delivered.dead_letters

    def count_segments(self, segments: list[Sent]) -> None:
        """Count segments that are delivered, and log of which the tables hold too few or many."""
        self.status.delivered_segments += len(segments)
        for outcome in (Outcome.DOUBLED, Outcome.INCOMPLETE):
            of_it = [sent for sent in segments if sent.outcome is outcome]
            if of_it:
                log.error(
                    "%d segments were sent, but of the tables: %s. The first is %s: "
                    "%d rows and %d different lines in place of %d",
                    len(of_it),
                    outcome.value,
                    of_it[0].name,
                    *of_it[0].held[:2],
                    of_it[0].lines,
                )
            if outcome is Outcome.DOUBLED:
                self.status.doubled_segments += len(of_it)
            else:
                self.status.incomplete_segments += len(of_it)

    def show(self, *, is_due: bool = False) -> None:
        """Show where things stand, where that is due by time, or said to be."""
        now = time.monotonic()
        if is_due or now - self._status_at >= STATUS_SECONDS:
            self._status_at = now
            self._update()
            with contextlib.suppress(OSError):  # the disk may be full; metrics can wait
                write_status(self._directory, self.status)
        if is_due or now - self._line_at >= self._line_seconds:
            self._show_line(self.line(now))
            self._line_at, self._line_logs = now, self.status.delivered_logs

    def _update(self) -> None:
        status, backlog = self.status, self._backlog
        status.updated_at = time.time()
        status.waiting_segments = backlog.waiting_segments
        status.waiting_bytes = backlog.waiting_bytes
        status.oldest_at = backlog.oldest_at

    def line(self, now: float) -> str:
        """Return what was done since the last line, and what is left to do."""
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

    def _show_line(self, line: str) -> None:
        if self._terminal:
            self._write(self._terminal, ERASE_LINE + line)
        else:
            log.info(line)

    def close(self) -> None:
        """Leave the last line on the terminal."""
        if self._terminal:
            self._write(self._terminal, "\n")

    def _write(self, terminal: TextIO, text: str) -> None:
        with contextlib.suppress(OSError):  # the terminal may be gone; the delivery goes on
            terminal.write(text)
            terminal.flush()
