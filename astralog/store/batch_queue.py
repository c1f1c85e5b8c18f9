"""The batches that wait for the disk, and the clients that wait for their batches."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple

import gevent
from gevent.hub import Waiter
from gevent.queue import Queue

from astralog.deadlines import TimeLimit
from astralog.errors import Cause, Rejection, commit_timeout
from astralog.store.keys.claims import Claim, Outcome
from astralog.store.memory_budget import MemoryReservation

#: Called with each stored batch: the bytes of its lines, its logs, and whether its client had been
#: told `commit_timeout` or was gone.
CountStored = Callable[[int, int, bool], None]

#: Bytes of a commit group, which is written and synced at once; what is queued beyond them waits
#: for the next one.
GROUP_BYTES = 8 * 1024 * 1024

#: Seconds that a commit group waits at most while other requests have work to do: the more join it,
#: the fewer writes and syncs. Measured at 8 connections, it saves a fifth of the CPU for a log.
GATHER_SECONDS = 0.005


class Batch(NamedTuple):
    """A batch as it is stored: `lines` is NDJSON, one line for each of `logs` logs."""

    lines: bytes
    logs: int


class State(Enum):
    """Where a batch is on its way; its memory is held until it is FINISHED."""

    QUEUED = "no writer has taken it, and its client waits"
    TAKEN = "a writer stores it, and its client waits"
    LATE = "a writer stores it, and its client is gone or was told commit_timeout"
    FINISHED = "it is stored, or rejected, or was dropped before a writer took it"


class QueuedBatch:
    """A batch in the queue, which holds the memory of its reservation."""

    __slots__ = (
        "_waiter",
        "claim",
        "deadline",
        "is_waited_for",
        "lines",
        "logs",
        "reservation",
        "state",
    )

    def __init__(
        self,
        batch: Batch,
        reservation: MemoryReservation,
        deadline: float,
        claim: Claim | None = None,
    ) -> None:
        self.state = State.QUEUED
        self.claim = claim
        self.lines = batch.lines
        self.logs = batch.logs
        self.reservation = reservation
        self.deadline = deadline
        #: Whether its client was told nothing yet.
        self.is_waited_for = True
        self._waiter: Waiter[Cause | None] = Waiter()

    def wait(self) -> Cause | None:
        """Return None when the batch is stored, else why it is rejected."""
        cause: Cause | None = self._waiter.get()
        return cause

    def answer(self, cause: Cause | None) -> None:
        """Answer its client, unless that was done before: why it is rejected, None if stored.

        No exception: its traceback would hold the request's frames, and the batch in them, for as
        long as the disk leaves the batch in the queue.
        """
        if self.is_waited_for:
            self.is_waited_for = False
            gevent.get_hub().loop.run_callback(self._waiter.switch, cause)


class BatchQueue:
    """Batches in the order of their commits, bounded by the memory that they reserve."""

    def __init__(self, count_stored: CountStored, timeout_seconds: float) -> None:
        """Call `count_stored` for each stored batch."""
        self._count_stored = count_stored
        self._timeout_seconds = timeout_seconds
        self._queue: Queue[QueuedBatch | None] = Queue()  # None ends a drain
        self._waiting: deque[QueuedBatch] = deque()  # in the order of their deadlines

    def wait_for(
        self, batch: Batch, reservation: MemoryReservation, claim: Claim | None = None
    ) -> None:
        """Queue a batch and return when it is stored; raises Rejection when it is not.

        Its key is held until no writer has it any more.
        """
        deadline = time.monotonic() + self._timeout_seconds
        queued = QueuedBatch(batch, reservation.detach(), deadline, claim)
        if claim:
            claim.hold()
        self._queue.put(queued)
        self._waiting.append(queued)
        try:
            cause = queued.wait()
        finally:
            self._leave(queued)
        if cause:
            raise Rejection(*cause)

    def end(self, drains: int) -> None:
        """Let so many drains end when they have taken what is queued by now."""
        for _ in range(drains):
            self._queue.put(None)

    def take_group(self, group: list[QueuedBatch], timeout_seconds: float) -> bool:
        """Move what is queued to a commit group; return whether the queue ended.

        Where nothing is queued within the time, the group stays empty.
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
            if queued.state is State.QUEUED:
                queued.state = State.TAKEN
                group.append(queued)
                size += len(queued.lines)
        return False

    def finish(self, group: Sequence[QueuedBatch], cause: Cause | None) -> None:
        """Answer the batches of a commit group: stored, or rejected for a cause.

        Those with a key whose outcome is not NEW were not part of it.
        """
        for queued in group:
            if queued.claim and queued.claim.outcome is not Outcome.NEW:
                self._answer(queued, queued.claim.cause)
                continue
            if cause is None:
                is_late = queued.state is State.LATE
                self._count_stored(len(queued.lines), queued.logs, is_late)
            self._answer(queued, cause)

    def _answer(self, queued: QueuedBatch, cause: Cause | None) -> None:
        self._release(queued)
        queued.answer(cause)

    def reject_rest(self, cause: Cause) -> None:
        """Reject the batches that no drain has taken."""
        while not self._queue.empty():
            queued = self._queue.get()
            if queued is not None:
                self.finish([queued], cause)

    def time_out(self) -> None:
        """End the waits that are over by now, and forget what leads the queue in vain."""
        now = time.monotonic()
        while self._waiting:
            queued = self._waiting[0]
            if queued.is_waited_for and queued.deadline > now:
                break
            self._waiting.popleft()
            if queued.is_waited_for:
                may_be_stored = queued.state is not State.QUEUED
                queued.answer(commit_timeout(self._timeout_seconds, may_be_stored=may_be_stored))
                self._leave(queued)  # before a writer that wakes up meanwhile takes it
        while (first := self._first()) and first.state is State.FINISHED:
            self._queue.get_nowait()

    def _first(self) -> QueuedBatch | None:
        return None if self._queue.empty() else self._queue.peek_nowait()

    def _leave(self, queued: QueuedBatch) -> None:
        """Note that a batch's client is gone, or was told that this takes too long."""
        if queued.state is State.QUEUED:
            self._release(queued)
        elif queued.state is State.TAKEN:
            queued.state = State.LATE

    def _release(self, queued: QueuedBatch) -> None:
        """Let a batch go, with the memory and the key that it holds."""
        if queued.state is not State.FINISHED:
            queued.state = State.FINISHED
            queued.lines = b""
            queued.reservation.release()
            if queued.claim:
                queued.claim.release()
