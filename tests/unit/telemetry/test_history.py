import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from astralog.errors import STATUS_OF_CODE
from astralog.telemetry import history
from astralog.telemetry.counters import BOUNDS_SECONDS, MAX_TOKENS, Counters, Snapshot, Volume
from astralog.telemetry.families import counter_families
from astralog.telemetry.history import (
    HISTORY_BYTES,
    RECORD_BYTES,
    SAMPLES,
    History,
    Sample,
    decode_sample,
    encode_sample,
    quantile_of,
    rates_between,
    take_sample,
)
from astralog.telemetry.slots import claim

#: Another worker, which holds the lock until it is killed.
HOLDER = """
import fcntl, sys, time
fcntl.lockf(int(sys.argv[1]), fcntl.LOCK_EX, 1, 0)
print("held", flush=True)
time.sleep(60)
"""


class Clock:
    """The number of the due sample."""

    def __init__(self) -> None:
        self.number = 10 * SAMPLES

    def __call__(self) -> int:
        return self.number


def make_sample(number: int, **fields: Any) -> Sample:
    """Return a sample with its number as counts."""
    sample = Sample(float(number), 0, number, 0, [0.0] * 15, {}, {}, 0, None, None)
    return sample._replace(**fields)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the history's clock."""
    clock = Clock()
    monkeypatch.setattr(history, "_number", clock)
    return clock


@pytest.fixture
def worker(fd: int, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Callable[[], History]:
    """Return a function that makes the history of another worker, which samples on request."""
    monkeypatch.setattr(gevent, "spawn", lambda function: None)

    def make() -> History:
        one = History(lambda: make_sample(clock.number))
        one.start(fd)
        return one

    return make


def test_an_hour_is_kept(worker: Callable[[], History], clock: Clock) -> None:
    """All workers see the same samples, oldest first, and none older than an hour."""
    mine, other = worker(), worker()
    assert [None] * SAMPLES == mine.samples()
    first = clock.number
    for number in range(first, first + SAMPLES + 5):
        clock.number = number
        (mine if number % 2 else other).sample_once()
    expected = [make_sample(number) for number in range(first + 5, first + SAMPLES + 5)]
    assert expected == mine.samples() == other.samples() == worker().samples()


def test_missing_samples_stay_missing(worker: Callable[[], History], clock: Clock) -> None:
    """A gap stays a gap, even if an older sample is in its place."""
    mine = worker()
    mine.sample_once()
    clock.number += 2
    mine.sample_once()
    assert [10 * SAMPLES, None, clock.number] == [
        sample and sample.at for sample in mine.samples()[-3:]
    ]
    clock.number += SAMPLES - 1
    assert [clock.number - SAMPLES + 1] == [one.at for one in mine.samples() if one]


def test_one_worker_takes_each_sample(worker: Callable[[], History], clock: Clock) -> None:
    """The first one does, with the numbers that it sees."""
    mine, other = worker(), worker()
    other._take = lambda: make_sample(clock.number, logs=77)
    mine.sample_once()
    other.sample_once()
    clock.number += 1
    other.sample_once()
    mine.sample_once()
    assert [10 * SAMPLES, 77] == [one.logs for one in mine.samples() if one]


def test_a_dead_worker_holds_nothing_up(worker: Callable[[], History], fd: int) -> None:
    """A worker waits while another one takes a sample, but not after it was killed."""
    mine = worker()
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(fd)], pass_fds=[fd], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout
        holder.stdout.readline()
        mine.sample_once()
        assert not any(mine.samples())
        holder.kill()
        holder.wait()
        mine.sample_once()
        assert any(mine.samples())


@pytest.mark.parametrize("size", [10, 16, 30])
def test_partial_sample_is_missing(
    worker: Callable[[], History], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A worker killed during its write leaves a gap, which the next one fills."""
    mine, pwrite = worker(), os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:size], offset))
    mine.sample_once()
    monkeypatch.setattr(os, "pwrite", pwrite)
    assert not any(mine.samples())
    mine.sample_once()
    assert any(mine.samples())


def test_a_sample_that_fails_is_a_gap(
    worker: Callable[[], History], clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once, and the next sample may succeed; the lock is released."""
    mine, other = worker(), worker()
    tokens = {f"{number:08x} unauthorized": 1.0 for number in range(10_000)}
    mine._take = lambda: make_sample(clock.number, rejected=tokens)
    for _ in range(3):
        mine.sample_once()
    assert 1 == len([record for record in caplog.records if record.levelno == logging.ERROR])
    other.sample_once()
    assert any(other.samples())


def test_without_a_file_there_is_no_history(clock: Clock) -> None:
    """For example in an app that no worker has started."""
    alone = History(lambda: make_sample(0))
    alone.sample_once()
    assert [None] * SAMPLES == alone.samples()


def test_slots_follow_the_history_in_the_file(worker: Callable[[], History], fd: int) -> None:
    """Neither overlaps the other."""
    mine, slot = worker(), claim(fd)
    slot.publish(Snapshot({("a",): 1}, {}, {}))
    for _ in range(2):
        mine.sample_once()
    assert {("a",): 1} == slot.merge_all().counts
    assert any(mine.samples())
    assert HISTORY_BYTES == SAMPLES * RECORD_BYTES < os.fstat(fd).st_size


BUCKETS = len(BOUNDS_SECONDS) + 1

EMPTY = Sample(100.0, 0, 0, 0, [0.0] * BUCKETS, {}, {}, 0, None, None)


def sample_of(counters: Counters) -> Sample:
    """Return a sample of one worker's counts, without numbers of the disk."""
    totals = {family.name: family.read() for family in counter_families(counters)}
    return take_sample(totals | {"astralog_backlog_bytes": {(): 7}})


def test_sample_has_the_counts() -> None:
    """The counts are those of accepted batches, and unknown numbers are None."""
    counters = Counters()
    counters.accept(100, 5, 0.0, 0.0, "1f0e9a3c")
    counters.reject(ValueError(), 0, 0, 0.0, "1f0e9a3c")
    sample = sample_of(counters)
    assert (1, 5, 100) == sample[1:4]
    assert 1 == sum(sample.commits)
    assert ({"1f0e9a3c internal": 1}, {"1f0e9a3c": [1, 5, 100]}) == sample[5:7]
    assert (7, None, None, None) == sample[7:]
    assert sample == decode_sample(encode_sample(sample))


def test_a_sample_of_another_version_is_understood() -> None:
    """While workers of both run: one without the last field, or with more."""
    known = EMPTY._replace(free_disk_inodes=5)
    assert EMPTY == decode_sample(json.dumps(known[:-1]).encode())
    assert known == decode_sample(json.dumps([*known, 1, 2]).encode())


def test_a_sample_fits_into_its_place() -> None:
    """Also with every code, many rejected tokens and large counts."""
    counters = Counters()
    for number in range(1000):
        token = f"{number:08x}"
        for code in STATUS_OF_CODE:
            counters.rejected_by_token[token, code] = 10**12 + number
        counters.accepted_by_token[token] = volume = Volume()
        volume.add(10**12 + number, 10**15 + number, 10**18 + number)
    sample = sample_of(counters)
    assert (MAX_TOKENS + 1) * len(STATUS_OF_CODE) == len(sample.rejected)
    assert "000003e7 unsupported_encoding" in sample.rejected
    assert MAX_TOKENS + 1 == len(sample.sent)
    assert [10**12 + 999, 10**15 + 999, 10**18 + 999] == sample.sent["000003e7"]
    unknown = {f"unknown {code}": 1e15 for code in STATUS_OF_CODE}
    largest = sample._replace(
        rejected=sample.rejected | unknown,
        commits=[1e15] * BUCKETS,
        batches=1e15,
        logs=1e15,
        bytes=1e18,
    )
    assert RECORD_BYTES / 2 < len(encode_sample(largest)) < RECORD_BYTES - 16


def test_rates_are_those_between_two_samples() -> None:
    """They are per second, and never negative."""
    later = EMPTY._replace(at=110.0, logs=50, bytes=1000, rejected={"a b": 1, "a c": 4})
    assert (10, 5, 100, 0.5, None, None) == rates_between(EMPTY, later)
    backwards = rates_between(later, EMPTY)
    assert (0, 0) == (backwards.logs_per_second, backwards.rejections_per_second)


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
    """Durations are spread evenly in a bucket, and those beyond all bounds count as the longest."""
    values = [float(counts.get(bucket, 0)) for bucket in range(BUCKETS)]
    found = quantile_of(values, quantile)
    assert (found is None) == (seconds is None)
    assert found is None or seconds == pytest.approx(found)
