"""Segment files one after another: append, sync, rotate and seal them."""

import contextlib
import errno
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from astralog.clock import TrustedClock
from astralog.errors import Cause, Shortage, storage_error
from astralog.log import LogOnce
from astralog.settings import Settings, SyncMode
from astralog.store import files, sealed
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
