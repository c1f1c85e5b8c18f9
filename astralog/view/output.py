"""Standard output, which may be a terminal or a pipe whose reader is gone."""

import fcntl
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable

import click

from astralog.escaping import escape
from astralog.view.terminal import format_line

#: Bytes that are written at once; in whole lines, so that no color outlives the command.
OUTPUT_BYTES = 32 * 1024

#: Seconds that a line waits for others at most.
OUTPUT_SECONDS = 0.1


class Output:
    """Standard output, which may be a terminal."""

    def __init__(self, *, as_json: bool) -> None:
        """Check stdout; raises ClickException if it is closed (see `reopen_closed_streams`)."""
        self._fd = sys.stdout.fileno()
        if fcntl.fcntl(self._fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise click.ClickException("cannot write: stdout is closed")
        self._is_terminal = os.isatty(self._fd)
        self._as_json = as_json
        self._is_colored = (
            self._is_terminal
            and not os.environ.get("NO_COLOR")
            and os.environ.get("TERM", "dumb") != "dumb"
        )
        #: Called each time before something is written.
        self.before_writing: Callable[[], None] = lambda: None
        self._pending = bytearray()
        self._written_at = time.monotonic()
        self._reader = select.poll()
        self._reader.register(self._fd, 0)

    def write(self, lines: Iterable[bytes]) -> None:
        """Write stored lines as they come."""
        try:
            for line in lines:
                self._pending += self._format(line)
                self.flush_if_due()
        finally:  # also the results before an interruption
            self.flush()

    def flush_if_due(self) -> None:
        """Write the pending lines if they are many, or wait for long; between two lines, too."""
        waited = time.monotonic() - self._written_at
        if len(self._pending) >= OUTPUT_BYTES or waited > OUTPUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the pending lines."""
        if self._pending:
            self.before_writing()
            self._write(self._pending)
            self._pending.clear()
        self._written_at = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait; if the reader of the output is gone, end by SIGPIPE as a write would."""
        if self._reader.poll(seconds * 1000):
            os.kill(os.getpid(), signal.SIGPIPE)

    def _format(self, line: bytes) -> bytes:
        if not self._as_json:
            return format_line(line, colored=self._is_colored).encode() + b"\n"
        if self._is_terminal:
            return escape(line.decode(errors="replace")).encode() + b"\n"
        return line + b"\n"

    def _write(self, data: bytearray) -> None:
        written = 0
        while written < len(data):
            try:
                written += os.write(self._fd, data[written:])
            except OSError as error:
                raise click.ClickException(f"cannot write: {error.strerror}") from None
