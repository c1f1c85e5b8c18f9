"""One writer's storage: its segments, the free disk, and whether a batch can be stored now."""

import errno
import logging
import time
from collections.abc import Sequence

from astralog import directory
from astralog.segments import SegmentWriter
from astralog.settings import Settings

log = logging.getLogger(__name__)

#: Seconds between two looks at the free disk, the segment's age and the last sync.
TEND_SECONDS = 1.0

#: Seconds between two looks at what the retention removes.
RETAIN_EVERY_SECONDS = 10.0

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Storage:
    """A segment writer that knows its troubles; only one thread may use it at a time.

    `trouble` is the code with which a batch would be refused now, or None.
    """

    def __init__(self, settings: Settings) -> None:
        self._directory = settings.data_dir
        self._min_free_bytes = settings.min_free_bytes
        self._retain_bytes = settings.retain_bytes
        self._retain_seconds = settings.retain_seconds
        self._writer = SegmentWriter(
            settings.data_dir,
            segment_bytes=settings.segment_bytes,
            segment_seconds=settings.segment_seconds,
            sync=settings.sync,
        )
        self.trouble: str | None = None
        self._episode: str | None = None  # the trouble in the log, until a chunk is stored again
        self._tended_at = time.monotonic()
        self._retained_at = 0.0

    def store(self, buffers: Sequence[bytes]) -> str | None:
        """Append a chunk; return None when it is stored, else the code that refuses it whole."""
        try:
            self._check_free(sum(map(len, buffers)))
            self._writer.append(buffers)
        except OSError as error:
            self._note_trouble(error)
            return self.trouble
        self.trouble = None
        if self._episode:
            log.warning("%s is over: batches are stored again", self._episode)
            self._episode = None
        return None

    @property
    def sealed_segments(self) -> int:
        """The segments sealed so far."""
        return self._writer.sealed_segments

    @property
    def synced_at(self) -> float:
        """The time of the last sync, in seconds since 1970; 0 before the first."""
        return self._writer.synced_at

    def is_tending_due(self) -> bool:
        """Tell whether `tend` was last called long enough ago."""
        return time.monotonic() - self._tended_at >= TEND_SECONDS

    def tend(self) -> None:
        """Do what is due by time, and find out whether a trouble is over."""
        self._tended_at = time.monotonic()
        self._writer.tend()
        try:
            self._check_free(0)
            if self.trouble:
                self._writer.probe()
        except OSError as error:
            self._note_trouble(error)
        else:
            self.trouble = None
        if self._tended_at - self._retained_at >= RETAIN_EVERY_SECONDS:
            self._retained_at = self._tended_at
            directory.retain(self._directory, self._retain_bytes, self._retain_seconds)

    def close(self) -> None:
        """Seal what is open."""
        self._writer.close()

    def _check_free(self, size: int) -> None:
        free = directory.free_bytes(self._directory)
        if free - size < self._min_free_bytes or not free:
            raise OSError(errno.ENOSPC, f"{free} bytes of disk are free")

    def _note_trouble(self, error: OSError) -> None:
        self.trouble = "storage_full" if error.errno in _FULL else "storage_failed"
        if self._episode != self.trouble:
            self._episode = self.trouble
            log.error("%s: %s; batches are refused", self.trouble, error)
