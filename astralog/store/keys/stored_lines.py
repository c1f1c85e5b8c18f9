"""Check whether all lines of a batch are in their segment, if its size is not recorded."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

from gevent.monkey import get_original

from astralog.store.files import lock_byte
from astralog.store.names import Form, SegmentName
from astralog.store.recovery import RECOVERY_BYTE, recover_file
from astralog.store.sealed import size_of_lines

log = logging.getLogger(__name__)

#: Bytes that are read at once.
BLOCK_BYTES = 1024 * 1024

#: Open segments whose checked length is remembered.
MAX_SEGMENTS = 1000

#: Attempts for a segment that is recovered or renamed meanwhile, and the seconds between them.
ATTEMPTS = 5
PAUSE_SECONDS = 0.01

# Blocks the thread; gevent's own would run a second event loop in it.
_sleep: Callable[[float], None] = get_original("time", "sleep")


class StoredLines:
    """A reader of a directory's segments; one thread at a time may use it.

    It gives final answers for batches that no process is storing.
    """

    def __init__(self, directory: Path, is_synced: bool) -> None:
        self._directory = directory
        self._is_synced = is_synced
        self._whole: dict[str, int] = {}  # bytes at the start of open segments that have no hole

    def note_stored(self, segment: str, stop: int) -> None:
        """Record that a segment is stored up to an offset."""
        if len(self._whole) >= MAX_SEGMENTS:
            self._whole.clear()  # they are read again on the next check
        self._whole[segment] = stop

    def recover_and_check(self, segment: str, stop: int) -> bool:
        """Recover a segment without a recorded size; return whether it has the lines up to `stop`.

        A segment that a dead process left open is truncated and sealed first. A segment that is
        gone without a record of its size never had a line. Raises OSError if the answer is unknown.
        """
        if stop <= self._whole.get(segment, 0):
            return True
        for _ in range(ATTEMPTS):
            try:
                return stop <= recover_file(self._open_path(segment))
            except BlockingIOError:
                if (found := self._check_held(segment, stop)) is not None:
                    return found
            except FileNotFoundError:
                if (size := self._sealed_bytes(segment)) is not None:
                    return stop <= size
                if not self._open_path(segment).exists():
                    return False
            _sleep(PAUSE_SECONDS)
        raise BlockingIOError("the segment is being recovered")

    def _open_path(self, segment: str) -> Path:
        return SegmentName(segment).path(self._directory, Form.OPEN)

    def _check_held(self, segment: str, stop: int) -> bool | None:
        """Return whether a segment that its writer keeps open contains the lines.

        None if it is gone or being recovered: the recovery decides, and a sync at the same time
        could consume the error that the recovery must see. The writer stores these lines no more,
        so the answer is final. All lines before them must be there too, since a recovery keeps
        nothing after a hole.
        """
        try:
            fd = os.open(self._open_path(segment), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            lock_byte(fd, RECOVERY_BYTE)
            position = self._whole.get(segment, 0)
            while position < stop:
                block = os.pread(fd, min(BLOCK_BYTES, stop - position), position)
                if not block or b"\0" in block:
                    return False
                position += len(block)
            if self._is_synced:
                os.fdatasync(fd)
        except BlockingIOError:
            return None
        finally:
            os.close(fd)
        self.note_stored(segment, stop)
        return True

    def _sealed_bytes(self, segment: str) -> int | None:
        """Return the decompressed bytes of a sealed segment, None if it is gone."""
        try:
            return size_of_lines(self._directory, segment)
        except FileNotFoundError:
            return None
