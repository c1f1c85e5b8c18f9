"""Export the counts of all workers to Prometheus.

Each worker counts in plain numbers and publishes them every half second; the worker that is
scraped adds them up.
"""

import logging
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import gevent
from gevent.lock import Semaphore
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder

from astralog import __version__
from astralog.deadlines import PAUSE_SECONDS
from astralog.errors import Rejection
from astralog.log import log_exception
from astralog.telemetry import slots
from astralog.telemetry.counters import TOKEN_FAMILIES, Counters, Snapshot
from astralog.telemetry.families import BUCKETS, READY, STOPPING, SUM, WORKERS, Family, Kind, Labels
from astralog.telemetry.history import Totals

log = logging.getLogger(__name__)

#: Seconds between two publications of a worker's counts; a killed worker loses at most these.
PUBLISH_SECONDS = 0.5

#: Characters of an Accept header that are read: more than any scraper sends.
MAX_ACCEPT_CHARACTERS = 1000

#: Versions of a format, as an Accept header has them, that a scraper may ask for.
KNOWN_VERSIONS = {"version=0.0.1", "version=0.0.4", "version=1.0.0"}

#: Maximum time slices for answering stored batches before a snapshot, so that it has both counts.
SETTLE_SLICES = 10


class Metrics:
    """All metrics of the service: this worker's own and those of the other workers."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._families: list[Family] = []
        self._is_alone = True  # without gunicorn.conf.py, this process is the only one
        self._slot: slots.Slot | None = None
        self._publishing: gevent.Greenlet | None = None
        self._scraping = Semaphore()

    def add(self, families: Iterable[Family]) -> None:
        """Export families that every worker counts, added up across all workers."""
        self._families += families

    def start(self, fd: int) -> None:
        """Publish this worker's counts in the shared file, regularly from now on."""
        self._is_alone = False
        try:
            self._slot = slots.claim(fd)
        except OSError as error:
            log.error("this worker cannot share its metrics: %s", error)
        else:
            self._publishing = gevent.spawn(self._publish_regularly)

    def stop(self) -> None:
        """Publish a last time."""
        if self._publishing:
            self._publishing.kill()
        self.publish()

    def _publish_regularly(self) -> None:
        while True:
            gevent.sleep(PUBLISH_SECONDS)
            self._settle()
            self.publish()

    def _settle(self) -> None:
        """Wait until all stored batches are answered, so that a worker's counters balance."""
        for _ in range(SETTLE_SLICES):
            if self._counters.is_settled():
                return
            gevent.sleep(0)

    def publish(self) -> None:
        if not self._slot:
            return
        try:
            self._slot.publish(take_snapshot(self._families))
        except Exception:
            log_exception(
                log, "publishing metrics failed; the next attempt follows in half a second"
            )

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return all workers' metrics in the text format that an Accept header asks for.

        The second value is the Content-Type. Raises as `totals`. Scrapes go one after another, and
        others are served between two.
        """
        with self._scraping:
            encode, content_type = choose_encoder(_keep_known(accept))
            text = encode(self)
            if self._scraping.linkcount():
                gevent.sleep(PAUSE_SECONDS)
            return text, content_type

    def totals(self) -> Totals:
        """Return the values of all families, added up across all workers.

        Raises Rejection if this worker cannot read the counts of the others.
        """
        if not (self._is_alone or self._slot):
            raise Rejection("internal", "The workers cannot share their metrics; see the log.")
        self._settle()
        self.publish()
        mine = take_snapshot(self._families)
        return _by_family(mine, self._slot.merge_all() if self._slot else mine)

    def collect(self) -> Iterator[Metric]:
        """Yield the families that workers count, all of one moment, and the versions."""
        values = self.totals()
        for family in self._families:
            yield _show(family, values[family.name])
        yield GaugeMetricFamily(
            "astralog_ready",
            "1 if all workers that are not stopping accept batches, else 0.",
            int(is_ready(values[WORKERS])),
        )
        versions = {"version": __version__, "python": platform.python_version()}
        yield InfoMetricFamily(
            "astralog_build", "The service's version, and Python's; always 1.", versions
        )


def _keep_known(accept: str) -> str:
    """Return the media ranges of an Accept header, except those with unknown versions.

    prometheus_client fails for a version that is not made of three numbers.
    """
    return ",".join(item for item in accept[:MAX_ACCEPT_CHARACTERS].split(",") if _is_known(item))


def _is_known(media_range: str) -> bool:
    words = map(str.strip, media_range.split(";"))
    return KNOWN_VERSIONS.issuperset(word for word in words if word.startswith("version="))


def take_snapshot(families: Iterable[Family]) -> Snapshot:
    """Return the current counts of this process."""
    snapshot = Snapshot({}, {}, {})
    parts = {Kind.GAUGE: snapshot.gauges, Kind.TIMESTAMP: snapshot.times}
    for family in families:
        values = parts.get(family.kind, snapshot.counts)
        values.update({(family.name, *labels): n for labels, n in family.read().items()})
    return snapshot


def _by_family(mine: Snapshot, merged: Snapshot) -> Totals:
    """Return the merged values by family and labels; series without a value are zero.

    Those of a token without a value are left out: another worker may not know the token, and a
    series would come and go with the worker that is scraped.
    """
    families: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    for known in mine:
        for name, *labels in known:
            if name not in TOKEN_FAMILIES:
                families[name][tuple(labels)] = 0
    for values in merged:
        for (name, *labels), value in values.items():
            families[name][tuple(labels)] = value
    return families


def _show(family: Family, values: Mapping[Labels, float]) -> Metric:
    """Return a family in the form of prometheus_client."""
    if family.kind is Kind.HISTOGRAM:
        counts = accumulate(values[(bucket,)] for bucket in BUCKETS)
        buckets = list(zip(BUCKETS, counts, strict=True))
        return HistogramMetricFamily(family.name, family.help, buckets, values[(SUM,)])
    make = CounterMetricFamily if family.kind is Kind.COUNTER else GaugeMetricFamily
    metric = make(family.name, family.help, labels=family.labels)
    for labels, value in values.items():
        if value or family.kind is not Kind.TIMESTAMP:  # an unknown time is not shown
            metric.add_metric(labels, value)
    return metric


def is_ready(workers: Mapping[Labels, float]) -> bool:
    """Return whether each worker is ready, except workers that are stopping, as at a reload."""
    states = {state for (state,), number in workers.items() if number}
    return states - {STOPPING} == {READY}
