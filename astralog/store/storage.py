"""One writer's storage: its segments, the free disk, and whether a batch can be stored now."""

import contextlib
import errno
import logging
import time
from collections.abc import Sequence

from astralog.clock import TrustedClock
from astralog.errors import Cause, Shortage, storage_error
from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store import files
from astralog.store.segment_writer import SegmentWriter, WriteAhead

log = logging.getLogger(__name__)

#: Seconds between two looks at the free disk, the segment's age and the last sync.
MAINTENANCE_SECONDS = 1.0


class Storage:
    """A segment writer that knows whether it can store; only one thread may use it at a time.

    `error` is the cause with which a batch would be rejected now, or None.
    """

    def __init__(self, settings: Settings, clock: TrustedClock | None = None) -> None:
        """Name segments by the clock."""
        self._directory = settings.data_dir
        self._min_free_bytes = settings.min_free_bytes
        self._writer = SegmentWriter(
            settings.data_dir,
            segment_bytes=settings.segment_bytes,
            segment_seconds=settings.segment_seconds,
            sync=settings.sync,
            clock=clock,
        )
        self.error: Cause | None = None
        self._failed_with = ""  # the code of the last error
        self._failure = LogOnce(log)  # until a commit group is stored again
        self._maintained_at = time.monotonic()

    def store(
        self, buffers: Sequence[bytes], write_ahead: WriteAhead | None = None
    ) -> Cause | None:
        """Append a commit group; return None when it is stored, else why it is rejected.

        `write_ahead` is called before the first byte is written; what it raises, this raises, and
        nothing is stored.
        """
        try:
            self._check_free(sum(map(len, buffers)))
            self._writer.append(buffers, write_ahead)
        except (OSError, MemoryError) as error:
            self._note_error(error)
            return self.error
        self.error = None
        self._failure.end("%s is over: batches are stored again", self._failed_with)
        return None

    @property
    def has_uncut(self) -> bool:
        """Whether lines that were rejected are still in a segment, which is held open."""
        return self._writer.has_uncut

    def has_unsettled(self) -> bool:
        """Return whether batches with keys that were rejected may still come back in a file."""
        return self._writer.has_unsettled()

    @property
    def sealed_segments(self) -> int:
        """The segments sealed so far."""
        return self._writer.sealed_segments

    @property
    def possibly_lost_batches(self) -> int:
        """The batches acknowledged in the mode `everysec` before a sync that failed."""
        return self._writer.possibly_lost_batches

    @property
    def synced_at(self) -> float:
        """The time of the last sync, in seconds since 1970; 0 before the first."""
        return self._writer.synced_at

    def is_maintenance_due(self) -> bool:
        """Return whether `maintain` was last called long enough ago."""
        return time.monotonic() - self._maintained_at >= MAINTENANCE_SECONDS

    def maintain(self) -> None:
        """Do what is due by time, and find out whether an error is over."""
        self._maintained_at = time.monotonic()
        try:
            self._writer.maintain()
            self._check_free(0)
            if self.error:
                self._writer.probe()
        except OSError as error:
            self._note_error(error)
        else:
            self.error = None

    def close(self) -> None:
        """Seal what is open."""
        self._writer.close()

    def _check_free(self, size: int) -> None:
        space = files.space(self._directory)
        space.check(self._min_free_bytes, size, held_inodes=self._writer.has_open)

    def _note_error(self, error: OSError | MemoryError) -> None:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            error = self._explain(error)
        self.error = cause = storage_error(error)
        self._failed_with = cause.code
        text = str(error) or "out of memory"
        self._failure.fail(cause, "%s: %s; batches are rejected", cause.code, text)

    def _explain(self, error: OSError) -> OSError:
        """Return the error of a full disk as one that names the inodes, if those ran out."""
        with contextlib.suppress(OSError):
            if files.space(self._directory).free_inodes == 0 and not isinstance(error, Shortage):
                return Shortage("inodes", 0, 0)
        return error
