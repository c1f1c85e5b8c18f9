"""The metric families that are the same whichever worker collects them."""

import platform
from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from astralog import __version__
from astralog.telemetry.disk_usage import DiskUsage


class BuildCollector:
    """Shows which version of the service runs, on which Python."""

    def collect(self) -> Iterator[Metric]:
        """Yield the one family."""
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily(
            "astralog_build", "The service's version, and Python's; always 1.", versions
        )


class DiskCollector:
    """Shows what lies on the data directory's disk; nothing where `take` has no answer."""

    def __init__(self, take: Callable[[], DiskUsage | None]) -> None:
        self._take = take

    def collect(self) -> Iterator[Metric]:
        """Yield the segments, their bytes, and those of the disk."""
        usage = self._take()
        if usage is None:
            return
        segments = GaugeMetricFamily(
            "astralog_segments", "Segments in the data directory.", labels=["state"]
        )
        sizes = GaugeMetricFamily(
            "astralog_segments_bytes",
            "Bytes of the segments in the data directory.",
            labels=["state"],
        )
        segments.add_metric(["open"], usage.open_segments)
        segments.add_metric(["sealed"], usage.sealed_segments)
        sizes.add_metric(["open"], usage.open_bytes)
        sizes.add_metric(["sealed"], usage.sealed_bytes)
        yield from (segments, sizes)
        yield GaugeMetricFamily(
            "astralog_free_disk_bytes",
            "Bytes free on the data directory's disk.",
            usage.free_bytes,
        )
        yield GaugeMetricFamily(
            "astralog_total_disk_bytes",
            "Bytes of the data directory's disk, free or not.",
            usage.total_bytes,
        )
