import errno
import json
import os
import time
from collections.abc import Callable
from typing import Any

import gevent
import pytest

from astralog import __version__
from astralog.errors import Rejection
from astralog.settings import Settings
from astralog.store.commit_queue import CommitQueue
from astralog.store.files import Space
from astralog.store.forward_state import ForwardStatus
from astralog.store.housekeeper import DiskUsage, Housekeeper
from astralog.telemetry import slots
from astralog.telemetry.counters import Counters
from astralog.telemetry.families import (
    counter_families,
    disk_families,
    forward_families,
    queue_families,
)
from astralog.telemetry.history import SAMPLES, Sample
from astralog.telemetry.overview import Overview
from astralog.telemetry.prometheus import Metrics
from tests.support.fake_system import Disk

USAGE = DiskUsage(1, 200, 3, 400, Space(10_000, 5000, 100, 50, is_read_only=False))


@pytest.fixture
def counters() -> Counters:
    """Return the worker's counters."""
    return Counters()


@pytest.fixture
def overview(
    settings: Settings, disk: Disk, counters: Counters, monkeypatch: pytest.MonkeyPatch
) -> Overview:
    """Return the overview of a worker with a known disk and no history yet."""
    monkeypatch.setattr(Housekeeper, "disk_usage", USAGE)
    queue = CommitQueue(settings, counters.store)
    metrics = Metrics(counters)
    metrics.add([*counter_families(counters), *queue_families(queue), *disk_families(queue)])
    metrics.add(forward_families(queue))
    return Overview(metrics, min_free_bytes=1000)


def make_sample(at: float, **fields: Any) -> Sample:
    """Return a sample of a service that has done nothing yet, except for some fields."""
    return Sample(at, 0, 0, 0, [0.0] * 15, {}, {}, 0, None, None)._replace(**fields)


@pytest.fixture
def remember(overview: Overview, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes some samples, which end with the last one, the history."""

    def remember(*samples: Sample | None) -> None:
        missing: list[Sample | None] = [None] * (SAMPLES - len(samples))
        monkeypatch.setattr(overview.history, "samples", lambda: [*missing, *samples])

    return remember


def test_current_numbers(
    overview: Overview, counters: Counters, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a history there are no rates, and each number is that of the metrics."""
    counters.accept(100, 5, 0.0, 0.0, "1f0e9a3c")
    monkeypatch.setattr(gevent, "spawn", lambda function: None)
    overview.start(fd, 1000.0)
    now = json.loads(json.dumps(overview.now()))
    assert (__version__, True, {"ready": 1}) == (now["version"], now["is_ready"], now["workers"])
    assert 1000 == now["started_at"]
    assert (None, None) == (now["window_seconds"], now["accepted"]["logs_per_second"])
    assert (1, 5, 100) == tuple(now["accepted"][name] for name in ("batches", "logs", "bytes"))
    assert {"bytes": 0, "limit_bytes": 64 << 20} == now["backlog"]
    assert {
        "free_bytes": 5000,
        "total_bytes": 10_000,
        "kept_free_bytes": 1000,
        "free_inodes": 50,
        "total_inodes": 100,
        "kept_free_inodes": 1,
        "segments": 4,
        "segments_bytes": 600,
        "seconds_to_full": None,
    } == now["disk"]
    assert now["forward"] is None
    assert {"version": __version__, "is_ready": True} == overview.readiness()


def test_rates_are_those_since_some_seconds_ago(
    overview: Overview, counters: Counters, remember: Callable[..., None]
) -> None:
    """A sample that was just taken is too young: its rates would jump."""
    now = time.time()
    remember(make_sample(now - 20), make_sample(now - 10), make_sample(now - 1, logs=5))
    for _ in range(10):
        counters.accept(100, 5, 0.0, time.perf_counter() - 0.004, "1f0e9a3c")
    numbers = overview.now()
    assert 10 == pytest.approx(numbers["window_seconds"], abs=2)
    assert 5 == pytest.approx(numbers["accepted"]["logs_per_second"], rel=0.2)
    assert 100 == pytest.approx(numbers["accepted"]["bytes_per_second"], rel=0.2)
    assert 0.001 < numbers["commit_seconds"]["p50"] < numbers["commit_seconds"]["p99"] < 0.01


@pytest.mark.parametrize(
    ("free_before", "seconds"),
    [(5100, 4000 / (100 / 600)), (5000, None), (4000, None), (None, None)],
)
def test_disk_is_full_by_the_trend_of_the_last_hour(
    overview: Overview,
    remember: Callable[..., None],
    free_before: float | None,
    seconds: float | None,
) -> None:
    """That is the time when no batch is accepted any more, or never."""
    now = time.time()
    remember(
        make_sample(now - 600, free_disk_bytes=free_before),
        make_sample(now - 30, free_disk_bytes=9000),
    )
    found = overview.now()["disk"]["seconds_to_full"]
    assert found == (seconds and pytest.approx(seconds, rel=0.01))


def test_the_disk_is_full_when_its_inodes_are_used_up(
    overview: Overview, remember: Callable[..., None]
) -> None:
    """If they run out first; if they have no limit, the bytes alone count."""
    now = time.time()
    remember(make_sample(now - 600, free_disk_bytes=5100, free_disk_inodes=110))
    found = overview.now()["disk"]["seconds_to_full"]
    assert found == pytest.approx(49 / (60 / 600), rel=0.01)
    remember(make_sample(now - 600, free_disk_bytes=5100, free_disk_inodes=None))
    found = overview.now()["disk"]["seconds_to_full"]
    assert found == pytest.approx(4000 / (100 / 600), rel=0.01)


def test_a_disk_without_a_limit_of_inodes_has_none(
    overview: Overview, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example btrfs."""
    space = USAGE.space._replace(total_inodes=None, free_inodes=None)
    usage = USAGE._replace(space=space)
    monkeypatch.setattr(Housekeeper, "disk_usage", usage)
    disk = overview.now()["disk"]
    names = ("free_inodes", "total_inodes", "kept_free_inodes")
    assert [None] * 3 == [disk[name] for name in names]


def test_unknown_numbers_are_none(overview: Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    """For example of the disk, if no worker is the housekeeper."""
    monkeypatch.setattr(Housekeeper, "disk_usage", None)
    assert (None, None) == (overview.now()["disk"], overview.now()["forward"])


def test_forwards_lag_is_shown(overview: Overview, monkeypatch: pytest.MonkeyPatch) -> None:
    """From forward's last status."""
    status = ForwardStatus(oldest_at=time.time() - 100, waiting_segments=2, waiting_bytes=9)
    monkeypatch.setattr(Housekeeper, "disk_usage", USAGE._replace(forward=status))
    forward = overview.now()["forward"]
    assert 100 == pytest.approx(forward.pop("lag_seconds"), abs=5)
    assert {
        "waiting_segments": 2,
        "waiting_bytes": 9,
        "updated_timestamp_seconds": 0,
    } == forward


def test_the_last_hour(overview: Overview, remember: Callable[..., None]) -> None:
    """Each series has a value for each interval, or None."""
    remember(
        make_sample(980),
        None,
        make_sample(1000),
        make_sample(1010, logs=50, commits=[0.0] * 3 + [10.0] + [0.0] * 11, backlog_bytes=3),
    )
    hour = json.loads(json.dumps(overview.last_hour(make_sample(1011))))
    series = {name: values for name, values in hour.items() if isinstance(values, list)}
    del series["rejections"], series["tokens"]
    assert {SAMPLES - 1} == {len(values) for values in series.values()}
    assert 10 == hour["seconds"]
    assert [None, None, 5] == hour["logs_per_second"][-3:]
    assert [None, None, 0.00375] == hour["commit_p50_seconds"][-3:]
    assert [None, 0, 3] == hour["backlog_bytes"][-3:]
    assert not any(hour["lag_seconds"])


def test_rejections_are_shown_per_token_and_code(
    overview: Overview, remember: Callable[..., None]
) -> None:
    """Those with most in the hour first; a bound token sees only its own."""
    before = make_sample(0, rejected={"aa bad_request": 5})
    after = make_sample(600, rejected={"aa bad_request": 7, "bb unauthorized": 9, "cc x": 0})
    now = make_sample(601, rejected={"aa bad_request": 7, "bb unauthorized": 10, "cc x": 0})
    remember(*[before] * (SAMPLES - 61), *[after] * 61)
    rows = overview.last_hour(now)["rejections"]
    assert [("bb", "unauthorized", 10, 10), ("aa", "bad_request", 7, 2), ("cc", "x", 0, 0)] == [
        (row["token"], row["code"], row["total"], row["last_hour"]) for row in rows
    ]
    assert [0] * 49 + [9] + [0] * 9 + [1] == rows[0]["per_minute"]
    own = overview.last_hour(now, "aa")
    assert rows[1:2] == own["rejections"]
    assert {"at", "rejections", "tokens"} == own.keys()


def test_last_hour_shows_the_volume_of_each_token(
    overview: Overview, remember: Callable[..., None]
) -> None:
    """With rejected batches, most bytes first; a bound token sees only its own."""
    rejected = {"aa bad_request": 1.0, "aa queue_full": 0.0}
    before = make_sample(0, sent={"aa": [1, 2, 30], "idle": [5, 5, 5]}, rejected=rejected)
    rejected = {"aa bad_request": 3.0, "aa queue_full": 4.0, "unknown unauthorized": 7.0}
    sent = {"aa": [2, 4, 60], "bb": [1, 9, 500], "idle": [5, 5, 5]}
    now = make_sample(601, sent=sent, rejected=rejected)
    remember(*[before] * SAMPLES)
    hour = json.loads(json.dumps(overview.last_hour(now)))
    names = ("token", "batches", "logs", "bytes", "rejected_batches")
    assert [tuple(row[name] for name in names) for row in hour["tokens"]] == [
        ("bb", 1, 9, 500, 0),
        ("aa", 1, 2, 30, 6),
        ("unknown", 0, 0, 0, 7),
    ]
    assert hour["tokens"][0]["per_minute"] == [0] * 59 + [500]
    assert overview.last_hour(now, "aa")["tokens"] == hour["tokens"][1:2]
    assert overview.last_hour(now, "idle")["tokens"] == []


def test_last_hour_counts_accepted_batches_of_a_new_service(
    overview: Overview, counters: Counters
) -> None:
    """Without a sample, everything was sent in the last hour."""
    counters.accept(100, 5, 0.0, 0.0, "aa")
    (row,) = overview.last_hour(overview.sample())["tokens"]
    assert (row["token"], row["batches"], row["logs"], row["bytes"]) == ("aa", 1, 5, 100)


def test_without_samples_all_counts_are_recent(overview: Overview, counters: Counters) -> None:
    """All rejections of a service that has just started were in the last hour."""
    assert [] == overview.last_hour(overview.sample())["rejections"]
    counters.reject(ValueError(), 0, 0, 0.0, "aa")
    (row,) = overview.last_hour(overview.sample())["rejections"]
    assert (1, 1, "aa", "internal") == (row["last_hour"], row["total"], row["token"], row["code"])


def test_workers_that_can_share_nothing_show_nothing(
    overview: Overview, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker's numbers are not the service's."""

    def fail(fd: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(slots, "claim", fail)
    overview._metrics.start(fd)
    with pytest.raises(Rejection, match="cannot share"):
        overview.now()
