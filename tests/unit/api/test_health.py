import errno
import json
import platform
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from flask import Flask
from flask.testing import FlaskClient
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from astralog import __version__
from astralog.api.health import is_local
from astralog.app import services_of
from astralog.errors import STATUS_OF_CODE
from astralog.settings import Settings
from astralog.store.commit_queue import CommitQueue
from astralog.store.housekeeper import POLL_SECONDS, Housekeeper
from tests.support.fake_system import BreakOs, Disk
from tests.support.greenlets import wait_until
from tests.support.metrics import Samples, read_samples
from tests.support.service import TOKEN, make_batch, make_log, write_tokens
from tests.unit.store.segments import plain
from tests.unit.store.test_commit_queue import Gate, gate, limit_waits

__all__ = ["gate"]

MakeApp = Callable[[Settings], Flask]


def scrape(client: FlaskClient) -> Samples:
    """Return the value of each series that is not zero, by its name and labels."""
    response = client.get("/metrics")
    assert (200, "text/plain") == (response.status_code, response.mimetype)
    return {name: value for name, value in read_samples(response.text).items() if value}


def drain(client: FlaskClient, body: Any, token: str = TOKEN) -> int:
    """POST a body and return the status; anything but bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/v1/drain", data=data, headers={"Authorization": token}).status_code


def poll_directory(client: FlaskClient) -> None:
    """Run a whole round of the housekeeper, after the one that may be under way."""
    queue = services_of(client.application).queue
    for _ in range(2):
        while queue.keep_house_once() < POLL_SECONDS:
            pass


# --- The counters


def test_a_stored_batch_is_counted(client: FlaskClient, tmp_path: Path) -> None:
    """It counts as received, accepted and stored with its logs and bytes; both waits are timed."""
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


def test_a_batch_stored_in_part_is_counted(client: FlaskClient) -> None:
    """One batch is accepted; its logs are accepted or rejected, and all are received."""
    body = json.dumps({"logs": [make_log(), {}, {}]}).encode()
    answer = client.post("/v1/drain?partial=true", data=body, headers={"Authorization": TOKEN})
    assert 200 == answer.status_code
    samples = scrape(client)
    for unit, accepted, rejected in (("batches", 1, 0), ("logs", 1, 2), ("bytes", len(body), 0)):
        assert accepted == samples[f"accepted_{unit}_total"]
        assert rejected == samples.get(f"rejected_{unit}_total invalid_batch", 0)
        assert accepted + rejected == samples[f"received_{unit}_total"]
    assert 1 == samples["stored_logs_total"]


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
def test_a_rejected_batch_is_counted(
    make_app: MakeApp,
    settings: Settings,
    body: bytes,
    token: str,
    code: str,
    logs: int,
    is_read: bool,
) -> None:
    """It counts as received and, under its code, as rejected, with the bytes that were read."""
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


def test_a_batch_that_the_disk_rejects_is_rejected(client: FlaskClient, break_os: BreakOs) -> None:
    """None of it counts as stored, and its logs count as rejected."""
    break_os("writev", errno.EIO)
    assert 503 == drain(client, make_batch("a", "b"))
    samples = scrape(client)
    assert 2 == samples["rejected_logs_total storage_failed"]
    assert "stored_logs_total" not in samples


def test_internal_error_is_counted(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error counts under `internal`."""

    def fail(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CommitQueue, "commit", fail)
    assert 500 == drain(client, make_batch("a"))
    assert 1 == scrape(client)["rejected_logs_total internal"]


def test_requests_without_a_batch_are_not_counted(client: FlaskClient) -> None:
    """Health checks, scrapes, wrong paths and dry runs are not batches."""
    headers = {"Authorization": TOKEN}
    for body, status in ((make_batch("a"), 200), ({}, 400)):
        dry = client.post("/v1/drain?dry_run=true", json=body, headers=headers)
        assert status == dry.status_code
    for path in ("/health", "/ready", "/metrics", "/v1/other", "/v1/drain"):
        client.get(path)
    assert not any("batches" in name for name in scrape(client))


def test_late_batch_is_counted_as_late(make_app: MakeApp, settings: Settings, gate: Gate) -> None:
    """A batch stored after its `commit_timeout` counts as stored, as late and as rejected."""
    app = make_app(settings)
    client, queue = app.test_client(), services_of(app).queue
    gate.close()
    status = gevent.spawn(drain, client, make_batch("a", "b"))
    wait_until(lambda: gate.groups)
    limit_waits(queue, 0.05)
    assert 503 == status.get(timeout=10)
    gate.open()
    queue.stop(10)
    samples = scrape(client)
    assert (2, 2) == (samples["stored_logs_total"], samples["late_logs_total"])
    assert 2 == samples["rejected_logs_total commit_timeout"]
    assert "accepted_logs_total" not in samples


def test_a_second_scrape_adds_nothing(client: FlaskClient) -> None:
    """A scrape does not change the counters."""
    drain(client, make_batch("a"))
    scrape(client)
    drain(client, make_batch("b"))
    samples = scrape(client)
    assert {2} == {samples[f"{name}_logs_total"] for name in ("received", "accepted", "stored")}
    assert 2 == samples["request_duration_seconds_count"]


# --- The gauges


def test_segments_on_disk_are_counted(
    make_app: MakeApp, settings: Settings, disk: Disk, tmp_path: Path
) -> None:
    """Open and sealed segments are counted, with their bytes."""
    disk.free = 12345
    (tmp_path / plain("1")).write_bytes(b"x" * 10)
    (tmp_path / plain("2")).write_bytes(b"x" * 20)
    (tmp_path / "other").write_bytes(b"x" * 40)
    client = make_app(settings).test_client()
    drain(client, make_batch("a"))
    poll_directory(client)
    samples = scrape(client)
    assert (2, 30, 1) == (
        samples["segments sealed"],
        samples["segments_bytes sealed"],
        samples["segments open"],
    )
    assert samples["stored_bytes_total"] == samples["segments_bytes open"]
    assert (12345, disk.total) == (samples["free_disk_bytes"], samples["total_disk_bytes"])
    assert abs(time.time() - samples["last_sync_timestamp_seconds"]) < 10


def test_before_the_first_sync_there_is_no_sync_time(client: FlaskClient) -> None:
    """The series is absent."""
    assert not any("last_sync" in name for name in read_samples(client.get("/metrics").text))


def test_backlog_is_the_memory_of_requests(client: FlaskClient) -> None:
    """The memory of requests counts until it is released."""
    with closing(services_of(client.application).queue.admit()):
        assert 0 < scrape(client)["backlog_bytes"]
    assert "backlog_bytes" not in scrape(client)


def test_sealed_segments_are_counted(make_app: MakeApp, settings: Settings) -> None:
    """A full segment is sealed and counted."""
    client = make_app(replace(settings, segment_bytes=1)).test_client()
    for message in "abc":
        drain(client, make_batch(message))
    poll_directory(client)
    samples = scrape(client)
    assert (3, 3) == (samples["sealed_segments_total"], samples["segments sealed"])


def test_removed_segments_are_counted(
    make_app: MakeApp, settings: Settings, tmp_path: Path
) -> None:
    """Removed segments and those that retention cannot remove are counted separately."""
    for name in "123":
        (tmp_path / plain(name)).write_bytes(b"x" * 10)
    app = make_app(replace(settings, retain_bytes=10))
    client = app.test_client()
    assert "removed_segments_total" not in scrape(client)
    poll_directory(client)
    assert 2 == scrape(client)["removed_segments_total"]
    assert 1 == scrape(client)["segments sealed"]


def test_hanging_disk_hides_only_its_own_metrics(client: FlaskClient, break_os: BreakOs) -> None:
    """The disk's numbers are left out until the disk responds again."""
    fault = break_os("scandir", errno.EIO)
    poll_directory(client)
    assert "segments sealed" not in read_samples(client.get("/metrics").text)
    assert "received_logs_total" in read_samples(client.get("/metrics").text)
    fault.times = 0
    poll_directory(client)
    assert "segments sealed" in read_samples(client.get("/metrics").text)


def test_only_the_housekeeper_shows_the_disk(
    make_app: MakeApp, settings: Settings, tmp_path: Path
) -> None:
    """Only the process that is the housekeeper knows the files of the data directory."""
    (tmp_path / plain("1")).write_bytes(b"x")
    one = Housekeeper(settings)
    while one.disk_usage is None:
        one.step()
    client = make_app(settings).test_client()
    drain(client, make_batch("a"))
    poll_directory(client)
    samples = read_samples(client.get("/metrics").text)
    assert not {"segments sealed", "free_disk_bytes"} & samples.keys()
    one.close()
    poll_directory(client)
    assert 1 == scrape(client)["segments sealed"]


def test_batches_that_a_failed_sync_may_have_lost_are_counted(
    make_app: MakeApp, settings: Settings, break_os: BreakOs
) -> None:
    """In the mode everysec, these are the batches acknowledged since the last good sync."""
    client = make_app(replace(settings, sync="everysec")).test_client()
    for message in "abc":
        drain(client, make_batch(message))
    break_os("fdatasync", errno.EIO, times=1)
    services_of(client.application).queue.stop(10)
    assert 3 == scrape(client)["possibly_lost_batches_total"]


def test_metrics_show_whether_batches_are_accepted(client: FlaskClient, disk: Disk) -> None:
    """A worker's state is the code of /ready, and the service is not ready then."""
    samples = scrape(client)
    assert (1, 1) == (samples["ready"], samples["workers ready"])
    disk.free = 0
    services_of(client.application).queue.storages[0].maintain()
    assert "storage_full" == client.get("/ready").json["reason"]  # type: ignore[index]
    samples = scrape(client)
    assert 1 == samples["workers storage_full"]
    assert not {"ready", "workers ready"} & samples.keys()


def test_metrics_have_the_versions(client: FlaskClient) -> None:
    """The version is the service's, Python's is that of the running interpreter."""
    text = client.get("/metrics").text
    python = platform.python_version()
    assert f'astralog_build_info{{python="{python}",version="{__version__}"}} 1.0' in text


# --- Who may look


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1", ""])
@pytest.mark.parametrize("host", ["localhost:8080", "127.0.0.1", "[::1]:9", "[::1]", "LOCALHOST"])
def test_loopback_needs_no_token(peer: str, host: str) -> None:
    """A loopback address, or a unix socket, which has no address."""
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
    """Another machine, a request forwarded by a local proxy, and a page with a foreign Host."""
    for token, status in (("", 401), ("wrong", 401), (TOKEN, 200)):
        overrides = {"REMOTE_ADDR": "127.0.0.1", "HTTP_AUTHORIZATION": token, **environ}
        response = client.get("/metrics", environ_overrides=overrides)
        assert status == response.status_code
        assert ("astralog_" in response.text) == (status == 200)


def test_prometheus_gets_the_requested_format(client: FlaskClient) -> None:
    """OpenMetrics has the same values."""
    drain(client, make_batch("a"))
    poll_directory(client)
    accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
    response = client.get("/metrics", headers={"Accept": accept})
    assert "application/openmetrics-text" == response.mimetype
    families = {family.type for family in parse_openmetrics(response.text)}
    assert {"counter", "gauge", "histogram", "info"} == families
    assert response.text.endswith("# EOF\n")
    samples = read_samples(response.text, parse_openmetrics)
    plain = read_samples(client.get("/metrics").text)
    assert plain.keys() == samples.keys()
    assert 1 == plain["accepted_logs_total"] == samples["accepted_logs_total"]


def test_a_bound_token_does_not_open_the_metrics(
    make_app: Callable[[Settings], Flask], settings: Settings, tmp_path: Path
) -> None:
    """The metrics show the whole service; a request from loopback needs no token."""
    path = tmp_path / "tokens"
    write_tokens(path, "bound a\nfree\n")
    settings = replace(settings, tokens="", tokens_file=str(path))
    client = make_app(settings).test_client()
    for token, expected in (("bound", 403), ("free", 200)):
        overrides = {"REMOTE_ADDR": "192.0.2.1", "HTTP_AUTHORIZATION": token}
        answer = client.get("/metrics", environ_overrides=overrides)
        assert expected == answer.status_code
        if expected == 403:
            assert answer.json is not None
            assert "forbidden_scope" == answer.json["code"]
            assert b"astralog_" not in answer.data
    local = client.get("/metrics", headers={"Authorization": "bound"})
    assert 200 == local.status_code
