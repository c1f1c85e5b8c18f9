import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from astralog.errors import STATUS_OF_CODE
from astralog.settings import Settings
from astralog.store.commit_queue import CommitQueue
from astralog.store.compression import CompressionCounts
from astralog.store.files import Space
from astralog.store.forward_state import ForwardStatus, write_status
from astralog.store.housekeeper import POLL_SECONDS, DiskUsage, Housekeeper
from astralog.telemetry.counters import Counters
from astralog.telemetry.families import (
    READY,
    STATES,
    SUM,
    WORKERS,
    Family,
    compression_families,
    counter_families,
    disk_families,
    forward_families,
    queue_families,
)
from tests.support.fake_system import Disk


def by_name(families: list[Family]) -> dict[str, Family]:
    """Return the families by their names."""
    return {family.name.removeprefix("astralog_"): family for family in families}


def test_counter_is_read_at_each_scrape() -> None:
    """A family follows its counter."""
    counters = Counters()
    families = by_name(counter_families(counters))
    for logs in (3, 7):
        counters.stored.logs = logs
        assert {(): logs} == families["stored_logs"].read()


def test_each_code_has_its_counter_from_the_start() -> None:
    """A counter that appears with its first rejection would hide that rejection from `rate`."""
    families = by_name(counter_families(Counters()))
    for unit in ("batches", "logs", "bytes"):
        assert {(code,): 0 for code in STATUS_OF_CODE} == families[f"rejected_{unit}"].read()
        assert ("code",) == families[f"rejected_{unit}"].labels


def test_durations_are_read_by_bucket() -> None:
    """The last bucket has durations beyond the longest bound; the sum is in seconds."""
    counters = Counters()
    for seconds in (0.002, 0.002, 60):
        counters.requests.add(seconds)
    values = by_name(counter_families(counters))["request_duration_seconds"].read()
    expected = {("0.0025",): 2, ("+Inf",): 1, (SUM,): 60.004}
    assert expected == {labels: value for labels, value in values.items() if value}


@pytest.fixture
def queue(settings: Settings, disk: Disk) -> CommitQueue:
    """Return a queue that is not started."""
    return CommitQueue(settings, Counters().store)


def test_the_backlog_is_shown_beside_its_limit(queue: CommitQueue, settings: Settings) -> None:
    """The memory of a request is part of it until it is released."""
    families = by_name(queue_families(queue))
    with closing(queue.admit()) as reservation:
        reservation.resize(5000)
        assert 5000 < families["backlog_bytes"].read()[()] < 10_000
    assert {(): 0} == families["backlog_bytes"].read()
    assert {(): settings.queue_bytes} == families["backlog_limit_bytes"].read()


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (lambda queue, disk: None, READY),
        (lambda queue, disk: queue.stop(0), "stopping"),
        (lambda queue, disk: setattr(disk, "free", 0), "storage_full"),
    ],
)
def test_a_worker_is_in_one_state(
    queue: CommitQueue,
    disk: Disk,
    change: Callable[[CommitQueue, Disk], None],
    state: str,
) -> None:
    """It is that of /ready, and the others are zero."""
    change(queue, disk)
    queue.storages[0].maintain()
    states = by_name(queue_families(queue))[WORKERS.removeprefix("astralog_")].read()
    assert {(name,): int(name == state) for name in STATES} == states


def test_a_state_that_is_new_is_shown_too(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is never left out."""
    monkeypatch.setattr(CommitQueue, "unavailable", lambda queue: "body_timeout")
    states = by_name(queue_families(queue))[WORKERS.removeprefix("astralog_")].read()
    assert 1 == states["body_timeout",] == sum(states.values())


def test_all_states_except_ready_are_codes() -> None:
    """A state is the code that clients receive."""
    assert {READY} == set(STATES) - STATUS_OF_CODE.keys()


def test_the_disk_is_shown_as_the_housekeeper_knows_it(
    queue: CommitQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number of the usage has its series; an unknown number has none."""
    usage: DiskUsage | None
    usage = DiskUsage(1, 2, 3, 4, Space(6, 5, 8, 7, is_read_only=False))
    monkeypatch.setattr(Housekeeper, "disk_usage", property(lambda housekeeper: usage))
    families = by_name(disk_families(queue))
    expected = {
        "segments": {("open",): 1, ("sealed",): 3},
        "segments_bytes": {("open",): 2, ("sealed",): 4},
        "free_disk_bytes": {(): 5},
        "total_disk_bytes": {(): 6},
        "free_disk_inodes": {(): 7},
        "total_disk_inodes": {(): 8},
        "idempotency_keys": {(): 0},
    }
    assert expected == {name: family.read() for name, family in families.items()}
    usage = DiskUsage(1, 2, 3, 4, Space(6, 5, None, None, is_read_only=False))
    assert {} == families["free_disk_inodes"].read() == families["total_disk_inodes"].read()
    usage = None
    assert [{}] * 7 == [family.read() for family in families.values()]


def test_forward_is_shown_if_it_is_configured(settings: Settings, tmp_path: Path) -> None:
    """Its last status has values; it has none if it never ran, or is not configured."""
    on = replace(settings, clickhouse_url="http://127.0.0.1/logs")
    status = ForwardStatus(waiting_segments=2, waiting_bytes=10, oldest_at=time.time() - 60)

    def values(used: Settings) -> dict[str, float]:
        queue = CommitQueue(used, Counters().store)
        while queue.keep_house_once() < POLL_SECONDS:
            pass
        shown = {family.name: family.read() for family in forward_families(queue)}
        queue.housekeeper.close()
        return {name: value for name, read in shown.items() for value in read.values()}

    assert {} == values(on)
    write_status(tmp_path, status)
    assert {} == values(settings)
    shown = values(on)
    assert 60 <= shown.pop("astralog_forward_lag_seconds") < 3600
    assert 2 == shown["astralog_forward_waiting_segments"]
    assert 10 == shown["astralog_forward_waiting_bytes"]
    assert 8 == len(forward_families(CommitQueue(on, Counters().store)))


def test_only_the_compressor_shows_waiting_segments() -> None:
    """Its counts are a sum over all processes; the number of waiting ones is not."""
    counts = CompressionCounts()
    families = by_name(compression_families(counts))
    assert {} == families["compression_waiting_segments"].read()
    counts.waiting_segments = 0
    counts.segments, counts.failures = 3, 2
    assert {(): 0} == families["compression_waiting_segments"].read()
    assert {(): 3} == families["compressed_segments"].read()
    assert {(): 2} == families["compression_failures"].read()
