"""Show the workers' books to Prometheus, right across all of them.

Each worker counts in plain numbers and writes them out every half second, for whichever worker
is scraped to add up.
"""

import logging
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import gevent
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MutexValue, ValueClass

from astralog.store.commit_queue import CommitQueue
from astralog.telemetry import snapshots
from astralog.telemetry.counters import BOUNDS_SECONDS, Counters, Durations, Volume
from astralog.telemetry.disk_usage import DiskUsage, DiskUsageReader

log = logging.getLogger(__name__)

#: Seconds between two times a worker writes out what it counted: what a killed one may take along.
FLUSH_SECONDS = 0.5

#: Turns that a flush waits at most for stored batches to be answered, so that it has both.
SETTLE_TURNS = 10

#: How the workers tell one another the time of the last sync; shown as an age.
SYNCED_AT = "astralog_last_sync_timestamp_seconds"


class _Mirror:
    """A counter of prometheus_client that follows a plain number."""

    def __init__(self, counter: Counter, read: Callable[[], float]) -> None:
        self._counter = counter
        self._read = read
        self._shown = 0.0

    def flush(self) -> None:
        now = self._read()
        if now != self._shown:
            self._counter.inc(now - self._shown)
            self._shown = now


class _MirrorHistogram(Histogram):
    """A histogram of prometheus_client that follows plain Durations."""

    def follow(self, durations: Durations) -> None:
        self._durations = durations
        self._shown = Durations()

    def flush(self) -> None:
        now, shown = self._durations, self._shown
        for bucket, count, before in zip(self._buckets, now.counts, shown.counts, strict=True):
            if count != before:
                bucket.inc(count - before)
        if now.seconds != shown.seconds:
            self._sum.inc(now.seconds - shown.seconds)
        shown.counts, shown.seconds = now.counts.copy(), now.seconds


class Metrics:
    """All metrics of the service, as this worker knows them and as it reads the others'."""

    def __init__(self, counters: Counters, queue: CommitQueue, data_dir: Path) -> None:
        self._counters = counters
        self._queue = queue
        self._census = DiskUsageReader(data_dir)
        self._registry = CollectorRegistry()
        self._mirrors: list[_Mirror | _MirrorHistogram] = []
        self._count_batches()
        self._time("request", "Time from a batch's head to its answer.", counters.requests)
        self._time("commit", "Time an accepted batch waited for its commit.", counters.commits)
        self._backlog = self._gauge(
            "astralog_backlog_bytes",
            "Memory that bodies being read and batches waiting for their commit hold.",
            "livesum",
        )
        self._synced_at = self._gauge(SYNCED_AT, "Time of the last sync.", "max")

    def _count_batches(self) -> None:
        counters = self._counters
        self._count_volume("received", counters.received, "that were answered")
        self._count_volume("accepted", counters.accepted, "answered 200")
        for unit in ("batches", "logs", "bytes"):
            counter = Counter(
                f"astralog_rejected_{unit}",
                _describe(unit, "rejected, by code"),
                ["code"],
                registry=self._registry,
            )
            for code, volume in counters.rejected.items():
                self._mirror(counter.labels(code), volume, unit)
        stored = "written, and synced as ASTRALOG_SYNC says"
        self._count("stored_logs", f"Logs {stored}.", lambda: counters.stored.logs)
        self._count("stored_bytes", f"Bytes of lines {stored}.", lambda: counters.stored.bytes)
        self._count(
            "late_logs",
            "Logs stored although their client was told commit_timeout, or was gone.",
            lambda: counters.late_logs,
        )
        storages = self._queue.storages
        self._count(
            "sealed_segments",
            "Segments sealed by the worker that wrote them.",
            lambda: sum(storage.sealed_segments for storage in storages),
        )

    def _count_volume(self, name: str, volume: Volume, words: str) -> None:
        for unit in ("batches", "logs", "bytes"):
            counter = Counter(
                f"astralog_{name}_{unit}", _describe(unit, words), registry=self._registry
            )
            self._mirror(counter, volume, unit)

    def _mirror(self, counter: Counter, volume: Volume, unit: str) -> None:
        self._mirrors.append(_Mirror(counter, lambda: getattr(volume, unit)))

    def _count(self, name: str, words: str, read: Callable[[], float]) -> None:
        counter = Counter(f"astralog_{name}", words, registry=self._registry)
        self._mirrors.append(_Mirror(counter, read))

    def _time(self, name: str, words: str, durations: Durations) -> None:
        histogram = _MirrorHistogram(
            f"astralog_{name}_duration_seconds",
            words,
            buckets=BOUNDS_SECONDS,
            registry=self._registry,
        )
        histogram.follow(durations)
        self._mirrors.append(histogram)

    def _gauge(self, name: str, words: str, mode: Literal["livesum", "max"]) -> Gauge:
        return Gauge(name, words, multiprocess_mode=mode, registry=self._registry)

    def start(self) -> None:
        """Write out regularly what this worker counts, for the others to show."""
        gevent.spawn(self._flush_regularly)

    def _flush_regularly(self) -> None:
        while True:
            gevent.sleep(FLUSH_SECONDS)
            try:
                self._settle()
                self.flush()
            except Exception:
                log.exception("metrics are not written out; the next time may do")

    def _settle(self) -> None:
        """Wait while stored batches are being answered, so that a worker's books balance."""
        for _ in range(SETTLE_TURNS):
            if self._counters.is_settled():
                return
            gevent.sleep(0)

    def flush(self) -> None:
        """Write out what this worker has counted."""
        self._counters.add_up()
        for mirror in self._mirrors:
            mirror.flush()
        self._backlog.set(self._queue.backlog_bytes)
        self._synced_at.set(max(storage.synced_at for storage in self._queue.storages))

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all workers' metrics in the text format that an Accept header asks for.

        The second value is the Content-Type.
        """
        self._settle()
        self.flush()
        encode, content_type = choose_encoder(accept)
        return encode(self), content_type

    def collect(self) -> Iterable[Metric]:
        """Yield every metric, as prometheus_client's encoders ask for them."""
        for metric in sorted(self._collect_workers(), key=lambda metric: metric.name):
            yield from _as_age(metric) if metric.name == SYNCED_AT else [metric]
        population = self._census.take()
        if population:
            yield from _show_population(population)

    def _collect_workers(self) -> Iterable[Metric]:
        if ValueClass is MutexValue:  # without gunicorn.conf.py, this process is the only one
            return list(self._registry.collect())
        path = Path(os.environ[snapshots.VARIABLE])
        with snapshots.reading(path):
            return list(MultiProcessCollector(None, str(path)).collect())


def _describe(unit: str, words: str) -> str:
    start = {
        "batches": "Batches",
        "logs": "Logs, as far as they were counted, of batches",
        "bytes": "Bytes, inflated, of the bodies of batches",
    }
    return f"{start[unit]} {words}."


def _as_age(metric: Metric) -> Iterable[Metric]:
    for sample in metric.samples:
        if sample.value:
            age = max(time.time() - sample.value, 0.0)
            yield GaugeMetricFamily(
                "astralog_last_sync_age_seconds", "Time since a segment was last synced.", age
            )


def _show_population(population: DiskUsage) -> Iterable[Metric]:
    segments = GaugeMetricFamily(
        "astralog_segments", "Segments in the data directory.", labels=["state"]
    )
    sizes = GaugeMetricFamily(
        "astralog_segments_bytes", "Bytes of the segments in the data directory.", labels=["state"]
    )
    segments.add_metric(["open"], population.open_segments)
    segments.add_metric(["sealed"], population.sealed_segments)
    sizes.add_metric(["open"], population.open_bytes)
    sizes.add_metric(["sealed"], population.sealed_bytes)
    yield segments
    yield sizes
    yield GaugeMetricFamily(
        "astralog_free_disk_bytes",
        "Bytes free on the data directory's disk.",
        population.free_bytes,
    )
