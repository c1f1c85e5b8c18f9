"""The metric families, each with a function that reads its values in one worker.

Some families have values in one process only: those of the data directory and of forward in the
housekeeper's, those of compression in the compressor's.

A label never contains a token or any other text of a client's: the label `token` is the first 8 hex
digits of the token's SHA-256.
"""

import time
from collections.abc import Callable, Mapping
from enum import Enum
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

#: Units of a replayed batch; its logs counted when it was stored.
REPLAYED = ("batches", "bytes")

#: The labels of the families of accepted batches by token.
TOKEN = ("token",)

UNITS = {
    "batches": "Batches",
    "logs": "Logs, if counted, of batches",
    "bytes": "Decompressed bytes of the bodies of batches",
}


#: The numbers of the disk's space, each with its help and its field.
SPACE = (
    ("free_disk_bytes", "Bytes free on the data directory's disk.", "free"),
    ("total_disk_bytes", "Bytes of the data directory's disk, free or not.", "total"),
    ("free_disk_inodes", "Inodes free on the data directory's disk, one per file.", "free_inodes"),
    ("total_disk_inodes", "Inodes of the data directory's disk, free or not.", "total_inodes"),
)


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
    """Return the families of the counters."""
    stored = "written, and synced according to ASTRALOG_SYNC"
    replayed = "answered 200 because an earlier try with their key had stored them"
    late = "Logs stored after their client received commit_timeout or disconnected."
    by_token, tokens = "Batches rejected, by token and code.", counters.rejected_by_token
    rejected: dict[Labels, Volume] = {(code,): volume for code, volume in counters.rejected.items()}
    return [
        *_volumes("received", "that were answered", {(): counters.received}),
        *_volumes("accepted", "answered 200", {(): counters.accepted}),
        *(_accepted_by_token(counters, unit) for unit in ACCEPTED_BY_TOKEN),
        *(_volume("replayed", unit, replayed, {(): counters.replayed}, ()) for unit in REPLAYED),
        *_volumes("rejected", "rejected, by code", rejected, ("code",)),
        Family(REJECTED_BY_TOKEN, by_token, Kind.COUNTER, lambda: tokens, ("token", "code")),
        counter("stored_logs", f"Logs {stored}.", lambda: counters.stored.logs),
        counter("stored_bytes", f"Bytes of lines {stored}.", lambda: counters.stored.bytes),
        counter("late_logs", late, lambda: counters.late_logs),
        _durations("request", "Time from a batch's head to its response.", counters.requests),
        _durations("commit", "Time an accepted batch waited for its commit.", counters.commits),
    ]


def queue_families(queue: CommitQueue) -> list[Family]:
    """Return the families of the commit queue and its storages."""
    return [
        *_segment_families(queue),
        counter(
            "forgotten_keys",
            "Idempotency keys forgotten before their time, to keep their number bounded.",
            lambda: queue.keys.upkeep.forgotten_keys,
        ),
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
            lambda: {(): max(storage.synced_at for storage in queue.storages)},
        ),
        Family(
            WORKERS,
            "Workers by state: ready, or the code with which they reject batches.",
            Kind.GAUGE,
            lambda: _states(queue.unavailable() or READY),
            ("state",),
        ),
    ]


def _segment_families(queue: CommitQueue) -> list[Family]:
    storages = queue.storages
    return [
        counter(
            "sealed_segments",
            "Segments sealed by the worker that wrote them.",
            lambda: sum(storage.sealed_segments for storage in storages),
        ),
        counter(
            "removed_segments",
            "Segments removed by retention.",
            lambda: queue.housekeeper.retention.removed_segments,
        ),
        counter(
            "removed_undelivered_segments",
            "Segments removed by retention before forward had delivered them.",
            lambda: queue.housekeeper.retention.removed_undelivered_segments,
        ),
        counter(
            "possibly_lost_batches",
            "Batches acknowledged in the mode everysec before a sync that failed.",
            lambda: sum(storage.possibly_lost_batches for storage in storages),
        ),
    ]


def _states(state: str) -> Mapping[Labels, float]:
    """Return all states of a worker: 1 for the current state, 0 for the others."""
    states: dict[Labels, float] = {(name,): 0 for name in STATES}
    return states | {(state,): 1}


def counter(name: str, help: str, read: Callable[[], float]) -> Family:
    """Return a counter without labels; `name` lacks the prefix `astralog_`."""
    return Family(f"astralog_{name}", help, Kind.COUNTER, lambda: {(): read()})


def _gauge(name: str, help: str, read: Callable[[], float]) -> Family:
    return Family(f"astralog_{name}", help, Kind.GAUGE, lambda: {(): read()})


def _volumes(
    name: str, words: str, volumes: Mapping[Labels, Volume], labels: Labels = ()
) -> list[Family]:
    """Return the families of batches, logs and bytes."""
    return [_volume(name, unit, words, volumes, labels) for unit in UNITS]


def _volume(
    name: str, unit: str, words: str, volumes: Mapping[Labels, Volume], labels: Labels
) -> Family:
    return Family(
        f"astralog_{name}_{unit}",
        f"{UNITS[unit]} {words}.",
        Kind.COUNTER,
        lambda: {key: getattr(volume, unit) for key, volume in volumes.items()},
        labels,
    )


def _accepted_by_token(counters: Counters, unit: str) -> Family:
    """Return the family of accepted batches, logs or bytes by token."""
    family = _volume("accepted", unit, "answered 200, by token", counters.accepted_by_token, TOKEN)
    return family._replace(name=ACCEPTED_BY_TOKEN[unit])


def _durations(name: str, help: str, durations: Durations) -> Family:
    return Family(
        f"astralog_{name}_duration_seconds", help, Kind.HISTOGRAM, lambda: _buckets(durations)
    )


def _buckets(durations: Durations) -> Mapping[Labels, float]:
    counts = zip(BUCKETS, durations.counts, strict=True)
    return {(bucket,): count for bucket, count in counts} | {(SUM,): durations.seconds}


def disk_families(queue: CommitQueue) -> list[Family]:
    """Return the families that only the housekeeper's worker knows."""
    return [
        _disk(
            queue,
            "segments",
            "Segments in the data directory.",
            lambda usage: {("open",): usage.open_segments, ("sealed",): usage.sealed_segments},
            ("state",),
        ),
        _disk(
            queue,
            "segments_bytes",
            "Bytes of the segments in the data directory.",
            lambda usage: {("open",): usage.open_bytes, ("sealed",): usage.sealed_bytes},
            ("state",),
        ),
        *(_space(queue, *row) for row in SPACE),
        _disk(
            queue,
            "idempotency_keys",
            "Idempotency keys that are remembered.",
            lambda usage: {(): queue.keys.upkeep.held_keys},
        ),
    ]


def _space(queue: CommitQueue, name: str, help: str, field: str) -> Family:
    """Return a family of a field of the disk's space."""
    return _disk(queue, name, help, lambda usage: _known(getattr(usage.space, field)))


def _known(value: int | None) -> Mapping[Labels, float]:
    """Return a value without labels, {} if it is None."""
    return {} if value is None else {(): value}


def compression_families(counts: CompressionCounts) -> list[Family]:
    """Return the families of the compressor; other processes have no values."""
    return [
        counter("compressed_segments", "Sealed segments compressed.", lambda: counts.segments),
        counter("compressed_plain_bytes", "Bytes before compression.", lambda: counts.plain_bytes),
        counter("compressed_bytes", "Bytes after compression.", lambda: counts.compressed_bytes),
        counter(
            "compression_failures",
            "Failed attempts to compress a segment.",
            lambda: counts.failures,
        ),
        counter(
            "compression_cpu_seconds",
            "CPU seconds of the compressor.",
            lambda: counts.cpu_seconds,
        ),
        Family(
            "astralog_compression_waiting_segments",
            "Sealed segments that wait to be compressed.",
            Kind.GAUGE,
            lambda: _known(counts.waiting_segments),
        ),
    ]


def forward_families(queue: CommitQueue) -> list[Family]:
    """Return the families of the last status of `astralog forward`."""
    lag = "Age of the oldest log that forward has not delivered."
    waiting = "that forward has not delivered completely"
    dead_letters = "Delivered logs that went to the dead-letter table."
    incomplete = (
        "Segments with lines that the tables lack after two deliveries, since forward started."
    )
    doubled = "Segments with more rows in the tables than lines, since forward started."
    return [
        _forward(queue, "lag_seconds", lag, lambda status: status.lag_seconds(time.time())),
        _forward(queue, "waiting_segments", f"Sealed segments {waiting}."),
        _forward(queue, "waiting_bytes", f"Bytes of the files {waiting}."),
        _forward(queue, "delivered_logs", "Logs that were delivered since forward started."),
        _forward(queue, "dead_letter_logs", dead_letters),
        _forward(queue, "incomplete_segments", incomplete),
        _forward(queue, "doubled_segments", doubled),
        _forward(
            queue,
            "updated_timestamp_seconds",
            "Time of forward's last status report.",
            lambda status: status.updated_at,
        ),
    ]


def _forward(
    queue: CommitQueue,
    name: str,
    help: str,
    read: Callable[[ForwardStatus], float] | None = None,
) -> Family:
    """Return a family of forward's status; by default its field of the same name."""
    value = read or attrgetter(name)
    return _disk(
        queue,
        f"forward_{name}",
        help,
        lambda usage: {(): value(usage.forward)} if usage.forward else {},
    )


def _disk(
    queue: CommitQueue,
    name: str,
    help: str,
    read: Callable[[DiskUsage], Mapping[Labels, float]],
    labels: Labels = (),
) -> Family:
    """Return a family of the disk's usage, without values while that is unknown."""
    return Family(
        f"astralog_{name}",
        help,
        Kind.GAUGE,
        lambda: read(usage) if (usage := queue.housekeeper.disk_usage) else {},
        labels,
    )
