"""Seal what a dead process left open: every segment cut after its last complete line."""

import fcntl
import logging
import os
from pathlib import Path

from astralog.store.files import OPEN_SUFFIX, is_same_file, seal_file

log = logging.getLogger(__name__)

#: Bytes read at once in the search for the last complete line.
BLOCK_BYTES = 1024 * 1024


def recover(directory: Path) -> None:
    """Seal every open segment that no process holds, each cut after its last complete line."""
    for path in sorted(directory.glob("*" + OPEN_SUFFIX)):
        try:
            recover_file(path)
        except OSError as error:
            log.error("cannot recover %s: %s", path.name, error.strerror)


def recover_file(path: Path, limit: int | None = None) -> None:
    """Seal the segment at `path` unless a process holds it, cut after its last complete line.

    What lies beyond `limit` bytes is cut too. Raises OSError; a file gone in between is fine.
    """
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return
    try:
        if not _take(fd, path):
            return
        before = os.fstat(fd).st_size
        after = _end_of_lines(fd, before if limit is None else limit)
        if after < before:
            os.ftruncate(fd, after)
        os.fsync(fd)
        seal_file(path, after)
        log.warning("recovered %s: kept %d bytes, cut %d", path.name, after, before - after)
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> bool:
    """Lock the file, and return whether it is ours and still at `path`."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return is_same_file(fd, path)
    except (BlockingIOError, FileNotFoundError):
        return False


def _end_of_lines(fd: int, limit: int) -> int:
    """Return the end of the last line that is complete and lies before any hole.

    A hole is where the system lost a page in a power cut: it reads as zeros, which no line has.
    """
    end = position = 0
    while position < limit:
        block = os.pread(fd, min(BLOCK_BYTES, limit - position), position)
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
