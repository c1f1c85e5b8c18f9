"""The housekeeper of a data directory: recovery, retention and disk usage.

Each process that writes to the directory has one; only the holder of the lease works.
"""

import dataclasses
import enum
import errno
import logging
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from heapq import heapify, heappop
from typing import NamedTuple

from astralog.clock import TrustedClock, boot_time
from astralog.log import LogOnce
from astralog.settings import PREFIX, Settings
from astralog.store import files
from astralog.store.directory import Inventory, SegmentIndex
from astralog.store.forward_state import DeliveredSegments, ForwardStatus, read_status
from astralog.store.keys.database import LOCK_SECONDS
from astralog.store.keys.upkeep import KeyUpkeep
from astralog.store.names import Form, SegmentName
from astralog.store.segment import recover_file

log = logging.getLogger(__name__)

#: Seconds without further removals for free disk, if the file system does not show freed space yet;
#: otherwise all segments would be removed.
SETTLE_SECONDS = 60.0

#: Freed inodes in a row that do not show up as free, after which removals pause as well.
UNSEEN_INODES = 3

#: Seconds between two log lines about segments that were removed before their delivery.
UNDELIVERED_LOG_SECONDS = 60.0

#: Seconds until the next pass, for each segment that the last pass kept or could not remove: passes
#: take 1% of a core at most.
KEPT_SECONDS = 0.0005
FAILED_SECONDS = 0.005

#: Segments whose ages are compared in one step.
STEP_SEGMENTS = 100


class Reason(enum.Enum):
    """The reason of a removal; the values appear in the log."""

    AGE = "age"
    SIZE = "size"
    FREE_BYTES = "free disk"
    FREE_INODES = "free inodes"


#: The reasons for which undelivered segments may be removed, if a setting allows it.
DISK_REASONS = (Reason.FREE_BYTES, Reason.FREE_INODES)


@dataclasses.dataclass
class _Pass:
    """One pass over the segments: the excess for each reason, and the removals so far."""

    excess: dict[Reason, int]  # bytes or inodes
    kept_inodes: int  # that are to be free
    removed: Counter[Reason] = dataclasses.field(default_factory=Counter)
    last: str = ""  # the segment with the last name

    def reason(self) -> Reason | None:
        """Return the reason to remove the oldest segment, None to keep it."""
        return next((reason for reason, left in self.excess.items() if left > 0), None)

    def is_disk_short(self) -> bool:
        return any(self.excess.get(reason, 0) > 0 for reason in DISK_REASONS)

    def note(self, name: SegmentName, reason: Reason, size: int, files: int) -> None:
        """Count a removed segment, with the bytes and the number of its files."""
        self.removed[reason] += 1
        self.last = max(self.last, name)
        for key in self.excess:
            self.excess[key] -= files if key is Reason.FREE_INODES else size


class Retention:
    """Remove the sealed segments that exceed the settings: by age, size and free disk.

    With forwarding, undelivered segments are spared, unless the disk is short and a setting allows
    their removal. Spared segments, and those that cannot be removed, do not protect younger ones.
    """

    def __init__(self, settings: Settings, clock: TrustedClock) -> None:
        self._directory = settings.data_dir
        self._clock = clock
        self._bytes = settings.retain_bytes
        self._seconds = settings.retain_seconds
        self._free_bytes = settings.retain_free_bytes
        is_forwarded = bool(settings.clickhouse_url)
        self._takes_spared = is_forwarded and settings.retain_undelivered == "until_full"
        if self._takes_spared:
            self._free_bytes = max(self._free_bytes, settings.min_free_bytes)
        #: None if each segment may be removed.
        self._delivered = DeliveredSegments(settings.data_dir) if is_forwarded else None
        self._min_free_bytes = settings.min_free_bytes
        self._settled_at = dict.fromkeys(DISK_REASONS, 0.0)
        self._unseen_inodes = 0  # removals in a row after which no more inodes were free
        self._expired_due_at = self._oldest_due_at = 0.0  # when the next passes are due
        self._unremovable: set[SegmentName] = set()
        self._failure = LogOnce(log)
        self._undelivered = UndeliveredLog()
        self.removed_segments = 0
        self.removed_undelivered_segments = 0

    def remove_excess(self, index: SegmentIndex, total: int, space: files.Space) -> Iterator[None]:
        """Remove segments that are too old, and then the oldest beyond the size or the free disk.

        Yield after each small step. `total` is the number of bytes of all segments.
        """
        self._unremovable = {name for name in self._unremovable if index.get(name)}
        if not self._unremovable:
            self._failure.end("segments can be removed again")
        this = _Pass(self._excess(total, space), self._kept_inodes(space))
        if self._seconds and time.monotonic() >= self._expired_due_at:
            yield from self._remove_expired(index, this)
        if this.reason() and time.monotonic() >= self._oldest_due_at:
            yield from self._remove_oldest(index, this)
        self._undelivered.show()
        if this.removed:
            counts = ", ".join(f"{n} by {reason.value}" for reason, n in this.removed.items())
            log.info("removed segments up to %s: %s", this.last, counts)

    def _excess(self, total: int, space: files.Space) -> dict[Reason, int]:
        """Return the excess of bytes or inodes for each reason that is configured."""
        excess = {}
        if self._bytes:
            excess[Reason.SIZE] = total - self._bytes
        if self._free_bytes:
            excess[Reason.FREE_BYTES] = self._free_bytes - space.free
            if space.free_inodes is not None:
                excess[Reason.FREE_INODES] = self._kept_inodes(space) - space.free_inodes
        now = time.monotonic()
        return {key: n for key, n in excess.items() if now >= self._settled_at.get(key, 0.0)}

    def _kept_inodes(self, space: files.Space) -> int:
        """Return the inodes to keep free: more than the limit below which batches are rejected."""
        kept = space.kept_inodes(self._free_bytes)
        if self._free_bytes > self._min_free_bytes:
            kept = max(kept, space.kept_inodes(self._min_free_bytes) + 1)
        return kept

    def _remove_expired(self, index: SegmentIndex, this: _Pass) -> Iterator[None]:
        """Remove segments older than the setting, in any position of the order of names."""
        # A removal cannot be undone: both clocks must agree, in case the trusted one was wrong.
        now, elapsed = min(self._clock.now(), time.time()), boot_time()
        segments, expired = index.items(), []
        for first in range(0, len(segments), STEP_SEGMENTS):
            step = segments[first : first + STEP_SEGMENTS]
            expired += [name for name, entry in step if entry.age(now, elapsed) > self._seconds]
            yield
        heapify(expired)
        while expired:
            self._take(heappop(expired), Reason.AGE, index, this)
            yield
        self._expired_due_at = self._next_pass_at(len(index))

    def _remove_oldest(self, index: SegmentIndex, this: _Pass) -> Iterator[None]:
        """Remove the oldest removable segments until there is no excess."""
        kept = 0
        with closing(index.oldest_first()) as oldest:
            while (reason := this.reason()) and (name := next(oldest, None)):
                kept += not self._take(name, reason, index, this)
                yield
        self._oldest_due_at = self._next_pass_at(kept)

    def _next_pass_at(self, kept: int) -> float:
        pause = KEPT_SECONDS * kept + FAILED_SECONDS * len(self._unremovable)
        return time.monotonic() + pause

    def _take(self, name: SegmentName, reason: Reason, index: SegmentIndex, this: _Pass) -> bool:
        """Remove a segment if that is allowed and possible; return whether it is gone."""
        is_spared = self._delivered is not None and name not in self._delivered
        if is_spared and not (self._takes_spared and this.is_disk_short()):
            return False
        before = files.space(self._directory) if reason in DISK_REASONS else None
        count = self._remove(name)
        if count is None:
            return False
        size = index.remove(name)
        if count:
            self.removed_segments += 1
            if is_spared:
                self.removed_undelivered_segments += 1
                self._undelivered.note(name, size, self._describe_shortage(this))
        this.note(name, reason, size, count)
        if before:
            self._settle(reason, before, size)
        return True

    def _describe_shortage(self, this: _Pass) -> str:
        if this.excess.get(Reason.FREE_BYTES, 0) > 0:
            return f"less than {self._free_bytes} bytes of disk were free"
        return f"fewer than {this.kept_inodes} inodes were free"

    def _settle(self, reason: Reason, before: files.Space, size: int) -> None:
        """Pause removals for a reason if the disk does not show the freed space."""
        after = files.space(self._directory)
        if reason is Reason.FREE_BYTES:
            is_seen = after.free >= before.free + size // 2
        else:
            # Writers may have taken the inode already.
            is_new = (after.free_inodes or 0) > (before.free_inodes or 0)
            self._unseen_inodes = 0 if is_new else self._unseen_inodes + 1
            is_seen = self._unseen_inodes < UNSEEN_INODES
        if not is_seen:
            self._unseen_inodes = 0
            self._settled_at[reason] = time.monotonic() + SETTLE_SECONDS

    def _remove(self, name: SegmentName) -> int | None:
        """Remove a segment; return the number of its files, None if it cannot be removed now."""
        try:
            return files.remove_sealed(self._directory, name)
        except OSError as error:
            self._unremovable.add(name)
            why = "removal is retried"
            self._failure.fail("removal", "cannot remove %s: %s; %s", name, error.strerror, why)
            return None


class UndeliveredLog:
    """Log the segments that were removed before they were delivered, at most once a minute."""

    def __init__(self) -> None:
        self._count = self._bytes = 0
        self._last = self._why = ""
        self._next_at = time.monotonic()

    def note(self, name: str, size: int, why: str) -> None:
        self._count += 1
        self._bytes += size
        self._last, self._why = name, why

    def show(self) -> None:
        if not self._count or time.monotonic() < self._next_at:
            return
        removed = f"{self._count} segments, {self._bytes} bytes, up to {self._last}"
        why = f"({PREFIX}RETAIN_UNDELIVERED): {self._why}"
        log.error("removed %s BEFORE THEY WERE DELIVERED %s", removed, why)
        self._count = self._bytes = 0
        self._next_at = time.monotonic() + UNDELIVERED_LOG_SECONDS


#: Seconds between two rounds of the housekeeper, and between two attempts to get the lease.
POLL_SECONDS = 1.0

#: A round is done in slices with pauses between them: while a thread works in small steps, the
#: requests of its process wait for the interpreter.
SLICE_SECONDS = 0.0005
PAUSE_SECONDS = 0.005

#: Age above which disk usage is not shown: the disk has blocked the housekeeper for so long.
STALE_SECONDS = 10.0


class DiskUsage(NamedTuple):
    """The open and sealed segments, their bytes, and the disk's free space."""

    open_segments: int
    open_bytes: int
    sealed_segments: int
    sealed_bytes: int
    space: files.Space
    forward: ForwardStatus | None = None  # the status that forward wrote, if it is configured


class Housekeeper:
    """Recover, measure and remove segments while this process holds the directory's lease.

    Without the lease it polls for it. One thread at a time may call its methods; any thread may
    read its properties.
    """

    def __init__(self, settings: Settings, keys: KeyUpkeep | None = None) -> None:
        self._directory = settings.data_dir
        self._clock = TrustedClock()
        self._keys = keys or KeyUpkeep(settings, self._clock)
        self._started_at = time.time()
        self.retention = Retention(settings, self._clock)
        self._is_forwarded = bool(settings.clickhouse_url)
        self._usage: DiskUsage | None = None
        self._failed: set[SegmentName] = set()  # segments whose failed recovery is logged
        self._failure = LogOnce(log, logging.WARNING)
        self._stepped_at = time.monotonic()
        self._steps = self._keep_house()

    @property
    def disk_usage(self) -> DiskUsage | None:
        """The directory's segments and disk, at most some seconds old.

        None if another process has the lease, before the first scan, and while the disk hangs.
        """
        is_stale = time.monotonic() - self._stepped_at > STALE_SECONDS
        return None if is_stale else self._usage

    def step(self) -> float:
        """Work for a slice of time, and return the seconds until the next step."""
        self._clock.now()  # also without the lease: it notices changes of the wall clock
        end = time.monotonic() + SLICE_SECONDS
        pause: float | None = None
        try:
            while not pause and time.monotonic() < end:
                pause = next(self._steps)
        except OSError as error:
            self._steps = self._keep_house()
            self._failure.fail(error.errno, "housekeeping of %s failed: %s", self._directory, error)
            pause = POLL_SECONDS
        self._stepped_at = time.monotonic()
        return pause or PAUSE_SECONDS

    def stand_aside(self) -> float:
        """Close all files on a failing disk, so that it can be unmounted and repaired.

        Return the seconds until the next step.
        """
        self._clock.now()
        self.close()
        self._steps = self._keep_house()
        return POLL_SECONDS

    def close(self) -> None:
        self._steps.close()

    def _keep_house(self) -> Generator[float | None, None, None]:
        """Yield the seconds until the next step, None if it may follow at once."""
        while (lease := files.Lease.acquire(self._directory)) is None:
            yield POLL_SECONDS
        try:
            with (
                closing(lease),
                closing(Inventory(self._directory, self._clock, self._started_at)) as inventory,
                closing(self._keys),
            ):
                while True:
                    yield from self._work_once(inventory)
                    yield from self._keys.step()
                    self._failure.end("housekeeping of %s works again", self._directory)
                    lease.check()
                    yield POLL_SECONDS
        finally:
            self._usage = None

    def _work_once(self, inventory: Inventory) -> Iterator[None]:
        known = set(inventory.open)
        if inventory.is_scan_due:
            yield from inventory.list_names()
            yield from self._recover(inventory, inventory.open)
            yield from inventory.measure()
        yield from inventory.follow()
        # A writer may not have locked a file that it has just created.
        yield from self._recover(inventory, inventory.open & known)
        open_bytes = inventory.open_bytes()
        space = files.space(self._directory)
        self._usage = DiskUsage(
            open_segments=len(inventory.open),
            open_bytes=open_bytes,
            sealed_segments=len(inventory.sealed),
            sealed_bytes=inventory.sealed.bytes,
            space=space,
            forward=read_status(self._directory) if self._is_forwarded else None,
        )
        total = open_bytes + inventory.sealed.bytes
        yield from self.retention.remove_excess(inventory.sealed, total, space)

    def _recover(self, inventory: Inventory, segments: Iterable[SegmentName]) -> Iterator[None]:
        """Seal the open segments without a living writer."""
        for segment in sorted(segments):
            try:
                recover_file(segment.path(self._directory, Form.OPEN), LOCK_SECONDS)
                inventory.eras.note_recovered(segment)
            except (BlockingIOError, FileNotFoundError):
                self._failed.discard(segment)
            except OSError as error:
                if error.errno == errno.EROFS:  # as some file systems become after an error
                    raise
                if segment not in self._failed:
                    self._failed.add(segment)
                    name = segment.file(Form.OPEN)
                    log.error("cannot recover %s yet: %s", name, error.strerror)
            yield
