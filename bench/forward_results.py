"""The figures of `astralog forward`, and the marks that they are held against."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.stored import Check


@dataclass
class Delivery:
    """`astralog forward` delivers sealed segments to an engine; CPU is that of forward alone."""

    engine: str
    form: str  # of the segments
    logs: int
    logs_per_second: float
    cpu_us_per_log: float  # without that of its start
    peak_mib: float

    @property
    def logs_per_cpu_second(self) -> float:
        """Logs for each CPU second of forward."""
        return 1e6 / self.cpu_us_per_log


@dataclass
class Forward:
    """The way of the logs into ClickHouse."""

    deliveries: list[Delivery]
    disk_bytes_per_log: float  # in a plain segment
    compressed_bytes_per_log: float  # in one that is compressed as the service does
    table_bytes_per_log: float  # in the table once its parts are merged
    index_bytes_per_log: float  # of these, the index of words
    intake_logs_per_second: float  # while forward keeps up, the engine out of the way
    lag_seconds: float  # at worst, with segments of SEGMENT_SECONDS
    segment_seconds: float
    search_seconds: list[float]  # from a log's 200 until a query finds it
    alone_us: list[float]  # CPU of intake for a log, alternating with the next
    beside_us: list[float]
    beside_factor: float
    checks: list[Check]


def forward_marks(forward: Forward) -> Iterator[tuple[str, float, float, bool]]:
    """Yield each mark as `results.Mark` has it: name, value, limit, and whether it is at most."""
    for delivery in forward.deliveries:
        name = f"forward, {delivery.form} segments, {delivery.engine}"
        if delivery.form == "plain":
            yield f"{name}: logs per CPU second", delivery.logs_per_cpu_second, 1e6, False
        yield f"{name}: peak MiB", delivery.peak_mib, 150, True
    yield "intake while forward keeps up: logs/s", forward.intake_logs_per_second, 98e3, False
    yield "lag of forward during that intake, s", forward.lag_seconds, 15, True
    yield "time from a log's 200 until a query finds it, s", max(forward.search_seconds), 15, True
    name = "relative CPU of intake next to an idle forward"
    yield name, forward.beside_factor, 1.03, True
