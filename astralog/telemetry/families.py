"""The metric families, each with a function that reads its values in one worker.

Some families have values in one process only: those of the data directory and of forward in the
housekeeper's, those of compression in the compressor's.

A label never contains a token or any other text of a client's: the label `token` is the first 8 hex
digits of the token's SHA-256.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import NamedTuple

from astralog.store.commit_queue import CommitQueue
from astralog.store.compression import CompressionCounts
from astralog.store.forward_state import ForwardStatus
from astralog.store.housekeeper import DiskUsage
from astralog.telemetry.counters import (
    ACCEPTED_BY_TOKEN,
    BOUNDS_SECONDS,
    REJECTED_BY_TOKEN,
    Counters,
    Durations,
    Volume,
)

#: The values of a family's labels, in their order.
Labels = tuple[str, ...]

#: The label values under which a histogram has its buckets, and its sum.
BUCKETS = (*map(str, BOUNDS_SECONDS), "+Inf")
SUM = "sum"

#: The state of a worker that accepts batches, and the codes with which others reject them.
READY = "ready"
STOPPING = "stopping"
WORKERS = "astralog_workers"
STATES = (READY, STOPPING, "queue_full", "storage_full", "storage_failed")

#: The numbers of a `Volume`, each with its help.
UNITS = {
    "batches": "Batches",
    "logs": "Logs, if counted, of batches",
    "bytes": "Decompressed bytes of the bodies of batches",
}


class Kind(Enum):
    """The type of a family in Prometheus, and how its values add up across workers."""

    COUNTER = "counter"  # the sum of all workers, the dead ones included
    HISTOGRAM = "histogram"  # the same, of each bucket
    GAUGE = "gauge"  # the sum of the living workers
    TIMESTAMP = "timestamp"  # the latest of all workers, in seconds since 1970; none is 0


class Family(NamedTuple):
    """A metric family: `read` returns this worker's value for each set of label values."""

    name: str
    help: str
    kind: Kind
    read: Callable[[], Mapping[Labels, float]]
    labels: Labels = ()


def counter_families(counters: Counters) -> list[Family]:
    stored = "written, and synced according to ASTRALOG_SYNC"
    replayed = "answered 200 because an earlier try with their key had stored them"
    late = "Logs stored after their client received commit_timeout or disconnected."
    by_token = _volumes(
        "accepted",
        "answered 200, by token",
        lambda: {(token,): volume for token, volume in counters.accepted_by_token.items()},
        ("token",),
    )
    rejected: dict[Labels, Volume] = {(code,): volume for code, volume in counters.rejected.items()}
    return [
        *_volumes("received", "that were answered", lambda: {(): counters.received}),
        *_volumes("accepted", "answered 200", lambda: {(): counters.accepted}),
        *(
            family._replace(name=ACCEPTED_BY_TOKEN[unit])
            for unit, family in zip(UNITS, by_token, strict=True)
        ),
        # Replayed logs counted when they were stored.
        *_volumes(
            "replayed", replayed, lambda: {(): counters.replayed}, units=("batches", "bytes")
        ),
        *_volumes("rejected", "rejected, by code", lambda: rejected, ("code",)),
        Family(
            REJECTED_BY_TOKEN,
            "Batches rejected, by token and code.",
            Kind.COUNTER,
            lambda: counters.rejected_by_token,
            ("token", "code"),
        ),
        _counter("stored_logs", f"Logs {stored}.", counters, field="stored.logs"),
        _counter("stored_bytes", f"Bytes of lines {stored}.", counters, field="stored.bytes"),
        _counter("late_logs", late, counters),
        _durations("request", "Time from a batch's head to its response.", counters.requests),
        _durations("commit", "Time an accepted batch waited for its commit.", counters.commits),
    ]


def queue_families(queue: CommitQueue) -> list[Family]:
    storages, retention = queue.storages, queue.housekeeper.retention
    states: list[Labels] = [(state,) for state in STATES]
    undelivered = "Segments removed by retention before forward had delivered them."
    lost = "Batches acknowledged in the mode everysec before a sync that failed."
    forgotten = "Idempotency keys forgotten before their time, to keep their number bounded."
    return [
        _counter("sealed_segments", "Segments sealed by the worker that wrote them.", *storages),
        _counter("removed_segments", "Segments removed by retention.", retention),
        _counter("removed_undelivered_segments", undelivered, retention),
        _counter("possibly_lost_batches", lost, *storages),
        _counter("forgotten_keys", forgotten, queue.keys.upkeep),
        _gauge(
            "backlog_bytes",
            "Memory of bodies, of the buffers that decompress and split them, and of lines that "
            "are not stored yet.",
            lambda: queue.budget.reserved,
        ),
        _gauge(
            "backlog_limit_bytes",
            "Limit of the backlog's memory, beyond which batches are rejected.",
            lambda: queue.budget.limit,
        ),
        Family(
            "astralog_last_sync_timestamp_seconds",
            "Time of the last sync of a segment.",
            Kind.TIMESTAMP,
            lambda: {(): max(storage.synced_at for storage in storages)},
        ),
        Family(
            WORKERS,
            "Workers by state: ready, or the code with which they reject batches.",
            Kind.GAUGE,
            lambda: dict.fromkeys(states, 0) | {(queue.unavailable() or READY,): 1},
            ("state",),
        ),
    ]


def disk_families(queue: CommitQueue) -> list[Family]:
    """Return the families that only the housekeeper's worker knows."""

    def of_usage(name: str, help: str, read: Callable[[DiskUsage], float | None]) -> Family:
        return _gauge(name, help, lambda: (usage := queue.housekeeper.disk_usage) and read(usage))

    def of_states(name: str, help: str, unit: str) -> Family:
        def read() -> Mapping[Labels, float]:
            usage = queue.housekeeper.disk_usage
            states = ("open", "sealed") if usage else ()
            return {(state,): getattr(usage, f"{state}_{unit}") for state in states}

        return Family(f"astralog_{name}", help, Kind.GAUGE, read, ("state",))

    free, total = "free on the data directory's disk", "of the data directory's disk, free or not"
    return [
        of_states("segments", "Segments in the data directory.", "segments"),
        of_states("segments_bytes", "Bytes of the segments in the data directory.", "bytes"),
        of_usage("free_disk_bytes", f"Bytes {free}.", attrgetter("space.free")),
        of_usage("total_disk_bytes", f"Bytes {total}.", attrgetter("space.total")),
        of_usage(
            "free_disk_inodes", f"Inodes {free}, one per file.", attrgetter("space.free_inodes")
        ),
        of_usage("total_disk_inodes", f"Inodes {total}.", attrgetter("space.total_inodes")),
        of_usage(
            "idempotency_keys",
            "Idempotency keys that are remembered.",
            lambda usage: queue.keys.upkeep.held_keys,
        ),
    ]


def compression_families(counts: CompressionCounts) -> list[Family]:
    """Return the families of the compressor; other processes have no values."""
    failures, seconds = "Failed attempts to compress a segment.", "CPU seconds of the compressor."
    return [
        _counter("compressed_segments", "Sealed segments compressed.", counts, field="segments"),
        _counter(
            "compressed_plain_bytes", "Bytes before compression.", counts, field="plain_bytes"
        ),
        _counter("compressed_bytes", "Bytes after compression.", counts),
        _counter("compression_failures", failures, counts, field="failures"),
        _counter("compression_cpu_seconds", seconds, counts, field="cpu_seconds"),
        _gauge(
            "compression_waiting_segments",
            "Sealed segments that wait to be compressed.",
            lambda: counts.waiting_segments,
        ),
    ]


def forward_families(queue: CommitQueue) -> list[Family]:
    """Return the families of the last status of `astralog forward`."""

    def of_status(
        name: str, help: str, read: Callable[[ForwardStatus], float] | None = None
    ) -> Family:
        """Return a family of the status; by default its field of the same name."""
        value = read or attrgetter(name)

        def read_known() -> float | None:
            usage = queue.housekeeper.disk_usage
            return value(usage.forward) if usage and usage.forward else None

        return _gauge(f"forward_{name}", help, read_known)

    lag = "Age of the oldest log that forward has not delivered."
    waiting = "that forward has not delivered completely"
    dead_letters = "Delivered logs that went to the dead-letter table."
    incomplete = (
        "Segments with lines that the tables lack after two deliveries, since forward started."
    )
    doubled = "Segments with more rows in the tables than lines, since forward started."
    updated = "Time of forward's last status report."
    return [
        of_status("lag_seconds", lag, lambda status: status.lag_seconds(time.time())),
        of_status("waiting_segments", f"Sealed segments {waiting}."),
        of_status("waiting_bytes", f"Bytes of the files {waiting}."),
        of_status("delivered_logs", "Logs that were delivered since forward started."),
        of_status("dead_letter_logs", dead_letters),
        of_status("incomplete_segments", incomplete),
        of_status("doubled_segments", doubled),
        of_status("updated_timestamp_seconds", updated, attrgetter("updated_at")),
    ]


# --- One family; the names lack the prefix `astralog_`


def _counter(name: str, help: str, *sources: object, field: str = "") -> Family:
    """Return a counter without labels: the sum of a field, by default of the same name."""
    read: Callable[[object], float] = attrgetter(field or name)
    return Family(f"astralog_{name}", help, Kind.COUNTER, lambda: {(): sum(map(read, sources))})


def _gauge(name: str, help: str, read: Callable[[], float | None]) -> Family:
    """Return a gauge without labels; `read` returns None while its value is unknown."""
    return Family(
        f"astralog_{name}",
        help,
        Kind.GAUGE,
        lambda: {} if (value := read()) is None else {(): value},
    )


def _durations(name: str, help: str, durations: Durations) -> Family:
    def read() -> Mapping[Labels, float]:
        counts = zip(BUCKETS, durations.counts, strict=True)
        return {(bucket,): count for bucket, count in counts} | {(SUM,): durations.seconds}

    return Family(f"astralog_{name}_duration_seconds", help, Kind.HISTOGRAM, read)


def _volumes(
    name: str,
    words: str,
    volumes: Callable[[], Mapping[Labels, Volume]],
    labels: Labels = (),
    units: Iterable[str] = UNITS,
) -> Iterator[Family]:
    """Yield the families of batches, logs and bytes."""
    for unit in units:
        help, read = f"{UNITS[unit]} {words}.", partial(_read_volumes, volumes, unit)
        yield Family(f"astralog_{name}_{unit}", help, Kind.COUNTER, read, labels)


def _read_volumes(
    volumes: Callable[[], Mapping[Labels, Volume]], unit: str
) -> Mapping[Labels, float]:
    return {key: getattr(volume, unit) for key, volume in volumes().items()}
