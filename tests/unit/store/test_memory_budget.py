import logging

import pytest

from astralog.errors import Rejection
from astralog.store.memory_budget import OVERHEAD_BYTES, MemoryBudget, MemoryReservation

LIMIT = 100_000


@pytest.fixture
def admission() -> MemoryBudget:
    return MemoryBudget(LIMIT)


def test_a_reservation_is_charged_while_it_lasts(admission: MemoryBudget) -> None:
    """A request is charged its bytes and an overhead, and gives both back when it ends."""
    with MemoryReservation(admission) as room:
        assert OVERHEAD_BYTES == admission.reserved
        room.resize(500)
        assert 500 + OVERHEAD_BYTES == admission.reserved
        room.resize(200)
        assert 200 + OVERHEAD_BYTES == admission.reserved
    assert 0 == admission.reserved


def test_a_request_that_fails_gives_its_bytes_back(admission: MemoryBudget) -> None:
    """An error on the way frees what the request held."""

    def fail() -> None:
        with MemoryReservation(admission) as room:
            room.resize(500)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert 0 == admission.reserved


def test_what_is_handed_over_is_freed_by_its_new_owner(admission: MemoryBudget) -> None:
    """Bytes that were handed over outlive the request, and are given back once."""
    with MemoryReservation(admission) as room:
        room.resize(500)
        size = room.detach()
    assert 500 + OVERHEAD_BYTES == size == admission.reserved
    admission.release(size)
    assert 0 == admission.reserved


def test_a_body_as_large_as_the_whole_budget_fits(admission: MemoryBudget) -> None:
    """The overhead does not keep out the largest body that the settings allow."""
    with MemoryReservation(admission) as room:
        room.resize(LIMIT)
        with pytest.raises(Rejection) as rejected:
            room.resize(LIMIT + 1)
        assert "queue_full" == rejected.value.code
        assert LIMIT + OVERHEAD_BYTES == admission.reserved
    assert 0 == admission.reserved


def test_what_does_not_fit_is_rejected_and_changes_nothing(admission: MemoryBudget) -> None:
    """Beyond the budget a request is rejected with `queue_full`, and keeps what it had."""
    first, second = MemoryReservation(admission), MemoryReservation(admission)
    first.resize(80_000)
    second.resize(10_000)
    before = admission.reserved
    with pytest.raises(Rejection) as rejected:
        second.resize(30_000)
    assert "queue_full" == rejected.value.code
    assert before == admission.reserved
    second.release()
    first.release()
    assert 0 == admission.reserved


def test_a_new_request_is_rejected_when_nothing_is_left(admission: MemoryBudget) -> None:
    """A request that cannot even have its overhead holds nothing."""
    room = MemoryReservation(admission)
    room.resize(LIMIT)
    with pytest.raises(Rejection):
        MemoryReservation(admission)
    room.release()
    assert 0 == admission.reserved


def test_a_full_queue_has_room_again_when_half_of_it_is_free(admission: MemoryBudget) -> None:
    """Between a rejection and half the budget being free, the queue says that it is full."""
    first, second = MemoryReservation(admission), MemoryReservation(admission)
    first.resize(48_000)
    second.resize(48_000)
    assert not admission.is_full
    with MemoryReservation(admission) as third, pytest.raises(Rejection):
        third.resize(10_000)
    assert admission.is_full
    second.resize(20_000)
    assert admission.is_full
    second.release()
    assert not admission.is_full
    first.release()


def test_an_episode_of_rejections_is_two_lines_in_the_log(
    admission: MemoryBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """However many are rejected, the log says once that the queue is full, and once its end."""
    caplog.set_level(logging.INFO)
    for rejections in (3, 1):
        caplog.clear()
        room = MemoryReservation(admission)
        room.resize(LIMIT)
        for _ in range(rejections):
            with pytest.raises(Rejection):
                MemoryReservation(admission)
        room.release()
        assert [
            f"queue full: {LIMIT + OVERHEAD_BYTES} bytes wait for the disk",
            f"queue has room again: {rejections} requests were rejected",
        ] == caplog.messages


def test_a_queue_that_rejects_nobody_says_nothing(
    admission: MemoryBudget, caplog: pytest.LogCaptureFixture
) -> None:
    """Use below the limit leaves no line."""
    caplog.set_level(logging.DEBUG)
    with MemoryReservation(admission) as room:
        room.resize(LIMIT)
    assert [] == caplog.messages
