"""The metric families that workers count, each with what reads its values in one worker.

A label never holds a token, nor anything else a client makes up: where tokens must be told apart,
the label is the first 8 hex digits of the token's SHA-256.
"""

from collections.abc import Callable, Mapping
from enum import Enum
from typing import NamedTuple

from astralog.store.commit_queue import CommitQueue
from astralog.telemetry.counters import BOUNDS_SECONDS, Counters, Durations, Volume
from astralog.telemetry.snapshots import TOKEN_FAMILY

#: The values of a family's labels, in their order.
Labels = tuple[str, ...]

#: The label values under which a histogram has its buckets, and its sum.
BUCKETS = (*map(str, BOUNDS_SECONDS), "+Inf")
SUM = "sum"

#: What a worker is that takes batches, and the codes with which it rejects them otherwise.
READY = "ready"
STOPPING = "stopping"
WORKERS = "astralog_workers"
STATES = (READY, STOPPING, "queue_full", "storage_full", "storage_failed")

#: What is counted of a batch that was stored before; its logs were counted then.
REPLAYED = ("batches", "bytes")

UNITS = {
    "batches": "Batches",
    "logs": "Logs, as far as they were counted, of batches",
    "bytes": "Bytes, inflated, of the bodies of batches",
}


class Kind(Enum):
    """What a family is to Prometheus, and how it adds up across workers."""

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
    stored = "written, and synced as ASTRALOG_SYNC says"
    replayed = "answered 200 since an earlier try with their key had stored them"
    late = "Logs stored although their client was told commit_timeout, or was gone."
    by_token, tokens = "Batches rejected, by token and code.", counters.rejected_by_token
    rejected: dict[Labels, Volume] = {(code,): volume for code, volume in counters.rejected.items()}
    return [
        *_volumes("received", "that were answered", {(): counters.received}),
        *_volumes("accepted", "answered 200", {(): counters.accepted}),
        *(_volume("replayed", unit, replayed, {(): counters.replayed}, ()) for unit in REPLAYED),
        *_volumes("rejected", "rejected, by code", rejected, ("code",)),
        Family(TOKEN_FAMILY, by_token, Kind.COUNTER, lambda: tokens, ("token", "code")),
        counter("stored_logs", f"Logs {stored}.", lambda: counters.stored.logs),
        counter("stored_bytes", f"Bytes of lines {stored}.", lambda: counters.stored.bytes),
        counter("late_logs", late, lambda: counters.late_logs),
        _durations("request", "Time from a batch's head to its answer.", counters.requests),
        _durations("commit", "Time an accepted batch waited for its commit.", counters.commits),
    ]


def queue_families(queue: CommitQueue) -> list[Family]:
    """Return the families of the commit queue and its storages."""
    return [
        *_segment_families(queue),
        counter(
            "forgotten_keys",
            "Idempotency keys forgotten before their time, for want of room.",
            lambda: queue.keys.upkeep.forgotten_keys,
        ),
        _gauge(
            "backlog_bytes",
            "Memory that bodies, their decodes, and batches waiting for their commit hold.",
            lambda: queue.backlog_bytes,
        ),
        _gauge(
            "backlog_limit_bytes",
            "Memory that the backlog may take, beyond which batches are rejected.",
            lambda: queue.backlog_limit_bytes,
        ),
        Family(
            "astralog_last_sync_timestamp_seconds",
            "Time of the last sync of a segment.",
            Kind.TIMESTAMP,
            lambda: {(): max(storage.synced_at for storage in queue.storages)},
        ),
        Family(
            WORKERS,
            "Workers that are ready, or reject batches with the code that is their state.",
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
            "Segments removed by the retention.",
            lambda: queue.housekeeper.removed_segments,
        ),
        counter(
            "removed_undelivered_segments",
            "Of these, segments that forward had not delivered.",
            lambda: queue.housekeeper.removed_undelivered_segments,
        ),
        counter(
            "possibly_lost_batches",
            "Batches acknowledged in the mode everysec before a sync that failed.",
            lambda: sum(storage.possibly_lost_batches for storage in storages),
        ),
    ]


def _states(state: str) -> Mapping[Labels, float]:
    """Return each state that a worker may be in, 1 for the one that it is in."""
    states: dict[Labels, float] = {(name,): 0 for name in STATES}
    return states | {(state,): 1}


def counter(name: str, help: str, read: Callable[[], float]) -> Family:
    """Return a counter without labels, by its name without the service's."""
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


def _durations(name: str, help: str, durations: Durations) -> Family:
    return Family(
        f"astralog_{name}_duration_seconds", help, Kind.HISTOGRAM, lambda: _buckets(durations)
    )


def _buckets(durations: Durations) -> Mapping[Labels, float]:
    counts = zip(BUCKETS, durations.counts, strict=True)
    return {(bucket,): count for bucket, count in counts} | {(SUM,): durations.seconds}
