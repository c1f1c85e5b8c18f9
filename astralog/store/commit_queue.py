"""Commit batches: requests enqueue them and wait, and a pool of drain greenlets stores them.

A drain stores all queued batches in one write and one sync (group commit), in a thread, since both
block on the disk.
"""

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import NoReturn

import gevent
from gevent.pool import Group
from gevent.threadpool import ThreadPool

from astralog.clock import TrustedClock
from astralog.errors import STOPPING, STORAGE_FAILED, Cause, Rejection
from astralog.log import log_exception
from astralog.settings import Settings
from astralog.store.housekeeper import Housekeeper
from astralog.store.keys.claims import Claim, Key
from astralog.store.keys.idempotency_keys import IdempotencyKeys
from astralog.store.memory_budget import MemoryBudget, MemoryReservation
from astralog.store.queue import Batch, BatchQueue, CountStored, QueuedBatch
from astralog.store.writer import MAINTENANCE_SECONDS, Starts, Storage
from astralog.threads import DiskThreads, call_in_thread, spawn_in_thread

log = logging.getLogger(__name__)

#: Seconds in which a process that stops closes its files.
CLOSE_SECONDS = 1.0

#: Seconds after which the names of segments follow a change of the wall clock.
NAMES_ADOPT_SECONDS = 60.0

#: Seconds until the next step of a loop after one that failed.
FAILED_SECONDS = 1.0


class CommitQueue:
    """Store batches; the greenlets start with `start` or with the first batch."""

    def __init__(
        self,
        settings: Settings,
        count_stored: CountStored,
        are_tokens_several: Callable[[], bool] = lambda: False,
    ) -> None:
        """Store to the settings' data directory, and call `count_stored` for each commit group.

        While `are_tokens_several`, no token gets all of the queue's memory.
        """
        #: Names segments, so that a jump of the clock for seconds causes no name in the future.
        self.clock = TrustedClock(adopt_seconds=NAMES_ADOPT_SECONDS)
        starts = Starts(self.clock)
        self.storages = tuple(Storage(settings, starts) for _ in range(settings.writers))
        self.keys = IdempotencyKeys(settings)
        self.housekeeper = Housekeeper(settings, self.keys.upkeep)
        self.budget = MemoryBudget(settings.queue_bytes, are_tokens_several)
        self._batches = BatchQueue(count_stored, settings.commit_timeout_seconds)
        self._drains = Group()
        self._helpers = Group()
        self._drain_threads = DiskThreads(settings.writers)
        self._housekeeping_thread = ThreadPool(1)
        self._is_started = False
        self._is_stopping = False
        self._sealing = 0  # drains that have stored the queue and seal their segments

    def unavailable(self) -> str | None:
        """Return the code with which batches are rejected now, None if they are accepted."""
        if cause := self._find_cause():
            return cause.code
        return "queue_full" if self.budget.is_full else None

    def _find_cause(self) -> Cause | None:
        """Return why every batch is rejected now, None if they are admitted."""
        if self._is_stopping:
            return STOPPING
        for storage in self.storages:
            if storage.error is None:
                return None
        return self.storages[0].error

    def admit(self, token: bytes = b"", head_bytes: int = 0) -> MemoryReservation:
        """Return the memory reservation of a request, by its token's digest and its head's size.

        The bytes reserved for its body and lines count against the queue's limit. Raises Rejection:
        `stopping`, `storage_full`, `storage_failed` or `queue_full`.
        """
        if cause := self._find_cause():
            raise Rejection(*cause)
        return MemoryReservation(self.budget, token, head_bytes)

    def claim(self, key: Key) -> Claim:
        """Claim a key, as `IdempotencyKeys.claim` does; raises Rejection."""
        self.start()
        return self.keys.claim(key)

    def commit(
        self, batch: Batch, reservation: MemoryReservation, claim: Claim | None = None
    ) -> None:
        """Store all lines of the batch; the queue takes over its reservation.

        Raises Rejection if nothing of it is stored: `stopping`, `storage_full` or `storage_failed`;
        or `commit_timeout`, after which it may still be stored if a writer had dequeued it. With a
        claim it may also be rejected with `key_reused`, or be stored already: `claim.is_replayed`.
        """
        if not batch.lines:
            return
        if self._is_stopping:
            raise Rejection(*STOPPING)
        if not self._is_started:
            self.start()
        self._batches.enqueue(batch, reservation, claim)

    def start(self) -> None:
        """Start the drain pool and the housekeeping, unless they are running."""
        if self._is_started:
            return
        self._is_started = True
        self._drain_threads.start()
        for storage in self.storages:
            self._drains.spawn(self._drain, storage)
        self._helpers.spawn(_run_forever, self._batches.expire_waits, "expiry of waits failed")
        keep_house = self.keep_house_once
        self._helpers.spawn(_run_forever, keep_house, "housekeeping failed; it is retried")
        maintain_keys = partial(self.keys.maintain, self._has_failed)
        self._helpers.spawn(_run_forever, maintain_keys, "maintenance of the keys failed")

    def stop(self, timeout_seconds: float) -> None:
        """Store the queued batches, seal the segments and end the drain pool.

        Batches that cannot be stored in time are rejected, and segments that cannot be sealed in
        time are left to the next start.
        """
        self._is_stopping = True
        self._batches.end_drains(len(self._drains))
        self._drains.join(timeout_seconds)
        self._batches.reject_all(STOPPING)
        if len(self._drains) > self._sealing:
            log.error("stopped before all queued batches were stored; the others are rejected")
        elif self._sealing:
            log.warning("stopped before all segments were sealed; the next start seals them")
        self._helpers.kill(block=False)
        with contextlib.suppress(OSError):  # without a thread; the end of the process closes all
            spawn_in_thread(self._housekeeping_thread, self._close_housekeeper)
            # The last process to close the database of the keys leaves all of them in one file.
            spawn_in_thread(self._housekeeping_thread, self.keys.stand_aside).wait(CLOSE_SECONDS)

    def _drain(self, storage: Storage) -> None:
        """Drain until the queue ends; an exception is logged and does not end it."""
        is_last = False
        while not is_last:
            try:
                is_last = self.drain_once(storage)
            except Exception:
                log_exception(log, "drain failed; it is retried")
                gevent.sleep(MAINTENANCE_SECONDS)

    def drain_once(self, storage: Storage) -> bool:
        """Store a commit group, or maintain the storage if no batch waits; return whether to end.

        Calls that may block on the disk run outside the hub's thread.
        """
        # Filled in place, so that `finally` answers all that was dequeued before an error.
        group: list[QueuedBatch] = []
        cause: Cause | None = STORAGE_FAILED
        try:
            is_last = self._batches.dequeue_group(group, MAINTENANCE_SECONDS)
            if any(queued.claim for queued in group):
                cause = self._drain_threads.call(self.keys.store, storage, group)
            elif group:
                buffers = [queued.lines for queued in group]
                cause = self._drain_threads.call(storage.store, buffers)
        finally:
            self._batches.finish(group, cause)
        if is_last:
            self._sealing += 1
            try:
                self._drain_threads.call(storage.close)
            finally:
                self._sealing -= 1
        elif storage.is_maintenance_due():
            self._drain_threads.call(storage.maintain)
        return is_last

    def keep_house_once(self) -> float:
        """Run the next step of the housekeeping; return the seconds until the step after it."""
        keeper = self.housekeeper
        step = keeper.stand_aside if self._has_failed() else keeper.step
        return call_in_thread(self._housekeeping_thread, step)

    def _close_housekeeper(self) -> None:
        try:
            self.housekeeper.close()
        except Exception:
            log_exception(log, "the housekeeper cannot be closed")

    def _has_failed(self) -> bool:
        return any(s.error and s.error.code == STORAGE_FAILED.code for s in self.storages)


def _run_forever(step: Callable[[], float], message: str) -> NoReturn:
    """Call `step` forever, each time after the seconds that it returned.

    An exception is logged with `message`, which names the loop, and the loop goes on after
    FAILED_SECONDS. Only GreenletExit and other exceptions that are no Exception end it.
    """
    while True:
        try:
            pause = step()
        except Exception:
            log_exception(log, message)
            pause = FAILED_SECONDS
        gevent.sleep(pause)
