import json

import pytest

from astralog.telemetry.counters import BOUNDS_SECONDS, Counters
from astralog.telemetry.families import counter_families
from astralog.telemetry.history import RECORD_BYTES
from astralog.telemetry.samples import (
    Interval,
    Sample,
    decode,
    encode,
    intervals,
    quantile_of,
    take,
)
from astralog.telemetry.snapshots import MAX_TOKEN_SERIES

BUCKETS = len(BOUNDS_SECONDS) + 1

EMPTY = Sample(100.0, 0, 0, 0, [0.0] * BUCKETS, {}, 0, None, None)


def sample_of(counters: Counters) -> Sample:
    """Return a sample of what one worker has counted, whose disk nobody knows."""
    counters.add_up()
    totals = {family.name: family.read() for family in counter_families(counters)}
    return take(totals | {"astralog_backlog_bytes": {(): 7}})


def test_a_sample_has_what_was_counted() -> None:
    """The counts are those of accepted batches, and what is not known is None."""
    counters = Counters()
    counters.accept(100, 5, 0.0, 0.0)
    counters.reject(ValueError(), 0, 0, 0.0, "1f0e9a3c")
    sample = sample_of(counters)
    assert (1, 5, 100) == sample[1:4]
    assert 1 == sum(sample.commits)
    assert ({"1f0e9a3c internal": 1}, 7, None, None, None) == sample[5:]
    assert sample == decode(encode(sample))


def test_a_sample_of_another_version_is_understood() -> None:
    """While workers of both run: one that lacks the last field, or has more."""
    known = EMPTY._replace(free_disk_inodes=5)
    assert EMPTY == decode(json.dumps(known[:-1]).encode())
    assert known == decode(json.dumps([*known, 1, 2]).encode())


def test_a_sample_fits_into_its_place() -> None:
    """Also where many tokens are rejected, with large counts."""
    counters = Counters()
    for number in range(1000):
        token = f"{number:08x}"
        counters.rejected_by_token[token, "unsupported_encoding"] = 10**12 + number
    sample = sample_of(counters)
    assert MAX_TOKEN_SERIES + 1 == len(sample.rejected)
    assert "000003e7 unsupported_encoding" in sample.rejected
    largest = sample._replace(commits=[1e15] * BUCKETS, batches=1e15, logs=1e15, bytes=1e18)
    assert len(encode(largest)) < RECORD_BYTES - 16


def test_rates_are_those_between_two_samples() -> None:
    """They are per second, and never negative."""
    later = EMPTY._replace(at=110.0, logs=50, bytes=1000, rejected={"a b": 1, "a c": 4})
    interval = Interval(EMPTY, later)
    rates = (
        interval.logs_per_second,
        interval.bytes_per_second,
        interval.rejections_per_second,
    )
    assert (5, 100, 0.5) == rates
    assert interval.commit_seconds(0.5) is None
    backwards = Interval(later, EMPTY)
    assert (0, 0) == (backwards.logs_per_second, backwards.rejections_per_second)


def test_neighbours_make_intervals() -> None:
    """Where one is missing, nothing is known."""
    assert [Interval(EMPTY, EMPTY), None, None] == intervals([EMPTY, EMPTY, None, EMPTY])


@pytest.mark.parametrize(
    ("counts", "quantile", "seconds"),
    [
        ({}, 0.5, None),
        ({0: 10}, 0.5, 0.00025),
        ({3: 100}, 0.5, 0.0025 + 0.5 * 0.0025),
        ({3: 99, 9: 1}, 0.99, 0.005),
        ({3: 50, 9: 50}, 0.99, 0.25 + 0.98 * 0.25),
        ({14: 1}, 0.5, 10.0),
    ],
)
def test_quantiles_are_as_prometheus_has_them(
    counts: dict[int, int], quantile: float, seconds: float | None
) -> None:
    """A bucket has its durations evenly, and what is longer than all bounds takes the longest."""
    values = [float(counts.get(bucket, 0)) for bucket in range(BUCKETS)]
    found = quantile_of(values, quantile)
    assert (found is None) == (seconds is None)
    assert found is None or seconds == pytest.approx(found)
