"""Whether the lines of a batch lie whole in their segment, where the journal does not say so."""

import logging
import os
import time
from pathlib import Path

from astralog.store import range_lock
from astralog.store.files import OPEN_SUFFIX
from astralog.store.keys.records import Entry
from astralog.store.recovery import RECOVERY_BYTE, recover_file
from astralog.store.sealed import size_of_lines

log = logging.getLogger(__name__)

#: Bytes that are read at once.
BLOCK_BYTES = 1024 * 1024

#: Segments of which it is remembered how far they were looked at.
MAX_SEGMENTS = 1000

#: Looks at a segment that is recovered or renamed meanwhile, and the seconds between two.
ATTEMPTS = 5
PAUSE_SECONDS = 0.01


class StoredLines:
    """Looks into the segments of a directory; one thread at a time may use it.

    It may only be asked for batches that nobody is storing.
    """

    def __init__(self, directory: Path, is_synced: bool) -> None:
        self._directory = directory
        self._is_synced = is_synced
        self._whole: dict[str, int] = {}  # bytes at the start of open segments without a hole

    def note_stored(self, segment: str, end: int) -> None:
        """Note that a segment is stored up to an offset."""
        if len(self._whole) >= MAX_SEGMENTS:
            self._whole.clear()  # what is asked for again is looked at again
        self._whole[segment] = end

    def forget(self, segment: str) -> None:
        """Forget a segment, of whose bytes the journal speaks by now."""
        self._whole.pop(segment, None)

    def has(self, entry: Entry) -> bool:
        """Return whether the lines of an entry are stored; raises OSError where that is not known.

        A segment that is gone without a word in the journal never had a line.
        """
        if entry.end <= self._whole.get(entry.segment, 0):
            return True
        for _ in range(ATTEMPTS):
            try:
                return entry.end <= recover_file(self._open_path(entry))
            except BlockingIOError:
                if (found := self._is_written(entry)) is not None:
                    return found
            except FileNotFoundError:
                if (size := self._sealed_bytes(entry.segment)) is not None:
                    return entry.end <= size
                if not self._open_path(entry).exists():
                    return False
            time.sleep(PAUSE_SECONDS)
        raise BlockingIOError("the segment is being recovered")

    def _open_path(self, entry: Entry) -> Path:
        return self._directory / (entry.segment + OPEN_SUFFIX)

    def _is_written(self, entry: Entry) -> bool | None:
        """Return whether a segment that its writer holds has the lines.

        None where it is gone or being recovered: a recovery decides that, and a sync beside it may
        take the error that it has to hear of. The writer does not store them any more, so they are
        there to stay, or not at all. All before them must be there too, since a recovery keeps
        nothing beyond a hole.
        """
        try:
            fd = os.open(self._open_path(entry), os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            range_lock.lock(fd, RECOVERY_BYTE)
            position = self._whole.get(entry.segment, 0)
            while position < entry.end:
                block = os.pread(fd, min(BLOCK_BYTES, entry.end - position), position)
                if not block or b"\0" in block:
                    return False
                position += len(block)
            if self._is_synced:
                os.fdatasync(fd)
        except BlockingIOError:
            return None
        finally:
            os.close(fd)
        self.note_stored(entry.segment, entry.end)
        return True

    def _sealed_bytes(self, segment: str) -> int | None:
        """Return the bytes of a sealed segment, inflated; None where it is gone."""
        try:
            return size_of_lines(self._directory, segment)
        except FileNotFoundError:
            return None
