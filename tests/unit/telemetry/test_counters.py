import gevent
import pytest

from astralog.errors import Rejection
from astralog.telemetry.counters import (
    BOUNDS_SECONDS,
    KEPT_BATCHES,
    UNKNOWN_TOKEN,
    Counters,
    Durations,
)
from astralog.telemetry.snapshots import MAX_TOKEN_SERIES, OTHER_TOKENS


def test_many_batches_are_added_up_without_a_scrape() -> None:
    """What waits to be added up is bounded."""
    counters = Counters()
    for _ in range(KEPT_BATCHES):
        counters.accept(10, 2, 0.0, 0.0)
    accepted = counters.accepted
    assert KEPT_BATCHES == accepted.batches == accepted.logs / 2 == accepted.bytes / 10
    counters.accept(10, 2, 0.0, 0.0)
    assert KEPT_BATCHES == accepted.batches
    counters.add_up()
    assert KEPT_BATCHES + 1 == accepted.batches == sum(counters.commits.counts)


def test_counters_are_settled_when_what_is_stored_is_answered() -> None:
    """Between a commit and its answers a worker's counters do not balance yet."""
    counters = Counters()
    assert counters.is_settled()
    counters.store(100, 3, is_late=False)
    counters.store(100, 2, is_late=True)
    assert not counters.is_settled()
    counters.accept(100, 3, 0.0, 0.0)
    assert counters.is_settled()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Rejection("queue_full", ""), "queue_full"),
        (gevent.GreenletExit(), "stopping"),
        (ValueError(), "internal"),
    ],
)
def test_every_way_out_has_a_code(error: BaseException, code: str) -> None:
    """A request that the stop ends is rejected too."""
    counters = Counters()
    counters.reject(error, 10, 0, 0.0, None)
    assert [code] == [name for name, volume in counters.rejected.items() if volume.batches]
    assert 1 == counters.received.batches


def test_rejections_are_told_apart_by_token() -> None:
    """Those without a known one are one; of tokens beyond a number, all are one."""
    counters = Counters()
    error = Rejection("bad_request", "")
    for token in (None, None, *(f"{number:08x}" for number in range(100))):
        counters.reject(error, 0, 0, 0.0, token)
    counts = counters.rejected_by_token
    assert 2 == counts[UNKNOWN_TOKEN, "bad_request"]
    assert 1 == counts["00000000", "bad_request"]
    assert 51 == counts[OTHER_TOKENS, "bad_request"]
    assert MAX_TOKEN_SERIES + 1 == len(counts)
    assert 102 == sum(counts.values())


def test_durations_fall_into_their_buckets() -> None:
    """A bound is inside its bucket, as Prometheus has it, and there is one beyond them all."""
    durations = Durations()
    durations.add([0.0, 0.0005, 0.00051, 10.0, 11.0])
    durations.add([0.03])
    counts = dict(zip((*BOUNDS_SECONDS, None), durations.counts, strict=True))
    expected = {0.0005: 2, 0.001: 1, 0.05: 1, 10.0: 1, None: 1}
    assert expected == {bound: count for bound, count in counts.items() if count}
    assert pytest.approx(21.03101) == durations.seconds
