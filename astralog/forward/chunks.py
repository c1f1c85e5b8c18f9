"""Cut a sealed segment into chunks at ends of lines, and never hold more than one of them."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from astralog.store.sealed import open_sealed

#: Bytes handled at once: few enough to stay in the processor's cache from here to the socket.
BLOCK_BYTES = 64 * 1024


class _Fields(NamedTuple):
    segment: str
    offset: int
    first_line: int
    buffer: bytearray
    begin: int
    end: int


class Chunk(_Fields):
    """Lines of one segment that go to the table in one insert: `buffer[begin:end]`.

    `offset` is theirs in the uncompressed segment; lines are counted from 1. The buffer is the
    reader's: it has the next chunk's lines once that is read.
    """

    @property
    def size(self) -> int:
        return self.end - self.begin

    @cached_property
    def lines(self) -> int:
        """How many lines there are; counting costs as much as reading, and few need it."""
        is_cut = self.buffer[self.end - 1 : self.end] != b"\n"
        return self.buffer.count(b"\n", self.begin, self.end) + is_cut

    def blocks(self) -> Iterator[bytes]:
        """Yield the lines in pieces, each of whole lines."""
        position = self.begin
        with memoryview(self.buffer) as view:
            while position < self.end:
                end = self._end_of_line(position, min(position + BLOCK_BYTES, self.end))
                yield bytes(view[position:end])
                position = end

    def _end_of_line(self, start: int, wanted: int) -> int:
        """Return the last end of a line up to `wanted`, or else the next one."""
        if wanted == self.end:
            return wanted
        before = self.buffer.rfind(b"\n", start, wanted) + 1
        return before or self.buffer.find(b"\n", wanted, self.end) + 1 or self.end

    def halves(self) -> tuple["Chunk", "Chunk"]:
        """Return two chunks of about half the size each; there must be more than one line."""
        middle = self._end_of_line(self.begin, self.begin + self.size // 2)
        if middle == self.end:  # the last line is the longer half
            middle = self.buffer.rfind(b"\n", self.begin, self.end - 1) + 1
        first = Chunk(*self[:-1], middle)
        offset = self.offset + first.size
        line = self.first_line + first.lines
        return first, Chunk(self.segment, offset, line, self.buffer, middle, self.end)


class SegmentReader:
    """Reads one chunk after another of a sealed segment, from an offset on; raises OSError.

    A chunk has as many lines as fit into `chunk_bytes`, or one that does not. What follows the
    last end of a line is a line too.
    """

    def __init__(self, directory: Path, name: str, offset: int, chunk_bytes: int) -> None:
        self.name = name
        self._offset = offset
        self._chunk_bytes = chunk_bytes
        self._buffer = bytearray(min(BLOCK_BYTES, chunk_bytes))
        self._filled = 0  # bytes at the buffer's start that are read
        self._end = 0  # of these, the bytes of the last chunk
        self._file = open_sealed(directory, name, offset)
        self._is_read = False

    @property
    def next_offset(self) -> int:
        """Where the next chunk begins."""
        return self._offset + self._end

    @property
    def is_at_end(self) -> bool:
        """Whether it is known that nothing follows the last chunk."""
        return self._is_read and self._end == self._filled

    def read(self, first_line: int) -> Chunk | None:
        """Return the next chunk, None after the last one."""
        self._offset += self._end
        rest = self._buffer[self._end : self._filled]
        self._buffer[: len(rest)] = rest  # the memory stays: fresh pages cost more than the copy
        self._filled = len(rest)
        self._end = self._fill()
        if not self._end:
            return None
        return Chunk(self.name, self._offset, first_line, self._buffer, 0, self._end)

    def _fill(self) -> int:
        """Read a chunk's bytes, or a longer line, and return the end of the chunk."""
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
        """Read until `size` bytes are there, or the segment's end."""
        while self._filled < size and not self._is_read:
            if self._filled == len(self._buffer):
                self._buffer.extend(bytes(min(len(self._buffer), size - self._filled)))
            with memoryview(self._buffer) as view:
                count = self._file.readinto(view[self._filled : size])
            self._is_read = not count
            self._filled += count

    def close(self) -> None:
        """Close the segment's file."""
        self._file.close()
