import errno
import fcntl
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import gevent
import pytest

from astralog import __version__
from astralog.errors import Rejection
from astralog.telemetry import prometheus
from astralog.telemetry.counters import Counters, Snapshot, Values
from astralog.telemetry.families import (
    BUCKETS,
    STATES,
    SUM,
    WORKERS,
    Family,
    Kind,
    Labels,
    counter_families,
)
from astralog.telemetry.prometheus import Metrics
from astralog.telemetry.slots import Slot
from tests.support.fake_system import BreakOs
from tests.support.metrics import Samples, read_samples


@dataclass
class Part:
    """A part of the service with counters; `states` are the states of its worker."""

    counts: dict[Labels, float] = field(default_factory=lambda: {("a",): 0})
    time: float = 0
    gauge: float = 0
    durations: dict[Labels, float] = field(
        default_factory=lambda: dict.fromkeys(((name,) for name in (*BUCKETS, SUM)), 0)
    )
    states: Mapping[Labels, float] = field(default_factory=lambda: {("ready",): 1})

    def families(self) -> list[Family]:
        return [
            Family("x_things", "Things.", Kind.COUNTER, lambda: self.counts, ("kind",)),
            Family("x_size_bytes", "Size.", Kind.GAUGE, lambda: {(): self.gauge}),
            Family("x_time_seconds", "Time.", Kind.TIMESTAMP, lambda: {(): self.time}),
            Family("x_duration_seconds", "Waits.", Kind.HISTOGRAM, lambda: self.durations),
            Family(WORKERS, "Workers.", Kind.GAUGE, lambda: self.states, ("state",)),
        ]


@pytest.fixture
def part() -> Part:
    """Return this worker's part."""
    return Part()


@pytest.fixture
def metrics(part: Part, fd: int) -> Iterator[Metrics]:
    """Return the metrics of a single process, until they are started."""
    metrics = Metrics(Counters())
    metrics.add(part.families())
    yield metrics
    metrics.stop()


def scrape(metrics: Metrics) -> Samples:
    """Return every series with its value."""
    return read_samples(metrics.render("")[0].decode())


def leave(fd: int, number: int, snapshot: Snapshot) -> None:
    """Let a worker publish a snapshot and die."""
    Slot(fd, number).publish(snapshot)


# --- What is shown


def test_single_process_shows_its_counters(metrics: Metrics, part: Part) -> None:
    """Each type is in Prometheus' form, and unused counters are zero."""
    part.counts |= {("b",): 2}
    part.gauge, part.time = 3, 4
    part.durations |= {("0.001",): 5, ("+Inf",): 6, (SUM,): 7.5}
    samples = scrape(metrics)
    assert (0, 2) == (samples["x_things_total a"], samples["x_things_total b"])
    assert (3, 4) == (samples["x_size_bytes"], samples["x_time_seconds"])
    assert (0, 5, 5) == tuple(
        samples[f"x_duration_seconds_bucket {le}"] for le in ("0.0005", "0.001", "10.0")
    )
    assert 11 == samples["x_duration_seconds_bucket +Inf"] == samples["x_duration_seconds_count"]
    assert 7.5 == samples["x_duration_seconds_sum"]


def test_unset_time_is_not_shown(metrics: Metrics, part: Part) -> None:
    """Zero would be 1970."""
    assert "x_time_seconds" not in scrape(metrics)
    part.time = 1
    assert 1 == scrape(metrics)["x_time_seconds"]


def test_every_worker_shows_the_same_series_of_a_token(fd: int) -> None:
    """A token's only batch was empty, so it has no logs, and one worker does not know it."""
    workers = Counters(), Counters()
    workers[0].accept(12, 0, 0, 0, "token-1")
    shown: list[Samples] = []
    for counters in workers:
        metrics = Metrics(counters)
        metrics.add(counter_families(counters))
        metrics._slot = Slot(fd, len(shown))
        metrics._is_alone = False
        shown.append(scrape(metrics))
    assert 1 == shown[0]["accepted_batches_by_token_total token-1"]
    assert shown[0] == shown[1]


def test_workers_are_added_up(metrics: Metrics, part: Part, fd: int) -> None:
    """Counts of dead workers stay, also those that this worker does not know; gauges do not."""
    part.counts, part.gauge, part.time = {("a",): 1}, 5, 9
    part.durations |= {("0.001",): 1, (SUM,): 0.25}
    counts: Values = {("x_things", "a"): 2, ("x_things", "new"): 3, ("y_unknown",): 4}
    counts["x_duration_seconds", "0.001"] = 6
    counts["x_duration_seconds", SUM] = 0.5
    metrics.start(fd)
    leave(fd, 1, Snapshot(counts, {("x_time_seconds",): 8}, {("x_size_bytes",): 7}))
    samples = scrape(metrics)
    assert (3, 3) == (samples["x_things_total a"], samples["x_things_total new"])
    assert (5, 9) == (samples["x_size_bytes"], samples["x_time_seconds"])
    assert (7, 0.75) == (
        samples["x_duration_seconds_bucket 0.001"],
        samples["x_duration_seconds_sum"],
    )
    assert not any("unknown" in name for name in samples)


def test_a_scrape_shows_this_worker_as_it_is(metrics: Metrics, part: Part, fd: int) -> None:
    """Its counts since its last snapshot are included."""
    metrics.start(fd)
    for count in (1, 2):
        part.counts = {("a",): count}
        assert count == scrape(metrics)["x_things_total a"]


@pytest.mark.parametrize(
    ("states", "ready"),
    [
        ({"ready": 2}, 1),
        ({"ready": 2, "stopping": 2}, 1),
        ({"ready": 1, "storage_failed": 1}, 0),
        ({"storage_full": 2}, 0),
        ({"stopping": 2}, 0),
        ({}, 0),
    ],
)
def test_the_service_is_ready_when_all_workers_are(
    metrics: Metrics, part: Part, states: dict[str, int], ready: int
) -> None:
    """Workers that a reload stops do not count, if there are others."""
    part.states = {(state,): states.get(state, 0) for state in STATES}
    samples = scrape(metrics)
    assert ready == samples["ready"]
    assert states == {state: n for state in STATES if (n := samples[f"workers {state}"])}


def test_the_build_has_its_versions(metrics: Metrics) -> None:
    """The service's and Python's, as labels of a 1."""
    *_, build = metrics.collect()
    (sample,) = build.samples
    labels = {"version": __version__, "python": platform.python_version()}
    assert ("astralog_build_info", labels, 1) == sample[:3]


# --- Publishing


def test_a_worker_publishes_by_itself(
    metrics: Metrics, part: Part, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Periodically, and once more at its stop."""
    monkeypatch.setattr(prometheus, "PUBLISH_SECONDS", 0.001)
    metrics.start(fd)
    for count in (1, 2):
        part.counts = {("a",): count}
        gevent.sleep(0.05)
        assert {("x_things", "a"): count} == Slot(fd, 1).merge_all().counts
    monkeypatch.setattr(prometheus, "PUBLISH_SECONDS", 1000)
    gevent.sleep(0.05)
    part.counts = {("a",): 3}
    metrics.stop()
    assert {("x_things", "a"): 3} == Slot(fd, 1).merge_all().counts


def test_a_worker_that_stops_publishes_no_more(
    metrics: Metrics, part: Part, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its slot may soon belong to another one."""
    monkeypatch.setattr(prometheus, "PUBLISH_SECONDS", 0.001)
    metrics.start(fd)
    metrics.stop()
    part.counts = {("a",): 1}
    gevent.sleep(0.05)
    assert {} == Slot(fd, 1).merge_all().counts


def test_failures_are_logged_at_most_once_a_minute(
    metrics: Metrics,
    part: Part,
    fd: int,
    break_os: BreakOs,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Publishing is retried, and others see complete numbers when it works again."""
    metrics.start(fd)
    fault = break_os("pwrite", errno.ENOSPC)
    for count in (1, 2, 3):
        part.counts = {("a",): count}
        metrics.publish()
    assert [
        "publishing metrics failed; the next attempt follows in half a second"
    ] == caplog.messages
    fault.times = 0
    metrics.publish()
    part.counts = {("a",): 4}
    assert 4 == scrape(metrics)["x_things_total a"]


def test_a_part_that_fails_does_not_end_the_publishing(
    metrics: Metrics, part: Part, fd: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The exception is logged with its traceback, and the worker continues."""
    metrics.start(fd)
    metrics.add([Family("x_bad", "Bad.", Kind.COUNTER, lambda: {(): 1 // 0})])
    metrics.publish()
    assert [
        "publishing metrics failed; the next attempt follows in half a second"
    ] == caplog.messages
    assert "ZeroDivisionError" in caplog.text


def test_a_worker_without_a_slot_shows_nothing(
    metrics: Metrics, fd: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One worker's numbers are not the service's. The reason is logged, and the worker serves."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", fail)
    metrics.start(fd)
    metrics.publish()
    with pytest.raises(Rejection, match="cannot share") as caught:
        metrics.render("")
    assert "internal" == caught.value.code
    assert "cannot share its metrics: [Errno 37] No locks available" in caplog.text
