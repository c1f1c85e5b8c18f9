import time
from collections.abc import Callable

import gevent
import pytest

from astralog.errors import STOPPING, STORAGE_FAILED, Rejection
from astralog.store.memory_budget import MemoryBudget, MemoryReservation
from astralog.store.queue import Batch, BatchQueue, BatchState, QueuedBatch

LINES = b'{"m":"a"}\n'
TIMEOUT_SECONDS = 10.0


class Waiting:
    """A queue, and a client that waits in it for a batch."""

    def __init__(self) -> None:
        self.counted: list[tuple[int, int, int, int]] = []
        self.budget = MemoryBudget(1_000_000)
        self.queue = BatchQueue(self._count, TIMEOUT_SECONDS)
        self.client = gevent.spawn(self._wait)
        gevent.sleep(0)

    def _count(self, batches: int, size: int, logs: int, late_logs: int) -> None:
        self.counted.append((batches, size, logs, late_logs))

    def _wait(self) -> str | None:
        try:
            self.queue.enqueue(Batch(LINES, 1), MemoryReservation(self.budget))
        except Rejection as rejection:
            return rejection.message
        return None

    def take(self) -> list[QueuedBatch]:
        group: list[QueuedBatch] = []
        assert not self.queue.dequeue_group(group, 0.01)
        return group

    def answer(self) -> str | None:
        """Return the client's answer."""
        told: str | None = self.client.get(timeout=TIMEOUT_SECONDS)
        return told


@pytest.fixture
def waiting() -> Waiting:
    return Waiting()


@pytest.fixture
def time_out(waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function that ends the waits that are over a minute from now."""
    now = time.monotonic()

    def time_out_later() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: now + 60)
            waiting.queue.expire_waits()

    return time_out_later


def test_a_batch_is_queued_taken_and_finished(waiting: Waiting) -> None:
    """It holds its memory until it is stored, and is counted once."""
    reserved = waiting.budget.reserved
    (batch,) = waiting.take()
    assert (BatchState.TAKEN, LINES) == (batch.state, batch.lines)
    assert reserved == waiting.budget.reserved
    waiting.queue.finish([batch], None)
    assert (BatchState.FINISHED, b"") == (batch.state, batch.lines)
    assert 0 == waiting.budget.reserved
    assert waiting.answer() is None
    assert [(1, len(LINES), 1, 0)] == waiting.counted


def test_a_batch_that_is_rejected_is_not_counted(waiting: Waiting) -> None:
    """Its client gets the cause."""
    waiting.queue.finish(waiting.take(), STORAGE_FAILED)
    assert waiting.answer() == STORAGE_FAILED.message
    assert [] == waiting.counted
    assert 0 == waiting.budget.reserved


@pytest.mark.parametrize("is_told", [True, False])
def test_a_batch_whose_client_left_before_it_was_taken_is_finished(
    waiting: Waiting, time_out: Callable[[], None], is_told: bool
) -> None:
    """No drain takes it, and its memory is released."""
    time_out() if is_told else waiting.client.kill()
    assert 0 == waiting.budget.reserved
    assert [] == waiting.take()
    waiting.queue.reject_all(STOPPING)
    assert 0 == waiting.budget.reserved
    if is_told:
        assert str(waiting.answer()).endswith("the batch was not stored; retry later.")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_batch_whose_client_left_after_it_was_taken_is_late(
    waiting: Waiting, time_out: Callable[[], None], is_told: bool
) -> None:
    """It holds its memory until it is stored, and is counted as late."""
    group = waiting.take()
    time_out() if is_told else waiting.client.kill()
    assert [BatchState.LATE] == [batch.state for batch in group]
    assert 0 < waiting.budget.reserved
    waiting.queue.finish(group, None)
    assert [BatchState.FINISHED] == [batch.state for batch in group]
    assert 0 == waiting.budget.reserved
    assert [(1, len(LINES), 1, 1)] == waiting.counted
    if is_told:
        assert str(waiting.answer()).endswith("the batch may still be stored; retry later.")


def test_remaining_batches_are_rejected_at_the_end(waiting: Waiting) -> None:
    """The sentinels that end the drains are not batches."""
    waiting.queue.end_drains(2)
    waiting.queue.reject_all(STOPPING)
    assert waiting.answer() == STOPPING.message
    assert 0 == waiting.budget.reserved


def test_each_drain_ends_once(waiting: Waiting) -> None:
    """Earlier batches are dequeued first, and each sentinel ends one drain."""
    waiting.queue.end_drains(2)
    group: list[QueuedBatch] = []
    assert waiting.queue.dequeue_group(group, 0.01)
    assert 1 == len(group)
    assert waiting.queue.dequeue_group(group, 0.01)
    assert not waiting.queue.dequeue_group(group, 0.01)
    waiting.queue.finish(group, None)
