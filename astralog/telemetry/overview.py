"""The numbers of the status page: the whole service, now and over the last hour."""

import time
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any

from astralog import __version__
from astralog.store.files import kept_inodes
from astralog.telemetry.families import WORKERS
from astralog.telemetry.history import (
    SAMPLE_SECONDS,
    History,
    Rates,
    Sample,
    Totals,
    growth,
    rates_between,
    take_sample,
    value_of,
)
from astralog.telemetry.prometheus import Metrics, is_ready

#: Minimum age of the sample from which rates are computed: numbers may be half a second old.
WINDOW_SECONDS = 5.0

#: Minimum seconds of history from which the time until the disk is full is computed.
TREND_SECONDS = 60.0

SAMPLES_PER_MINUTE = 60 // SAMPLE_SECONDS

#: Numbers of each moment of the history.
_LEVELS = ("backlog_bytes", "free_disk_bytes", "lag_seconds")

#: Batches, logs and bytes of a token without any.
NOTHING_SENT = (0.0, 0.0, 0.0)

Json = dict[str, Any]


class Overview:
    """The numbers in the shape of their JSON."""

    def __init__(self, metrics: Metrics, min_free_bytes: int) -> None:
        """Treat a disk with `min_free_bytes` free as full."""
        self._metrics = metrics
        self._min_free_bytes = min_free_bytes
        self._started_at = time.time()
        self.history = History(self.sample)

    def start(self, fd: int, started_at: float) -> None:
        """Share the history through a file from now on; `started_at` is the service's start."""
        self._started_at = started_at
        self.history.start(fd)

    def readiness(self) -> Json:
        """Return the numbers for any token; raises Rejection."""
        return {"version": __version__, "is_ready": is_ready(self._metrics.totals()[WORKERS])}

    def now(self) -> Json:
        """Return the numbers of the whole service at this moment; raises Rejection."""
        totals = self._metrics.totals()
        sample = take_sample(totals)
        window = self._window(sample)
        workers = totals[WORKERS]
        return {
            "version": __version__,
            "is_ready": is_ready(workers),
            "workers": {state: number for (state,), number in workers.items() if number},
            "started_at": self._started_at,
            "at": sample.at,
            "window_seconds": window and _rounded(window.seconds),
            "accepted": {
                "batches": sample.batches,
                "logs": sample.logs,
                "bytes": sample.bytes,
                "logs_per_second": window and _rounded(window.logs_per_second),
                "bytes_per_second": window and _rounded(window.bytes_per_second),
            },
            "rejected": {
                "batches": sum(sample.rejected.values()),
                "batches_per_second": window and _rounded(window.rejections_per_second),
            },
            "commit_seconds": {
                "p50": window and _rounded(window.commit_p50_seconds),
                "p99": window and _rounded(window.commit_p99_seconds),
            },
            "backlog": {
                "bytes": sample.backlog_bytes,
                "limit_bytes": value_of(totals, "backlog_limit_bytes"),
            },
            "disk": self._disk(totals, sample),
            "forward": _forward(totals),
        }

    def _window(self, sample: Sample) -> Rates | None:
        """Return the rates since the newest sample that is old enough, None without one."""
        for known in reversed(self.history.samples()):
            if known and known.at <= sample.at - WINDOW_SECONDS:
                return rates_between(known, sample)
        return None

    def _disk(self, totals: Totals, sample: Sample) -> Json | None:
        """Return the disk usage, None if unknown."""
        if sample.free_disk_bytes is None:
            return None
        states = ("open", "sealed")
        total_bytes = value_of(totals, "total_disk_bytes") or 0
        total_inodes = value_of(totals, "total_disk_inodes")
        inodes = kept_inodes(self._min_free_bytes, int(total_bytes), int(total_inodes or 0))
        return {
            "free_bytes": sample.free_disk_bytes,
            "total_bytes": total_bytes,
            "kept_free_bytes": self._min_free_bytes,
            "free_inodes": sample.free_disk_inodes,
            "total_inodes": total_inodes,
            "kept_free_inodes": None if total_inodes is None else inodes,
            "segments": sum(value_of(totals, "segments", state) or 0 for state in states),
            "segments_bytes": sum(
                value_of(totals, "segments_bytes", state) or 0 for state in states
            ),
            "seconds_to_full": self._seconds_to_full(sample, inodes),
        }

    def _seconds_to_full(self, now: Sample, inodes: int) -> float | None:
        """Return the seconds until bytes or inodes run out, None for never."""
        times = [
            self._seconds_until(now, "free_disk_bytes", self._min_free_bytes),
            self._seconds_until(now, "free_disk_inodes", inodes),
        ]
        return min((seconds for seconds in times if seconds is not None), default=None)

    def _seconds_until(self, now: Sample, name: str, kept: int) -> float | None:
        """Return the seconds until the kept reserve is reached, by the trend of the last hour."""
        free = getattr(now, name)
        for known in self.history.samples():
            before = getattr(known, name) if known else None
            if known and None not in (before, free) and known.at <= now.at - TREND_SECONDS:
                filled = (before - free) / (now.at - known.at)
                return _rounded(max(free - kept, 0) / filled) if filled > 0 else None
        return None

    def sample(self) -> Sample:
        """Return the numbers of this moment; raises Rejection."""
        return take_sample(self._metrics.totals())

    def last_hour(self, now: Sample, token: str | None = None) -> Json:
        """Return the numbers of the last hour, or only those of one token by its name."""
        samples = self.history.samples()
        rejections = _rejections(samples, now, token)
        tokens = _tokens(samples, now, rejections, token)
        of_tokens = {"at": now.at, "rejections": rejections, "tokens": tokens}
        if token is not None:
            return of_tokens
        pairs = pairwise(samples)
        rates = [rates_between(one, two) if one and two else None for one, two in pairs]
        return {
            "seconds": SAMPLE_SECONDS,
            **{name: _values(rates, name) for name in Rates._fields if name != "seconds"},
            **{name: _values(samples[1:], name) for name in _LEVELS},
            **of_tokens,
        }


def _values(items: Sequence[Any], name: str) -> list[float | None]:
    read = attrgetter(name)
    return [_rounded(read(item)) if item else None for item in items]


def _forward(totals: Totals) -> Json | None:
    """Return the last status of forward, None if nothing is forwarded."""
    names = ("lag_seconds", "waiting_segments", "waiting_bytes", "updated_timestamp_seconds")
    values = {name: value_of(totals, f"forward_{name}") for name in names}
    return None if None in values.values() else values


def _rejections(samples: Sequence[Sample | None], now: Sample, token: str | None) -> list[Json]:
    """Return the rejected batches by token and code, sorted by their number in the last hour."""
    oldest = next((sample.rejected for sample in samples if sample), {})
    minutes = _minutes(samples, now)
    rows = []
    for name, total in now.rejected.items():
        of, _, code = name.partition(" ")
        if token in (None, of):
            counts = [sample and sample.rejected.get(name, 0) for sample in minutes]
            last_hour = max(total - oldest.get(name, 0), 0)
            row = {"token": of, "code": code, "total": total, "last_hour": last_hour}
            rows.append(row | {"per_minute": _growths(counts)})
    return sorted(rows, key=lambda row: (-row["last_hour"], -row["total"]))


def _tokens(
    samples: Sequence[Sample | None], now: Sample, rejections: Sequence[Json], token: str | None
) -> list[Json]:
    """Return the volume per token in the last hour, sorted by bytes.

    `rejections` are the rows of `_rejections`. A token without any batch in that hour is omitted.
    """
    oldest = next((sample.sent for sample in samples if sample), {})
    rejected: Counter[str] = Counter()
    for row in rejections:
        rejected[row["token"]] += row["last_hour"]
    minutes = _minutes(samples, now)
    rows = []
    for name in now.sent.keys() | rejected.keys():
        before, total = (sent.get(name, NOTHING_SENT) for sent in (oldest, now.sent))
        batches, logs, size = growth(before, total)
        if token in (None, name) and (batches or rejected[name]):
            sizes = [sample and sample.sent.get(name, NOTHING_SENT)[2] for sample in minutes]
            row = {"token": name, "batches": batches, "logs": logs, "bytes": size}
            rows.append(row | {"rejected_batches": rejected[name], "per_minute": _growths(sizes)})
    return sorted(rows, key=lambda row: (-row["bytes"], -row["rejected_batches"], row["token"]))


def _minutes(samples: Sequence[Sample | None], now: Sample) -> Sequence[Sample | None]:
    """Return the samples of the last hour at each minute, the last of them that of now."""
    return [*samples[:-1], now][::SAMPLES_PER_MINUTE]


def _growths(counts: Sequence[float | None]) -> list[float]:
    """Return the growth of a count between neighbours; a missing one repeats the one before."""
    grown = []
    last: float | None = None
    for known in counts:
        count = last if known is None else known
        grown.append(0 if count is None or last is None else max(count - last, 0))
        last = count
    return grown[1:]


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
