"""The write queue of a worker: its batches and their commit groups."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import gevent
from gevent.hub import Waiter
from gevent.queue import Queue

from astralog.deadlines import TimeLimit
from astralog.errors import Cause, Rejection, commit_timeout
from astralog.store.keys.claims import Claim, Outcome
from astralog.store.memory_budget import MemoryReservation

#: Called with the number of stored batches, the bytes of their lines, and the number of their logs.
#: Of these, the client of the late ones was gone or had received `commit_timeout`.
CountStored = Callable[[int, int, int, int], None]

#: Bytes of a commit group, which is written and synced at once; further batches go to the next one.
GROUP_BYTES = 8 * 1024 * 1024

#: Maximum seconds that a commit group waits while other requests have work to do: the more batches
#: join it, the fewer writes and syncs. At 8 connections, it saves a fifth of the CPU per log.
GATHER_SECONDS = 0.005

#: Seconds between two checks for waits that are over.
OVERDUE_SECONDS = 0.1


class Batch(NamedTuple):
    """The stored form of a batch: `lines` is NDJSON, one line per log; `logs` is their number."""

    lines: bytes | bytearray
    logs: int


class BatchState(Enum):
    """The state of a batch; its memory is held until it is FINISHED."""

    QUEUED = "no writer has dequeued it, and its client waits"
    TAKEN = "a writer stores it, and its client waits"
    LATE = "a writer stores it, and its client is gone or has received commit_timeout"
    FINISHED = "it is stored, or rejected, or was dropped before a writer dequeued it"


@dataclass(slots=True, eq=False)
class QueuedBatch:
    """A batch in the queue, with the reservation of its memory and the claim of its key."""

    lines: bytes | bytearray
    logs: int
    reservation: MemoryReservation
    deadline: float
    claim: Claim | None
    state: BatchState = BatchState.QUEUED
    is_waited_for: bool = True  #: whether its client still waits for the outcome
    #: Returns the outcome: None if the batch is stored, else why it is rejected.
    waiter: "Waiter[Cause | None]" = field(default_factory=Waiter)

    def answer(self, cause: Cause | None) -> None:
        """Set the outcome unless it is set: the cause of a rejection, None if the batch is stored.

        The cause is no exception: a traceback would keep the request's frames, and the batch in
        them, in memory while the batch is in the queue.
        """
        if self.is_waited_for:
            self.is_waited_for = False
            gevent.get_hub().loop.run_callback(self.waiter.switch, cause)


class BatchQueue:
    """A FIFO queue of batches, bounded by the memory that they reserve."""

    def __init__(self, count_stored: CountStored, timeout_seconds: float) -> None:
        """Call `count_stored` for each commit group."""
        self._count_stored = count_stored
        self._timeout_seconds = timeout_seconds
        self._queue: Queue[QueuedBatch | None] = Queue()  # None ends a drain
        self._waiting: deque[QueuedBatch] = deque()  # in the order of their deadlines

    def enqueue(
        self, batch: Batch, reservation: MemoryReservation, claim: Claim | None = None
    ) -> None:
        """Enqueue a batch and wait until it is stored; raises Rejection if it is not.

        Its key stays claimed until no writer can store the batch any more.
        """
        reservation.detach()
        deadline = time.monotonic() + self._timeout_seconds
        queued = QueuedBatch(*batch, reservation, deadline, claim)
        if claim:
            claim.add_holder()
        self._queue.put(queued)
        self._waiting.append(queued)
        try:
            cause = queued.waiter.get()
        finally:
            self._leave(queued)
        if cause:
            raise Rejection(*cause)

    def end_drains(self, drains: int) -> None:
        """End `drains` drains once all batches that are queued now are dequeued."""
        for _ in range(drains):
            self._queue.put(None)

    def dequeue_group(self, group: list[QueuedBatch], timeout_seconds: float) -> bool:
        """Move queued batches to a commit group; return whether the calling drain must end.

        If no batch is queued within the timeout, the group stays empty.
        """
        size = 0
        with TimeLimit(timeout_seconds):
            self._queue.peek()
        with TimeLimit(GATHER_SECONDS):
            gevent.idle()
        while size < GROUP_BYTES and not self._queue.empty():
            queued = self._queue.get_nowait()
            if queued is None:
                return True
            if queued.state is BatchState.QUEUED:
                queued.state = BatchState.TAKEN
                group.append(queued)
                size += len(queued.lines)
        return False

    def finish(self, group: Sequence[QueuedBatch], cause: Cause | None) -> None:
        """Set the outcome of the batches in a commit group: stored, or rejected for a cause.

        Those with a key whose outcome is not NEW were not part of it.
        """
        batches = size = logs = late_logs = 0
        for queued in group:
            if queued.claim and queued.claim.outcome is not Outcome.NEW:
                self._release(queued)
                queued.answer(queued.claim.cause)
                continue
            if cause is None:
                batches += 1
                size += len(queued.lines)
                logs += queued.logs
                late_logs += queued.logs if queued.state is BatchState.LATE else 0
            self._release(queued)
            queued.answer(cause)
        if batches:
            self._count_stored(batches, size, logs, late_logs)

    def reject_all(self, cause: Cause) -> None:
        while not self._queue.empty():
            queued = self._queue.get()
            if queued is not None and queued.state is BatchState.QUEUED:
                self.finish([queued], cause)

    def expire_waits(self) -> float:
        """Reject batches whose wait is over, and drop finished batches at the queue's head.

        One timer for all waits costs less than one per wait. Return the seconds until the next
        call.
        """
        now = time.monotonic()
        while self._waiting:
            queued = self._waiting[0]
            if queued.is_waited_for and queued.deadline > now:
                break
            self._waiting.popleft()
            if queued.is_waited_for:
                may_be_stored = queued.state is not BatchState.QUEUED
                queued.answer(commit_timeout(self._timeout_seconds, may_be_stored=may_be_stored))
                self._leave(queued)  # before a writer that wakes up meanwhile dequeues it
        while (first := self._first()) and first.state is BatchState.FINISHED:
            self._queue.get_nowait()
        return OVERDUE_SECONDS

    def _first(self) -> QueuedBatch | None:
        return None if self._queue.empty() else self._queue.peek_nowait()

    def _leave(self, queued: QueuedBatch) -> None:
        """Record that a batch's client is gone or has received `commit_timeout`."""
        if queued.state is BatchState.QUEUED:
            self._release(queued)
        elif queued.state is BatchState.TAKEN:
            queued.state = BatchState.LATE

    def _release(self, queued: QueuedBatch) -> None:
        """Finish a batch: release its memory and its key."""
        queued.state = BatchState.FINISHED
        queued.lines = b""
        queued.reservation.release()
        if queued.claim:
            queued.claim.release()
