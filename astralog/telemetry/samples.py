"""The numbers of all workers at one moment, and what two such moments say of the time between."""

import json
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from astralog.telemetry.counters import BOUNDS_SECONDS
from astralog.telemetry.families import BUCKETS, Labels
from astralog.telemetry.snapshots import TOKEN_FAMILY, Series, Snapshot

#: The values of all families, by name and labels.
Totals = Mapping[str, Mapping[Labels, float]]


class Sample(NamedTuple):
    """What was counted by a moment, and what lay there then; None is not known.

    `commits` are the numbers of commits in each bucket of `BUCKETS`, and `rejected` those of the
    batches that were rejected, by `<token's name> <code>`.
    """

    at: float  # in seconds since 1970
    batches: float  # accepted, as are the next two
    logs: float
    bytes: float
    commits: list[float]
    rejected: dict[str, float]
    backlog_bytes: float
    free_disk_bytes: float | None
    lag_seconds: float | None
    free_disk_inodes: float | None = None  # last: another version's workers may not sample it


def take(totals: Totals) -> Sample:
    """Return the sample of this moment."""
    commits = totals["astralog_commit_duration_seconds"]
    return Sample(
        time.time(),
        totals["astralog_accepted_batches"][()],
        totals["astralog_accepted_logs"][()],
        totals["astralog_accepted_bytes"][()],
        [commits[(bucket,)] for bucket in BUCKETS],
        _rejected(totals[TOKEN_FAMILY]),
        totals["astralog_backlog_bytes"][()],
        value_of(totals, "free_disk_bytes"),
        value_of(totals, "forward_lag_seconds"),
        value_of(totals, "free_disk_inodes"),
    )


def value_of(totals: Totals, name: str, *labels: str) -> float | None:
    """Return the value of a series by its family's name without `astralog_`; None for no such."""
    return totals.get(f"astralog_{name}", {}).get(labels)


def _rejected(values: Mapping[Labels, float]) -> dict[str, float]:
    """Return the rejected batches by token and code, those of many tokens in one."""
    series: dict[Series, float] = {(TOKEN_FAMILY, *labels): n for labels, n in values.items()}
    counts = Snapshot(series, {}, {}).bounded().counts
    return {f"{token} {code}": count for (_, token, code), count in counts.items()}


def encode(sample: Sample) -> bytes:
    """Return the sample as JSON, in less than 4 KB."""
    return json.dumps(sample, separators=(",", ":")).encode()


def decode(data: bytes) -> Sample:
    """Return the sample that was encoded, by this version or by another during an upgrade."""
    return Sample(*json.loads(data)[: len(Sample._fields)])


class Interval(NamedTuple):
    """The time between two samples."""

    begin: Sample
    end: Sample

    @property
    def seconds(self) -> float:
        """How long it was; the clock may have been set."""
        return max(self.end.at - self.begin.at, 1e-3)

    def rate(self, begin: float, end: float) -> float:
        """Return how fast a count grew, per second."""
        return max(end - begin, 0) / self.seconds

    @property
    def logs_per_second(self) -> float:
        """Logs that were accepted."""
        return self.rate(self.begin.logs, self.end.logs)

    @property
    def bytes_per_second(self) -> float:
        """Bytes of their batches."""
        return self.rate(self.begin.bytes, self.end.bytes)

    @property
    def rejections_per_second(self) -> float:
        """Batches that were rejected."""
        return self.rate(sum(self.begin.rejected.values()), sum(self.end.rejected.values()))

    def commit_seconds(self, quantile: float) -> float | None:
        """Return the time that a share of the commits took at most; None where there was none."""
        return quantile_of(growth(self.begin.commits, self.end.commits), quantile)


def growth(begin: Sequence[float], end: Sequence[float]) -> list[float]:
    """Return how much each count grew."""
    return [max(after - before, 0) for before, after in zip(begin, end, strict=True)]


def quantile_of(counts: Sequence[float], quantile: float) -> float | None:
    """Return a quantile of durations, which a bucket has evenly, as Prometheus' functions do."""
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


def intervals(samples: Sequence[Sample | None]) -> list[Interval | None]:
    """Return the times between neighbours, None where one of them is missing."""
    return [Interval(one, two) if one and two else None for one, two in pairwise(samples)]
