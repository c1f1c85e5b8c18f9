"""Seal the segments that a dead process left open, truncated after their last complete line."""

import errno
import fcntl
import logging
import os
from pathlib import Path

from astralog.store.files import is_in_place, lock_byte, open_regular, seal_file
from astralog.store.keys.database import ranges_in, record_size
from astralog.store.names import SegmentName

log = logging.getLogger(__name__)

#: The byte of a file that a recovery locks in addition to the file, unlike a writer.
RECOVERY_BYTE = 0

#: Bytes read at once during the search for the last complete line.
BLOCK_BYTES = 1024 * 1024


def recover_file(path: Path) -> int:
    """Seal the segment at `path`, truncated after its last complete line; return the bytes kept.

    It keeps all lines of a batch with an idempotency key or none. Raises OSError: BlockingIOError
    if a process has it open, FileNotFoundError if it is gone.
    """
    fd = open_regular(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock_byte(fd, RECOVERY_BYTE)
        if not is_in_place(fd, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        before = os.fstat(fd).st_size
        segment = SegmentName.of_open_file(path)
        ranges = ranges_in(path.parent, segment)
        after = _end_of_batches(_end_of_lines(fd, before), ranges)
        if after < before:
            os.ftruncate(fd, after)
        os.fsync(fd)
        if ranges:
            record_size(path.parent, segment, after)
        seal_file(path, after)
        log.warning("recovered %s: kept %d bytes, truncated %d", path.name, after, before - after)
        return after
    finally:
        os.close(fd)


def _end_of_batches(end: int, ranges: list[tuple[int, int]]) -> int:
    """Return `end`, or the start of the batch in `ranges` that crosses it."""
    return min((start for start, stop in ranges if start < end < stop), default=end)


def _end_of_lines(fd: int, size: int) -> int:
    """Return the end of the last complete line before the first hole.

    A hole is a page lost in a power cut: it reads as zero bytes, which no line contains.
    """
    end = position = 0
    while position < size:
        block = os.pread(fd, min(BLOCK_BYTES, size - position), position)
        if not block:
            break
        hole = block.find(b"\0")
        last = block.rfind(b"\n", 0, hole if hole >= 0 else len(block))
        if last >= 0:
            end = position + last + 1
        if hole >= 0:
            break
        position += len(block)
    return end
