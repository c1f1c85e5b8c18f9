"""Write a segment file, and seal one that a dead process left open."""

import contextlib
import enum
import errno
import fcntl
import logging
import os
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from astralog.store import files
from astralog.store.keys.database import SEAL_LOCK_SECONDS, ranges_in, record_size
from astralog.store.names import Form, SegmentName

log = logging.getLogger(__name__)

#: Maximum buffers of one writev (IOV_MAX on Linux).
WRITEV_BUFFERS = 1024

#: Newest bytes of a segment that stay in the page cache for its readers. More would use the memory
#: of others, and fresh pages cost more than used ones: a sixth of the CPU at 500 logs per batch.
CACHED_BYTES = 8 * 1024 * 1024


class SegmentLost(OSError):
    """Lines written to the open segment may not be on the disk."""


class EndState(enum.Enum):
    """The state of a segment that takes no more lines and is not sealed yet."""

    UNTRUNCATED = "rejected lines may be at its end; it stays locked, so that nobody seals it"
    UNSEALED = "it ends with its last accepted line; this process seals it later"
    LEFT = "it ends with its last accepted line; any process's next recovery seals it"


class Segment:
    """One open segment file; all methods may raise OSError."""

    def __init__(self, directory: Path, start: datetime) -> None:
        """Create the file named after `start`, an aware datetime in UTC.

        Raises FileExistsError if the name is taken, also by a sealed segment.
        """
        self.name = SegmentName.make(start, os.getpid())
        self.path = self.name.path(directory, Form.OPEN)
        self.size = 0  # bytes of accepted commit groups; a failure truncates to it
        self.unsynced_batches = 0  # accepted since the last sync
        self.synced_at = self._started_at = time.monotonic()
        self.is_dirty = False
        self.has_keys = False  # whether keys.db has records of it
        self.end_state: EndState | None = None  # None while it takes lines
        #: Whether rejected batches with keys may come back, until it is truncated and sealed.
        self.has_rejected_keys = False
        self._dropped_bytes = 0  # at the start of the file, dropped from the page cache
        if files.is_taken(directory, self.name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._fd = os.open(self.path, flags, files.FILE_MODE)

    def lock(self) -> None:
        """Lock the new file for this process, and make its name durable."""
        self._status = os.fstat(self._fd)  # once: it saves 0.8 µs per commit group
        os.fchmod(self._fd, files.FILE_MODE)
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self.check_in_place()
        files.sync_directory(self.path.parent)

    def age(self) -> float:
        return time.monotonic() - self._started_at

    def write(self, buffers: Sequence[bytes]) -> None:
        """Append the buffers; after an error, part of them may be written."""
        self.is_dirty = True
        for first in range(0, len(buffers), WRITEV_BUFFERS):
            group = buffers[first : first + WRITEV_BUFFERS]
            written = os.writev(self._fd, group)
            rest = b"".join(group)[written:] if written < sum(map(len, group)) else b""
            while rest:  # the next write reports why this one was short, or succeeds
                rest = rest[os.write(self._fd, rest) :]

    def sync(self) -> None:
        """Sync the written lines.

        Raises SegmentLost if that fails: the kernel may have dropped the written pages, and a
        second sync of this descriptor would not report it.
        """
        if self.is_dirty:
            try:
                os.fdatasync(self._fd)
            except OSError as error:
                text = f"sync failed: {error.strerror}"
                if self.unsynced_batches:
                    text += f"; acknowledged batches that may be lost: {self.unsynced_batches}"
                raise SegmentLost(error.errno, text) from error
            self.is_dirty = False
            self.unsynced_batches = 0
            if self.size - self._dropped_bytes >= 2 * CACHED_BYTES:
                self._dropped_bytes = self.size - CACHED_BYTES
                files.drop_from_page_cache(self._fd, self._dropped_bytes)
        self.synced_at = time.monotonic()

    def accept(self, size: int, batches: int) -> None:
        """Accept the last commit group, written and synced as the mode requires."""
        self.size += size
        if self.is_dirty:
            self.unsynced_batches += batches

    def check_in_place(self) -> None:
        """Raise SegmentLost if the file was removed or replaced."""
        if not files.has_status(self.path, self._status):
            raise SegmentLost("removed from its directory")

    def seal(self) -> None:
        files.seal_file(self.path, self.size)
        log.debug("sealed %s: %d bytes", self.path.name, self.size)

    def truncate(self) -> None:
        """Truncate the file to its accepted commit groups."""
        if os.fstat(self._fd).st_size != self.size:
            os.ftruncate(self._fd, self.size)

    def close(self) -> None:
        """Close the file, which releases its lock; accepted lines were synced before."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


# --- Recovery of segments that a dead process left open

#: The byte of a file that a recovery locks in addition to the file, unlike a writer.
RECOVERY_BYTE = 0

#: Bytes read at once during the search for the last complete line.
BLOCK_BYTES = 1024 * 1024


def recover_file(path: Path, lock_seconds: float = SEAL_LOCK_SECONDS) -> int:
    """Seal the segment at `path`, truncated after its last complete line; return the bytes kept.

    It keeps all lines of a batch with an idempotency key or none. Each access to the database of
    the keys waits up to `lock_seconds` for other processes. Raises OSError: BlockingIOError if a
    process has the segment open, FileNotFoundError if it is gone.
    """
    fd = files.open_regular(path, os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.lock_byte(fd, RECOVERY_BYTE)
        if not files.is_in_place(fd, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        before = os.fstat(fd).st_size
        segment = SegmentName.of_open_file(path)
        ranges = ranges_in(path.parent, segment, lock_seconds)
        end = _end_of_lines(fd, before)
        # A batch with a key that crosses the end is not kept.
        after = min((start for start, stop in ranges if start < end < stop), default=end)
        if after < before:
            os.ftruncate(fd, after)
        os.fsync(fd)
        if ranges:
            record_size(path.parent, segment, after, lock_seconds)
        files.seal_file(path, after)
        log.warning("recovered %s: kept %d bytes, truncated %d", path.name, after, before - after)
        return after
    finally:
        os.close(fd)


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
