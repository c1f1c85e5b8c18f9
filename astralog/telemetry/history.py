"""The samples of the last hour, in memory that all workers share and that survives them.

Every ten seconds one worker samples the totals of all workers. A sample's place in the file is its
number, the time divided by ten seconds, modulo the number of places, so that it replaces the sample
of an hour before.
"""

import fcntl
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import gevent

from astralog.log import log_exception
from astralog.memory_file import read_record, try_lock, unlock, write_record
from astralog.telemetry.counters import (
    ACCEPTED_BY_TOKEN,
    BOUNDS_SECONDS,
    REJECTED_BY_TOKEN,
    Series,
    Snapshot,
)
from astralog.telemetry.families import BUCKETS, Labels

log = logging.getLogger(__name__)

#: The values of all families, by name and labels.
Totals = Mapping[str, Mapping[Labels, float]]


class Sample(NamedTuple):
    """The counters and gauges of a moment; None if unknown.

    `commits` are the numbers of commits in each bucket of `BUCKETS`, `rejected` the numbers of
    rejected batches by `<token's name> <code>`, and `sent` the accepted batches, logs and bytes by
    token's name.
    """

    at: float  # in seconds since 1970
    batches: float  # accepted, as are the next two
    logs: float
    bytes: float
    commits: list[float]
    rejected: dict[str, float]
    sent: dict[str, list[float]]
    backlog_bytes: float
    free_disk_bytes: float | None
    lag_seconds: float | None
    free_disk_inodes: float | None = None  # last: another version's workers may not sample it


def take_sample(totals: Totals) -> Sample:
    commits = totals["astralog_commit_duration_seconds"]
    return Sample(
        time.time(),
        totals["astralog_accepted_batches"][()],
        totals["astralog_accepted_logs"][()],
        totals["astralog_accepted_bytes"][()],
        [commits[(bucket,)] for bucket in BUCKETS],
        _rejected(totals[REJECTED_BY_TOKEN]),
        _sent(totals),
        totals["astralog_backlog_bytes"][()],
        value_of(totals, "free_disk_bytes"),
        value_of(totals, "forward_lag_seconds"),
        value_of(totals, "free_disk_inodes"),
    )


def value_of(totals: Totals, name: str, *labels: str) -> float | None:
    """Return the value of a series by its family's name without `astralog_`, None if missing."""
    return totals.get(f"astralog_{name}", {}).get(labels)


def _rejected(values: Mapping[Labels, float]) -> dict[str, float]:
    """Return the rejected batches by token and code; tokens beyond a limit share one series."""
    counts = _bounded(REJECTED_BY_TOKEN, values)
    return {f"{token} {code}": count for (_, token, code), count in counts.items()}


def _sent(totals: Totals) -> dict[str, list[float]]:
    """Return the accepted batches, logs and bytes by token; as `_rejected`."""
    sent: dict[str, list[float]] = {}
    for place, family in enumerate(ACCEPTED_BY_TOKEN.values()):
        for (_, token), count in _bounded(family, totals[family]).items():
            sent.setdefault(token, [0] * len(ACCEPTED_BY_TOKEN))[place] = count
    return sent


def _bounded(family: str, values: Mapping[Labels, float]) -> Mapping[Series, float]:
    """Return the series of a family; if they are many, the smallest are added up."""
    return Snapshot({(family, *labels): n for labels, n in values.items()}, {}, {}).bounded().counts


def encode_sample(sample: Sample) -> bytes:
    """Return the sample as JSON, in less than `RECORD_BYTES`."""
    return json.dumps(sample, separators=(",", ":")).encode()


def decode_sample(data: bytes) -> Sample:
    """Return the sample in an encoded record, which may be another version's during an upgrade."""
    return Sample(*json.loads(data)[: len(Sample._fields)])


class Rates(NamedTuple):
    """The growth between two samples; the quantiles of commits are None if there were none."""

    seconds: float
    logs_per_second: float  # accepted, as are the bytes of their batches
    bytes_per_second: float
    rejections_per_second: float  # of batches
    commit_p50_seconds: float | None
    commit_p99_seconds: float | None


def rates_between(begin: Sample, end: Sample) -> Rates:
    seconds = max(end.at - begin.at, 1e-3)  # the clock may have been set
    totals = ((one.logs, one.bytes, sum(one.rejected.values())) for one in (begin, end))
    logs, size, rejections = (count / seconds for count in growth(*totals))
    commits = growth(begin.commits, end.commits)
    quantiles = quantile_of(commits, 0.5), quantile_of(commits, 0.99)
    return Rates(seconds, logs, size, rejections, *quantiles)


def growth(begin: Sequence[float], end: Sequence[float]) -> list[float]:
    return [max(after - before, 0) for before, after in zip(begin, end, strict=True)]


def quantile_of(counts: Sequence[float], quantile: float) -> float | None:
    """Return a quantile of durations, interpolated within a bucket, as in Prometheus."""
    wanted = quantile * sum(counts)
    if not wanted:
        return None
    lower = 0.0
    for upper, count in zip(BOUNDS_SECONDS, counts, strict=False):
        if count >= wanted:
            return lower + (upper - lower) * wanted / count
        wanted -= count
        lower = upper
    return lower


SAMPLE_SECONDS = 10
HISTORY_SECONDS = 3600

#: Samples that are kept: as many as there are intervals, and one before.
SAMPLES = HISTORY_SECONDS // SAMPLE_SECONDS + 1

#: Bytes of the largest record: of MAX_TOKENS that are rejected with every code. Most take 4 KiB;
#: unwritten pages take no memory.
RECORD_BYTES = 128 * 1024

#: Bytes of all records; the rest of the file has other uses.
HISTORY_BYTES = SAMPLES * RECORD_BYTES


class History:
    """The last hour; `take` returns the sample of this moment, and may raise."""

    def __init__(self, take: Callable[[], Sample]) -> None:
        self._take = take
        self._fd: int | None = None
        self._samples: list[Sample | None] = [None] * SAMPLES
        self._read_at = -1  # the number up to which these were read

    def start(self, fd: int) -> None:
        """Share the history through the beginning of the file from now on."""
        self._fd = fd
        gevent.spawn(self._sample_regularly)

    def _sample_regularly(self) -> None:
        while True:
            self.sample_once()
            gevent.sleep(SAMPLE_SECONDS - time.monotonic() % SAMPLE_SECONDS)

    def sample_once(self) -> None:
        """Take the sample that is due, unless another worker takes or took it."""
        try:
            if self._fd is not None:
                self._sample(self._fd, _number())
        except Exception:
            log_exception(log, "taking a sample of the history failed")

    def _sample(self, fd: int, number: int) -> None:
        if _read(fd, number) or not try_lock(fd, 0, fcntl.LOCK_EX):
            return
        try:
            if not _read(fd, number):  # as another worker did meanwhile
                data = encode_sample(self._take())
                write_record(fd, _offset(number), number, data, RECORD_BYTES)
        finally:
            unlock(fd, 0)

    def samples(self) -> list[Sample | None]:
        """Return the samples of the last hour, oldest first, None for each that is missing.

        It is kept until the next one is due.
        """
        number = _number()
        if number != self._read_at:
            numbers = range(number - SAMPLES + 1, number + 1)
            records = [_read(self._fd, one) if self._fd is not None else b"" for one in numbers]
            self._samples = [decode_sample(data) if data else None for data in records]
            # The last one is taken at about this time.
            self._read_at = number if self._samples[-1] else -1
        return self._samples


def _read(fd: int, number: int) -> bytes:
    """Return the encoded sample, b"" if it is missing or incomplete."""
    known, data = read_record(fd, _offset(number), RECORD_BYTES) or (0, b"")
    return data if known == number else b""


def _number() -> int:
    """Return the number of the sample that is due, by a clock that all processes share."""
    return int(time.monotonic() // SAMPLE_SECONDS)


def _offset(number: int) -> int:
    return number % SAMPLES * RECORD_BYTES
