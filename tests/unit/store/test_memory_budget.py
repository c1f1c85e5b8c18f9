import logging
from collections.abc import Callable
from contextlib import closing

import pytest

from astralog.errors import Rejection
from astralog.store.memory_budget import OVERHEAD_BYTES, MemoryBudget, MemoryReservation

LIMIT = 100_000


@pytest.fixture
def budget() -> MemoryBudget:
    return MemoryBudget(LIMIT)


def code_of(reserve: Callable[[], object]) -> str:
    """Return the code of the rejection that is raised."""
    with pytest.raises(Rejection) as rejected:
        reserve()
    return rejected.value.code


def test_a_reservation_is_charged_while_it_lasts(budget: MemoryBudget) -> None:
    """A request is charged for its bytes and an overhead, and releases both at its end."""
    with closing(MemoryReservation(budget)) as reservation:
        assert OVERHEAD_BYTES == budget.reserved
        reservation.resize(500)
        assert 500 + OVERHEAD_BYTES == budget.reserved
        reservation.resize(200)
        assert 200 + OVERHEAD_BYTES == budget.reserved
    assert 0 == budget.reserved


def test_failed_request_releases_its_bytes(budget: MemoryBudget) -> None:
    """An exception releases the request's bytes."""

    def fail() -> None:
        with closing(MemoryReservation(budget)) as reservation:
            reservation.resize(500)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert 0 == budget.reserved


def test_detached_reservation_is_released_by_its_new_owner(budget: MemoryBudget) -> None:
    """It outlives the request, and is released once."""
    with closing(MemoryReservation(budget)) as reservation:
        reservation.resize(500)
        reservation.detach()
    assert 500 + OVERHEAD_BYTES == budget.reserved
    for _ in range(2):
        reservation.release()
        assert 0 == budget.reserved


def test_a_body_as_large_as_the_whole_budget_fits_with_its_lines(budget: MemoryBudget) -> None:
    """The largest allowed body is not rejected forever: it may have the whole queue.

    Others wait meanwhile, and it waits for them; a larger batch is never stored.
    """
    with closing(MemoryReservation(budget)) as reservation:
        reservation.resize(3 * LIMIT)
        assert "queue_full" == code_of(lambda: MemoryReservation(budget))
        assert "body_too_large" == code_of(lambda: reservation.resize(3 * LIMIT + 1))
        assert 3 * LIMIT + OVERHEAD_BYTES == budget.reserved
    with closing(MemoryReservation(budget)), closing(MemoryReservation(budget)) as reservation:
        assert "queue_full" == code_of(lambda: reservation.resize(LIMIT))
        assert "body_too_large" == code_of(lambda: reservation.resize(3 * LIMIT + 1))
    assert 0 == budget.reserved


def test_the_head_of_a_request_is_charged_too(budget: MemoryBudget) -> None:
    """It is held as long as the request."""
    with closing(MemoryReservation(budget, b"token", head_bytes=16_000)) as reservation:
        assert 16_000 + OVERHEAD_BYTES == budget.reserved
        reservation.resize(500)
        assert 16_500 + OVERHEAD_BYTES == budget.reserved
    assert 0 == budget.reserved


def test_a_check_reserves_nothing(budget: MemoryBudget) -> None:
    """It raises the same rejection as a reservation."""
    with closing(MemoryReservation(budget)), closing(MemoryReservation(budget)) as reservation:
        before = budget.reserved
        reservation.check(LIMIT - 2 * OVERHEAD_BYTES)
        assert "queue_full" == code_of(lambda: reservation.check(LIMIT))
        assert before == budget.reserved


def test_one_of_several_tokens_leaves_a_quarter_to_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The message has the limit; the worker stays ready for the others."""
    budget = MemoryBudget(LIMIT, lambda: True)
    with (
        closing(MemoryReservation(budget, b"a")) as first,
        closing(MemoryReservation(budget, b"a")) as second,
    ):
        first.resize(40_000)
        with pytest.raises(Rejection) as rejected:
            second.resize(40_000)
        assert "queue_full" == rejected.value.code
        assert "ASTRALOG_QUEUE_BYTES" in rejected.value.message
        assert "three quarters" in rejected.value.message
        with closing(MemoryReservation(budget, b"b")) as other:
            other.resize(LIMIT // 4)
        second.resize(30_000)
        assert not budget.is_full
    assert 0 == budget.reserved
    assert [] == caplog.messages


def test_a_batch_that_takes_more_than_a_tokens_share_is_never_stored() -> None:
    """A retry would not help while there are several tokens."""
    several = [True]
    budget = MemoryBudget(LIMIT, lambda: several[0])
    with closing(MemoryReservation(budget, b"a")) as reservation:
        assert "body_too_large" == code_of(lambda: reservation.resize(80_000))
        several[0] = False
        reservation.resize(80_000)
        several[0] = True
        assert "queue_full" == code_of(lambda: MemoryReservation(budget, b"a"))
        assert "body_too_large" == code_of(lambda: reservation.resize(80_001))
        reservation.resize(70_000)
        MemoryReservation(budget, b"a").release()


def test_a_token_at_its_share_does_not_keep_the_worker_unready(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Large batches of the others are rejected and logged once, but smaller ones fit."""
    budget = MemoryBudget(LIMIT, lambda: True)
    with closing(MemoryReservation(budget, b"a")) as first:
        first.resize(70_000)
        for _ in range(3):
            with closing(MemoryReservation(budget, b"b")) as other:
                assert "queue_full" == code_of(lambda: other.resize(40_000))
                assert not budget.is_full
        with closing(MemoryReservation(budget, b"b")) as other:
            other.resize(10_000)
            assert budget.is_full
        assert not budget.is_full
        assert 1 == len(caplog.messages)
    assert 2 == len(caplog.messages)


def test_tokens_without_reservations_take_no_memory(budget: MemoryBudget) -> None:
    """However many there have been."""
    for number in range(100):
        with closing(MemoryReservation(budget, b"%d" % number)) as reservation:
            reservation.resize(10)
    assert {} == budget._reserved_by


def test_reservation_that_does_not_fit_changes_nothing(budget: MemoryBudget) -> None:
    """Beyond the budget a request is rejected with `queue_full`, and keeps its earlier bytes."""
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
    """A request without room for its overhead holds nothing."""
    reservation = MemoryReservation(budget)
    reservation.resize(LIMIT)
    with pytest.raises(Rejection):
        MemoryReservation(budget)
    reservation.release()
    assert 0 == budget.reserved


def test_a_full_queue_has_room_again_when_half_of_it_is_free(budget: MemoryBudget) -> None:
    """From a rejection until half the budget is free, the queue counts as full."""
    first, second = MemoryReservation(budget), MemoryReservation(budget)
    first.resize(48_000)
    second.resize(48_000)
    assert not budget.is_full
    with closing(MemoryReservation(budget)) as third, pytest.raises(Rejection):
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
    """One line when the queue becomes full, and one when that ends."""
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
            f"write queue full: {LIMIT + OVERHEAD_BYTES} bytes are reserved (ASTRALOG_QUEUE_BYTES)",
            f"write queue has room again: {rejections} requests were rejected",
        ] == caplog.messages


def test_queue_without_rejections_logs_nothing(
    budget: MemoryBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Use below the limit logs no line."""
    caplog.set_level(logging.DEBUG)
    with closing(MemoryReservation(budget)) as reservation:
        reservation.resize(LIMIT)
    assert [] == caplog.messages
