"""Find segments, and read the lines of one in any form, from a position, forwards or backwards.

`<name>.ndjson` becomes `<name>.ndjson.zst` while readers run: the compressed file appears whole,
and then the plain one goes. Offsets are those of the uncompressed lines, in either form.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from astralog.store.files import find_status, open_regular, regular_files, status_of
from astralog.store.names import Form, SegmentName, parse_file_names
from astralog.zstd import zstd

log = logging.getLogger(__name__)

#: Bytes that are read at once.
BLOCK_BYTES = 256 * 1024

#: Bytes of a compressed file that are read at once.
COMPRESSED_BYTES = 64 * 1024

#: Bytes of the first block that is read backwards: the last few lines are often enough.
LAST_BLOCK_BYTES = 16 * 1024

#: Bytes at the end of a block that probably contain a line end. A block that ends there need not be
#: copied, which saves 4% of the CPU of a search for a rare text.
TAIL_BYTES = 4096

#: Bytes of a line above which it is skipped. No log is longer, unless ASTRALOG_MAX_BODY_BYTES was
#: raised above 12 MiB: a line has at most four times the bytes of its body, plus 16 MiB.
MAX_LINE_BYTES = 64 * 1024 * 1024

#: The maximum size of a zstd frame's header (RFC 8878, 3.1.1).
_HEAD_BYTES = 18

#: Exceptions of reading a segment: errors of the disk, and of damaged compressed lines.
READ_ERRORS = (OSError, EOFError, zstd.ZstdError)


class Block(NamedTuple):
    """Whole lines with their line ends, and the offset of the first one."""

    start: int
    lines: bytes


#: Yields the wanted lines of a block in their order, each with the offset in the block after it.
Select = Callable[[bytes], Iterable[tuple[int, bytes]]]


def every_line(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Select all lines of a block, also blank ones."""
    offset = 0
    for line in block[:-1].split(b"\n"):
        offset += len(line) + 1
        yield offset, line


def select_if(matches: Callable[[bytes], bool]) -> Select:
    """Return a selector of the lines that match."""
    return lambda block: (item for item in every_line(block) if matches(item[1]))


#: Selects all lines except blank ones.
not_blank = select_if(bool)


class ReadBudget:
    """Count the decompressed bytes that are read, up to a limit."""

    def __init__(
        self,
        max_bytes: float = float("inf"),
        max_seconds: float = float("inf"),
        *,
        is_soft: bool = False,
    ) -> None:
        """Limit the bytes, and the time once anything was read.

        A soft budget does not end within a compressed segment. Whoever reads its newest lines may
        get fewer of them at once.
        """
        self.is_soft = is_soft
        self._max_bytes = max_bytes
        self._end = time.monotonic() + max_seconds
        self.bytes_read = 0
        self.file_bytes = 0  # the same as they are in the files, which may be compressed

    @property
    def is_spent(self) -> bool:
        is_late = self.bytes_read > 0 and time.monotonic() >= self._end
        return is_late or self.bytes_read >= self._max_bytes


class SegmentReader:
    """A reader of one segment; offsets count decompressed bytes.

    The file stays open, and so readable, when it is renamed, compressed or removed.
    """

    def __init__(
        self, directory: Path, segment: SegmentName, forms: Iterable[Form] = tuple(Form)
    ) -> None:
        """Open the file; raises OSError, FileNotFoundError if none of its `forms` exists."""
        self._fd, form = _open(directory, segment, forms)
        self._segment = segment
        self.is_compressed = form is Form.COMPRESSED

    def close(self) -> None:
        os.close(self._fd)

    def size(self) -> int:
        """Return the size in bytes of a file that is not compressed."""
        return os.fstat(self._fd).st_size

    def end_of_lines(self) -> int:
        """Return the end of the last whole line of a file that is not compressed."""
        last = next(self.blocks_backwards(None, ReadBudget()), Block(0, b""))
        return last.start + len(last.lines)

    def blocks(self, begin: int, end: int | None, budget: ReadBudget) -> Iterator[Block]:
        """Yield the whole lines between two offsets, or to the end, in blocks.

        It stops early when the budget is spent, but not before one line. A blank line stands for a
        line of more than MAX_LINE_BYTES. Raises READ_ERRORS.
        """
        rest: list[bytes] = []
        start = position = begin
        is_skipping = False
        for data in self.data(begin, end, budget):
            budget.bytes_read += len(data)
            position += len(data)
            block = data
            if is_skipping:
                if b"\n" not in data:
                    continue
                is_skipping = False
                block = data[data.index(b"\n") :]
                start = position - len(block)
            cut = block.rfind(b"\n") + 1
            if cut:
                is_whole = cut == len(block) and not any(rest)
                lines = block if is_whole else b"".join([*rest, memoryview(block)[:cut]])
                rest.clear()
                yield Block(start, lines)
                start += len(lines)
            rest.append(block[cut:])
            if budget.is_spent and start > begin:
                return
            if is_skipping := self._is_too_long(rest):
                rest.clear()

    def blocks_backwards(self, end: int | None, budget: ReadBudget) -> Iterator[Block]:
        """Yield the blocks up to `end`, newest first; the file must not be compressed.

        It stops early when the budget is spent; if it was not at first, not before one line. It
        skips lines of more than MAX_LINE_BYTES.
        """
        position = self.size() if end is None else min(end, self.size())
        rest: list[bytes] = []  # pieces of the line whose start is not read yet, the last one first
        size = LAST_BLOCK_BYTES
        is_enough = budget.is_spent
        while position > 0 and not is_enough:
            asked = min(size, position)
            position -= asked
            block = os.pread(self._fd, asked, position)
            budget.bytes_read += len(block)
            budget.file_bytes += len(block)
            size = min(2 * size, BLOCK_BYTES)
            if len(block) < asked:  # cut back meanwhile: here is the new end
                rest.clear()
            if not rest:
                block = block[: block.rfind(b"\n") + 1]
            cut = block.find(b"\n", 0, None if rest else -1) + 1 if position else 0
            if position and not cut:
                rest += [block] if block else []
                if self._is_too_long(rest):
                    rest.clear()
                continue
            lines = b"".join([memoryview(block)[cut:], *reversed(rest)])
            rest = [block[:cut]]
            if lines:
                yield Block(position + cut, lines)
                is_enough = budget.is_spent

    def data(self, begin: int, end: int | None, budget: ReadBudget) -> Iterator[bytes]:
        """Yield the bytes between two offsets, or to the end, in blocks; raises READ_ERRORS."""
        if self.is_compressed:
            yield from self._inflated_blocks(begin, end, budget)
            return
        while end is None or begin < end:
            size = BLOCK_BYTES if end is None else min(BLOCK_BYTES, end - begin)
            block = os.pread(self._fd, self._size_of_lines(begin, size), begin)
            if not block:
                return
            begin += len(block)
            budget.file_bytes += len(block)
            yield block

    def _is_too_long(self, rest: list[bytes]) -> bool:
        """Return whether the pieces of a line are too many bytes, and log it."""
        is_too_long = sum(map(len, rest)) > MAX_LINE_BYTES
        if is_too_long:
            log.warning("%s: skipped a line of over %d MiB", self._segment, MAX_LINE_BYTES >> 20)
        return is_too_long

    def _size_of_lines(self, begin: int, size: int) -> int:
        """Return `size`, or a few less so that a line ends there."""
        if size <= TAIL_BYTES:
            return size
        tail = os.pread(self._fd, TAIL_BYTES, begin + size - TAIL_BYTES)
        return size - TAIL_BYTES + (tail.rfind(b"\n") + 1 or TAIL_BYTES)

    def _inflated_blocks(self, begin: int, end: int | None, budget: ReadBudget) -> Iterator[bytes]:
        start = 0
        for block in self._inflate(budget):
            wanted = block[max(begin - start, 0) : None if end is None else end - start]
            start += len(block)
            if wanted:
                yield wanted
            if end is not None and start >= end:
                return

    def _inflate(self, budget: ReadBudget) -> Iterator[bytes]:
        """Yield the content of the file's zstd frames in blocks; raises EOFError within a frame.

        `zstd.ZstdFile` copies each block twice, which is 0.4 of 1.3 ms per MB.
        """
        frame = zstd.ZstdDecompressor()
        position = 0
        while data := os.pread(self._fd, COMPRESSED_BYTES, position):
            position += len(data)
            budget.file_bytes += len(data)
            while data or not (frame.needs_input or frame.eof):
                if frame.eof:
                    frame = zstd.ZstdDecompressor()
                if block := frame.decompress(data, BLOCK_BYTES):
                    yield block
                data = frame.unused_data if frame.eof else b""
        if not frame.eof:
            raise EOFError("the compressed file ends early")


def _open(directory: Path, segment: SegmentName, forms: Iterable[Form]) -> tuple[int, Form]:
    """Open the file in its first existing form; the order of the attempts misses no rename."""
    for form in forms:
        with contextlib.suppress(FileNotFoundError):
            return open_regular(segment.path(directory, form), os.O_RDONLY), form
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), segment)


# --- Sealed segments, each once, in plain or compressed form


class Segments(NamedTuple):
    """The names of the segments in a directory."""

    sealed: set[str]
    open: set[str]
    plain: set[str]  # of the sealed ones, those that have a file which is not compressed


def list_segments(directory: Path) -> Segments:
    """Return the segments of a directory; raises OSError."""
    names: dict[Form, set[str]] = {form: set() for form in Form}
    for segment, form in parse_file_names(regular_files(directory)):
        names[form].add(segment)
    plain = names[Form.PLAIN]
    sealed = plain | names[Form.COMPRESSED]
    return Segments(sealed, names[Form.OPEN] - sealed, plain)


def sealed_status(directory: Path, name: str) -> os.stat_result | None:
    """Return the status of a sealed segment's file, None if there is none; raises OSError.

    A listing may miss a segment that is compressed meanwhile.
    """
    segment = SegmentName(name)
    plain = find_status(segment.path(directory, Form.PLAIN))
    return plain or find_status(segment.path(directory, Form.COMPRESSED))


def size_of_lines(directory: Path, name: str) -> int:
    """Return the size of a sealed segment's lines in bytes, decompressed; raises READ_ERRORS.

    A compressed one of the service is one frame, whose head tells them; any other is inflated.
    """
    segment = SegmentName(name)
    try:
        return status_of(segment.path(directory, Form.PLAIN)).st_size
    except FileNotFoundError:
        path = segment.path(directory, Form.COMPRESSED)
    status_of(path)
    with path.open("rb") as raw:
        size = zstd.get_frame_info(raw.read(_HEAD_BYTES)).decompressed_size
        if size is None:
            raw.seek(0)
            with zstd.ZstdFile(raw) as file:
                size = file.seek(0, os.SEEK_END)
    return size
