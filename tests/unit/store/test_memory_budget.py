import logging

import pytest

from astralog.errors import Rejection
from astralog.store.memory_budget import OVERHEAD_BYTES, MemoryBudget, MemoryReservation

LIMIT = 100_000


@pytest.fixture
def budget() -> MemoryBudget:
    return MemoryBudget(LIMIT)


def test_a_reservation_is_charged_while_it_lasts(budget: MemoryBudget) -> None:
    """A request is charged its bytes and an overhead, and gives both back when it ends."""
    with MemoryReservation(budget) as reservation:
        assert OVERHEAD_BYTES == budget.reserved
        reservation.resize(500)
        assert 500 + OVERHEAD_BYTES == budget.reserved
        reservation.resize(200)
        assert 200 + OVERHEAD_BYTES == budget.reserved
    assert 0 == budget.reserved


def test_a_request_that_fails_gives_its_bytes_back(budget: MemoryBudget) -> None:
    """An error on the way frees what the request held."""

    def fail() -> None:
        with MemoryReservation(budget) as reservation:
            reservation.resize(500)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert 0 == budget.reserved


def test_what_is_handed_over_is_freed_by_its_new_owner(budget: MemoryBudget) -> None:
    """Bytes that were handed over outlive the request, and are given back once."""
    with MemoryReservation(budget) as reservation:
        reservation.resize(500)
        size = reservation.detach()
    assert 500 + OVERHEAD_BYTES == size == budget.reserved
    budget.release(size)
    assert 0 == budget.reserved


def test_a_body_as_large_as_the_whole_budget_fits(budget: MemoryBudget) -> None:
    """The overhead does not keep out the largest body that the settings allow."""
    with MemoryReservation(budget) as reservation:
        reservation.resize(LIMIT)
        with pytest.raises(Rejection) as rejected:
            reservation.resize(LIMIT + 1)
        assert "queue_full" == rejected.value.code
        assert LIMIT + OVERHEAD_BYTES == budget.reserved
    assert 0 == budget.reserved


def test_what_does_not_fit_is_rejected_and_changes_nothing(budget: MemoryBudget) -> None:
    """Beyond the budget a request is rejected with `queue_full`, and keeps what it had."""
    first, second = MemoryReservation(budget), MemoryReservation(budget)
    first.resize(80_000)
    second.resize(10_000)
    before = budget.reserved
    with pytest.raises(Rejection) as rejected:
        second.resize(30_000)
    assert "queue_full" == rejected.value.code
    assert before == budget.reserved
    second.release()
    first.release()
    assert 0 == budget.reserved


def test_a_new_request_is_rejected_when_nothing_is_left(budget: MemoryBudget) -> None:
    """A request that cannot even have its overhead holds nothing."""
    reservation = MemoryReservation(budget)
    reservation.resize(LIMIT)
    with pytest.raises(Rejection):
        MemoryReservation(budget)
    reservation.release()
    assert 0 == budget.reserved


def test_a_full_queue_has_room_again_when_half_of_it_is_free(budget: MemoryBudget) -> None:
    """Between a rejection and half the budget being free, the queue says that it is full."""
    first, second = MemoryReservation(budget), MemoryReservation(budget)
    first.resize(48_000)
    second.resize(48_000)
    assert not budget.is_full
    with MemoryReservation(budget) as third, pytest.raises(Rejection):
        third.resize(10_000)
    assert budget.is_full
    second.resize(20_000)
    assert budget.is_full
    second.release()
    assert not budget.is_full
    first.release()


def test_rejections_are_two_lines_in_the_log(
    budget: MemoryBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """However many are rejected, the log says once that the queue is full, and once its end."""
    caplog.set_level(logging.INFO)
    for rejections in (3, 1):
        caplog.clear()
        reservation = MemoryReservation(budget)
        reservation.resize(LIMIT)
        for _ in range(rejections):
            with pytest.raises(Rejection):
                MemoryReservation(budget)
        reservation.release()
        assert [
            f"queue full: {LIMIT + OVERHEAD_BYTES} bytes wait for the disk",
            f"queue has room again: {rejections} requests were rejected",
        ] == caplog.messages


def test_a_queue_that_rejects_nobody_says_nothing(
    budget: MemoryBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Use below the limit leaves no line."""
    caplog.set_level(logging.DEBUG)
    with MemoryReservation(budget) as reservation:
        reservation.resize(LIMIT)
    assert [] == caplog.messages
