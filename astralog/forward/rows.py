"""Turn stored lines into rows of the table, and tell apart the lines that it cannot hold.

A line is not decoded: it becomes a row by its first bytes, which gain where it came from.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from astralog.forward.chunks import Chunk

COLUMNS = (
    "node",
    "segment",
    "line",
    "project_id",
    "timestamp",
    "level",
    "service",
    "message",
    "metadata",
)
DEAD_LETTER_COLUMNS = ("node", "segment", "line", "raw", "error")

#: Matches but where the timestamp surely fits DateTime64(9): the years 1900 to 2199, and nine
#: digits of fraction. That way round, it costs a fifth less: no match, no match object.
_is_suspect = re.compile(
    rb'(?!\{"project_id":"[^"\\]*+","timestamp":"(?:19|20|21)[0-9T:.-]{17,27}+Z")'
).match

#: What DateTime64(9) holds, to the second; ClickHouse takes what is before for another time.
FIRST_TIME = "1900-01-01T00:00:00"
LAST_TIME = "2262-04-11T23:47:15"
FRACTION_DIGITS = 9

_TIMESTAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?Z")
_FIELDS = {"project_id", "timestamp", "level", "service", "message"}


class DeadLetter(NamedTuple):
    """A line that the table cannot hold, and why."""

    line: int
    raw: bytes
    error: str


class Rows:
    """The rows of a chunk but for the lines that the table already holds.

    Iterating makes them anew each time, in pieces. At its end, `lines` and `rows` are the numbers
    of lines in the chunk and of rows made, and `dead_letters` what the table cannot hold.
    """

    def __init__(self, chunk: Chunk, node: str, held: Collection[int] = ()) -> None:
        self._chunk = chunk
        self._held = held
        self._head = json.dumps({"node": node, "segment": chunk.segment})[:-1].encode()
        self.lines = self.rows = 0
        self.dead_letters: list[DeadLetter] = []

    def __iter__(self) -> Iterator[bytes]:
        self.lines, self.rows, self.dead_letters = 0, 0, []
        for block in self._chunk.blocks():
            lines = block.removesuffix(b"\n").split(b"\n")
            numbered: Iterable[tuple[int, bytes]]
            numbered = enumerate(lines, self._chunk.first_line + self.lines)
            if self._held or any(map(_is_suspect, lines)):
                numbered = self._sift(numbered)
            self.lines += len(lines)
            head = self._head
            rows = [b'%b,"line":%d,%b\n' % (head, n, line[1:]) for n, line in numbered]
            self.rows += len(rows)
            if rows:
                yield b"".join(rows)

    def _sift(self, numbered: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
        """Yield those lines that are to become rows; keep those that cannot."""
        for number, line in numbered:
            if number in self._held:
                continue
            error = find_error(line) if _is_suspect(line) else None
            if error is None:
                yield number, line
            else:
                self.dead_letters.append(DeadLetter(number, line, error))


def as_dead_letters(chunk: Chunk, held: Collection[int], error: str) -> list[DeadLetter]:
    """Return all lines of a chunk except those held as dead letters, all for one reason."""
    content = b"".join(chunk.blocks()).removesuffix(b"\n")
    numbered = enumerate(content.split(b"\n"), chunk.first_line)
    return [DeadLetter(number, line, error) for number, line in numbered if number not in held]


def find_error(line: bytes) -> str | None:
    """Return why the table cannot hold a line, None where nothing is known against it."""
    try:
        log = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if not (isinstance(log, dict) and line.startswith(b"{") and log.keys() >= _FIELDS):
        return "not a log"
    match = _TIMESTAMP.fullmatch(str(log["timestamp"]))
    if not match:
        return "timestamp: not in the stored form"
    if not FIRST_TIME <= match[1] <= LAST_TIME:
        return f"timestamp: outside of {FIRST_TIME}Z to {LAST_TIME}Z"
    if len(match[2] or "") > FRACTION_DIGITS:
        return f"timestamp: more than {FRACTION_DIGITS} digits of fraction"
    return None


def dead_letter_rows(segment: str, node: str, lines: list[DeadLetter]) -> Iterator[bytes]:
    """Yield rows of the dead-letter table, tab separated, each line byte for byte as stored."""
    head = b"%b\t%b" % (_escape(node.encode()), segment.encode())
    for line, raw, error in lines:
        yield b"%b\t%d\t%b\t%b\n" % (head, line, _escape(raw), _escape(error.encode()))


def _escape(value: bytes) -> bytes:
    for plain, escaped in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n")):
        value = value.replace(plain, escaped)
    return value
