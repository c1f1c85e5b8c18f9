"""One of the processes that write to a data directory looks after it, for all of them."""

import contextlib
import errno
import logging
import time
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

from astralog.clock import TrustedClock
from astralog.log import LogOnce
from astralog.settings import Settings
from astralog.store import files
from astralog.store.deliveries import ForwardStatus, read_status
from astralog.store.directory import Inventory
from astralog.store.keys.upkeep import KeyUpkeep
from astralog.store.lease import Lease
from astralog.store.names import Form, SegmentName
from astralog.store.recovery import recover_file
from astralog.store.retention import MayRemove, Retention

log = logging.getLogger(__name__)

#: Seconds between two looks at what is new, and at whether the process that looks is still there.
LOOK_SECONDS = 1.0

#: A look that takes longer is done in slices with pauses: while a thread works in small steps, the
#: requests of its process wait for the interpreter.
SLICE_SECONDS = 0.0005
PAUSE_SECONDS = 0.005

#: Numbers are not shown when the disk has kept the housekeeper waiting for longer.
STALE_SECONDS = 10.0


class DiskUsage(NamedTuple):
    """The segments, open and sealed, their bytes, and the disk that they are on."""

    open_segments: int
    open_bytes: int
    sealed_segments: int
    sealed_bytes: int
    total_bytes: int
    free_bytes: int
    total_inodes: int | None = None  # None where the file system has no limit
    free_inodes: int | None = None
    forward: ForwardStatus | None = None  # what forward said of itself, where it is on


class Housekeeper:
    """Looks after the data directory while this process holds the directory's lock.

    Every process has one; those that do not get the lock wait for it. One thread at a time may
    use it, except for its numbers, which any may read.
    """

    def __init__(
        self,
        settings: Settings,
        may_remove: MayRemove = lambda name: True,
        clock: TrustedClock | None = None,
        keys: KeyUpkeep | None = None,
    ) -> None:
        """Apply the settings; `may_remove` returns whether a segment may go, by its name.

        Ages are measured by the clock.
        """
        self._keys = keys or KeyUpkeep(settings, TrustedClock())
        self._directory = settings.data_dir
        self._clock = clock or TrustedClock()
        self._started_at = time.time()
        self._retention = Retention(settings, may_remove, self._clock)
        self._is_forwarded = bool(settings.clickhouse_url)
        self._usage: DiskUsage | None = None
        self._failed: set[SegmentName] = set()  # segments whose recovery failed, and was logged
        self._failure = LogOnce(log, logging.WARNING)
        self._stepped_at = time.monotonic()
        self._steps = self._wait_and_look_after()

    @property
    def disk_usage(self) -> DiskUsage | None:
        """What lies in the directory, as of a second ago.

        None where another process looks after it, before all is known, and while the disk hangs.
        """
        is_stale = time.monotonic() - self._stepped_at > STALE_SECONDS
        return None if is_stale else self._usage

    @property
    def removed_segments(self) -> int:
        """The segments that this process removed so far."""
        return self._retention.removed_segments

    @property
    def removed_undelivered_segments(self) -> int:
        """Of these, the ones that were not delivered, though delivery is on."""
        return self._retention.removed_undelivered_segments

    def step(self) -> float:
        """Do a little of what is due, and return the seconds until the next step."""
        self._clock.now()  # also while another has the lock: it notices changes of the wall clock
        end = time.monotonic() + SLICE_SECONDS
        pause = 0.0
        try:
            while not pause and time.monotonic() < end:
                pause = next(self._steps)
        except OSError as error:
            self._steps = self._wait_and_look_after()
            self._failure.fail(error.errno, "cannot look after %s: %s", self._directory, error)
            pause = LOOK_SECONDS
        self._stepped_at = time.monotonic()
        return pause or PAUSE_SECONDS

    def stand_aside(self) -> float:
        """Hold nothing of a disk that fails, so that it can be unmounted and repaired.

        Returns the seconds until the next step.
        """
        self._clock.now()
        self.close()
        self._steps = self._wait_and_look_after()
        return LOOK_SECONDS

    def close(self) -> None:
        """Leave the directory to another process."""
        self._steps.close()

    def _wait_and_look_after(self) -> Generator[float, None, None]:
        """Yield the seconds until the next step, 0 where it may follow at once."""
        while (lease := Lease.acquire(self._directory)) is None:
            yield LOOK_SECONDS
        try:
            with (
                contextlib.closing(lease),
                contextlib.closing(self._open_inventory()) as inventory,
                contextlib.closing(self._keys),
            ):
                while True:
                    yield from self._look_after(inventory)
                    yield from _at_once(self._keys.step())
                    self._failure.end("%s is looked after again", self._directory)
                    lease.check()
                    yield LOOK_SECONDS
        finally:
            self._usage = None

    def _open_inventory(self) -> Inventory:
        return Inventory(self._directory, self._clock, self._started_at)

    def _look_after(self, inventory: Inventory) -> Iterator[float]:
        known = set(inventory.open)
        if inventory.is_scan_due:
            yield from _at_once(inventory.list_names())
            yield from self._recover(inventory, inventory.open)
            yield from _at_once(inventory.measure())
        yield from _at_once(inventory.follow())
        # A writer may not have locked the file that it has just made.
        yield from self._recover(inventory, inventory.open & known)
        space = files.space(self._directory)
        self._usage = usage = self._measure(inventory, space)
        total = usage.open_bytes + usage.sealed_bytes
        remove = self._retention.remove_excess(inventory.sealed, total, space)
        yield from _at_once(remove)

    def _recover(self, inventory: Inventory, segments: Iterable[SegmentName]) -> Iterator[float]:
        """Seal the open segments that no process holds; it is not known when those were written."""
        for segment in sorted(segments):
            try:
                recover_file(segment.path(self._directory, Form.OPEN))
                inventory.eras.note_recovered(segment)
            except (BlockingIOError, FileNotFoundError):
                self._failed.discard(segment)
            except OSError as error:
                if error.errno == errno.EROFS:  # as some file systems become by an error
                    raise
                if segment not in self._failed:
                    self._failed.add(segment)
                    name = segment.file(Form.OPEN)
                    log.error("cannot recover %s yet: %s", name, error.strerror)
            yield 0.0

    def _measure(self, inventory: Inventory, space: files.Space) -> DiskUsage:
        open_bytes = inventory.open_bytes()
        return DiskUsage(
            open_segments=len(inventory.open),
            open_bytes=open_bytes,
            sealed_segments=len(inventory.sealed),
            sealed_bytes=inventory.sealed.bytes,
            total_bytes=space.total,
            free_bytes=space.free,
            total_inodes=space.total_inodes,
            free_inodes=space.free_inodes,
            forward=read_status(self._directory) if self._is_forwarded else None,
        )


def _at_once(steps: Iterator[None]) -> Iterator[float]:
    """Yield that the next step may follow at once, after each step."""
    for _ in steps:
        yield 0.0
