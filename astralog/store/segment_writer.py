"""Rotating NDJSON segment files: append, sync, seal, one `segment` after another."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.log import LogOnce
from astralog.settings import SyncMode
from astralog.store import sealed
from astralog.store.keys.database import record_size
from astralog.store.names import SegmentName, is_ahead
from astralog.store.recovery import recover_file
from astralog.store.segment import Segment, SegmentLost

log = logging.getLogger(__name__)

#: Commits the write-ahead records of a commit group: called with a segment's name and the offset at
#: which the group is about to be written there. If it raises, nothing of the group is written.
WriteAhead = Callable[[str, int], None]

#: Names that are tried for a new segment.
CREATE_ATTEMPTS = 10

#: Seconds between two syncs in the mode `everysec`.
SYNC_SECONDS = 1.0

#: Segments that are tried again when they could not be sealed, or were gone with their directory.
#: The oldest one beyond is left to the next recovery.
MAX_UNSEALED = 100


class SegmentWriter:
    """Append commit groups to one segment after another; one thread at a time may use it."""

    def __init__(
        self,
        directory: Path,
        *,
        segment_bytes: int,
        segment_seconds: float,
        sync: SyncMode,
        clock: TrustedClock | None = None,
    ) -> None:
        """Name segments by the clock."""
        self._directory = directory
        self._clock = clock or TrustedClock()
        self._segment_bytes = segment_bytes
        self._segment_seconds = segment_seconds
        self._sync_mode = sync
        self._segment: Segment | None = None
        self._last_start = datetime.min.replace(tzinfo=UTC)
        self._unsealed: dict[Path, int] = {}  # closed segments that are still to be sealed: bytes
        self._untruncated: list[Segment] = []  # held, so that no recovery seals what was rejected
        self._abandoned: list[Path] = []  # segments of batches with keys whose append failed
        self._is_sync_doubtful = False  # since a sync failed, and until one is good
        # Failures of the same kind in a row: a segment lost, not cut, not sealed.
        self._loss, self._cutting, self._sealing = LogOnce(log), LogOnce(log), LogOnce(log)
        self.sealed_segments = 0
        self.possibly_lost_batches = 0  # acknowledged before a sync that failed
        self.synced_at = 0.0  # in seconds since 1970

    @property
    def has_open(self) -> bool:
        """Whether a segment is open, which takes the next commit group if there is room in it."""
        return self._segment is not None

    @property
    def has_uncut(self) -> bool:
        """Whether a segment is held open, since lines that were rejected cannot be cut from it."""
        return bool(self._untruncated)

    def has_unsettled(self) -> bool:
        """Return whether batches with keys that were rejected may still come back in a file.

        That is over when the file is cut, synced and sealed, by this process or by another.
        """
        is_there = any(path.exists() for path in self._abandoned)
        return is_there or not self._directory.exists()

    def append(self, buffers: Sequence[bytes], write_ahead: WriteAhead | None = None) -> None:
        """Append a commit group, all of it or nothing, synced as the mode says.

        Raises OSError, or whatever else came between, when nothing of it is there. Where a segment
        was lost, the group goes to a new one, once.
        """
        if self._untruncated:  # a crash would leave what was rejected in them to a recovery
            self._seal_the_rest()
        size = sum(map(len, buffers))
        if self._segment and self._segment.size + size > self._segment_bytes:
            self.seal()
        try:
            self._append(buffers, size, write_ahead)
        except SegmentLost as error:
            if write_ahead and self.has_unsettled():  # written anew, they would be there twice
                raise
            text = str(error)
            self._loss.fail(text, "segment lost: %s; its last batches are written anew", text)
            self._append(buffers, size, write_ahead)
        else:
            self._loss.end()
        if self._segment and self._segment.size >= self._segment_bytes:
            self.seal()

    def _append(self, buffers: Sequence[bytes], size: int, write_ahead: WriteAhead | None) -> None:
        segment = self._segment = self._segment or self._create()
        try:
            if write_ahead:
                segment.has_keys = True
                write_ahead(segment.name, segment.size)
            segment.write(buffers)
            if self._sync_mode == "always" or self._is_sync_due(segment):
                self._sync(segment)
            segment.check_in_place()
            segment.accept(size, len(buffers))
        except BaseException:
            self._abandon(segment)
            raise

    def maintain(self) -> None:
        """Do what is due by time: seal by age, sync in the mode `everysec`, retry seals.

        Raises SegmentLost where that sync fails.
        """
        self._clock.now()  # which notices changes of the wall clock
        self._seal_the_rest()
        segment = self._segment
        if segment and segment.age() >= self._segment_seconds:
            self.seal()
        elif segment and self._is_sync_due(segment):
            try:
                self._sync(segment)
            except BaseException:
                self._abandon(segment)
                raise

    def close(self) -> None:
        """Seal the open segment, and once more try those that could not be sealed before."""
        self.seal()
        self._seal_the_rest()

    def seal(self) -> None:
        """Seal the open segment, if any; one that cannot be sealed now is tried again.

        It raises nothing: what was appended is stored, however its file is called.
        """
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._remember(segment)
        try:
            if self._sync_mode != "never":
                self._sync(segment)
            if segment.has_keys and segment.size:
                record_size(self._directory, segment.name, segment.size)
            segment.seal()
            del self._unsealed[segment.path]
            self.sealed_segments += bool(segment.size)
            self._sealing.end("segments are sealed again")
        except Exception as error:
            text = str(error)
            self._sealing.fail(text, "cannot seal %s yet: %s", segment.path.name, text)
        finally:
            segment.close()

    def probe(self) -> None:
        """Raise OSError where a commit group would fail for want of a file."""
        segment = self._segment = self._segment or self._create()
        try:
            segment.check_in_place()
        except BaseException:
            self._abandon(segment)
            raise

    def _sync(self, segment: Segment) -> None:
        """Sync; after a failure every commit group is synced, until the disk works again."""
        was_dirty = segment.is_dirty
        try:
            segment.sync()
        except SegmentLost:
            self.possibly_lost_batches += segment.unsynced_batches
            self._is_sync_doubtful = True
            raise
        if was_dirty:
            self._is_sync_doubtful = False
        self.synced_at = time.time()

    def _is_sync_due(self, segment: Segment) -> bool:
        waited = time.monotonic() - segment.synced_at
        is_due = self._is_sync_doubtful or waited >= SYNC_SECONDS
        return self._sync_mode == "everysec" and is_due

    def _create(self) -> Segment:
        """Create a segment with a name that is not taken."""
        for _ in range(CREATE_ATTEMPTS - 1):
            # The name may be taken, and a recovery may have taken the new file for an orphan.
            with contextlib.suppress(FileExistsError, BlockingIOError, SegmentLost):
                return self._claim_new()
        return self._claim_new()

    def _claim_new(self) -> Segment:
        segment = Segment(self._directory, self._next_start())
        try:
            segment.claim()
        except BaseException:
            self._discard(segment)
            raise
        return segment

    def _next_start(self) -> datetime:
        """Return a start later than the last one's, unless the clock was far ahead by then."""
        start = datetime.fromtimestamp(self._clock.now(), UTC)
        if not is_ahead(self._last_start.timestamp(), start.timestamp()):
            start = max(start, self._last_start + timedelta(microseconds=1))
        self._last_start = start
        return start

    def _discard(self, segment: Segment) -> None:
        """Remove a new segment that cannot be used; what cannot be removed now is tried again."""
        try:
            segment.path.unlink(missing_ok=True)
        except OSError:
            self._remember(segment)
        finally:
            segment.close()

    def _abandon(self, segment: Segment) -> None:
        """Truncate the segment to what was accepted and never write to it again."""
        self._segment = None
        if segment.has_keys:
            # In place of the old list: another thread may read that at the same time.
            self._abandoned = [path for path in self._abandoned if path.exists()] + [segment.path]
        if self._release(segment):
            self._recover(segment.path)
        else:
            name = segment.path.name
            self._cutting.fail("cut", "cannot truncate %s; it is held until that works", name)
            self._untruncated.append(segment)

    def _release(self, segment: Segment) -> bool:
        """Truncate the segment and let whoever comes first seal it; return whether that worked."""
        try:
            segment.truncate()
        except OSError:
            return False
        self._remember(segment)
        segment.close()
        return True

    def _remember(self, segment: Segment) -> None:
        """Note a segment that is to be sealed later."""
        self._unsealed[segment.path] = segment.size
        if len(self._unsealed) > MAX_UNSEALED:
            del self._unsealed[next(iter(self._unsealed))]

    def _seal_the_rest(self) -> None:
        self._untruncated = [s for s in self._untruncated if not self._release(s)]
        if not self._untruncated:
            self._cutting.end("every segment is truncated")
        for path in list(self._unsealed):
            self._recover(path)

    def _recover(self, path: Path) -> None:
        """Seal a segment through a new descriptor; the old one's errors are spent.

        One that is gone may come back with its directory, unless there is nothing in it.
        """
        try:
            self.sealed_segments += bool(recover_file(path))
        except FileNotFoundError:
            was_sealed = sealed.is_sealed(self._directory, SegmentName.of_open_file(path))
            self.sealed_segments += was_sealed
            if self._unsealed[path] and not was_sealed:
                return
        except OSError as error:
            log.debug("cannot seal %s yet: %s", path.name, error.strerror)
            return
        del self._unsealed[path]
