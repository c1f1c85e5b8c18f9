"""The counters balance across workers, through kills, reloads and upgrades."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)

from tests.support.metrics import Samples, read_samples
from tests.support.processes import open_paths
from tests.support.service import (
    ROOT,
    TOKEN,
    Service,
    make_batch,
    read_answer,
    wait_for,
    wait_for_growth,
)
from tests.support.workers import connect_to, kill_a_worker

#: Limits that the storm runs into.
MAX_BODY_BYTES = 20_000
QUEUE_BYTES = 24_000

UNITS = ("batches", "logs", "bytes")


def scrape(service: Service) -> Samples:
    """Return the value of each series by its name and labels."""
    answer = service.request("GET", "/metrics")
    assert 200 == answer.status
    return read_samples(answer.raw.decode())


def scrape_idle(service: Service) -> Samples:
    """Return the metrics once every worker has published its counters, as it does when asked."""
    for pid in service.worker_pids():
        with connect_to(service, pid) as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert 200 == read_answer(connection).status
    return scrape(service)


def scrape_with(service: Service, name: str, value: float) -> Samples | None:
    """Return the metrics once one has a value; the disk is polled every second."""
    samples = scrape_idle(service)
    return samples if samples.get(name) == value else None


def rejected(samples: Samples, unit: str) -> dict[str, float]:
    """Return the counts of rejections by code, without zeros."""
    start = f"rejected_{unit}_total "
    named = {name.removeprefix(start): n for name, n in samples.items() if name.startswith(start)}
    return {code: number for code, number in named.items() if number}


def check_balance(samples: Samples) -> None:
    """Assert that the counters balance once idle."""
    for unit in UNITS:
        outcomes = samples[f"accepted_{unit}_total"] + sum(rejected(samples, unit).values())
        assert samples[f"received_{unit}_total"] == outcomes
    stored = samples["accepted_logs_total"] + samples["late_logs_total"]
    assert samples["stored_logs_total"] == stored
    assert samples["received_batches_total"] == samples["request_duration_seconds_count"]
    assert samples["accepted_batches_total"] == samples["commit_duration_seconds_count"]
    assert 0 == samples["backlog_bytes"]


class Storm:
    """Clients that send all kinds of batches at once, and count the responses."""

    def __init__(self, service: Service, clients: int = 6) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self.answers: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._send, args=[n]) for n in range(clients)]

    def _send(self, client: int) -> None:
        sends = kinds_of_batches(self._service)
        turn = client
        while not self._is_over.is_set():
            turn += 1
            try:
                answer = sends[turn % len(sends)]()
            except (OSError, HTTPException):  # the worker was killed
                continue
            with self._lock:
                self.answers[answer.body.get("code", "accepted")] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def wait_for(self, answers: int) -> None:
        """Wait until some more requests are answered."""
        wait_for_growth(self.answers.total, answers)


def kinds_of_batches(service: Service) -> list[Callable[[], Any]]:
    """Return a function per kind of batch: accepted ones, and rejected ones."""
    large = make_batch(*["x" * 100] * 70)
    return [
        lambda: service.drain(make_batch("a")),
        lambda: service.drain(make_batch("a", "b", "c")),
        lambda: service.drain(large),
        lambda: service.drain(
            gzip.compress(json.dumps(large).encode()), {"Content-Encoding": "gzip"}
        ),
        lambda: service.drain({"logs": []}),
        lambda: service.drain(b'{"logs": '),
        lambda: service.drain({"logs": [{}, {}]}),
        lambda: service.drain(make_batch("a"), {"Authorization": "wrong"}),
        lambda: service.drain(b"x" * (MAX_BODY_BYTES + 1)),
        lambda: service.drain(iter([b"x" * MAX_BODY_BYTES, b"x"])),
        lambda: service.drain(b"x", {"Content-Encoding": "gzip"}),
        lambda: service.drain(b"x", {"Content-Encoding": "br"}),
    ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """Return a service of two workers with narrow limits."""
    limits = {"max_body_bytes": MAX_BODY_BYTES, "queue_bytes": QUEUE_BYTES}
    with Service(tmp_path, workers=2, **limits) as service:
        yield service


@pytest.fixture(scope="module")
def quiet_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Return a service for tests that only read from it."""
    with Service(tmp_path_factory.mktemp("quiet")) as service:
        yield service


def test_counters_match_clients_and_files(service: Service) -> None:
    """After a storm, every response and every stored line is counted once."""
    codes = {
        *("queue_full", "unauthorized", "invalid_json", "invalid_batch"),
        *("body_too_large", "invalid_encoding", "unsupported_encoding"),
    }
    with Storm(service) as storm:
        storm.wait_for(500)
        wait_for(lambda: storm.answers.keys() >= codes)
    samples = scrape_idle(service)
    check_balance(samples)
    assert storm.answers.pop("accepted") == samples["accepted_batches_total"]
    assert storm.answers == rejected(samples, "batches")
    assert codes == set(storm.answers)
    assert len(service.logs()) == samples["stored_logs_total"]
    assert len(service.content()) == samples["stored_bytes_total"]
    size = len(service.content())
    samples = wait_for(lambda: scrape_with(service, "segments_bytes open", size))
    assert (2, 0) == (samples["segments open"], samples["segments sealed"])
    assert 0 < samples["free_disk_bytes"]
    assert samples["free_disk_bytes"] < samples["total_disk_bytes"]
    assert abs(time.time() - samples["last_sync_timestamp_seconds"]) < 60
    assert (1, 2) == (samples["ready"], samples["workers ready"])


def test_counters_balance_after_kills_and_reloads(service: Service) -> None:
    """Killed workers lose only unpublished counts."""
    with Storm(service) as storm:
        seen = [scrape(service)]
        for end_workers in (kill_a_worker, Service.reload, kill_a_worker, Service.reload):
            storm.wait_for(150)
            end_workers(service)
            storm.wait_for(150)
            seen.append(scrape(service))
    seen.append(scrape_idle(service))
    for before, after in pairwise(seen):
        assert [] == falling(before, after)
    check_balance(seen[-1])
    assert seen[-1]["stored_logs_total"] <= len(service.logs())
    assert seen[-1]["accepted_batches_total"] <= storm.answers["accepted"]
    assert 0.5 * storm.answers["accepted"] < seen[-1]["accepted_batches_total"]


def falling(before: Samples, after: Samples) -> list[str]:
    """Return the counters that have fallen."""
    counters = [name for name in before if re.search(r"_(total|bucket|count|sum)\b", name)]
    return [name for name in counters if after[name] < before[name]]


class Scraper:
    """A client that scrapes again and again, and keeps the results."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._scrape)
        self.seen: list[Samples] = []

    def _scrape(self) -> None:
        while not self._is_over.is_set():
            try:
                self.seen.append(scrape(self._service))
            except (OSError, HTTPException):  # the worker was killed
                continue

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def wait_for(self, scrapes: int) -> None:
        """Wait until some more scrapes are answered."""
        start = len(self.seen)
        wait_for(lambda: len(self.seen) >= start + scrapes)


def is_of_the_disk(name: str) -> bool:
    """Return whether a series is absent until another worker is the housekeeper."""
    return name.startswith(("segments", "free_disk", "total_disk", "idempotency_keys"))


def test_a_scrape_needs_a_token_through_a_proxy(quiet_service: Service) -> None:
    """From this machine it needs none; a proxy forwards requests from anywhere."""
    assert 200 == quiet_service.request("GET", "/metrics").status
    forwarded = {"X-Forwarded-For": "203.0.113.7"}
    assert 401 == quiet_service.request("GET", "/metrics", headers=forwarded).status
    shown = {**forwarded, "Authorization": f"Bearer {TOKEN}"}
    assert 200 == quiet_service.request("GET", "/metrics", headers=shown).status


def test_no_scrape_is_wrong_while_workers_come_and_go(service: Service) -> None:
    """Each scrape has each counter at least as high as the one before, from any worker."""
    changes = (kill_a_worker, Service.reload, add_a_worker, kill_a_worker, remove_a_worker)
    with Storm(service, clients=3) as storm, Scraper(service) as scraper:
        for change in changes:
            storm.wait_for(50)
            scraper.wait_for(20)
            change(service)
        storm.wait_for(50)
        scraper.wait_for(20)
    assert 100 < len(scraper.seen)
    for before, after in pairwise(scraper.seen):
        assert [] == falling(before, after)
        assert {name for name in before if not is_of_the_disk(name)} <= after.keys()


def test_counts_survive_reloads_and_resizes(service: Service) -> None:
    """Counts of ended workers stay, and each number is there once."""
    sent = 0
    for change in (Service.reload, add_a_worker, remove_a_worker, Service.reload):
        for _ in range(5):
            assert 200 == service.drain(make_batch("a")).status
            sent += 1
        change(service)
        samples = wait_for(lambda: scrape_with(service, "workers ready", service.workers))
        assert sent == samples["stored_logs_total"] == samples["accepted_logs_total"]
        assert 1 == samples["ready"]
        check_balance(samples)


def add_a_worker(service: Service) -> None:
    """Add a worker, and wait for its start."""
    service.workers += 1
    service.signal(signal.SIGTTIN)
    service.wait_for_workers()


def remove_a_worker(service: Service) -> None:
    """Remove a worker, and wait for its end."""
    service.workers -= 1
    service.signal(signal.SIGTTOU)
    service.wait_for_workers()


def test_counts_survive_an_upgrade(service: Service) -> None:
    """Two masters show the same numbers, and the second one continues alone."""
    assert 200 == service.drain(make_batch("a", "b")).status
    service.signal(signal.SIGUSR2)
    wait_for(lambda: 2 == service.log().count("listening on"))
    wait_for(lambda: 4 == scrape(service)["workers ready"])
    for _ in range(10):
        assert 200 == service.drain(make_batch("c")).status
    wait_for(lambda: 12 == scrape(service)["stored_logs_total"])
    seen = [scrape(service) for _ in range(10)]
    assert [12] * 10 == [samples["stored_logs_total"] for samples in seen]
    assert 0 == service.stop()
    wait_for(lambda: 2 == scrape(service)["workers ready"])
    samples = scrape(service)
    assert 12 == samples["stored_logs_total"]
    check_balance(samples)
    assert 12 == len(service.logs())


def test_no_metrics_are_left_by_a_stop(tmp_path: Path) -> None:
    """A service that starts again counts from zero, and leaves no file."""
    for _ in range(2):
        with Service(tmp_path) as service:
            assert 200 == service.drain(make_batch("a")).status
            assert 1 == scrape(service)["stored_logs_total"]
            links = [link for pid in service.pids() for link in open_paths(pid)]
            assert any("astralog-metrics" in link for link in links)
            places = ("/dev/shm/", str(tmp_path))
            found = {link for link in links if link.startswith(places)}
            expected = {str(tmp_path / "stderr.log"), *map(str, service.files("*.open"))}
            assert expected == found - {str(service.data_dir)}  # which is locked
            assert 0 == service.stop()


def test_prometheus_finds_nothing_to_improve(quiet_service: Service) -> None:
    """Names, units, types and help texts pass Prometheus' own linter."""
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("NOT TESTED: names of metrics; promtool (Debian's prometheus) is not installed")
    quiet_service.drain(make_batch("a"))
    text = quiet_service.request("GET", "/metrics").raw
    assert (0, "") == lint(promtool, text)
    status, found = lint(promtool, text.replace(b"astralog_late_logs_total", b"astralog_lateLogs"))
    assert status
    assert "astralog_lateLogs" in found


def lint(promtool: str, text: bytes) -> tuple[int, str]:
    """Return the exit status of Prometheus' linter, and its findings."""
    command = [promtool, "check", "metrics"]
    result = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return result.returncode, result.stdout.decode()


def test_openmetrics_has_the_same_numbers(service: Service) -> None:
    """A client that accepts OpenMetrics gets a text that its parser accepts."""
    service.drain(make_batch("a"))
    scrape_idle(service)
    # Each worker looks at the disk on its own: both have seen its line before the comparison.
    size = len(service.content())
    wait_for(lambda: all(size == scrape(service)["segments_bytes open"] for _ in range(10)))
    plain = scrape_idle(service)
    headers = {"Accept": "application/openmetrics-text;version=1.0.0"}
    text = service.request("GET", "/metrics", headers=headers).raw.decode()
    samples = read_samples(text, parse_openmetrics)
    assert plain.keys() == samples.keys()
    assert {k: v for k, v in plain.items() if not k.startswith("free_disk")} == {
        k: v for k, v in samples.items() if not k.startswith("free_disk")
    }


def test_every_metric_is_in_the_documents(tmp_path: Path) -> None:
    """The table has exactly the metrics, with their types."""
    with Service(tmp_path, compress="zstd") as service:
        service.drain(make_batch("a"))
        wait_for(lambda: "segments open" in scrape(service))
        answer = service.request("GET", "/metrics").raw.decode()
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", answer, re.MULTILINE))
    rows = re.findall(
        r"^\| `(astralog_\w+)`[^|]*\| (\w+) \|", (ROOT / "docs" / "operations.md").read_text(), re.M
    )
    assert kinds == dict(rows)
