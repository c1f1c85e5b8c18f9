"""Write segment files one after another: append, sync, rotate and seal."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gevent.monkey import get_original

from astralog.clock import TrustedClock
from astralog.errors import DISK_FULL, Cause, Shortage, explain, storage_error
from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store import files
from astralog.store.keys.database import LOCK_SECONDS, SEAL_LOCK_SECONDS, record_size
from astralog.store.names import is_ahead
from astralog.store.segment import EndState, Segment, SegmentLost, recover_file

log = logging.getLogger(__name__)

#: Commits the write-ahead records of a commit group: called with a segment's name and the offset at
#: which the group is about to be written there. If it raises, nothing of the group is written.
WriteAhead = Callable[[str, int], None]

#: Names that are tried for a new segment.
CREATE_ATTEMPTS = 10

#: Seconds between two syncs in the mode `everysec`.
SYNC_SECONDS = 1.0

#: Segments that this process will seal later; beyond it, the oldest is left to the next recovery.
MAX_UNSEALED = 100

#: Seconds after which no further seal is retried until the next maintenance, since batches wait.
RETRY_SECONDS = 1.0

#: Seconds between two checks of the free disk, the segment's age and the last sync.
MAINTENANCE_SECONDS = 1.0


class Starts:
    """The start times in the names of this process's segments, each later than the last one.

    All writers of a process share one, each in its own thread: by its own last start, a writer
    would name its next segment before another's last one once the clock was set back.
    """

    def __init__(self, clock: TrustedClock) -> None:
        self.clock = clock
        self._last = datetime.min.replace(tzinfo=UTC)
        self._mutex = get_original("threading", "Lock")()

    def next(self) -> datetime:
        """Return a start later than the last one, unless that one is a day ahead of the clock."""
        with self._mutex:
            start = datetime.fromtimestamp(self.clock.now(), UTC)
            if not is_ahead(self._last.timestamp(), start.timestamp()):
                start = max(start, self._last + timedelta(microseconds=1))
            self._last = start
            return start


class SegmentWriter:
    """Append commit groups to one segment after another; one thread at a time may use it."""

    def __init__(self, settings: Settings, starts: Starts | None = None) -> None:
        # Settings
        self._directory = settings.data_dir
        self._segment_bytes = settings.segment_bytes
        self._segment_seconds = settings.segment_seconds
        self._sync_mode = settings.sync
        # Segments
        self._starts = starts or Starts(TrustedClock())
        self._segment: Segment | None = None
        self._ended: dict[Path, Segment] = {}  # oldest first; other threads read it
        # Failures
        self._is_sync_doubtful = False  # since a sync failed, and until one succeeds
        self._loss, self._truncation, self._sealing = LogOnce(log), LogOnce(log), LogOnce(log)
        # Metrics
        self.sealed_segments = 0
        self.possibly_lost_batches = 0  # acknowledged in the mode `everysec` before a failed sync
        self.synced_at = 0.0  # the last sync, in seconds since 1970; 0 before the first

    @property
    def has_untruncated(self) -> bool:
        """Whether a segment is kept open because its rejected lines cannot be truncated."""
        return any(ended.end_state is EndState.UNTRUNCATED for ended in list(self._ended.values()))

    def has_unsettled(self) -> bool:
        """Return whether rejected batches with keys may still be in a file.

        That is over when the file is truncated, synced and sealed, by this process or another.
        """
        rejected = [path for path, ended in list(self._ended.items()) if ended.has_rejected_keys]
        return any(path.exists() for path in rejected) or not self._directory.exists()

    # --- Append

    def append(self, buffers: Sequence[bytes], write_ahead: WriteAhead | None = None) -> None:
        """Append a commit group completely or not at all, synced according to the mode.

        If its segment is lost, the group goes to a new one, once. Raises OSError, or any exception
        that interrupts it, after which nothing of the group is in the files.
        """
        if self._ended and self.has_untruncated:  # a recovery after a crash would keep their lines
            self._finish_ended()
        size = sum(map(len, buffers))
        if self._segment and self._segment.size + size > self._segment_bytes:
            self.seal()
        try:
            self._append(buffers, size, write_ahead)
        except SegmentLost as error:
            if write_ahead and self.has_unsettled():  # written again, they would be there twice
                raise
            text = str(error)
            self._loss.fail(text, "segment lost: %s; its last batches are written again", text)
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

    def _sync(self, segment: Segment) -> None:
        """Sync; after a failure every commit group is synced until a sync succeeds."""
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

    # --- Create

    def _create(self) -> Segment:
        for _ in range(CREATE_ATTEMPTS - 1):
            # The name may be taken, and a recovery may have taken the new file for an orphan.
            with contextlib.suppress(FileExistsError, BlockingIOError, SegmentLost):
                return self._create_locked()
        return self._create_locked()

    def _create_locked(self) -> Segment:
        segment = Segment(self._directory, self._starts.next())
        try:
            segment.lock()
        except BaseException:
            self._discard(segment)
            raise
        return segment

    def _discard(self, segment: Segment) -> None:
        """Remove an unusable new segment; if that fails, it is removed later."""
        try:
            segment.path.unlink(missing_ok=True)
        except OSError:
            self._add_unsealed(segment)
        finally:
            segment.close()

    # --- Maintain and seal

    def maintain(self) -> None:
        """Do the work that is due by time: seal by age, sync in the mode `everysec`, retry seals.

        Raises SegmentLost if that sync fails.
        """
        self._starts.clock.now()  # notices changes of the wall clock
        self._finish_ended()
        segment = self._segment
        if segment and segment.age() >= self._segment_seconds:
            self.seal()
        elif segment and self._is_sync_due(segment):
            try:
                self._sync(segment)
            except BaseException:
                self._abandon(segment)
                raise

    def probe(self) -> None:
        """Raise OSError if the next commit group would fail because its file cannot be created."""
        segment = self._segment = self._segment or self._create()
        try:
            segment.check_in_place()
        except BaseException:
            self._abandon(segment)
            raise

    def close(self) -> None:
        """Seal the open segment, and retry those that could not be sealed before."""
        self.seal(is_last=True)
        self._finish_ended(is_last=True)

    def seal(self, *, is_last: bool = False) -> None:
        """Seal the open segment, if any; a failure is logged, and retried by `maintain`.

        It raises nothing: appended lines are stored under either name. The last seal of a process,
        for which no batch waits, waits longer for the database of the keys.
        """
        segment, self._segment = self._segment, None
        if segment is None:
            return
        self._add_unsealed(segment)
        try:
            if self._sync_mode != "never":
                self._sync(segment)
            if segment.has_keys and segment.size:
                record_size(self._directory, segment.name, segment.size, _lock_seconds(is_last))
            segment.seal()
            del self._ended[segment.path]
            self.sealed_segments += bool(segment.size)
            self._sealing.end("segments are sealed again")
        except Exception as error:
            text = explain(error)
            self._sealing.fail(text, "cannot seal %s yet: %s", segment.path.name, text)
        finally:
            segment.close()

    # --- Segments that take no more lines and are not sealed yet

    def _abandon(self, segment: Segment) -> None:
        """Truncate the segment to its accepted lines, and never write to it again."""
        self._segment = None
        segment.end_state, segment.has_rejected_keys = EndState.UNTRUNCATED, segment.has_keys
        self._ended[segment.path] = segment
        if self._truncate(segment):
            self._recover(segment)
        else:
            name = segment.path.name
            self._truncation.fail("", "cannot truncate %s; it stays open, and is retried", name)

    def _truncate(self, segment: Segment) -> bool:
        """Truncate and close a segment, so that any process may seal it; return whether it did."""
        try:
            segment.truncate()
        except OSError:
            return False
        segment.close()
        self._add_unsealed(segment)
        return True

    def _add_unsealed(self, segment: Segment) -> None:
        """Retry the seal of a segment, and leave the oldest such segment if they are too many."""
        segment.end_state = EndState.UNSEALED
        self._ended[segment.path] = segment
        unsealed = [ended for ended in self._ended.values() if ended.end_state is EndState.UNSEALED]
        if len(unsealed) > MAX_UNSEALED:
            unsealed[0].end_state = EndState.LEFT
            self._forget_left()

    def _forget_left(self) -> None:
        """Forget the segments left to a recovery, except while rejected keys depend on them."""
        for path, ended in list(self._ended.items()):
            is_left = ended.end_state is EndState.LEFT
            if is_left and not (ended.has_rejected_keys and path.exists()):
                del self._ended[path]

    def _finish_ended(self, *, is_last: bool = False) -> None:
        """Truncate and seal the ended segments as far as possible now.

        All of them if it `is_last`; else batches wait, and the rest follows later.
        """
        deadline = time.monotonic() + RETRY_SECONDS
        for ended in list(self._ended.values()):
            if ended.end_state is EndState.UNTRUNCATED:
                self._truncate(ended)
        if not self.has_untruncated:
            self._truncation.end("all segments are truncated")
        for ended in list(self._ended.values()):
            if not is_last and time.monotonic() >= deadline:
                break
            if ended.end_state is EndState.UNSEALED:
                self._recover(ended, is_last=is_last)
        self._forget_left()

    def _recover(self, segment: Segment, *, is_last: bool = False) -> None:
        """Seal a segment through a new descriptor; the old one has reported its errors.

        One that is gone may come back with its directory, unless it is empty.
        """
        try:
            self.sealed_segments += bool(recover_file(segment.path, _lock_seconds(is_last)))
        except FileNotFoundError:
            was_sealed = files.is_taken(self._directory, segment.name)
            self.sealed_segments += was_sealed
            if segment.size and not was_sealed:
                return
        except OSError as error:
            log.debug("cannot seal %s yet: %s", segment.path.name, error.strerror)
            return
        del self._ended[segment.path]


def _lock_seconds(is_last: bool) -> float:
    """Return the seconds to wait for the database of the keys; batches wait unless it `is_last`."""
    return LOCK_SECONDS if is_last else SEAL_LOCK_SECONDS


class Storage(SegmentWriter):
    """A segment writer that checks the free disk, and reports whether it can store now.

    `error` is the cause with which a batch would be rejected now, or None.
    """

    def __init__(self, settings: Settings, starts: Starts | None = None) -> None:
        super().__init__(settings, starts)
        self._min_free_bytes = settings.min_free_bytes
        self.error: Cause | None = None
        self._failed_with = ""  # the code of the last error
        self._failure = LogOnce(log)  # until a commit group is stored again
        self._maintained_at = time.monotonic()

    def store(
        self, buffers: Sequence[bytes], write_ahead: WriteAhead | None = None
    ) -> Cause | None:
        """Append a commit group; return None once it is stored, else the cause of its rejection.

        `write_ahead` is called before the first byte is written. Its exceptions are raised, except
        OSError and MemoryError, and nothing is stored then.
        """
        try:
            self._check_free(sum(map(len, buffers)))
            self.append(buffers, write_ahead)
        except (OSError, MemoryError) as error:
            self._note_error(error)
            return self.error
        self.error = None
        self._failure.end("%s is over: batches are stored again", self._failed_with)
        return None

    def is_maintenance_due(self) -> bool:
        return time.monotonic() - self._maintained_at >= MAINTENANCE_SECONDS

    def maintain(self) -> None:
        """Do the work that is due by time, and check whether an error is over."""
        self._maintained_at = time.monotonic()
        try:
            super().maintain()
            self._check_free(0)
            if self.error:
                self.probe()
        except OSError as error:
            self._note_error(error)
        else:
            self.error = None

    def _check_free(self, size: int) -> None:
        space = files.space(self._directory)
        space.check(self._min_free_bytes, size, held_inodes=self._segment is not None)

    def _note_error(self, error: OSError | MemoryError) -> None:
        if storage_error(error) == DISK_FULL and self._lacks_inode(error):
            error = Shortage("inodes", 0, 0)
        self.error = cause = storage_error(error)
        self._failed_with = cause.code
        text = str(error) or "out of memory"
        self._failure.fail(cause, "%s: %s; batches are rejected", cause.code, text)

    def _lacks_inode(self, error: OSError | MemoryError) -> bool:
        """Return whether no file could be created on a full disk, which was checked for free bytes.

        The error of a write has no file name. The number of free inodes decides nothing: others may
        have freed some since.
        """
        if getattr(error, "filename", None) is None:
            return False
        with contextlib.suppress(OSError):
            return files.space(self._directory).free_inodes is not None
        return False
