"""Store batches with an idempotency key once, however often they are sent, to any worker.

A request claims its key: an entry in memory excludes other requests of this process, a lock those
of other processes. The drain thread then finds out whether an earlier try is stored. If not, it
commits a record of the lines' position (the write-ahead record), and only then writes the lines.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gevent.event import AsyncResult
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from astralog.clock import TrustedClock
from astralog.errors import (
    KEY_IN_USE,
    KEY_REUSED,
    KEYS_NEED_THREAD,
    Cause,
    Rejection,
    commit_timeout,
    explain,
    storage_error,
)
from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store.files import lock_byte
from astralog.store.keys.claims import Claim, Key, KeyedBatch, KeyLocks, Outcome
from astralog.store.keys.database import LOCK_SECONDS, Database, Entry, Record, block_thread
from astralog.store.keys.upkeep import KeyUpkeep
from astralog.store.names import Form, SegmentName
from astralog.store.reader import READ_ERRORS, size_of_lines
from astralog.store.segment import RECOVERY_BYTE, recover_file
from astralog.store.writer import Storage
from astralog.threads import CallOutcome, call_in_thread, spawn_in_thread

log = logging.getLogger(__name__)

#: Seconds between two calls of `maintain`.
MAINTENANCE_SECONDS = 1.0


class NotRecorded(Exception):
    """The records of a commit group could not be committed, and no line was written."""

    def __init__(self, error: OSError | MemoryError) -> None:
        super().__init__(str(error))
        self.error = error


class IdempotencyKeys:
    """The idempotency keys of a data directory, used by one of its processes.

    The hub calls `claim`, threads call the other methods.
    """

    def __init__(self, settings: Settings) -> None:
        is_synced = settings.sync == "always"
        self._mode = settings.sync
        self._seconds = settings.idempotency_seconds
        self._timeout_seconds = settings.commit_timeout_seconds
        self._clock = TrustedClock()
        self.upkeep = KeyUpkeep(settings, self._clock)
        self._failure = LogOnce(log)
        self.error: Cause | None = None  # with which batches with keys are rejected now
        # Claims
        self._locks = KeyLocks(settings.data_dir)
        self._claimed: set[bytes] = set()
        self._unsettled: list[tuple[Storage, Claim]] = []  # rejected, but not truncated and sealed
        # Records, and the lines that they describe
        self._database = Database(settings.data_dir, is_synced=is_synced)
        self._lines = StoredLines(settings.data_dir, is_synced=is_synced)
        self._unreadable = LogOnce(log)
        self._has_unsynced = False
        # Threads
        self._mutex = get_original("threading", "Lock")()  # of the database and the lists above
        self._groups = 0  # that are being stored
        self._thread = ThreadPool(1)
        self._opening: AsyncResult[CallOutcome[None]] | None = None
        self._is_open = False

    # --- Claim: called by the hub

    def claim(self, key: Key) -> Claim:
        """Claim a key: no other request can store it until the claim is released.

        Raises Rejection: `key_in_use`, `storage_full`, `storage_failed`, or `commit_timeout` if
        the database cannot be opened in time.
        """
        self._wait_until_open()
        try:
            is_free = key.digest not in self._claimed and self._locks.lock(key.digest)
        except OSError as error:
            raise Rejection(*storage_error(error)) from error
        if not is_free:
            raise Rejection(*KEY_IN_USE)
        self._claimed.add(key.digest)
        return Claim(key, self._locks.epoch, self._unlock)

    def _unlock(self, key: Key) -> None:
        self._locks.unlock(key.digest)
        self._claimed.discard(key.digest)  # not before, or a new claim's lock would be released

    def _wait_until_open(self) -> None:
        if not self._is_open and not self.error:
            if self._opening is None or self._opening.ready():
                try:
                    self._opening = spawn_in_thread(self._thread, self.open)
                except OSError as error:
                    raise Rejection(*KEYS_NEED_THREAD) from error
            self._opening.wait(self._timeout_seconds)
            if self._opening.ready():
                self._opening.get().get()  # raises what `open` did not expect
        if self.error:
            raise Rejection(*self.error)
        if not self._is_open:
            raise Rejection(*commit_timeout(self._timeout_seconds, may_be_stored=False))

    # --- Decide, record, write: called by the drain threads

    def store(self, storage: Storage, group: Sequence[KeyedBatch]) -> Cause | None:
        """Store a commit group in which batches have keys.

        Return as `Storage.store` does, for the batches without a key and those whose outcome is NEW
        afterwards.
        """
        with self._mutex:
            self._groups += 1
        try:
            return self._store(storage, group)
        finally:
            with self._mutex:
                self._groups -= 1

    def _store(self, storage: Storage, group: Sequence[KeyedBatch]) -> Cause | None:
        self._release_settled()
        self._decide([batch.claim for batch in group if batch.claim])
        rest = [batch for batch in group if not batch.claim or batch.claim.outcome is Outcome.NEW]
        keyed = [batch.claim for batch in rest if batch.claim]
        if keyed:
            try:
                return self._store_keyed(storage, rest, keyed)
            except NotRecorded as error:
                self._reject(keyed, error.error)
            rest = [batch for batch in rest if not batch.claim]
        return storage.store([batch.lines for batch in rest]) if rest else None

    def _decide(self, claims: Sequence[Claim]) -> None:
        """Decide claims by the earlier tries of their keys; no process can store these any more."""
        try:
            with self._mutex:
                self._open()
                digests = [claim.key.digest for claim in claims]
                found = self._database.find(digests, self._clock.now() - self._seconds)
                deadline = time.monotonic() + WAIT_SECONDS
                for claim in claims:
                    self._decide_one(claim, found.get(claim.key.digest, ()), deadline)
        except (OSError, MemoryError) as error:
            self._reject(claims, error)

    def _reject(self, claims: Sequence[Claim], error: OSError | MemoryError) -> None:
        cause = self._note_error(error)
        for claim in claims:
            claim.reject(cause)

    def _decide_one(self, claim: Claim, entries: Sequence[Entry], deadline: float) -> None:
        if claim.epoch != self._locks.epoch:  # another process may have the key by now
            claim.reject(KEY_IN_USE)
            return
        try:
            stored = next((entry for entry in entries if self._is_stored(entry, deadline)), None)
        except READ_ERRORS as error:
            self._unreadable.fail(
                explain(error), "cannot find out whether a batch with a key is stored: %s", error
            )
            claim.reject(storage_error(error))
            return
        self._unreadable.end()
        if stored and stored.body == claim.key.body:
            claim.outcome = Outcome.REPLAYED
        elif stored:
            claim.reject(KEY_REUSED)

    def _is_stored(self, entry: Entry, deadline: float) -> bool:
        """Return whether the lines of an earlier try are stored, or were removed by retention.

        A segment that a dead process left open is recovered first, so that the answer is final.
        """
        if entry.size is not None:
            return entry.stop <= entry.size
        return self._lines.recover_and_check(entry.segment, entry.stop, deadline)

    def _store_keyed(
        self, storage: Storage, batches: Sequence[KeyedBatch], claims: Sequence[Claim]
    ) -> Cause | None:
        ends: list[tuple[str, int]] = []
        is_stored = False
        try:
            cause = storage.store(
                [batch.lines for batch in batches], partial(self._record, batches, ends)
            )
            is_stored = cause is None
        finally:
            if is_stored:
                self._lines.note_stored(*ends[-1])
            elif storage.has_unsettled():
                self._hold_unsettled(storage, claims)
        return cause

    def _record(
        self, batches: Sequence[KeyedBatch], ends: list[tuple[str, int]], segment: str, start: int
    ) -> None:
        """Commit the records of batches that begin at an offset; raises NotRecorded."""
        records = []
        for batch in batches:
            stop = start + len(batch.lines)
            if batch.claim:
                records.append(Record(batch.claim.key, start, stop))
            start = stop
        ends.append((segment, start))
        try:
            with self._mutex:
                self._has_unsynced = True
                self._database.add(segment, self._clock.now(), records)
        except (OSError, MemoryError) as error:
            raise NotRecorded(error) from error

    # --- Rejected lines that may still come back: they are not truncated and sealed yet

    def _hold_unsettled(self, storage: Storage, claims: Sequence[Claim]) -> None:
        with self._mutex:
            for claim in claims:
                claim.add_holder()
                self._unsettled.append((storage, claim))

    def _release_settled(self) -> None:
        with self._mutex:
            settled = [(s, claim) for s, claim in self._unsettled if not s.has_unsettled()]
            self._unsettled = [pair for pair in self._unsettled if pair not in settled]
        for _, claim in settled:
            claim.release()

    # --- Maintenance

    def maintain(self, has_failed: Callable[[], bool]) -> float:
        """Run one step of maintenance in a thread; return the seconds until the next call."""
        step = self.stand_aside if has_failed() else self.step
        call_in_thread(self._thread, step)
        return MAINTENANCE_SECONDS

    def step(self) -> None:
        """Reopen replaced files, and check whether an error is over."""
        self._clock.now()  # notices changes of the wall clock
        self._release_settled()
        if self._is_open or self.error:
            self.open()

    def open(self) -> None:
        """Open the database, and end an error once a commit succeeds; never raises."""
        try:
            with self._mutex:
                self._open()
                if self.error:
                    self._database.commit_nothing()
                elif self._mode == "everysec" and self._has_unsynced:
                    self._has_unsynced = False
                    self._database.sync()
        except (OSError, MemoryError) as error:
            self._note_error(error)
            return
        self.error = None
        self._failure.end("idempotency keys: batches with a key are stored again")

    def _open(self) -> None:
        self._locks.open()
        self._database.open()
        self._is_open = True

    def _note_error(self, error: OSError | MemoryError) -> Cause:
        """Reject batches with keys from now on."""
        self.error = cause = storage_error(error)
        message = "idempotency keys: %s; batches with a key are rejected"
        self._failure.fail(cause.code, message, explain(error))
        return cause

    def stand_aside(self) -> None:
        """Close all files on a failing disk, so that it can be unmounted and repaired.

        Claims are lost with their locks: the commits of their requests are rejected. So are the
        claims of unsettled lines; the next claim of such a key recovers the segment first, unless
        it is still open.
        """
        self._release_settled()
        with self._mutex:
            if not (self._groups or any(storage.has_untruncated for storage, _ in self._unsettled)):
                self._is_open = False
                self._database.close()
                self._locks.close()


# --- The lines of earlier tries, in segments whose size is not recorded

#: Bytes that are read at once.
BLOCK_BYTES = 1024 * 1024

#: Open segments whose checked length is remembered.
MAX_SEGMENTS = 1000

#: Seconds that the earlier tries of a commit group are waited for: their segments may be recovered
#: or renamed meanwhile, which takes five syncs of a slow disk, or the database be locked. Then 503.
#: As long as for the database itself, and for the same reason.
WAIT_SECONDS = LOCK_SECONDS

#: Seconds between two attempts.
PAUSE_SECONDS = 0.01


class StoredLines:
    """A reader of a directory's segments; one thread at a time may use it.

    It gives final answers for batches that no process is storing.
    """

    def __init__(self, directory: Path, *, is_synced: bool) -> None:
        self._directory = directory
        self._is_synced = is_synced
        self._whole: dict[str, int] = {}  # bytes at the start of open segments that have no hole

    def note_stored(self, segment: str, stop: int) -> None:
        """Record that a segment is stored up to an offset."""
        if len(self._whole) >= MAX_SEGMENTS:
            self._whole.clear()  # they are read again on the next check
        self._whole[segment] = stop

    def recover_and_check(self, segment: str, stop: int, deadline: float) -> bool:
        """Recover a segment without a recorded size; return whether it has the lines up to `stop`.

        A segment that a dead process left open is truncated and sealed first. A segment that is
        gone without a record of its size never had a line. Raises OSError if the answer is unknown
        at the deadline, by time.monotonic().
        """
        if stop <= self._whole.get(segment, 0):
            return True
        while True:
            is_last = time.monotonic() >= deadline
            try:
                return stop <= recover_file(self._open_path(segment))
            except BlockingIOError:
                if (found := self._check_held(segment, stop)) is not None:
                    return found
            except FileNotFoundError:
                with contextlib.suppress(FileNotFoundError):
                    return stop <= size_of_lines(self._directory, segment)
                if not self._open_path(segment).exists():
                    return False
            except OSError as error:
                # A recovery itself waits SEAL_LOCK_SECONDS for the database.
                if is_last or error.errno != errno.EBUSY:
                    raise
            if is_last:
                raise BlockingIOError("the segment is being recovered")
            block_thread(PAUSE_SECONDS)

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
