"""The metric families that are the same whichever worker collects them."""

import platform
from collections.abc import Iterator

from prometheus_client.core import InfoMetricFamily, Metric

from astralog import __version__


class BuildCollector:
    """Shows which version of the service runs, on which Python."""

    def collect(self) -> Iterator[Metric]:
        """Yield the one family."""
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily(
            "astralog_build", "The service's version, and Python's; always 1.", versions
        )
