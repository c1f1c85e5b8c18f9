"""Rotating NDJSON segment files: append, sync, seal, one `segment` after another."""

import contextlib
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from astralog.settings import SyncMode
from astralog.store.recovery import recover_file
from astralog.store.segment import Segment, SegmentLost

log = logging.getLogger(__name__)

#: Names that are tried for a new segment.
CREATE_ATTEMPTS = 10

#: Seconds between two syncs in the mode `everysec`.
SYNC_SECONDS = 1.0


class SegmentWriter:
    """Append chunks to one segment after another; only one thread may use it at a time."""

    def __init__(
        self, directory: Path, *, segment_bytes: int, segment_seconds: float, sync: SyncMode
    ) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._sync_mode = sync
        self._segment: Segment | None = None
        self._last_start = datetime.min.replace(tzinfo=UTC)
        # Segments that could not be sealed, or removed where they are empty, with their size.
        self._unsealed: dict[Path, int] = {}
        self.sealed_segments = 0
        self.synced_at = 0.0  # in seconds since 1970

    def append(self, buffers: Sequence[bytes]) -> None:
        """Append a chunk, all of it or nothing, synced as the mode says.

        Raises OSError when nothing of it is there. Where a segment was lost, the chunk goes to a
        new one, once.
        """
        size = sum(map(len, buffers))
        if self._segment and self._segment.size + size > self._segment_bytes:
            self.seal()
        try:
            self._append(buffers, size)
        except SegmentLost as error:
            log.error("segment lost: %s; its last batches are written anew", error)
            self._append(buffers, size)
        if self._segment and self._segment.size >= self._segment_bytes:
            self.seal()

    def _append(self, buffers: Sequence[bytes], size: int) -> None:
        segment = self._segment = self._segment or self._create()
        try:
            segment.write(buffers)
            if self._sync_mode == "always" or self._sync_is_due(segment):
                self._sync(segment)
            segment.check_in_place()
        except OSError:
            self._abandon(segment)
            raise
        segment.size += size

    def maintain(self) -> None:
        """Do what is due by time: seal by age, sync in the mode `everysec`, retry seals."""
        segment = self._segment
        if segment and segment.age() >= self._segment_seconds:
            self.seal()
        elif segment and self._sync_is_due(segment):
            try:
                self._sync(segment)
            except SegmentLost as error:
                log.error("%s: %s", segment.path.name, error)
                self._abandon(segment)
        self._seal_the_rest()

    def close(self) -> None:
        """Seal the open segment, and once more try those that could not be sealed before."""
        self.seal()
        self._seal_the_rest()

    def seal(self) -> None:
        """Seal the open segment, if any; one that cannot be sealed now is tried again."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            if self._sync_mode != "never":
                self._sync(segment)
            segment.seal()
            self.sealed_segments += bool(segment.size)
        except OSError as error:
            log.error("cannot seal %s: %s", segment.path.name, error)
            self._unsealed[segment.path] = segment.size
        finally:
            segment.close()

    def probe(self) -> None:
        """Raise OSError where a chunk would fail for want of a file."""
        segment = self._segment = self._segment or self._create()
        try:
            segment.check_in_place()
        except OSError:
            self._abandon(segment)
            raise

    def _sync(self, segment: Segment) -> None:
        segment.sync()
        self.synced_at = time.time()

    def _sync_is_due(self, segment: Segment) -> bool:
        waited = time.monotonic() - segment.synced_at
        return self._sync_mode == "everysec" and waited >= SYNC_SECONDS

    def _create(self) -> Segment:
        """Create a segment with a name later than the last one's, wherever the clock stands."""
        for _ in range(CREATE_ATTEMPTS - 1):
            # The name may be taken, and a recovery may have taken the new file for an orphan.
            with contextlib.suppress(FileExistsError, BlockingIOError, SegmentLost):
                return self._claim_new()
        return self._claim_new()

    def _claim_new(self) -> Segment:
        segment = Segment(self._directory, self._next_start())
        try:
            segment.claim()
        except OSError:
            self._discard(segment)
            raise
        return segment

    def _next_start(self) -> datetime:
        start = max(datetime.now(UTC), self._last_start + timedelta(microseconds=1))
        self._last_start = start
        return start

    def _discard(self, segment: Segment) -> None:
        """Remove a new segment that cannot be used; what cannot be removed now is tried again."""
        try:
            segment.path.unlink(missing_ok=True)
        except OSError:
            self._unsealed[segment.path] = 0
        finally:
            segment.close()

    def _abandon(self, segment: Segment) -> None:
        """Cut the segment back to what was accepted and never write to it again."""
        self._segment = None
        self._unsealed[segment.path] = segment.size
        try:
            segment.truncate()
        except OSError as error:
            log.error("cannot cut %s back: %s", segment.path.name, error.strerror)
        finally:
            segment.close()
        self._recover(segment.path)

    def _seal_the_rest(self) -> None:
        for path in list(self._unsealed):
            self._recover(path)

    def _recover(self, path: Path) -> None:
        """Seal a segment through a new descriptor; the old one's errors are spent."""
        try:
            recover_file(path, limit=self._unsealed[path])
        except OSError as error:
            log.debug("cannot seal %s yet: %s", path.name, error.strerror)
        else:
            self.sealed_segments += bool(self._unsealed.pop(path))
