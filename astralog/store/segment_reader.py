"""Read one segment's lines, forwards or backwards, whatever its file is called by now."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from astralog.store.files import open_regular
from astralog.store.names import Form, SegmentName
from astralog.zstd import zstd

#: Bytes that are read at once.
BLOCK_BYTES = 256 * 1024

#: Bytes of the first block that is read backwards: the last few lines are often enough.
LAST_BLOCK_BYTES = 16 * 1024

#: What reading a segment may raise: errors of the disk, and of damaged compressed lines.
READ_ERRORS = (OSError, EOFError, zstd.ZstdError)


class ReadBudget:
    """Count the bytes that are read, inflated, and say when that was enough."""

    def __init__(self, max_bytes: float = float("inf")) -> None:
        self._max_bytes = max_bytes
        self.bytes_read = 0

    @property
    def is_spent(self) -> bool:
        """Whether no more should be read."""
        return self.bytes_read >= self._max_bytes


class SegmentReader:
    """One segment that is being read; offsets count inflated bytes.

    The file stays open, and so readable, when it is renamed, compressed or removed.
    """

    def __init__(self, directory: Path, segment: SegmentName) -> None:
        """Open the file; raises OSError, FileNotFoundError if it is there in no form."""
        self._fd, form = _open(directory, segment)
        self.is_compressed = form is Form.COMPRESSED

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def size(self) -> int:
        """Return the bytes of a file that is not compressed."""
        return os.fstat(self._fd).st_size

    def end_of_lines(self) -> int:
        """Return the end of the last whole line of a file that is not compressed."""
        return next(self.lines_backwards(None, ReadBudget()), (0, b""))[0]

    def lines(self, begin: int, end: int | None, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        """Yield each whole line from an offset to another, or to the end, and the offset after it.

        It stops early when the budget is spent, but not before one line. Raises READ_ERRORS.
        """
        rest: list[bytes] = []
        offset = begin
        for block in self._blocks(begin, end):
            budget.bytes_read += len(block)
            head, newline, tail = block.rpartition(b"\n")
            if newline:
                for line in b"".join([*rest, head]).split(b"\n"):
                    offset += len(line) + 1
                    yield offset, line
                rest.clear()
            rest.append(tail)
            if budget.is_spent and offset > begin:
                return

    def lines_backwards(self, end: int | None, budget: ReadBudget) -> Iterator[tuple[int, bytes]]:
        """Yield what `lines` yields up to `end`, newest first; for a file that is not compressed.

        It stops early when the budget is spent.
        """
        position = self.size() if end is None else min(end, self.size())
        line_end = 0  # the offset after the line whose beginning is looked for; 0 before the first
        rest = b""  # what is read of it
        size = LAST_BLOCK_BYTES
        while position > 0 and not budget.is_spent:
            block = os.pread(self._fd, min(size, position), max(position - size, 0))
            budget.bytes_read += len(block)
            if len(block) < min(size, position):  # cut back meanwhile: here is the new end
                line_end = 0
            position = max(position - size, 0)
            size = min(2 * size, BLOCK_BYTES)
            if not line_end:
                line_end = position + block.rfind(b"\n") + 1
                block, rest = block[: max(line_end - position - 1, 0)], b""
                if line_end == position:
                    line_end = 0
                    continue
            rest, *lines = (block + rest).split(b"\n")
            for line in reversed(lines):
                yield line_end, line
                line_end -= len(line) + 1
        if line_end and position == 0:
            yield line_end, rest

    def _blocks(self, begin: int, end: int | None) -> Iterator[bytes]:
        if self.is_compressed:
            yield from self._inflated_blocks(begin, end)
            return
        while end is None or begin < end:
            block = os.pread(self._fd, _block_size(begin, end), begin)
            if not block:
                return
            begin += len(block)
            yield block

    def _inflated_blocks(self, begin: int, end: int | None) -> Iterator[bytes]:
        with open(self._fd, "rb", closefd=False) as raw, zstd.ZstdFile(raw) as file:
            raw.seek(0)
            position = 0
            while end is None or position < end:
                target = end if position >= begin else begin
                block = file.read(_block_size(position, target))
                if not block:
                    return
                position += len(block)
                if position > begin:
                    yield block


def _block_size(position: int, end: int | None) -> int:
    return BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - position)


def _open(directory: Path, segment: SegmentName) -> tuple[int, Form]:
    """Open the file in its first form; trying them in the order of a life misses no renaming."""
    for form in Form:
        with contextlib.suppress(FileNotFoundError):
            return open_regular(segment.path(directory, form), os.O_RDONLY), form
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), segment)
