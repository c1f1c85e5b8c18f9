import errno
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.parser import text_string_to_metric_families

from astralog.api.metrics import is_local
from astralog.errors import STATUS_OF_CODE, Rejection
from astralog.settings import Settings
from astralog.store.commit_queue import CommitQueue
from astralog.telemetry import disk_usage, snapshots
from astralog.telemetry.counters import BOUNDS_SECONDS, KEPT_BATCHES, Counters, Durations
from astralog.telemetry.disk_usage import DiskUsage, DiskUsageReader
from tests.conftest import Disk, Fault
from tests.support.service import TOKEN, make_batch
from tests.unit.store.test_commit_queue import Gate, gate

__all__ = ["gate"]

MakeApp = Callable[[Settings], Flask]
Samples = dict[str, float]


def scrape(client: FlaskClient) -> Samples:
    """Return the value of each series that is not zero, by its name and labels."""
    response = client.get("/metrics")
    assert (200, "text/plain") == (response.status_code, response.mimetype)
    return {
        sample.name.removeprefix("astralog_") + "".join(f" {v}" for v in sample.labels.values()): (
            sample.value
        )
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.value and not sample.name.endswith("_created")
    }


def drain(client: FlaskClient, body: Any, token: str = TOKEN) -> int:
    """POST a body and return the status; what is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/v1/drain", data=data, headers={"Authorization": token}).status_code


# --- The books


def test_a_stored_batch_is_in_the_books(client: FlaskClient, tmp_path: Path) -> None:
    """It is received, accepted and stored with its logs and bytes, and both waits are timed."""
    body = json.dumps(make_batch("a", "b")).encode()
    assert 200 == drain(client, body)
    samples = scrape(client)
    lines = sum(path.stat().st_size for path in tmp_path.glob("*.open"))
    for name in ("received", "accepted"):
        assert (1, 2, len(body)) == tuple(
            samples[f"{name}_{unit}_total"] for unit in ("batches", "logs", "bytes")
        )
    assert (2, lines) == (samples["stored_logs_total"], samples["stored_bytes_total"])
    assert not any(name.startswith(("rejected", "late")) for name in samples)
    for name in ("request", "commit"):
        assert 1 == samples[f"{name}_duration_seconds_count"]
        assert 0 < samples[f"{name}_duration_seconds_sum"] < 10


@pytest.mark.parametrize(
    ("body", "token", "code", "logs", "is_read"),
    [
        (b"{}", "wrong", "unauthorized", 0, False),
        (b"{", TOKEN, "invalid_json", 0, True),
        (b'{"logs": 1}', TOKEN, "invalid_batch", 0, True),
        (b'{"logs": [1, 2, 3]}', TOKEN, "invalid_batch", 3, True),
        (b"x" * 101, TOKEN, "body_too_large", 0, False),
    ],
)
def test_a_rejected_batch_is_in_the_books(
    make_app: MakeApp,
    settings: Settings,
    body: bytes,
    token: str,
    code: str,
    logs: int,
    is_read: bool,
) -> None:
    """It is received and rejected under its code, with what was read of it."""
    client = make_app(replace(settings, max_body_bytes=100)).test_client()
    assert STATUS_OF_CODE[code] == drain(client, body, token)
    samples = scrape(client)
    size = len(body) if is_read else 0
    for name, label in (("received", ""), ("rejected", f" {code}")):
        assert (1, logs, size) == tuple(
            samples.get(f"{name}_{unit}_total{label}", 0) for unit in ("batches", "logs", "bytes")
        )
    assert 1 == samples["request_duration_seconds_count"]
    assert not any(name.startswith(("accepted", "stored", "commit")) for name in samples)


def test_a_batch_that_the_disk_rejects_is_rejected(
    client: FlaskClient, break_os: Callable[..., Fault]
) -> None:
    """Nothing of it counts as stored, and its logs are among the rejected ones."""
    break_os("writev", errno.EIO)
    assert 503 == drain(client, make_batch("a", "b"))
    samples = scrape(client)
    assert 2 == samples["rejected_logs_total storage_failed"]
    assert "stored_logs_total" not in samples


def test_a_fault_of_ours_is_in_the_books(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unforeseen error counts under `internal`."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CommitQueue, "commit", fail)
    assert 500 == drain(client, make_batch("a"))
    assert 1 == scrape(client)["rejected_logs_total internal"]


def test_what_is_no_batch_is_not_in_the_books(client: FlaskClient) -> None:
    """Health checks, scrapes, wrong paths and dry runs are not batches."""
    headers = {"Authorization": TOKEN}
    for body, status in ((make_batch("a"), 200), ({}, 400)):
        dry = client.post("/v1/drain?dry_run=true", json=body, headers=headers)
        assert status == dry.status_code
    for path in ("/health", "/ready", "/metrics", "/v1/other", "/v1/drain"):
        client.get(path)
    assert not any("batches" in name for name in scrape(client))


def test_a_late_batch_is_told_apart(make_app: MakeApp, settings: Settings, gate: Gate) -> None:
    """What is stored after its client was told `commit_timeout` is stored, late, and rejected."""
    app = make_app(replace(settings, commit_timeout_seconds=0.05))
    client = app.test_client()
    gate.close()
    assert 503 == drain(client, make_batch("a", "b"))
    gate.open()
    app.extensions["astralog"].stop(10)
    samples = scrape(client)
    assert (2, 2) == (samples["stored_logs_total"], samples["late_logs_total"])
    assert 2 == samples["rejected_logs_total commit_timeout"]
    assert "accepted_logs_total" not in samples


def test_a_second_scrape_adds_nothing(client: FlaskClient) -> None:
    """What is written out once is not counted twice."""
    drain(client, make_batch("a"))
    scrape(client)
    drain(client, make_batch("b"))
    samples = scrape(client)
    assert {2} == {samples[f"{name}_logs_total"] for name in ("received", "accepted", "stored")}
    assert 2 == samples["request_duration_seconds_count"]


def test_many_batches_are_added_up_without_a_scrape() -> None:
    """What waits to be added up is bounded."""
    counters = Counters()
    for _ in range(KEPT_BATCHES):
        counters.accept(10, 2, 0.0, 0.0)
    accepted = counters.accepted
    assert KEPT_BATCHES == accepted.batches == accepted.logs / 2 == accepted.bytes / 10
    assert [] == counters._kept


def test_books_are_settled_when_what_is_stored_is_answered() -> None:
    """Between a commit and its answers a worker's books do not balance yet."""
    counters = Counters()
    assert counters.is_settled()
    counters.store(100, 3, is_late=False)
    counters.store(100, 2, is_late=True)
    assert not counters.is_settled()
    counters.accept(100, 3, 0.0, 0.0)
    assert counters.is_settled()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Rejection("queue_full", ""), "queue_full"),
        (gevent.GreenletExit(), "stopping"),
        (ValueError(), "internal"),
    ],
)
def test_every_way_out_has_a_code(error: BaseException, code: str) -> None:
    """A request that the stop ends is rejected too."""
    counters = Counters()
    counters.reject(error, 10, 0, 0.0)
    assert [code] == [name for name, volume in counters.rejected.items() if volume.batches]
    assert 1 == counters.received.batches


def test_durations_fall_into_their_buckets() -> None:
    """A bound is inside its bucket, as Prometheus has it, and there is one beyond them all."""
    durations = Durations()
    durations.add([0.0, 0.0005, 0.00051, 10.0, 11.0])
    durations.add([0.03])
    counts = dict(zip((*BOUNDS_SECONDS, None), durations.counts, strict=True))
    expected = {0.0005: 2, 0.001: 1, 0.05: 1, 10.0: 1, None: 1}
    assert expected == {bound: count for bound, count in counts.items() if count}
    assert pytest.approx(21.03101) == durations.seconds


# --- The gauges


def test_what_lies_on_the_disk_is_shown(
    make_app: MakeApp, settings: Settings, disk: Disk, tmp_path: Path
) -> None:
    """Segments are counted by their names, open and sealed, with their bytes."""
    disk.free = 12345
    (tmp_path / "1.ndjson").write_bytes(b"x" * 10)
    (tmp_path / "2.ndjson").write_bytes(b"x" * 20)
    (tmp_path / "other").write_bytes(b"x" * 40)
    client = make_app(settings).test_client()
    drain(client, make_batch("a"))
    samples = scrape(client)
    assert (2, 30, 1) == (
        samples["segments sealed"],
        samples["segments_bytes sealed"],
        samples["segments open"],
    )
    assert samples["stored_bytes_total"] == samples["segments_bytes open"]
    assert 12345 == samples["free_disk_bytes"]
    assert 0 <= samples["last_sync_age_seconds"] < 10


def test_before_the_first_sync_it_has_no_age(client: FlaskClient) -> None:
    """Nothing is made up."""
    assert "last_sync_age_seconds" not in client.get("/metrics").text


def test_the_backlog_is_what_waits(client: FlaskClient) -> None:
    """What requests hold counts, until they give it back."""
    with client.application.extensions["astralog"].admit():
        assert 0 < scrape(client)["backlog_bytes"]
    assert "backlog_bytes" not in scrape(client)


def test_sealed_segments_are_counted(make_app: MakeApp, settings: Settings) -> None:
    """A segment that is full is sealed."""
    client = make_app(replace(settings, segment_bytes=1)).test_client()
    for message in "abc":
        drain(client, make_batch(message))
    samples = scrape(client)
    assert (3, 3) == (samples["sealed_segments_total"], samples["segments sealed"])


def test_a_stalled_disk_does_not_hold_up_a_scrape(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk does not tell in time is left out, and comes back with the disk."""
    monkeypatch.setattr(disk_usage, "TIMEOUT_SECONDS", 0.05)
    answering = threading.Event()
    asked: list[Path] = []
    scandir = os.scandir

    def stall(path: Path) -> Any:
        asked.append(path)
        assert answering.wait(10)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stall)
    try:
        for _ in range(3):
            assert "astralog_segments" not in client.get("/metrics").text
        assert 1 == len(asked)
    finally:
        answering.set()
    monkeypatch.setattr(disk_usage, "TIMEOUT_SECONDS", 10)
    assert "astralog_segments" in client.get("/metrics").text


def test_a_failing_disk_does_not_fail_a_scrape(tmp_path: Path) -> None:
    """A directory that cannot be read has no population."""
    assert DiskUsageReader(tmp_path / "missing").take() is None


def test_sealed_segments_are_looked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look at 10,000 segments asks only for the sizes of new ones."""
    for number in range(10):
        (tmp_path / f"{number}.ndjson").write_bytes(b"x")
    population = DiskUsageReader(tmp_path)
    population.count()
    asked: list[str] = []

    def size(entry: os.DirEntry[str]) -> int:
        asked.append(entry.name)
        return 7

    monkeypatch.setattr(disk_usage, "_size", size)
    (tmp_path / "10.ndjson").write_bytes(b"x")
    (tmp_path / "0.ndjson").unlink()
    counted = population.count()
    assert isinstance(counted, DiskUsage)
    assert (["10.ndjson"], 10, 16) == (asked, counted.sealed_segments, counted.sealed_bytes)


# --- Who may look


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", ""])
@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:9", "[::1]", "LOCALHOST"])
def test_this_machine_needs_no_token(peer: str, host: str) -> None:
    """A loopback address, or a unix socket, which has none."""
    assert is_local({"REMOTE_ADDR": peer, "HTTP_HOST": host})


@pytest.mark.parametrize(
    "environ",
    [
        {"REMOTE_ADDR": "10.0.0.1"},
        {"REMOTE_ADDR": "::ffff:10.0.0.1"},
        {"REMOTE_ADDR": "localhost"},
        {"HTTP_X_FORWARDED_FOR": "127.0.0.1"},
        {"HTTP_X_FORWARDED_PROTO": "https"},
        {"HTTP_FORWARDED": "for=127.0.0.1"},
        {"HTTP_X_REAL_IP": "127.0.0.1"},
        {"HTTP_VIA": "1.1 proxy"},
        {"HTTP_HOST": "ingest.example.com"},
        {"HTTP_HOST": "localhost.example.com:8080"},
        {"HTTP_HOST": ":8080"},
    ],
    ids=str,
)
def test_others_need_a_token(client: FlaskClient, environ: dict[str, str]) -> None:
    """Another machine, what a proxy here forwards, and a page that calls this machine its own."""
    for token, status in (("", 401), ("wrong", 401), (TOKEN, 200)):
        overrides = {"REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": token, **environ}
        response = client.get("/metrics", environ_overrides=overrides)
        assert status == response.status_code
        assert ("astralog_" in response.text) == (status == 200)


def test_prometheus_gets_the_format_it_asks_for(client: FlaskClient) -> None:
    """OpenMetrics where it is asked for."""
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = client.get("/metrics", headers={"Accept": accept})
    assert "application/openmetrics-text" == response.mimetype
    assert response.text.endswith("# EOF\n")


# --- The files


def write_counts(path: Path, pid: int, **counts: float) -> None:
    """Write a process's counters, and a gauge, as prometheus_client does."""
    for kind in ("counter", "gauge_max", "gauge_livesum"):
        file = MmapedDict(str(path / f"{kind}_{pid}.db"))
        for name, value in counts.items():
            file.write_value(name, value, 0.0)
        file.close()


def read_counts(path: Path, kind: str, pid: int) -> dict[str, float]:
    file = path / f"{kind}_{pid}.db"
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(file))}


def test_what_dead_workers_counted_is_kept_in_one_place(tmp_path: Path) -> None:
    """Counters are added, times keep the latest, and what they only showed is dropped."""
    write_counts(tmp_path, 11, a=1, b=5)
    write_counts(tmp_path, 12, a=2)
    write_counts(tmp_path, 111, a=8)
    for pid in (11, 12):
        snapshots.merge(tmp_path, pid)
    assert {"a": 3, "b": 5} == read_counts(tmp_path, "counter", snapshots.DEAD)
    assert {"a": 2, "b": 5} == read_counts(tmp_path, "gauge_max", snapshots.DEAD)
    kinds = ["counter_0", "counter_111", "gauge_livesum_111", "gauge_max_0", "gauge_max_111"]
    assert kinds == sorted(file.stem for file in tmp_path.glob("*.db"))


def test_nothing_moves_while_it_is_read(tmp_path: Path) -> None:
    """A scrape sees what a dead worker counted exactly once."""
    write_counts(tmp_path, 11, a=1)
    with snapshots.reading(tmp_path):
        snapshots.merge(tmp_path, 11)
    assert {"a": 1} == read_counts(tmp_path, "counter", 11)
    assert not (tmp_path / "counter_0.db").exists()


def test_a_start_removes_what_a_killed_service_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another service holds, or may be about to hold, stays."""
    names = [f"{snapshots.PREFIX}{name}" for name in ("left", "held", "mine")]
    left, held, mine = (tmp_path / name for name in names)
    left.mkdir()
    (left / "counter_1.db").touch()
    holders = [snapshots.make(held)]
    assert left.exists()
    monkeypatch.setattr(snapshots, "YOUNG_SECONDS", -1)
    holders.append(snapshots.make(mine))
    assert sorted([held, mine]) == sorted(tmp_path.iterdir())
    assert 0o700 == mine.stat().st_mode & 0o777
    for holder in holders:
        os.close(holder)
    snapshots.remove(mine)
    snapshots.remove(mine)
    assert [held] == list(tmp_path.iterdir())
