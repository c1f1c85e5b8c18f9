"""What a worker has counted at one moment, as plain numbers that add up across workers."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

#: A metric family's name, then the values of its labels.
Series = tuple[str, ...]

Values = dict[Series, float]

#: The family whose series have a token's name as their first label, of which there is no end.
TOKEN_FAMILY = "astralog_rejected_batches_by_token"  # nosec B105

#: As many of its series are kept; the least of those beyond are added up under another name.
MAX_TOKEN_SERIES = 50
OTHER_TOKENS = "other"


class Snapshot(NamedTuple):
    """The values of one worker, or of several that are merged.

    `counts` only grow and `times` only move on; both outlive the worker. `gauges` hold while it
    lives.
    """

    counts: Values
    times: Values
    gauges: Values

    def without_gauges(self) -> "Snapshot":
        """Return what outlives the worker."""
        return self._replace(gauges={})

    def bounded(self) -> "Snapshot":
        """Return the same with few series of tokens, however many tokens have come and gone."""
        tokens = {
            series
            for series in self.counts
            if series[0] == TOKEN_FAMILY and series[1] != OTHER_TOKENS
        }
        kept = sorted(tokens, key=lambda series: self.counts[series])[-MAX_TOKEN_SERIES:]
        counts: Values = {}
        for series, value in self.counts.items():
            is_other = series in tokens and series not in kept
            _add(counts, {(TOKEN_FAMILY, OTHER_TOKENS, *series[2:]) if is_other else series: value})
        return self._replace(counts=counts)


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


def _add(sums: Values, values: Values) -> None:
    for series, value in values.items():
        sums[series] = sums.get(series, 0) + value


def encode(snapshot: Snapshot) -> bytes:
    """Return the snapshot as JSON, without the counts and times that are zero.

    A gauge that is zero stays: one that is missing is not known.
    """
    counts, times, gauges = map(_rows, snapshot)
    parts = [_without_zeros(counts), _without_zeros(times), gauges]
    return json.dumps(parts, separators=(",", ":")).encode()


def decode(data: bytes) -> Snapshot:
    """Return the snapshot that was encoded."""
    return Snapshot(*map(_values, json.loads(data)))


def _rows(values: Values) -> list[list[str | float]]:
    return [[value, *series] for series, value in values.items()]


def _without_zeros(rows: list[list[str | float]]) -> list[list[str | float]]:
    return [row for row in rows if row[0]]


def _values(rows: list[list[Any]]) -> Values:
    return {tuple(series): value for value, *series in rows}
