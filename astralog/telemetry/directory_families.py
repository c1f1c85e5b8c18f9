"""The metric families that one process of all knows: the directory's, forward's, compression's."""

import time
from collections.abc import Callable, Mapping
from operator import attrgetter

from astralog.store.commit_queue import CommitQueue
from astralog.store.compressor import CompressionCounts
from astralog.store.deliveries import ForwardStatus
from astralog.store.housekeeper import DiskUsage
from astralog.telemetry.families import Family, Kind, Labels, counter


def disk_families(queue: CommitQueue) -> list[Family]:
    """Return the families that the one worker knows which looks after the data directory."""
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
        _disk(
            queue,
            "free_disk_bytes",
            "Bytes free on the data directory's disk.",
            lambda usage: {(): usage.free_bytes},
        ),
        _disk(
            queue,
            "total_disk_bytes",
            "Bytes of the data directory's disk, free or not.",
            lambda usage: {(): usage.total_bytes},
        ),
        _disk(
            queue,
            "free_disk_inodes",
            "Inodes free on that disk, of which each file takes one.",
            lambda usage: _known(usage.free_inodes),
        ),
        _disk(
            queue,
            "total_disk_inodes",
            "Inodes of that disk, free or not.",
            lambda usage: _known(usage.total_inodes),
        ),
        _disk(
            queue,
            "idempotency_keys",
            "Idempotency keys that are remembered.",
            lambda usage: {(): queue.keys.upkeep.held_keys},
        ),
    ]


def _known(value: int | None) -> Mapping[Labels, float]:
    """Return a value without labels, nothing if there is none."""
    return {} if value is None else {(): value}


def compression_families(counts: CompressionCounts) -> list[Family]:
    """Return the families of the one process that compresses; any other counts nothing."""
    return [
        counter("compressed_segments", "Sealed segments compressed.", lambda: counts.segments),
        counter("compressed_plain_bytes", "Bytes of these before.", lambda: counts.plain_bytes),
        counter("compressed_bytes", "Bytes of these after.", lambda: counts.compressed_bytes),
        counter(
            "compression_failures",
            "Times that a segment could not be compressed, and stayed as it was.",
            lambda: counts.failures,
        ),
        counter(
            "compression_cpu_seconds",
            "CPU seconds of the process that compresses.",
            lambda: counts.cpu_seconds,
        ),
        Family(
            "astralog_compression_waiting_segments",
            "Sealed segments that are yet to be compressed.",
            Kind.GAUGE,
            lambda: _known(counts.waiting_segments),
        ),
    ]


def forward_families(queue: CommitQueue) -> list[Family]:
    """Return the families of what `astralog forward` last said of itself."""
    lag = "Age of the oldest log that forward has not delivered."
    waiting = "that forward has not delivered as a whole"
    dead_letters = "Of the delivered logs, those that went to the dead-letter table."
    incomplete = (
        "Segments of which the tables lack lines that were sent twice, since forward started."
    )
    doubled = "Segments of which the tables hold more rows than lines, since forward started."
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
            "When forward last said how far it is.",
            lambda status: status.updated_at,
        ),
    ]


def _forward(
    queue: CommitQueue,
    name: str,
    help: str,
    read: Callable[[ForwardStatus], float] | None = None,
) -> Family:
    """Return a family of forward's status, by its name there unless `read` reads another."""
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
    """Return a family of the disk's usage, which has no values where that is not known."""
    return Family(
        f"astralog_{name}",
        help,
        Kind.GAUGE,
        lambda: read(usage) if (usage := queue.housekeeper.disk_usage) else {},
        labels,
    )
