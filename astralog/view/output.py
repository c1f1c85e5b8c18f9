"""Write logs to standard output: a terminal, a file, or a pipe whose reader may be gone.

On a terminal, a log is one line, which neither drives it nor poses as another project's.
"""

import fcntl
import json
import os
import re
import select
import signal
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable

import click

from astralog.standard_streams import escape
from astralog.view.stored_log import StoredLog, decode, known_rank

#: Bytes that are written at once; in whole lines, so that no color outlives the command.
OUTPUT_BYTES = 32 * 1024

#: Maximum seconds that a line waits for others.
OUTPUT_SECONDS = 0.1

#: Characters that are shown of a line without a log.
SHOWN_CHARACTERS = 500

# Characters that no plain name has, in addition to unprintable ones: blanks, letters and marks
# that look like one or like nothing, and the quotes of those that are not plain.
_ODD = re.compile(
    r'[\s"\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0'
    "\U000e0100-\U000e01ef]"
)

# The terminal's codes for colors and weights (ECMA-48, "select graphic rendition").
_DIM = "2"
_BOLD = "1"
_PLAIN = ""

#: The codes of `levels.RANKS`.
_RANK_CODES = (_DIM, _DIM, "32", "36", "33", "31", "1;31", "1;31", "1;31")

#: Columns of the level, which align the text after it.
_LEVEL_COLUMNS = 7


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
        try:
            for line in lines:
                self._pending += self._format(line)
                self.flush_if_due()
        finally:  # also the results before an interruption
            self.flush()

    def flush_if_due(self) -> None:
        """Write the pending lines if they are many or have waited long."""
        waited = time.monotonic() - self._written_at
        if len(self._pending) >= OUTPUT_BYTES or waited > OUTPUT_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._pending:
            self.before_writing()
            self._write(self._pending)
            self._pending.clear()
        self._written_at = time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait `seconds`; if the reader of the output is gone, end by SIGPIPE, as a write would."""
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
            except OSError as error:  # which a reader of segments would take for its own
                raise click.ClickException(f"cannot write: {error.strerror}") from None


def quote(name: str) -> str:
    r"""Return a plain name unchanged, and any other as a JSON string without blanks.

    So a column ends at the first blank: a level `error b` is shown as `"error\u0020b"`.
    """
    if name and name.isprintable() and not _ODD.search(name):
        return name
    return f'"{"".join(map(_quote_character, name))}"'


def _quote_character(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable() and not _ODD.match(character):
        return character
    return r"\u0020" if character == " " else json.dumps(character)[1:-1]


def format_line(line: bytes, *, colored: bool) -> str:
    log = decode(line)
    if log is None:
        return escape(line[:SHOWN_CHARACTERS].decode(errors="replace"))
    texts = [(text, code) for text, code in _columns(log) if text]
    return " ".join(
        f"\x1b[{code}m{text}\x1b[0m" if colored and code else text for text, code in texts
    )


def _columns(log: StoredLog) -> list[tuple[str, str]]:
    rank = known_rank(log.level)
    return [
        (quote(log.timestamp), _DIM),
        (_pad(quote(log.level)), _PLAIN if rank is None else _RANK_CODES[rank]),
        (quote(log.project_id), _DIM),
        (quote(log.service), _BOLD),
        (escape(log.message), _PLAIN),
        (escape(log.metadata_text), _DIM),
    ]


def _pad(level: str) -> str:
    """Return the level with blanks up to the width of most."""
    wide = sum(unicodedata.east_asian_width(character) in "FW" for character in level)
    return level.ljust(_LEVEL_COLUMNS - wide)
