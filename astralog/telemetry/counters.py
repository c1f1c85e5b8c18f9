"""The counters of one worker, and snapshots of them that add up across workers.

Plain numbers: measured, they take 1 µs per request, and those of prometheus_client 10 µs. Only the
hub's thread counts.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import NamedTuple, TypeVar

import gevent

from astralog.errors import STATUS_OF_CODE, Rejection

T = TypeVar("T")

#: Upper bounds of the buckets of durations.
BOUNDS_SECONDS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)

#: Stands for a missing or unknown token.
UNKNOWN_TOKEN = "unknown"  # nosec B105  # not a token

#: Tokens with separate series, including replaced ones; all others share one name.
MAX_TOKENS = 100
OTHER_TOKENS = "other"


class Volume:
    """A number of batches with their logs and bytes."""

    def __init__(self) -> None:
        self.batches = self.logs = self.bytes = 0

    def add(self, batches: int, logs: int, size: int) -> None:
        self.batches += batches
        self.logs += logs
        self.bytes += size


def total(volumes: Iterable[Volume]) -> Volume:
    result = Volume()
    for volume in volumes:
        result.add(volume.batches, volume.logs, volume.bytes)
    return result


class Durations:
    """A histogram of durations: `counts` has one number per bucket, the last one for the rest."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_SECONDS) + 1)
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_SECONDS, seconds)] += 1
        self.seconds += seconds


class Counters:
    """The counts of one worker since its start.

    A batch counts as received, and as accepted or rejected, when it is answered; as stored when it
    is written and, according to the settings, synced. `late_logs` are stored logs whose client had
    received `commit_timeout` or had disconnected: stored logs are accepted plus late logs.
    """

    def __init__(self, is_named: Callable[[str], bool] = lambda token: True) -> None:
        """Count tokens by name if `is_named` returns True for the name."""
        self._is_named = is_named
        self._named: set[str] = set()  # of these, the ones that were counted
        self.replayed = Volume()
        self.rejected = {code: Volume() for code in STATUS_OF_CODE}
        self.accepted_by_token: dict[str, Volume] = {}
        self.rejected_by_token: dict[tuple[str, ...], float] = {}  # batches, by token and code
        self.stored = Volume()
        self.late_logs = 0
        self.requests = Durations()
        self.commits = Durations()

    @property
    def accepted(self) -> Volume:
        return total(self.accepted_by_token.values())

    @property
    def received(self) -> Volume:
        return total((self.accepted, self.replayed, *self.rejected.values()))

    def accept(
        self, size: int, logs: int, started_at: float, committing_at: float, token: str
    ) -> None:
        """Count a stored batch.

        `size` is that of its decompressed body; the times are perf_counter's, at the request's
        start and the commit's; `token` is the name of the client's token.
        """
        volume = self.accepted_by_token.get(token)
        if volume is None:
            volume = self.accepted_by_token.setdefault(self._label(token), Volume())
        volume.add(1, logs, size)
        now = perf_counter()
        self.requests.add(now - started_at)
        self.commits.add(now - committing_at)

    def replay(self, size: int, started_at: float) -> None:
        """Count a batch that an earlier try with its key has stored; its logs count there."""
        self.replayed.add(1, 0, size)
        self.requests.add(perf_counter() - started_at)

    def reject(
        self, error: BaseException, size: int, logs: int, started_at: float, token: str | None
    ) -> None:
        """Count a batch that is rejected with an error; `size` and `logs` are 0 if not known.

        `token` is the name of the client's token, None if it is unknown.
        """
        logs = logs or getattr(error, "logs", 0)
        code = _code(error)
        self.rejected[code].add(1, logs, size)
        series = self._label(token) if token else UNKNOWN_TOKEN, code
        self.rejected_by_token[series] = self.rejected_by_token.get(series, 0) + 1
        self.requests.add(perf_counter() - started_at)

    def _label(self, token: str) -> str:
        """Return the name under which a token's batches are counted."""
        if token not in self._named:
            if len(self._named) >= MAX_TOKENS or not self._is_named(token):
                return OTHER_TOKENS
            self._named.add(token)
        return token

    def reject_logs(self, code: str, logs: int) -> None:
        """Count logs that were left out of a batch which was accepted."""
        self.rejected[code].add(0, logs, 0)

    def store(self, batches: int, size: int, logs: int, late_logs: int) -> None:
        """Count batches that are written; `size` is that of their lines."""
        self.stored.add(batches, logs, size)
        self.late_logs += late_logs

    def is_settled(self) -> bool:
        """Return whether every stored batch was answered."""
        return self.stored.logs == self.accepted.logs + self.late_logs


def _code(error: BaseException) -> str:
    if isinstance(error, Rejection):
        return error.code
    return "stopping" if isinstance(error, gevent.GreenletExit) else "internal"


#: A metric family's name, then the values of its labels.
Series = tuple[str, ...]

Values = dict[Series, float]

#: The families whose first label is a token's name, which has no bounded number of values.
REJECTED_BY_TOKEN = "astralog_rejected_batches_by_token"  # nosec B105  # not a token
ACCEPTED_BY_TOKEN = {
    unit: f"astralog_accepted_{unit}_by_token" for unit in ("batches", "logs", "bytes")
}
TOKEN_FAMILIES = (REJECTED_BY_TOKEN, *ACCEPTED_BY_TOKEN.values())


class Snapshot(NamedTuple):
    """The values of one worker, or of several that are merged.

    `counts` only grow and `times` only move on; both outlive the worker. `gauges` hold while it
    lives.
    """

    counts: Values
    times: Values
    gauges: Values

    def without_gauges(self) -> "Snapshot":
        """Return the values that remain after the worker's end."""
        return self._replace(gauges={})

    def bounded(self) -> "Snapshot":
        """Return the same with a limited number of series by token."""
        others = {(family, token) for family in TOKEN_FAMILIES for token in self._excess(family)}
        counts: Values = {}
        for series, value in self.counts.items():
            name = (series[0], OTHER_TOKENS, *series[2:]) if series[:2] in others else series
            _add(counts, {name: value})
        return self._replace(counts=counts)

    def _excess(self, family: str) -> list[str]:
        """Return the tokens of a family beyond the `MAX_TOKENS` with the largest counts."""
        sums: dict[str, float] = {}
        for series, value in self.counts.items():
            if series[0] == family and series[1] not in (OTHER_TOKENS, UNKNOWN_TOKEN):
                _add(sums, {series[1]: value})
        return sorted(sums, key=sums.__getitem__, reverse=True)[MAX_TOKENS:]


EMPTY = Snapshot({}, {}, {})


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return the sums of all counts and gauges, and the latest of all times."""
    merged = Snapshot({}, {}, {})
    for snapshot in snapshots:
        _add(merged.counts, snapshot.counts)
        _add(merged.gauges, snapshot.gauges)
        for series, time in snapshot.times.items():
            merged.times[series] = max(time, merged.times.get(series, time))
    return merged


def _add(sums: dict[T, float], values: Mapping[T, float]) -> None:
    for key, value in values.items():
        sums[key] = sums.get(key, 0) + value


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON, without the counts and times that are zero.

    A gauge that is zero stays: one that is missing is not known.
    """
    parts = [
        [[value, *series] for series, value in values.items() if value or values is snapshot.gauges]
        for values in snapshot
    ]
    return json.dumps(parts, separators=(",", ":")).encode()


def decode_snapshot(data: bytes) -> Snapshot:
    return Snapshot(
        *({tuple(series): value for value, *series in rows} for rows in json.loads(data))
    )
