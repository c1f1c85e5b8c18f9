"""Cut a sealed segment into chunks of whole lines, and turn their lines into table rows.

At most one chunk and one block of the reader are in memory. Lines are not decoded: a row is the
line with node, segment and line number inserted after its opening brace.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from astralog.store.names import SEALED_FORMS, SegmentName
from astralog.store.reader import ReadBudget, SegmentReader

#: Bytes per piece: small enough to stay in the CPU cache from here to the socket.
BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Chunk:
    """Lines of one segment that go to the table in one insert: `buffer[begin:end]`.

    `offset` is their position in the uncompressed segment; lines are counted from 1. The buffer
    belongs to the reader, which overwrites it when it reads the next chunk.
    """

    segment: str
    offset: int
    first_line: int
    buffer: bytearray
    begin: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.begin

    @cached_property
    def lines(self) -> int:
        """Number of lines, counted on first use: counting costs as much as reading."""
        is_cut = self.buffer[self.end - 1 : self.end] != b"\n"
        return self.buffer.count(b"\n", self.begin, self.end) + is_cut

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines in pieces, each of whole lines."""
        position = self.begin
        while position < self.end:
            end = self._end_of_line(position, min(position + BLOCK_BYTES, self.end))
            with memoryview(self.buffer) as view:  # none may be left when the reader goes on
                block = bytes(view[position:end])
            yield block
            position = end

    def _end_of_line(self, start: int, wanted: int) -> int:
        """Return the last end of a line up to `wanted`, or the next one if there is none."""
        if wanted == self.end:
            return wanted
        before = self.buffer.rfind(b"\n", start, wanted) + 1
        return before or self.buffer.find(b"\n", wanted, self.end) + 1 or self.end

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Return two chunks of about half the size; the chunk must have more than one line."""
        middle = self._end_of_line(self.begin, self.begin + self.size // 2)
        if middle == self.end:  # the last line is the longer half
            middle = self.buffer.rfind(b"\n", self.begin, self.end - 1) + 1
        first = replace(self, end=middle)
        offset = self.offset + first.size
        line = self.first_line + first.lines
        return first, Chunk(self.segment, offset, line, self.buffer, middle, self.end)


class ChunkReader:
    """Reads a sealed segment chunk by chunk from an offset on; raises OSError.

    A chunk has as many lines as fit into `chunk_bytes`, or a single longer one. Bytes after the
    last line break count as a line.
    """

    def __init__(self, directory: Path, name: str, offset: int, chunk_bytes: int) -> None:
        self.name = name
        self._offset = offset
        self._chunk_bytes = chunk_bytes
        self._buffer = bytearray()
        self._filled = 0  # bytes at the buffer's start that are read
        self._end = 0  # of these, the bytes of the last chunk
        self._file = SegmentReader(directory, SegmentName(name), SEALED_FORMS)
        self._blocks = self._file.data(offset, None, ReadBudget())
        self._is_read = False

    @property
    def next_offset(self) -> int:
        """Offset of the next chunk in the uncompressed segment."""
        return self._offset + self._end

    @property
    def is_at_end(self) -> bool:
        """Whether the last chunk is known to be the final one."""
        return self._is_read and self._end == self._filled

    def read(self, first_line: int) -> Chunk | None:
        """Return the next chunk, or None after the last one."""
        self._offset += self._end
        rest = self._buffer[self._end : self._filled]
        self._buffer[: len(rest)] = rest  # reused: fresh pages cost more than the copy
        self._filled = len(rest)
        self._end = self._fill()
        if not self._end:
            return None
        return Chunk(self.name, self._offset, first_line, self._buffer, 0, self._end)

    def _fill(self) -> int:
        """Fill the buffer with a chunk, or one longer line, and return its end."""
        self._read_up_to(self._chunk_bytes)
        if self._is_read and self._filled <= self._chunk_bytes:
            return self._filled
        end = self._buffer.rfind(b"\n", 0, self._chunk_bytes) + 1
        searched = self._chunk_bytes
        while not end:
            end = self._buffer.find(b"\n", searched, self._filled) + 1
            if end or self._is_read:
                break
            searched = self._filled
            self._read_up_to(2 * self._filled)
        return end or self._filled

    def _read_up_to(self, size: int) -> None:
        """Read until the buffer has `size` bytes or the segment ends."""
        while self._filled < size and not self._is_read:
            block = next(self._blocks, b"")
            # Overwrites old bytes, and extends the buffer at its end.
            self._buffer[self._filled : self._filled + len(block)] = block
            self._is_read = not block
            self._filled += len(block)

    def close(self) -> None:
        self._file.close()


#: The columns that tell where a row comes from, and those of the two tables.
PLACE = ("node", "segment", "line")
COLUMNS = (*PLACE, "project_id", "timestamp", "level", "service", "message", "metadata")
DEAD_LETTER_COLUMNS = (*PLACE, "raw", "error")

#: Matches unless the timestamp surely fits DateTime64(9): the years 1900 to 2199, and nine digits
#: of fraction. A negated pattern costs a fifth less, since the common case makes no match object.
_is_suspect = re.compile(
    rb'(?!\{"project_id":"[^"\\]*+","timestamp":"(?:19|20|21)[0-9T:.-]{17,27}+Z")'
).match

#: The range of DateTime64(9), to the second; ClickHouse reads earlier times as other ones.
FIRST_TIME = "1900-01-01T00:00:00"
LAST_TIME = "2262-04-11T23:47:15"
FRACTION_DIGITS = 9

_TIMESTAMP = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]+))?Z")
_FIELDS = {"project_id", "timestamp", "level", "service", "message"}


class DeadLetter(NamedTuple):
    """A line that the table cannot hold, with the reason."""

    line: int
    raw: bytes
    error: str


class Rows:
    """The rows of a chunk, except lines that the table already holds.

    Each iteration creates them anew, in pieces. After it, `lines` and `rows` count the chunk's
    lines and the rows yielded; `dead_letters` has the lines that the table cannot hold.
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
        """Yield the lines that become rows; collect the dead letters."""
        for number, line in numbered:
            if number in self._held:
                continue
            error = find_error(line) if _is_suspect(line) else None
            if error is None:
                yield number, line
            else:
                self.dead_letters.append(DeadLetter(number, line, error))


def as_dead_letters(chunk: Chunk, held: Collection[int], error: str) -> list[DeadLetter]:
    """Return all lines of a chunk except the `held` ones as dead letters with the same error."""
    content = b"".join(chunk.blocks()).removesuffix(b"\n")
    numbered = enumerate(content.split(b"\n"), chunk.first_line)
    return [DeadLetter(number, line, error) for number, line in numbered if number not in held]


def find_error(line: bytes) -> str | None:
    """Return why the table cannot hold a line, or None if no reason is known."""
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
    """Yield tab-separated rows of the dead-letter table, each line byte for byte as stored."""
    head = b"%b\t%b" % (_escape(node.encode()), segment.encode())
    for line, raw, error in lines:
        yield b"%b\t%d\t%b\t%b\n" % (head, line, _escape(raw), _escape(error.encode()))


def _escape(value: bytes) -> bytes:
    for plain, escaped in ((b"\\", b"\\\\"), (b"\t", b"\\t"), (b"\n", b"\\n")):
        value = value.replace(plain, escaped)
    return value
